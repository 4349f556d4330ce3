using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class LossSum
{
    private static void AccumulateCuda(CudaDevice cuda, Tensor total, Tensor losses) =>
        cuda.Launch(CudaKernels.SumLosses, LaunchShape.OneBlock, total, losses, (int)losses.ElementCount);
}
