namespace LoraTrainer.Costs.Estimates;

/// <summary>One measured row of equation 1.</summary>
/// <param name="GpuGigabytes">Memory of the GPU.</param>
/// <param name="ModelGigabytes">Memory of the weights.</param>
/// <param name="SequenceLength">Tokens of the longest query.</param>
/// <param name="Sparsity">Share of the experts that work on a token.</param>
/// <param name="MaxBatch">The largest batch that fitted.</param>
public readonly record struct CapacityRow(double GpuGigabytes, double ModelGigabytes, double SequenceLength, double Sparsity, int MaxBatch);

/// <summary>Measured rows for the equations of <see cref="XiaModel"/>: the user's, or the published ones.</summary>
/// <param name="Throughput">Rows of equation 2.</param>
/// <param name="Capacity">Rows of equation 1.</param>
public sealed record XiaMeasurements(IReadOnlyList<ThroughputRow> Throughput, IReadOnlyList<CapacityRow> Capacity)
{
    private const string ShippedFile = "xia.csv";

    /// <summary>What a file of rows may have.</summary>
    public static IReadOnlyList<string> Columns { get; } = ["batch", "queries_per_second", "sparsity", "max_batch", "gpu_gb", "model_gb", "seq_len"];

    /// <summary>
    /// The rows of a CSV file. A row has batch and queries_per_second, or max_batch with gpu_gb, model_gb and seq_len, or all of them; sparsity is 1 (a
    /// dense model) where it is missing or empty.
    /// </summary>
    /// <param name="file">Names it in messages.</param>
    /// <param name="text">Its content.</param>
    /// <exception cref="CsvFormatException">It is not as it should be; names the line.</exception>
    public static XiaMeasurements Parse(string file, string text)
    {
        var throughput = new List<ThroughputRow>();
        var capacity = new List<CapacityRow>();
        foreach (CsvRow row in CsvTable.Parse(file, text, Columns, [.. Columns]))
        {
            double sparsity = (double)(row.NumberOrNull("sparsity", 0.0001m, 1) ?? 1);
            bool hasThroughput = row.Field("batch").Length > 0 || row.Field("queries_per_second").Length > 0, hasCapacity = row.Field("max_batch").Length > 0;
            if (hasThroughput)
            {
                throughput.Add(new ThroughputRow(row.Whole("batch", 1, 1_000_000), sparsity, (double)row.Number("queries_per_second", 0.000001m, 1_000_000)));
            }

            if (hasCapacity)
            {
                double gpu = (double)row.Number("gpu_gb", 1, 100_000), model = (double)row.Number("model_gb", 0.001m, 100_000);
                capacity.Add(model < gpu
                    ? new CapacityRow(gpu, model, (double)row.Number("seq_len", 1, 100_000_000), sparsity, row.Whole("max_batch", 1, 1_000_000))
                    : throw row.Wrong("model_gb", "less than gpu_gb: a batch fitted"));
            }

            if (!hasThroughput && !hasCapacity)
            {
                throw new CsvFormatException($"{row.Place}: the row has neither batch and queries_per_second nor max_batch with gpu_gb, model_gb and seq_len.");
            }
        }

        return new XiaMeasurements(throughput, capacity);
    }

    /// <summary>The published measurements of equation 2, by model, data set and GPU, with the C3 that their authors set.</summary>
    public static IReadOnlyList<(string Panel, double C3, IReadOnlyList<ThroughputRow> Rows)> Published =>
    [
        .. CsvTable.Parse(ShippedFile, CsvTable.Shipped(typeof(XiaMeasurements), ShippedFile), ["panel", "c3", "batch", "sparsity", "queries_per_second"])
            .GroupBy(row => (Panel: row.Text("panel"), C3: (double)row.Number("c3", 0.1m, 100)))
            .Select(group => (group.Key.Panel, group.Key.C3, (IReadOnlyList<ThroughputRow>)[.. group.Select(row => new ThroughputRow(row.Whole("batch", 1, 1000), (double)row.Number("sparsity", 0.01m, 1), (double)row.Number("queries_per_second", 0, 1000)))])),
    ];
}
