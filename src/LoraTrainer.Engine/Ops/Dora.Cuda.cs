using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Dora
{
    private const int NormRows = 8;
    private const int ScaleRows = 16;
    private const uint Threads = 256;

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
