namespace LoraTrainer.Engine.Devices;

/// <summary>
/// How many blocks of how many threads a kernel is launched with. The named shapes are the ones that kernels/*.cu ask for in the line "Launch:"
/// above each kernel.
/// </summary>
/// <param name="X">Blocks along x.</param>
/// <param name="Y">Blocks along y.</param>
/// <param name="Z">Blocks along z.</param>
/// <param name="Threads">Threads in a block.</param>
/// <param name="SharedBytes">Dynamic shared memory of a block.</param>
internal readonly record struct LaunchShape(uint X, uint Y, uint Z, uint Threads, uint SharedBytes)
{
    private const uint ElementwiseThreads = 256;
    private const uint LargestBlock = 1024;

    /// <summary>A row of blocks without dynamic shared memory.</summary>
    public static LaunchShape Blocks(long blocks, uint threads) => new(checked((uint)blocks), 1, 1, threads, 0);

    /// <summary>Elementwise: a thread has eight elements.</summary>
    public static LaunchShape EightEach(long elements) => Blocks(Ceiling(elements, 8 * ElementwiseThreads), ElementwiseThreads);

    /// <summary>A block for each row, a warp for each 512 elements of it.</summary>
    public static LaunchShape PerRow(long rows, long width) => Blocks(rows, (uint)Math.Min(LargestBlock, 32 * Ceiling(width, 512)));

    /// <summary>Sums over rows: a block for each 32 columns.</summary>
    public static LaunchShape PerColumns(long width) => Blocks(Ceiling(width, 32), LargestBlock);

    /// <summary>One block that sums many numbers.</summary>
    public static LaunchShape OneBlock => Blocks(1, LargestBlock);

    public static long Ceiling(long count, long each) => (count + each - 1) / each;
}
