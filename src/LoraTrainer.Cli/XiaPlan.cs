using System.Globalization;
using LoraTrainer.Costs;
using LoraTrainer.Costs.Estimates;
using LoraTrainer.Training;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli;

/// <summary>
/// The analytical model of Xia et al. for given figures, beside what was published: with what does not agree in it, and fitted to the user's own rows.
/// </summary>
internal static class XiaPlan
{
    /// <summary>What may be given, and what is taken otherwise: the published artifact's Mixtral, and the first row of table IV.</summary>
    private static readonly (string Name, decimal Value, string What)[] Figures =
    [
        ("c0", 62, "scale of equation 1"),
        ("c1", 0.89m, "influence of the sparsity in equation 1"),
        ("gpu_gb", 48, "memory of the GPU"),
        ("model_gb", 23.35m, "memory of the weights"),
        ("seq_len", 512, "tokens of the longest query"),
        ("sparsity", 0.25m, "share of the experts that work on a token"),
        ("c2", 0.280836m, "slope of equation 2"),
        ("c3", 1.8m, "influence of the sparsity in equation 2"),
        ("c4", 0.316874m, "queries a second at batch 1"),
        ("batch", 4, "queries at once"),
        ("queries", 15_000, "of the data set"),
        ("epochs", 10, "passes over it"),
        ("rate", 0.79m, "price of an hour, USD"),
    ];

    private static readonly (decimal Gigabytes, int Published)[] Capacities = [(40, 6), (48, 8), (80, 27), (100, 28), (120, 35)];

    private static readonly (string Gpu, int Gigabytes, int Batch, decimal Rounded, decimal Exact, decimal Rate, decimal Published)[] TableFour =
    [
        ("A40", 48, 4, 1.01m, 1.005476933m, 0.79m, 32.7m),
        ("A100", 80, 17, 2.74m, 2.739929458m, 1.67m, 25.4m),
        ("H100", 80, 17, 4.90m, 4.89877178m, 2.1m, 17.9m),
    ];

    public static ExitCode Run(Terminal terminal, string? rowsFile, IReadOnlyList<string> given)
    {
        Dictionary<string, decimal> figures = Read(given);
        double Figure(string name) => (double)figures[name];
        CultureInfo culture = CultureInfo.InvariantCulture;
        double batch = XiaModel.MaxBatchUnrounded(Figure("c0"), Figure("c1"), Figure("gpu_gb"), Figure("model_gb"), Figure("seq_len"), Figure("sparsity"));
        double throughput = XiaModel.Throughput(Figure("c2"), Figure("c3"), Figure("c4"), (int)figures["batch"], Figure("sparsity"));
        if (throughput <= 0)
        {
            throw new TrainingSetupException(string.Create(culture, $"Equation 2 gives {throughput:0.####} queries a second for these figures; expected above 0. Look at c2, c4 and batch."));
        }

        Money cost = XiaModel.Cost((long)figures["queries"], (int)figures["epochs"], (decimal)throughput, new Money(figures["rate"], "USD"));
        (ThroughputFit? Speed, CapacityFit? Capacity) fit = rowsFile is null ? default : FitTo(rowsFile, figures);
        terminal.Result(string.Join(Environment.NewLine, (string[])
        [
            "Xia et al., \"Understanding the Performance and Estimating the Cost of LLM Fine-Tuning\" (arXiv 2408.04693). Its coefficients belong to the models",
            "and GPUs that they were fitted on; those below are the published artifact's for Mixtral-8x7B unless --figure gives others.",
            "",
            string.Create(culture, $"Equation 1: floor(c0 (gpu_gb - model_gb) / (seq_len (1 - c1 + c1 sparsity))) = floor({batch:0.000}) = {Math.Max(0, Math.Floor(batch)):0}"),
            string.Create(culture, $"Equation 2: c4 + c2 ln(batch) / (sparsity c3) = {throughput:0.0000} queries a second"),
            string.Create(culture, $"Cost: {figures["queries"]:#,0} queries x {figures["epochs"]:0} epochs at {figures["rate"]:0.00##} USD an hour = {cost}"),
            "  " + string.Join(", ", Figures.Select(figure => string.Create(culture, $"{figure.Name} {figures[figure.Name]:0.######}"))),
            .. FitWords(fit.Speed, fit.Capacity),
            "",
            "Largest batch (equation 1, Mixtral, two of eight experts):",
            Columns.Align(
            [
                ["GPU GB", "artifact (62, 0.89, 512 tokens)", "printed (82, 0.95, needs 768 tokens)", "published"],
                .. Capacities.Select(row => new[]
                {
                    row.Gigabytes.ToString(culture), Unrounded(62, 0.89, row.Gigabytes, 512), Unrounded(82, 0.95, row.Gigabytes, 768), row.Published.ToString(culture),
                }),
            ], _ => true),
            "",
            "Throughput (equation 2, least squares on the published measurements):",
            Columns.Align(
            [
                ["measured", "c3", "c2", "c4", "rows", "RMSE"],
                .. XiaMeasurements.Published.Select(panel =>
                {
                    ThroughputFit refit = XiaModel.Fit(panel.Rows, panel.C3);
                    return new[] { panel.Panel, panel.C3.ToString("0.0", culture), refit.C2.ToString("0.000000", culture), refit.C4.ToString("0.000000", culture), refit.Rows.ToString(culture), refit.Rmse.ToString("0.0000", culture) };
                }),
            ], column => column > 0),
            "",
            "Table IV (15,000 queries, 10 epochs):",
            Columns.Align(
            [
                ["GPU", "GB", "batch", "queries/s", "USD/h", "computed", "from rounded queries/s", "published"],
                .. TableFour.Select(row => new[]
                {
                    row.Gpu, row.Gigabytes.ToString(culture), row.Batch.ToString(culture), row.Rounded.ToString(culture), row.Rate.ToString(culture),
                    TableCost(row.Exact, row.Rate, 15_000).ToString("0.00", culture), TableCost(row.Rounded, row.Rate, 15_000).ToString("0.00", culture), row.Published.ToString(culture),
                }),
            ], column => column > 0),
            "",
            "What does not agree in what was published:",
            "- Equation 1 with the printed coefficients and the median length of a data set promises about ten times what fits (89 for 8). Give the longest length.",
            "- 80 GB: the artifact plots 27, its own coefficients give 20, and table IV works with 17.",
            "- Table IV's batches for 48 and 80 GB cannot both come from equation 1, whatever the coefficients.",
            string.Create(culture, $"- Table IV is captioned GSM8K and its text says MATH; only 15,000 queries (the size of Commonsense15K) give its costs. With 14,000: {string.Join(", ", TableFour.Select(row => TableCost(row.Exact, row.Rate, 14_000).ToString("0.00", culture)))}."),
            string.Create(culture, $"- $3460 for OpenOrca on an H100 is the rounded 17.9 x 2,900,000 / 15,000 = {17.9m * 2_900_000 / 15_000:0.00}; from unrounded figures it is {TableCost(4.89877178m, 2.1m, 2_900_000):0.00}. \"2M queries\" would be {17.9m * 2_000_000 / 15_000:0.00}."),
            "- Costs leave out storage, starting, failed attempts, evaluation and labor.",
        ]));
        terminal.Json(json =>
        {
            json.WriteStartObject();
            json.WriteString("model", "xia");
            json.WriteStartObject("figures");
            foreach ((string name, decimal value) in figures)
            {
                json.WriteNumber(name, value);
            }

            json.WriteEndObject();
            json.WriteNumber("max_batch", Math.Max(0, Math.Floor(batch)));
            json.WriteNumber("max_batch_unrounded", batch);
            json.WriteNumber("queries_per_second", throughput);
            json.WriteMoney("cost", cost.Amount);
            json.WriteString("currency", cost.Currency);
            if (fit.Speed is { } speed)
            {
                json.WriteStartObject("throughput_fit");
                json.WriteNumber("c2", speed.C2);
                json.WriteNumber("c3", speed.C3);
                json.WriteNumber("c4", speed.C4);
                json.WriteNumber("rmse", speed.Rmse);
                json.WriteNumber("rows", speed.Rows);
                json.WriteEndObject();
            }

            if (fit.Capacity is { } capacity)
            {
                json.WriteStartObject("max_batch_fit");
                json.WriteNumber("c0", capacity.C0);
                json.WriteNumber("c1", capacity.C1);
                json.WriteBoolean("c1_given", capacity.IsC1Given);
                json.WriteNumber("rows", capacity.Rows);
                json.WriteNumber("exact", capacity.Exact);
                json.WriteEndObject();
            }

            json.WriteEndObject();
        });
        return ExitCode.Done;

        string Unrounded(double c0, double c1, decimal gigabytes, double tokens) => XiaModel.MaxBatchUnrounded(c0, c1, (double)gigabytes, 23.35, tokens, 0.25).ToString("0.000", culture);
    }

    private static decimal TableCost(decimal throughput, decimal rate, long queries) => Math.Round(XiaModel.Cost(queries, 10, throughput, new Money(rate, "USD")).Amount, 2);

    private static Dictionary<string, decimal> Read(IReadOnlyList<string> given)
    {
        Dictionary<string, decimal> figures = Figures.ToDictionary(figure => figure.Name, figure => figure.Value, StringComparer.Ordinal);
        foreach (string setting in given)
        {
            string[] parts = setting.Split('=', 2, StringSplitOptions.TrimEntries);
            if (parts.Length != 2 || !figures.ContainsKey(parts[0]))
            {
                throw new TrainingSetupException($"--figure takes name=value, got '{setting}'. Names are: {string.Join(", ", Figures.Select(figure => $"{figure.Name} ({figure.What})"))}.");
            }

            bool isWhole = parts[0] is "batch" or "queries" or "epochs";
            decimal most = parts[0] is "sparsity" or "c1" ? 1 : parts[0] is "batch" or "epochs" ? 1_000_000 : 1_000_000_000_000;
            decimal least = parts[0] is "c1" or "c2" or "c4" ? 0 : isWhole ? 1 : 0.000001m;
            figures[parts[0]] = decimal.TryParse(parts[1], NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out decimal value) && value >= least && value <= most && (!isWhole || value == Math.Floor(value))
                ? value
                : throw new TrainingSetupException(string.Create(CultureInfo.InvariantCulture, $"--figure {parts[0]}: got '{parts[1]}', expected a {(isWhole ? "whole " : "")}number from {least} to {most}."));
        }

        return figures;
    }

    private static (ThroughputFit?, CapacityFit?) FitTo(string file, Dictionary<string, decimal> figures)
    {
        XiaMeasurements rows = XiaMeasurements.Parse(file, File.Exists(file) ? File.ReadAllText(file) : throw new FileNotFoundException($"{PathTrouble.NotThere(file, "file of measured rows")} Its columns are: {string.Join(", ", XiaMeasurements.Columns)}."));
        try
        {
            return (rows.Throughput.Count > 0 ? XiaModel.Fit(rows.Throughput, (double)figures["c3"]) : null, rows.Capacity.Count > 0 ? XiaModel.FitCapacity(rows.Capacity, (double)figures["c1"]) : null);
        }
        catch (ArgumentException exception)
        {
            throw new TrainingSetupException($"{file}: {exception.Message.Split(" (Parameter", 2)[0]}");
        }
    }

    private static IEnumerable<string> FitWords(ThroughputFit? speed, CapacityFit? capacity)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        if (speed is { } found)
        {
            yield return "";
            yield return string.Create(culture, $"Fitted to your {found.Rows} rows: c2 {found.C2:0.######}, c4 {found.C4:0.######} for c3 {found.C3:0.##}; root of the mean squared error {found.Rmse:0.####} queries a second.");
        }

        if (capacity is { } largest)
        {
            yield return string.Create(culture, $"Fitted to your {largest.Rows} largest batches: c0 {largest.C0:0.####}, c1 {largest.C1:0.####}{(largest.IsC1Given ? " (as given: your rows have one sparsity)" : "")}; {largest.Exact} of them come out exactly.");
        }
    }
}
