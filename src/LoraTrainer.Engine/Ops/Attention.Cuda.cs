using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Attention
{
    private static void ForwardCuda(CudaDevice cuda, Tensor output, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor positions, in AttentionHeads heads) => throw new NotSupportedException();

    private static void BackwardCuda(CudaDevice cuda, Tensor delta, Tensor dQ, Tensor dK, Tensor dV, Tensor dOutput, Tensor output, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor positions, in AttentionHeads heads) => throw new NotSupportedException();
}
