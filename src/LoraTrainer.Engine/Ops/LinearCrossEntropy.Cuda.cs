using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class LinearCrossEntropy
{
    private static void SoftmaxCrossEntropyCuda(CudaDevice cuda, Tensor losses, Tensor dLogits, Tensor logits, Tensor targets, Tensor rows, float gradientScale) =>
        cuda.Launch(
            CudaKernels.SoftmaxCrossEntropy, (uint)rows.ElementCount, 1024,
            [losses.Address, dLogits.Address, logits.Address, targets.Address, rows.Address, (int)logits.Shape[1], gradientScale]);
}
