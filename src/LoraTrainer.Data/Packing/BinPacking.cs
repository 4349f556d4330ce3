using System.Numerics;

namespace LoraTrainer.Data.Packing;

/// <summary>Which rows share a sequence. A bin is a list of row numbers whose lengths add up to at most the sequence length.</summary>
public static class BinPacking
{
    /// <summary>One row a bin.</summary>
    public static int[][] OnePerBin(int rowCount) => [.. Enumerable.Range(0, rowCount).Select(row => new[] { row })];

    /// <summary>
    /// Best fit, decreasing, as TRL's "bfd": rows by length descending, ties in the given order; each goes to the bin with the smallest remaining space
    /// that holds it, among equals to the one that has had that space longest; where only an empty bin would do, a new one is opened. Rows of no tokens are
    /// left out. Bins in the order they were opened, rows in the order they were put in.
    /// </summary>
    /// <param name="lengths">Tokens per row; at most <paramref name="sequenceLength"/> each.</param>
    /// <param name="sequenceLength">Tokens per bin.</param>
    public static int[][] BestFitDecreasing(ReadOnlySpan<int> lengths, int sequenceLength)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(sequenceLength, 1);
        int[] order = new int[lengths.Length];
        long[] keys = new long[lengths.Length];
        for (int row = 0; row < lengths.Length; row++)
        {
            if (lengths[row] < 0 || lengths[row] > sequenceLength)
            {
                throw new ArgumentOutOfRangeException(nameof(lengths), lengths[row], $"Row {row} does not fit into a sequence of {sequenceLength} tokens.");
            }

            order[row] = row;
            keys[row] = ((long)(sequenceLength - lengths[row]) << 32) | (uint)row;
        }

        Array.Sort(keys, order);
        var bins = new List<List<int>>();
        var binsBySpace = new Queue<int>?[sequenceLength + 1];
        ulong[] occupied = new ulong[(sequenceLength / 64) + 1];
        foreach (int row in order)
        {
            int length = lengths[row];
            if (length == 0)
            {
                break;
            }

            int space = SmallestSpace(occupied, length);
            int bin;
            if (space < 0)
            {
                space = sequenceLength;
                bin = bins.Count;
                bins.Add([]);
            }
            else
            {
                Queue<int> candidates = binsBySpace[space]!;
                bin = candidates.Dequeue();
                if (candidates.Count == 0)
                {
                    occupied[space >> 6] &= ~(1UL << (space & 63));
                }
            }

            bins[bin].Add(row);
            int left = space - length;
            if (left > 0)
            {
                (binsBySpace[left] ??= new Queue<int>()).Enqueue(bin);
                occupied[left >> 6] |= 1UL << (left & 63);
            }
        }

        return [.. bins.Select(bin => bin.ToArray())];
    }

    /// <summary>The smallest space of at least <paramref name="length"/> that some bin has, or -1.</summary>
    private static int SmallestSpace(ulong[] occupied, int length)
    {
        int word = length >> 6;
        ulong bits = occupied[word] & (ulong.MaxValue << (length & 63));
        while (bits == 0 && ++word < occupied.Length)
        {
            bits = occupied[word];
        }

        return bits == 0 ? -1 : (word << 6) + BitOperations.TrailingZeroCount(bits);
    }
}
