namespace LoraTrainer.Engine.Ops;

/// <summary>
/// How a number of independent items is cut into parts for the worker pool. The cut never influences a result. Threads take parts in turn, so parts that
/// follow each other in number are far apart: then what one thread does lies in one piece, and what it asks memory for ahead is its own.
/// </summary>
internal readonly struct RowSplit
{
    private readonly long itemsPerPart;
    private readonly long items;
    private readonly int threads;
    private readonly int turns;

    /// <param name="items">Independent items: rows, or blocks of elements.</param>
    /// <param name="threadCount">Workers; each gets a few parts, so that a late one does not hold up the others.</param>
    /// <param name="minimumItemsPerPart">Below this a part costs more to hand out than to do.</param>
    /// <param name="mostTurns">Parts for each thread at most.</param>
    public RowSplit(long items, int threadCount, long minimumItemsPerPart, int mostTurns = 4)
    {
        this.items = items;
        threads = threadCount;
        long parts = threadCount == 1 ? 1 : Math.Clamp(items / Math.Max(1, minimumItemsPerPart), 1, (long)threadCount * mostTurns);
        if (parts > threadCount)
        {
            // As many for each: of 7 parts one of 2 threads would do 4.
            parts -= parts % threadCount;
        }

        itemsPerPart = (items + parts - 1) / Math.Max(1, parts);
        Parts = items == 0 ? 0 : (int)((items + itemsPerPart - 1) / itemsPerPart);
        turns = Parts % threadCount == 0 ? Parts / threadCount : 0;
    }

    public int Parts { get; }

    public (long Start, long End) Of(int part)
    {
        long place = turns > 1 ? part % threads * turns + part / threads : part;
        return (place * itemsPerPart, Math.Min(items, (place + 1) * itemsPerPart));
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
