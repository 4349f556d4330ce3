using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Dora
{
    private const int NormRows = 8;
    private const int ScaleRows = 16;
    private const uint Threads = 256;

    /// <summary>A matrix that is expanded in parts has its norms made in parts.</summary>
    private static void NormsCuda(CudaDevice cuda, Tensor norms, Tensor expanded, WeightMatrix weight, Tensor a, Tensor b, float scaling)
    {
        if (weight is not Int8Matrix bytes)
        {
            NormsCuda(cuda, norms, Linear.Multiplied(cuda, expanded, weight), a, b, scaling);
            return;
        }

        for (long first = 0; first < bytes.Out; first += expanded.Shape[0])
        {
            long count = Math.Min(expanded.Shape[0], bytes.Out - first);
            Tensor values = Linear.Multiplied(cuda, expanded.Rows(0, count), bytes.Rows(first, count));
            NormsCuda(cuda, norms.Slice(first, new Shape(count)), values, a, b.IsNone ? b : b.Rows(first, count), scaling);
        }
    }

    private static void NormsCuda(CudaDevice cuda, Tensor norms, Tensor weight, Tensor a, Tensor b, float scaling)
    {
        (int rows, int width, int rank) = ((int)weight.Shape[0], (int)weight.Shape[1], a.IsNone ? 0 : (int)a.Shape[0]);
        LaunchShape shape = LaunchShape.Blocks(LaunchShape.Ceiling(rows, NormRows), Threads) with { SharedBytes = (uint)(rank * NormRows * sizeof(float)) };
        cuda.Launch(CudaKernels.DoraNorms, shape, norms, weight, a, b, scaling, rank, rows, width);
    }

    private static void ScaleCuda(CudaDevice cuda, Tensor output, Tensor input, Tensor magnitude, Tensor norms, float shift, GradientMode mode)
    {
        (int rows, int width) = ((int)output.Shape[0], (int)output.Shape[1]);
        long threads = Math.Min(Threads, 32 * LaunchShape.Ceiling(width, 256));
        var shape = new LaunchShape((uint)LaunchShape.Ceiling(width, 8 * threads), (uint)LaunchShape.Ceiling(rows, ScaleRows), 1, (uint)threads, 0);
        cuda.Launch(CudaKernels.DoraScale, shape, output, input, magnitude, norms, shift, rows, width, mode == GradientMode.Accumulate ? 1 : 0);
    }

    private static void MagnitudeGradientCuda(CudaDevice cuda, Tensor dMagnitude, Tensor dOutput, Tensor product, Tensor norms)
    {
        (int rows, int width) = ((int)dOutput.Shape[0], (int)dOutput.Shape[1]);
        cuda.Launch(CudaKernels.DoraMagnitudeGradient, LaunchShape.PerColumns(width), dMagnitude, dOutput, product, norms, rows, width);
    }
}
