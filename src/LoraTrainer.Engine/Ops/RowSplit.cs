namespace LoraTrainer.Engine.Ops;

/// <summary>
/// How a number of independent items is cut into parts for the worker pool. The cut never influences a result. Threads that keep pace take parts in turn,
/// so parts that follow each other in number lie far apart: then what one thread does lies in one piece, and what it asks memory for ahead is its own.
/// </summary>
internal readonly struct RowSplit
{
    private readonly long items;
    private readonly int threads;

    /// <param name="items">Independent items: rows, or blocks of elements.</param>
    /// <param name="threadCount">Workers; each gets a few parts, so that a late one does not hold up the others.</param>
    /// <param name="minimumItemsPerPart">Below this a part costs more to hand out than to do.</param>
    /// <param name="mostPartsPerThread">A thread gets no more than so many.</param>
    public RowSplit(long items, int threadCount, long minimumItemsPerPart, int mostPartsPerThread = 4)
    {
        this.items = items;
        threads = threadCount;
        long parts = threadCount == 1 ? 1 : Math.Clamp(items / Math.Max(1, minimumItemsPerPart), 1, (long)threadCount * mostPartsPerThread);
        if (parts > threadCount)
        {
            // As many for each: of 7 parts one of 2 threads would do 4.
            parts -= parts % threadCount;
        }

        Parts = (int)Math.Min(items, parts);
    }

    public int Parts { get; }

    /// <summary>The items of a part; parts differ by one item at most.</summary>
    public (long Start, long End) Of(int part)
    {
        int perThread = Parts / threads;
        long place = perThread > 1 ? part % threads * perThread + part / threads : part;
        return (items * place / Parts, items * (place + 1) / Parts);
    }
}

/// <summary>What a gradient does to the memory it is written to.</summary>
public enum GradientMode
{
    /// <summary>The old content is lost, and may be undefined.</summary>
    Overwrite,

    /// <summary>The gradient is added to what is there.</summary>
    Accumulate,
}
