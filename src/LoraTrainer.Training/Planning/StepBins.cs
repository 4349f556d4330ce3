using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Planning;

/// <summary>How a run's steps fall into micro-batches of one size.</summary>
/// <param name="MicroBatchSize">Bins of one.</param>
/// <param name="LargestTokens">Tokens of the largest one.</param>
/// <param name="Count">Micro-batches of all steps.</param>
/// <param name="MeanTokens">Tokens of one, on average.</param>
public readonly record struct MicroBatches(int MicroBatchSize, int LargestTokens, long Count, double MeanTokens);

/// <summary>
/// The sizes of all bins of a run, step by step: what a step takes can be told from them for any micro-batch size, because the order of the data does
/// not depend on how a batch is cut.
/// </summary>
public sealed class StepBins
{
    private readonly IReadOnlyList<int[]> steps;

    // Where the data are not known: one step of so many bins of one size. Both may be far larger than what a list would hold.
    private readonly (long Bins, int Tokens) full;

    private StepBins(IReadOnlyList<int[]> steps, (long Bins, int Tokens) full, double documentTokens, double scoredShare)
    {
        this.steps = steps;
        this.full = full;
        DocumentTokens = documentTokens;
        ScoredShare = scoredShare;
        Tokens = (full.Bins * full.Tokens) + steps.Sum(step => step.Sum(tokens => (long)tokens));
    }

    /// <summary>Tokens of all steps.</summary>
    public long Tokens { get; }

    /// <summary>Optimizer steps.</summary>
    public int Steps => full.Bins > 0 ? 1 : steps.Count;

    /// <summary>Length of the document that a token lies in, averaged over tokens: with it attention costs what it costs with the documents' own lengths.</summary>
    public double DocumentTokens { get; }

    /// <summary>Scored tokens over all.</summary>
    public double ScoredShare { get; }

    /// <summary>The steps that a run will really take.</summary>
    public static StepBins Of(TrainingData data)
    {
        int[] scoredOf = new int[data.Train.RowCount];
        for (int row = 0; row < scoredOf.Length; row++)
        {
            scoredOf[row] = data.Train.IsSupervised(row)[1..].Count(true);
        }

        var steps = new List<int[]>(data.Order.TotalSteps);
        double tokens = 0, squares = 0, scored = 0;
        for (int step = 0; step < data.Order.TotalSteps; step++)
        {
            IReadOnlyList<int[]> bins = data.Order.BinsOf(step);
            int[] sizes = new int[bins.Count];
            for (int bin = 0; bin < sizes.Length; bin++)
            {
                foreach (int row in bins[bin])
                {
                    int length = data.Train.Length(row);
                    sizes[bin] += length;
                    squares += (double)length * length;
                    scored += scoredOf[row];
                }

                tokens += sizes[bin];
            }

            steps.Add(sizes);
        }

        return new StepBins(steps, default, squares / tokens, scored / tokens);
    }

    /// <summary>Where the data are not known: one step of full sequences, each one document, every token scored.</summary>
    public static StepBins Full(TrainingConfig config) => new([], (config.Batch.GlobalBatchSize, config.Data.SequenceLen), config.Data.SequenceLen, 1);

    /// <summary>The same steps, cut into micro-batches of so many bins.</summary>
    public MicroBatches Cut(int microBatchSize)
    {
        if (full.Bins > 0)
        {
            long batches = (full.Bins + microBatchSize - 1) / microBatchSize;
            return new MicroBatches(microBatchSize, checked((int)(Math.Min(microBatchSize, full.Bins) * full.Tokens)), batches, (double)Tokens / batches);
        }

        long largest = 1, count = 0;
        foreach (int[] step in steps)
        {
            for (int first = 0; first < step.Length; first += microBatchSize)
            {
                long tokens = 0;
                for (int bin = first; bin < Math.Min(first + microBatchSize, step.Length); bin++)
                {
                    tokens += step[bin];
                }

                largest = Math.Max(largest, tokens);
                count++;
            }
        }

        return new MicroBatches(microBatchSize, checked((int)largest), count, (double)Tokens / count);
    }
}
