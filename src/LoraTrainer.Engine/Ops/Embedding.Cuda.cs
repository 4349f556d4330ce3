using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Embedding
{
    // Columns that a block of the backward pass has.
    private const int BackwardColumns = 2048;
    private const uint BackwardThreads = 256;

    private static void ForwardCuda(CudaDevice cuda, Tensor output, Tensor tokens, Tensor table, float scale)
    {
        (int rows, int width) = ((int)output.Shape[0], (int)output.Shape[1]);
        cuda.Launch(CudaKernels.EmbeddingForward, LaunchShape.PerRow(rows, width), output, tokens, table, rows, width, scale);
    }

    private static void BackwardCuda(CudaDevice cuda, Tensor dTable, Tensor dOutput, Tensor tokens, int paddingToken, float scale)
    {
        (int rows, int width) = ((int)dOutput.Shape[0], (int)dOutput.Shape[1]);
        var shape = new LaunchShape((uint)rows, (uint)LaunchShape.Ceiling(width, BackwardColumns), 1, BackwardThreads, 0);
        cuda.Launch(CudaKernels.EmbeddingBackward, shape, dTable, dOutput, tokens, rows, width, paddingToken, scale);
    }
}
