using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class LossSum
{
    private static void AccumulateCuda(CudaDevice cuda, Tensor total, Tensor losses) =>
        cuda.Launch(CudaKernels.SumLosses, 1, CudaGrid.Block, [total.Address, losses.Address, (int)losses.ElementCount]);
}
