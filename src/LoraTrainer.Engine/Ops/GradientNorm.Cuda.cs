using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class GradientNorm
{
    private const uint PartialThreads = 512;

    private static void ComputeCuda(CudaDevice cuda, Tensor norm, Tensor partialSums, Tensor gradients)
    {
        cuda.Launch(CudaKernels.SumOfSquares, LaunchShape.Blocks(partialSums.ElementCount, PartialThreads), partialSums, gradients, gradients.ElementCount);
        cuda.Launch(CudaKernels.NormOfPartials, LaunchShape.OneBlock, norm, partialSums, (int)partialSums.ElementCount);
    }
}
