using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class GradientNorm
{
    private static void ComputeCuda(CudaDevice cuda, Tensor norm, Tensor partialSums, Tensor gradients)
    {
        cuda.Launch(CudaKernels.SumOfSquares, (uint)partialSums.ElementCount, CudaGrid.Block, [partialSums.Address, gradients.Address, gradients.ElementCount]);
        cuda.Launch(CudaKernels.NormOfPartials, 1, CudaGrid.Block, [norm.Address, partialSums.Address, (int)partialSums.ElementCount]);
    }
}
