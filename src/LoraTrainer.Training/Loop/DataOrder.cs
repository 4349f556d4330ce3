using LoraTrainer.Engine.Numerics;

namespace LoraTrainer.Training.Loop;

/// <summary>
/// Which rows make up which optimizer step. A bin is one sequence: a row, or several packed ones; a step takes the next
/// <c>globalBatchSize</c> bins of an epoch's order, the last step of an epoch what is left. The order depends on the seed, the rows' lengths
/// and the sequence length alone, so a run can be cut into micro-batches in another way, or resumed anywhere, and still see the same steps.
/// </summary>
public sealed class DataOrder
{
    private readonly int[] rowLengths;
    private readonly Func<int[], int[][]>? pack;
    private readonly ulong seed;
    private readonly int globalBatchSize;
    private readonly List<int> stepsBeforeEpoch = [0];
    private int epochInMemory = -1;
    private int[][] bins = [];

    /// <param name="rowLengths">Tokens of each row.</param>
    /// <param name="pack">The lengths of the rows in an order to bins of places in that order; null: every row is a bin of its own.</param>
    /// <param name="seed">Of the run.</param>
    /// <param name="globalBatchSize">Bins in one step.</param>
    /// <param name="epochs">How often the rows are seen; may be fractional.</param>
    /// <param name="maxSteps">0: as <paramref name="epochs"/> says; else exactly so many steps.</param>
    public DataOrder(int[] rowLengths, Func<int[], int[][]>? pack, ulong seed, int globalBatchSize, double epochs, int maxSteps)
    {
        this.rowLengths = rowLengths;
        this.pack = pack;
        this.seed = seed;
        this.globalBatchSize = globalBatchSize;
        TotalSteps = maxSteps > 0 ? maxSteps : StepsOf(epochs);
    }

    /// <summary>Optimizer steps of the whole run.</summary>
    public int TotalSteps { get; }

    /// <summary>The bins of one step, each a list of row numbers. Valid until the next call.</summary>
    public IReadOnlyList<int[]> BinsOf(int step)
    {
        int epoch = EpochOf(step);
        LoadEpoch(epoch);
        int first = (step - stepsBeforeEpoch[epoch]) * globalBatchSize;
        return new BinWindow(bins, first, Math.Min(globalBatchSize, bins.Length - first));
    }

    /// <summary>Passes over the data that are complete before <paramref name="step"/>, with the fraction of the current one.</summary>
    public double EpochsBefore(int step)
    {
        int epoch = EpochOf(step);
        LoadEpoch(epoch);
        return epoch + Math.Min(1, (double)(step - stepsBeforeEpoch[epoch]) * globalBatchSize / bins.Length);
    }

    /// <summary>The passes over the data that the run begins: steps before each, and steps of it, of which the last may not do all.</summary>
    public IEnumerable<(int First, int Count)> Epochs()
    {
        for (int epoch = 0; epoch == 0 || stepsBeforeEpoch[epoch] < TotalSteps; epoch++)
        {
            if (stepsBeforeEpoch.Count == epoch + 1)
            {
                LoadEpoch(epoch);
            }

            yield return (stepsBeforeEpoch[epoch], stepsBeforeEpoch[epoch + 1] - stepsBeforeEpoch[epoch]);
        }
    }

    private int StepsOf(double epochs)
    {
        int whole = (int)Math.Floor(epochs);
        for (int epoch = 0; epoch < whole; epoch++)
        {
            LoadEpoch(epoch);
        }

        int steps = stepsBeforeEpoch[whole];
        if (epochs > whole)
        {
            LoadEpoch(whole);
            steps += (int)Math.Ceiling((epochs - whole) * (stepsBeforeEpoch[whole + 1] - stepsBeforeEpoch[whole]));
        }

        return steps;
    }

    private int EpochOf(int step)
    {
        while (stepsBeforeEpoch[^1] <= step)
        {
            LoadEpoch(stepsBeforeEpoch.Count - 1);
        }

        int index = stepsBeforeEpoch.BinarySearch(step);
        return index >= 0 ? index : ~index - 1;
    }

    private void LoadEpoch(int epoch)
    {
        if (epoch == epochInMemory)
        {
            return;
        }

        int[] order = new int[rowLengths.Length];
        for (int i = 0; i < order.Length; i++)
        {
            order[i] = i;
        }

        new CounterRandom(seed, RandomStreams.RowOrder, (uint)epoch).Shuffle(order);
        if (pack is null)
        {
            bins = Array.ConvertAll(order, row => new[] { row });
        }
        else
        {
            int[][] packed = pack(Array.ConvertAll(order, row => rowLengths[row]));
            // Packing sorts by length; without another shuffle an epoch would begin with its longest rows.
            int[] binOrder = new int[packed.Length];
            for (int i = 0; i < binOrder.Length; i++)
            {
                binOrder[i] = i;
            }

            new CounterRandom(seed, RandomStreams.BinOrder, (uint)epoch).Shuffle(binOrder);
            bins = Array.ConvertAll(binOrder, bin => Array.ConvertAll(packed[bin], place => order[place]));
        }

        epochInMemory = epoch;
        if (stepsBeforeEpoch.Count == epoch + 1)
        {
            stepsBeforeEpoch.Add(stepsBeforeEpoch[epoch] + (bins.Length + globalBatchSize - 1) / globalBatchSize);
        }
    }

    private sealed class BinWindow(int[][] bins, int first, int count) : IReadOnlyList<int[]>
    {
        public int Count => count;

        public int[] this[int index] => bins[first + index];

        public IEnumerator<int[]> GetEnumerator()
        {
            for (int i = 0; i < count; i++)
            {
                yield return this[i];
            }
        }

        System.Collections.IEnumerator System.Collections.IEnumerable.GetEnumerator() => GetEnumerator();
    }
}
