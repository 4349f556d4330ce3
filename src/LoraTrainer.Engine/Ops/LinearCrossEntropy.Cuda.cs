using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class LinearCrossEntropy
{
    /// <summary>Static shared memory of the kernel: two arrays in which a block's warps meet.</summary>
    private const int KernelSharedBytes = 256;

    /// <summary>
    /// How a GPU computes the losses of so many rows: a block for each, which keeps as much of its row as fits into the shared memory of a block, in
    /// pieces of four numbers a thread.
    /// </summary>
    /// <param name="rows">Rows of logits.</param>
    /// <param name="vocabulary">V</param>
    /// <param name="sharedBytesPerBlock">What the card gives a block.</param>
    /// <returns>The launch, and the pieces of a row that are kept; none where V is not a multiple of 4.</returns>
    internal static (LaunchShape Shape, int KeptPieces) CudaLaunch(long rows, long vocabulary, int sharedBytesPerBlock)
    {
        LaunchShape shape = LaunchShape.PerRow(rows, vocabulary);
        long pieceBytes = 4 * sizeof(float) * shape.Threads, pieces = LaunchShape.Ceiling(vocabulary, 4 * shape.Threads);
        long kept = vocabulary % 4 == 0 ? Math.Min(pieces, Math.Max(0, sharedBytesPerBlock - KernelSharedBytes) / pieceBytes) : 0;
        return (shape with { SharedBytes = (uint)(kept * pieceBytes) }, (int)kept);
    }

    private static void SoftmaxCrossEntropyCuda(CudaDevice cuda, Tensor losses, Tensor dLogits, Tensor logits, Tensor targets, Tensor rows, float gradientScale, Tensor numbers)
    {
        // Without a gradient nothing is read twice.
        int vocabulary = (int)logits.Shape[1];
        (LaunchShape shape, int kept) = CudaLaunch(rows.ElementCount, vocabulary, dLogits.IsNone ? 0 : cuda.Info.SharedBytesPerBlock);
        cuda.Launch(CudaKernels.SoftmaxCrossEntropy, shape, losses, dLogits, logits, targets, rows, vocabulary, kept, gradientScale, numbers);
    }
}
