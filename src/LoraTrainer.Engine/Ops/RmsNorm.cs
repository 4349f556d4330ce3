using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// y = x * rstd * g with rstd = 1/sqrt(mean(x^2) + eps) over the last axis and the gain g = offset + w: the stored weight itself, or, in HF
/// Gemma2RMSNorm, the weight and one. The normalized value is formed first, then multiplied by the gain. Cached for backward: rstd only (N floats,
/// against N*D for the output).
/// </summary>
public static partial class RmsNorm
{
    /// <param name="output">(N, D) activations; overwritten. May not alias input.</param>
    /// <param name="rstd">(N) f32; overwritten.</param>
    /// <param name="input">(N, D) activations</param>
    /// <param name="weight">(D) f32</param>
    /// <param name="eps">Added to the mean of the squares.</param>
    /// <param name="gainOffset">Added to the weight.</param>
    /// <exception cref="ShapeMismatchException">A shape, type or device is wrong.</exception>
    public static void Forward(Tensor output, Tensor rstd, Tensor input, Tensor weight, float eps, float gainOffset = 0)
    {
        const string op = "RmsNorm.Forward";
        (long n, long d) = Contract.ExpectActivations(op, input);
        Contract.Expect(op, output, input.DType, n, d);
        Contract.Expect(op, rstd, DType.F32, n);
        Contract.Expect(op, weight, DType.F32, d);
        Contract.ExpectNoAlias(op, output, input);
        Contract.ExpectSameDevice(op, input, output, rstd, weight);
        using ArenaFrame frame = input.Device.Arena.Frame();
        Tensor gain = Gain(weight, gainOffset);
        switch (input.Device)
        {
            case CpuDevice cpu:
                ForwardCpu(cpu, output, rstd, input, gain, eps);
                cpu.RoundActivations(output);
                break;
            case CudaDevice cuda:
                ForwardCuda(cuda, output, rstd, input, gain, eps);
                break;
            case MeasureDevice measure:
                measure.Count(4.0 * n * d, output, input);
                break;
            default:
                Contract.ThrowNoKernel(op, input.Device);
                break;
        }
    }

    /// <summary>
    /// dInput as <paramref name="mode"/> says; dWeight ACCUMULATES (<see cref="Tensor.None"/> when frozen).
    /// With xh = x*rstd and m = dy*g:  dx = rstd * (m - xh * mean(m*xh));  dw += sum over rows of dy*xh.
    /// </summary>
    /// <param name="dInput">(N, D) activations; may alias dOutput.</param>
    /// <param name="dWeight">(D) f32 or none.</param>
    /// <param name="dOutput">(N, D) activations</param>
    /// <param name="input">(N, D) activations, as given to the forward pass.</param>
    /// <param name="weight">(D) f32</param>
    /// <param name="rstd">(N) f32, from the forward pass.</param>
    /// <param name="mode">Overwrite, or add to a residual stream's gradient.</param>
    /// <param name="gainOffset">As in the forward pass.</param>
    public static void Backward(Tensor dInput, Tensor dWeight, Tensor dOutput, Tensor input, Tensor weight, Tensor rstd, GradientMode mode, float gainOffset = 0)
    {
        const string op = "RmsNorm.Backward";
        (long n, long d) = Contract.ExpectActivations(op, input);
        Contract.Expect(op, dInput, input.DType, n, d);
        Contract.Expect(op, dOutput, input.DType, n, d);
        Contract.Expect(op, rstd, DType.F32, n);
        Contract.Expect(op, weight, DType.F32, d);
        if (!dWeight.IsNone)
        {
            Contract.Expect(op, dWeight, DType.F32, d);
        }

        Contract.ExpectSameDevice(op, input, dInput, dWeight, dOutput, weight, rstd);
        using ArenaFrame frame = input.Device.Arena.Frame();
        Tensor gain = Gain(weight, gainOffset);
        switch (input.Device)
        {
            case CpuDevice cpu:
                // The weight's gradient first: dInput may take the place of dOutput.
                if (!dWeight.IsNone)
                {
                    WeightGradientCpu(cpu, dWeight, dOutput, input, rstd);
                }

                BackwardCpu(cpu, dInput, dOutput, input, gain, rstd, mode);
                cpu.RoundActivations(dInput);
                break;
            case CudaDevice cuda:
                BackwardCuda(cuda, dInput, dWeight, dOutput, input, gain, rstd, mode);
                break;
            case MeasureDevice measure:
                measure.Count((dWeight.IsNone ? 7.0 : 10.0) * n * d, dInput, dOutput, input);
                break;
            default:
                Contract.ThrowNoKernel(op, input.Device);
                break;
        }
    }

    /// <summary>The weight itself, or its sum with the offset in the current frame: kernels know one vector, and their loops do not grow.</summary>
    private static Tensor Gain(Tensor weight, float offset)
    {
        if (offset == 0)
        {
            return weight;
        }

        Tensor gain = weight.Device.Arena.Allocate(MemoryKind.Workspace, DType.F32, weight.Shape);
        switch (weight.Device)
        {
            case CpuDevice:
                OffsetCpu(gain, weight, offset);
                break;
            case CudaDevice cuda:
                cuda.Launch(CudaKernels.RmsNormGain, LaunchShape.EightEach(weight.ElementCount), gain, weight, offset, weight.ElementCount);
                break;
        }

        return gain;
    }
}
