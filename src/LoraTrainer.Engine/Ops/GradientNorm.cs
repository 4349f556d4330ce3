using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>The L2 norm over all gradients, as torch.nn.utils.clip_grad_norm_ computes it, accumulated in double in a fixed order.</summary>
public static partial class GradientNorm
{
    /// <summary>Elements whose squares one partial sum holds; part of the definition of the result's last bits.</summary>
    private const int BlockElements = 1 << 15;

    /// <param name="gradients">(P) f32; its padding must be zero.</param>
    /// <returns>The norm; NaN or infinity if any gradient is.</returns>
    public static double Compute(Tensor gradients)
    {
        const string op = "GradientNorm.Compute";
        Contract.Expect(op, gradients, DType.F32, gradients.ElementCount);
        Device device = gradients.Device;
        using ArenaFrame frame = device.Arena.Frame();
        long blocks = (gradients.ElementCount + BlockElements - 1) / BlockElements;
        Tensor partialSums = device.Arena.Allocate(MemoryKind.Workspace, DType.I64, new Shape(blocks));
        switch (device)
        {
            case CpuDevice cpu:
                return ComputeCpu(cpu, partialSums, gradients);
            case MeasureDevice measure:
                measure.Count(2.0 * gradients.ElementCount);
                return 0;
            default:
                Contract.ThrowNoKernel(op, device);
                return 0;
        }
    }

    /// <summary>What gradients are multiplied with so that their norm is at most <paramref name="maximum"/>: min(1, maximum / (norm + 1e-6)).</summary>
    /// <param name="norm">Of all gradients.</param>
    /// <param name="maximum">0 or less: no clipping.</param>
    public static float ClipCoefficient(double norm, double maximum) => maximum <= 0 ? 1 : (float)Math.Min(1, maximum / (norm + 1e-6));
}
