using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>The L2 norm over all gradients, as torch.nn.utils.clip_grad_norm_ computes it, accumulated in double in a fixed order.</summary>
public static partial class GradientNorm
{
    /// <summary>Elements whose squares one partial sum holds; part of the definition of the result's last bits.</summary>
    private const int BlockElements = 1 << 15;

    /// <param name="norm">(1) f64; overwritten; NaN or infinity if any gradient is.</param>
    /// <param name="gradients">(P) f32; its padding must be zero.</param>
    public static void Compute(Tensor norm, Tensor gradients)
    {
        const string op = "GradientNorm.Compute";
        Contract.Expect(op, norm, DType.F64, 1);
        Contract.Expect(op, gradients, DType.F32, gradients.ElementCount);
        Contract.ExpectSameDevice(op, norm, gradients);
        Device device = gradients.Device;
        using ArenaFrame frame = device.Arena.Frame();
        long blocks = (gradients.ElementCount + BlockElements - 1) / BlockElements;
        Tensor partialSums = device.Arena.Allocate(MemoryKind.Workspace, DType.F64, new Shape(blocks));
        switch (device)
        {
            case CpuDevice cpu:
                ComputeCpu(cpu, norm, partialSums, gradients);
                break;
            case CudaDevice cuda:
                ComputeCuda(cuda, norm, partialSums, gradients);
                break;
            case MeasureDevice measure:
                measure.Count(2.0 * gradients.ElementCount, gradients);
                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }
    }

    /// <summary>The norm as a number on the host: waits for the device.</summary>
    /// <param name="gradients">(P) f32; its padding must be zero.</param>
    public static double Compute(Tensor gradients)
    {
        Device device = gradients.Device;
        using ArenaFrame frame = device.Arena.Frame();
        Tensor norm = device.Arena.Allocate(MemoryKind.Workspace, DType.F64, new Shape(1));
        Compute(norm, gradients);
        double value = 0;
        device.Download(norm, MemoryMarshal.AsBytes(new Span<double>(ref value)));
        return value;
    }

    /// <summary>What gradients are multiplied with so that their norm is at most <paramref name="maximum"/>: min(1, maximum / (norm + 1e-6)).</summary>
    /// <param name="norm">Of all gradients.</param>
    /// <param name="maximum">0 or less: no clipping.</param>
    public static float ClipCoefficient(double norm, double maximum) => maximum <= 0 ? 1 : (float)Math.Min(1, maximum / (norm + 1e-6));
}
