using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class LinearCrossEntropy
{
    private static void SoftmaxCrossEntropyCuda(CudaDevice cuda, Tensor losses, Tensor dLogits, Tensor logits, Tensor targets, Tensor rows, float gradientScale) =>
        cuda.Launch(CudaKernels.SoftmaxCrossEntropy, LaunchShape.PerRow(rows.ElementCount, logits.Shape[1]), losses, dLogits, logits, targets, rows, (int)logits.Shape[1], gradientScale);
}
