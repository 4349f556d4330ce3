using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Embedding
{
    private static void ForwardCuda(CudaDevice cuda, Tensor output, Tensor tokens, Tensor table)
    {
        Contract.Expect("Embedding.Forward", table, output.DType, table.Shape[0], table.Shape[1]);
        cuda.Launch(CudaKernels.EmbeddingForward, (uint)output.Shape[0], CudaGrid.Block, [output.Address, tokens.Address, table.Address, (int)output.Shape[0], (int)output.Shape[1]]);
    }

    private static void BackwardCuda(CudaDevice cuda, Tensor dTable, Tensor dOutput, Tensor tokens, int paddingToken) =>
        cuda.Launch(
            CudaKernels.EmbeddingBackward, (uint)dOutput.Shape[0], CudaGrid.Block,
            [dTable.Address, dOutput.Address, tokens.Address, (int)dOutput.Shape[0], (int)dOutput.Shape[1], paddingToken]);
}
