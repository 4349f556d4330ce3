using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Attention
{
    private const uint DeltaThreads = 256;
    private const int DeltaRows = 32;

    private static int ScoresOf(in AttentionHeads heads) => heads.Softcap > 0 ? CudaKernels.CappedScores : heads.Window > 0 ? CudaKernels.ScoresInAWindow : CudaKernels.PlainScores;

    // A window that nothing is outside of stands for none.
    private static int WindowOf(in AttentionHeads heads) => heads.Window > 0 ? heads.Window : int.MaxValue;

    // lse and positions may be none: generation with a cache.
    private static void ForwardCuda(CudaDevice cuda, Tensor output, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor positions, in AttentionHeads heads)
    {
        var arguments = new AttentionArguments
        {
            Output = output.Address,
            Lse = lse.Address,
            Q = q.Address,
            K = k.Address,
            V = v.Address,
            Positions = positions.Address,
            Queries = (int)q.Shape[0],
            Keys = (int)k.Shape[0],
            QueryHeads = heads.Query,
            KeyHeads = heads.KeyValue,
            HeadDim = heads.Dim,
            Scale = heads.Scale,
            Window = WindowOf(heads),
            Softcap = heads.Softcap,
        };
        cuda.Launch(CudaKernels.AttentionForward.With(heads.Dim, ScoresOf(heads)), CudaAttentionTiles.Forward(heads.Dim).Launch(heads.Query, arguments.Queries), KernelArgument.Struct(&arguments));
    }

    private static void BackwardCuda(
        CudaDevice cuda, Tensor delta, Tensor dQ, Tensor dK, Tensor dV, Tensor dOutput, Tensor output, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor positions, in AttentionHeads heads)
    {
        var arguments = new AttentionGradients
        {
            DQ = dQ.Address,
            DK = dK.Address,
            DV = dV.Address,
            DOutput = dOutput.Address,
            Output = output.Address,
            Lse = lse.Address,
            Delta = delta.Address,
            Q = q.Address,
            K = k.Address,
            V = v.Address,
            Positions = positions.Address,
            Tokens = (int)q.Shape[0],
            QueryHeads = heads.Query,
            KeyHeads = heads.KeyValue,
            HeadDim = heads.Dim,
            Scale = heads.Scale,
            Window = WindowOf(heads),
            Softcap = heads.Softcap,
        };
        int tokens = arguments.Tokens;
        var perRow = new LaunchShape((uint)heads.Query, (uint)LaunchShape.Ceiling(tokens, DeltaRows), 1, DeltaThreads, 0);
        cuda.Launch(CudaKernels.AttentionDelta.With(heads.Dim, ScoresOf(heads)), perRow, KernelArgument.Struct(&arguments));
        cuda.Launch(CudaKernels.AttentionBackwardKeys.With(heads.Dim, ScoresOf(heads)), CudaAttentionTiles.BackwardKeys(heads.Dim).Launch(heads.KeyValue, tokens), KernelArgument.Struct(&arguments));
        cuda.Launch(CudaKernels.AttentionBackwardQueries.With(heads.Dim, ScoresOf(heads)), CudaAttentionTiles.BackwardQueries(heads.Dim).Launch(heads.Query, tokens), KernelArgument.Struct(&arguments));
    }
}

/// <summary>
/// How an attention kernel cuts its work: the constants of kernels/attention.cu, which depend on the head dim that it is compiled for. A test
/// compares them with the source.
/// </summary>
/// <param name="Rows">Rows that a block owns.</param>
/// <param name="Threads">Threads of a block.</param>
/// <param name="SharedBytes">Dynamic shared memory of a block.</param>
internal readonly record struct CudaAttentionTiles(int Rows, int Threads, int SharedBytes)
{
    public static CudaAttentionTiles Forward(int headDim)
    {
        int dim = Compiled(headDim);
        int rows = dim <= 128 ? 128 : 64;
        int tile = dim <= 192 ? 64 : 32;
        return new CudaAttentionTiles(rows, 128, RowBytes(dim) * (rows + 2 * tile));
    }

    public static CudaAttentionTiles BackwardKeys(int headDim)
    {
        int dim = Compiled(headDim);
        const int rows = 64;
        int tile = dim <= 128 ? 64 : 16;
        int keptRows = dim is > 64 and <= 128 ? rows : 2 * rows;
        return new CudaAttentionTiles(rows, dim <= 64 ? 128 : 256, RowBytes(dim) * (keptRows + 4 * tile) + 16 * tile);
    }

    public static CudaAttentionTiles BackwardQueries(int headDim)
    {
        int dim = Compiled(headDim);
        int rows = dim <= 128 ? 128 : 64;
        int tile = dim <= 128 ? 64 : dim <= 192 ? 32 : 16;
        return new CudaAttentionTiles(rows, dim is > 64 and <= 128 ? 256 : 128, RowBytes(dim) * ((dim <= 128 ? 0 : 2) * rows + 4 * tile));
    }

    /// <summary>A block for each head and each so many rows.</summary>
    public LaunchShape Launch(int heads, int rows) => new((uint)heads, (uint)LaunchShape.Ceiling(rows, Rows), 1, (uint)Threads, (uint)SharedBytes);

    private static int Compiled(int headDim) => (headDim + CudaKernels.HeadDimStep - 1) / CudaKernels.HeadDimStep * CudaKernels.HeadDimStep;

    /// <summary>Of a tile in shared memory: long rows of whole 128-byte lines are swizzled, others padded by 16 bytes.</summary>
    private static int RowBytes(int dim) => 2 * (dim + (dim % 64 == 0 && dim > 128 ? 0 : 8));
}
