using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// The products of one row with several matrices, y = x W^T: what generating a text consists of once its prompt has been read. On the CPU every weight is
/// read once, as it is stored, by all threads at the rate of the memory. There the sums have an order of their own, which depends on neither threads nor
/// instruction set: 16 lanes, each a chain of fused multiply-adds over 32-bit words of the stored row (word w belongs to lane w mod 16), added in pairs of
/// lanes 8, 4, 2 and 1 apart. A row of bytes is multiplied by its scale at the end, four-bit codes when 16 words are through: the lane's chain of 8 codes, lowest
/// bits first, times the scale of their block, is added to the lane's sum with one rounding. Where half of such a chunk is left, its chains are multiplied and
/// added with two, in odd rows to the upper lanes. Rows of codes that do not begin with a block are made f32 first, and are summed as
/// such. Training does not use it: there an element's bits may not depend on how many rows stand beside it (<see cref="Linear"/>).
/// </summary>
public static partial class Gemv
{
    /// <summary>Matrices that one call takes at most: q, k and v.</summary>
    public const int MostMatrices = 3;

    /// <summary>outputs[i] = alpha * input weights[i]^T, overwritten or added to as <paramref name="mode"/> says.</summary>
    /// <param name="outputs">(1, Out) activations, or f32 (logits)</param>
    /// <param name="input">(1, In) activations</param>
    /// <param name="weights">(Out, In); as many as outputs, at most <see cref="MostMatrices"/></param>
    /// <param name="mode">Overwrite, or add to what is there.</param>
    /// <param name="alpha">Multiplies the input.</param>
    public static void Forward(ReadOnlySpan<Tensor> outputs, Tensor input, ReadOnlySpan<WeightMatrix> weights, GradientMode mode = GradientMode.Overwrite, float alpha = 1)
    {
        const string op = "Gemv.Forward";
        ArgumentOutOfRangeException.ThrowIfNotEqual(outputs.Length, weights.Length);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(weights.Length, MostMatrices);
        (long _, long width) = Contract.ExpectActivations(op, input);
        Contract.Expect(op, input, input.DType, 1, width);
        for (int i = 0; i < outputs.Length; i++)
        {
            Tensor output = outputs[i];
            Contract.Expect(op, input, input.DType, 1, weights[i].In);
            Contract.Expect(op, output, output.DType == DType.F32 ? DType.F32 : input.DType, 1, weights[i].Out);
            Contract.ExpectNoAlias(op, output, input);
            Contract.ExpectSameDevice(op, output, input);
        }

        Device device = input.Device;
        if (device.Platform != DevicePlatform.Cpu || device.ComputesInBF16)
        {
            // A GPU's library has a kernel for one row, and what rounds as a GPU does is held against that.
            for (int i = 0; i < outputs.Length; i++)
            {
                Linear.Forward(outputs[i], input, weights[i], mode, alpha);
            }

            return;
        }

        using ArenaFrame frame = device.Arena.Frame();
        Tensor workspace = device.Arena.Allocate(MemoryKind.Workspace, DType.F32, new Shape(WorkspaceFloats((int)width, device.ThreadCount, weights)));
        switch (device)
        {
            case CpuDevice cpu:
                ForwardCpu(cpu, workspace, outputs, input, weights, mode, alpha);
                break;
            case MeasureDevice measure:
                for (int i = 0; i < outputs.Length; i++)
                {
                    measure.Count(WorkKind.Product, 2.0 * width * weights[i].Out, outputs[i].SizeBytes + input.SizeBytes + weights[i].SizeBytes);
                }

                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }
    }
}
