namespace LoraTrainer.Costs.Estimates;

/// <summary>One measured row of the throughput model.</summary>
/// <param name="Batch">Queries at once.</param>
/// <param name="Sparsity">Share of the experts that work on a token: 0.25 for two of eight, 1 for a dense model.</param>
/// <param name="QueriesPerSecond">Measured.</param>
public readonly record struct ThroughputRow(int Batch, double Sparsity, double QueriesPerSecond);

/// <summary>What a fit came to.</summary>
/// <param name="C2">Slope.</param>
/// <param name="C3">Influence of the sparsity, as it was given.</param>
/// <param name="C4">Queries a second at batch 1.</param>
/// <param name="Rmse">Root of the mean squared residual, in queries a second.</param>
/// <param name="Rows">That were fitted.</param>
public readonly record struct ThroughputFit(double C2, double C3, double C4, double Rmse, int Rows)
{
    public double Predict(int batch, double sparsity) => XiaModel.Throughput(C2, C3, C4, batch, sparsity);
}

/// <summary>What a fit of equation 1 came to.</summary>
/// <param name="C0">Scale.</param>
/// <param name="C1">Influence of the sparsity.</param>
/// <param name="IsC1Given">True where the rows have one sparsity, which does not determine C1: it is as it was given.</param>
/// <param name="Rows">That were fitted.</param>
/// <param name="Exact">Of them, those whose largest batch the fit gives exactly.</param>
public readonly record struct CapacityFit(double C0, double C1, bool IsC1Given, int Rows, int Exact);

/// <summary>
/// The analytical model of Xia et al., "Understanding the Performance and Estimating the Cost of LLM Fine-Tuning" (arXiv 2408.04693): largest batch,
/// throughput, cost. Its coefficients belong to the models and the GPU they were fitted on; <see cref="Fit"/> finds those of other rows.
/// </summary>
public static class XiaModel
{
    /// <summary>Equation 1, before it is rounded down: c0 (gpu - model) / (sequence ((1 - c1) + c1 sparsity)).</summary>
    /// <param name="c0">Scale; the published values do not agree with each other, so there is no default.</param>
    /// <param name="c1">Influence of the sparsity, 0 to 1.</param>
    /// <param name="gpuGigabytes">Memory of the GPU.</param>
    /// <param name="modelGigabytes">Memory of the weights.</param>
    /// <param name="sequenceLength">Tokens of the longest query. Not the median: with it the printed coefficients overshoot about tenfold.</param>
    /// <param name="sparsity">Share of the experts that work on a token, above 0 and at most 1.</param>
    public static double MaxBatchUnrounded(double c0, double c1, double gpuGigabytes, double modelGigabytes, double sequenceLength, double sparsity)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(sequenceLength);
        RequireSparsity(sparsity);
        return c0 * (gpuGigabytes - modelGigabytes) / (sequenceLength * (1 - c1 + c1 * sparsity));
    }

    /// <summary>Equation 1: the largest batch that fits; 0 where not even the weights do.</summary>
    /// <inheritdoc cref="MaxBatchUnrounded"/>
    public static int MaxBatch(double c0, double c1, double gpuGigabytes, double modelGigabytes, double sequenceLength, double sparsity) =>
        (int)Math.Max(0, Math.Floor(MaxBatchUnrounded(c0, c1, gpuGigabytes, modelGigabytes, sequenceLength, sparsity)));

    /// <summary>Equation 2 as the authors' published code has it, the only reading in which C4 is the throughput at batch 1: c4 + c2 ln(batch) / (sparsity c3).</summary>
    /// <param name="c2">Slope.</param>
    /// <param name="c3">Influence of the sparsity; 1.8 for Mixtral, 2.5 for BlackMamba.</param>
    /// <param name="c4">Queries a second at batch 1.</param>
    /// <param name="batch">Queries at once, from 1 on.</param>
    /// <param name="sparsity">Share of the experts that work on a token.</param>
    /// <returns>Queries a second.</returns>
    public static double Throughput(double c2, double c3, double c4, int batch, double sparsity) => c4 + c2 * Regressor(batch, sparsity, c3);

    /// <summary>Least squares of the measured throughput on ln(batch) / (sparsity c3), in closed form.</summary>
    /// <param name="rows">At least two with different batches.</param>
    /// <param name="c3">Given; it and C2 cannot both be found where all rows have one sparsity.</param>
    /// <exception cref="ArgumentException">The rows do not determine a line.</exception>
    public static ThroughputFit Fit(IReadOnlyList<ThroughputRow> rows, double c3)
    {
        double[] x = [.. rows.Select(row => Regressor(row.Batch, row.Sparsity, c3))];
        if (rows.Count < 2 || x.Max() - x.Min() < 1e-12)
        {
            throw new ArgumentException($"{rows.Count} rows with one batch size do not determine a line: at least two batch sizes are needed.", nameof(rows));
        }

        double meanX = x.Average(), meanY = rows.Average(row => row.QueriesPerSecond);
        double slope = x.Zip(rows, (value, row) => (value - meanX) * (row.QueriesPerSecond - meanY)).Sum() / x.Sum(value => (value - meanX) * (value - meanX));
        double intercept = meanY - slope * meanX;
        double squares = x.Zip(rows, (value, row) => Math.Pow(row.QueriesPerSecond - intercept - slope * value, 2)).Sum();
        return new ThroughputFit(slope, c3, intercept, Math.Sqrt(squares / rows.Count), rows.Count);
    }

    /// <summary>
    /// C0 and C1 of equation 1 by least squares, in closed form: (gpu - model) / (sequence batch) = (1 - c1)/c0 + (c1/c0) sparsity. A largest batch of b stands
    /// for something between b and b + 1, of which the middle is taken.
    /// </summary>
    /// <param name="rows">At least one.</param>
    /// <param name="c1">Taken where all rows have one sparsity.</param>
    /// <exception cref="ArgumentException">The rows contradict the equation: more experts at work would fit better.</exception>
    public static CapacityFit FitCapacity(IReadOnlyList<CapacityRow> rows, double c1)
    {
        ArgumentOutOfRangeException.ThrowIfZero(rows.Count);
        double[] x = [.. rows.Select(row => row.Sparsity)];
        double[] y = [.. rows.Select(row => (row.GpuGigabytes - row.ModelGigabytes) / (row.SequenceLength * (row.MaxBatch + 0.5)))];
        double meanX = x.Average(), meanY = y.Average(), spread = x.Sum(value => (value - meanX) * (value - meanX));
        bool isGiven = spread < 1e-12;
        double c0;
        if (isGiven)
        {
            c0 = (1 - c1 + (c1 * meanX)) / meanY;
        }
        else
        {
            double slope = x.Zip(y, (sparsity, value) => (sparsity - meanX) * (value - meanY)).Sum() / spread, intercept = meanY - (slope * meanX);
            if (slope < 0 || intercept < 0)
            {
                throw new ArgumentException("The rows do not fit equation 1: by them C1 would lie outside 0 to 1.", nameof(rows));
            }

            c0 = 1 / (slope + intercept);
            c1 = slope / (slope + intercept);
        }

        double found = c1;
        int exact = rows.Count(row => MaxBatch(c0, found, row.GpuGigabytes, row.ModelGigabytes, row.SequenceLength, row.Sparsity) == row.MaxBatch);
        return new CapacityFit(c0, c1, isGiven, rows.Count, exact);
    }

    /// <summary>Cost of a fine-tuning: queries times epochs over the throughput, in hours, times the rate.</summary>
    /// <param name="queries">Of the data set.</param>
    /// <param name="epochs">Passes over it.</param>
    /// <param name="queriesPerSecond">Throughput.</param>
    /// <param name="ratePerHour">Of the GPU.</param>
    public static Money Cost(long queries, int epochs, decimal queriesPerSecond, Money ratePerHour) => ratePerHour * (queries * (decimal)epochs / queriesPerSecond / 3600);

    private static double Regressor(int batch, double sparsity, double c3)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(batch, 1);
        RequireSparsity(sparsity);
        return Math.Log(batch) / (sparsity * c3);
    }

    private static void RequireSparsity(double sparsity)
    {
        if (sparsity is not (> 0 and <= 1))
        {
            throw new ArgumentOutOfRangeException(nameof(sparsity), sparsity, "The share of experts at work is above 0 and at most 1.");
        }
    }
}
