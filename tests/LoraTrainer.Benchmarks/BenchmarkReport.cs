using System.Diagnostics;
using System.Text.Json;

namespace LoraTrainer.Benchmarks;

/// <summary>Measures candidates against baselines in the same run and prints the result rows.</summary>
internal sealed class BenchmarkReport(string filter)
{
    private const int Rounds = 15;
    private static readonly TimeSpan SliceTime = TimeSpan.FromMilliseconds(40);

    /// <summary>Long enough that methods which an action calls only a few times reach the compiler's last tier too.</summary>
    private static readonly TimeSpan WarmUpTime = TimeSpan.FromSeconds(1);

    private readonly string commit = CommitName();

    public int RowsWritten { get; private set; }

    /// <summary>What the following rows were measured on.</summary>
    public string Machine { get; set; } = MachineName();

    /// <summary>True while the code is only tried and measures nothing: rows go to standard error, marked as no results.</summary>
    public bool IsRehearsal { get; set; }

    /// <summary>True where only some rows were asked for.</summary>
    public bool IsFiltered => filter.Length > 0;

    public bool Wants(string name) => name.Contains(filter, StringComparison.Ordinal);

    /// <summary>False: no row whose name starts so can be wanted.</summary>
    public bool WantsAny(string start) => start.Contains(filter, StringComparison.Ordinal) || filter.StartsWith(start, StringComparison.Ordinal) || !filter.Contains('_', StringComparison.Ordinal);

    /// <summary>
    /// Runs candidate and baseline in turns, so that what disturbs the machine meets both, and prints one row: the best rate of each, and the
    /// median over the rounds of their ratio.
    /// </summary>
    /// <param name="name">name of the row</param>
    /// <param name="unit">unit of the rates, for example GFLOP/s</param>
    /// <param name="workPerCall">units times seconds that one call does</param>
    /// <param name="candidate">one call</param>
    /// <param name="baselineName">what the candidate is held against</param>
    /// <param name="baseline">one call</param>
    /// <param name="baselineWorkPerCall">work of one call of the baseline, where it is another than the candidate's</param>
    public void Compare(string name, string unit, double workPerCall, Action candidate, string baselineName, Action baseline, double? baselineWorkPerCall = null)
    {
        int candidateCalls = CallsPerSlice(candidate), baselineCalls = CallsPerSlice(baseline);
        double bestBaseline = 0;
        double[] ratios = new double[Rounds], rates = new double[Rounds];
        for (int round = 0; round < Rounds; round++)
        {
            double rate = workPerCall / SecondsPerCall(candidate, candidateCalls);
            double baselineRate = (baselineWorkPerCall ?? workPerCall) / SecondsPerCall(baseline, baselineCalls);
            rates[round] = rate;
            bestBaseline = Math.Max(bestBaseline, baselineRate);
            ratios[round] = rate / baselineRate;
        }

        Array.Sort(ratios);
        Add(name, rates.Max(), unit, baselineName, bestBaseline, ratios[Rounds / 2], rates);
    }

    private static int CallsPerSlice(Action action)
    {
        for (long start = Stopwatch.GetTimestamp(); Stopwatch.GetElapsedTime(start) < WarmUpTime;)
        {
            action();
        }

        return Math.Max(1, (int)(SliceTime.TotalSeconds / SecondsPerCall(action, 3)));
    }

    private static double SecondsPerCall(Action action, int calls)
    {
        long start = Stopwatch.GetTimestamp();
        for (int i = 0; i < calls; i++)
        {
            action();
        }

        return Stopwatch.GetElapsedTime(start).TotalSeconds / calls;
    }

    /// <summary>Prints a row that was measured elsewhere.</summary>
    /// <param name="name">name of the row</param>
    /// <param name="value">what counts: the best, where there were several measurements</param>
    /// <param name="unit">unit of the values</param>
    /// <param name="baseline">what the value is held against</param>
    /// <param name="baselineValue">its value</param>
    /// <param name="ratio">of the two; higher is better</param>
    /// <param name="measured">all measurements; empty: the value is the only one</param>
    public void Add(string name, double value, string unit, string baseline, double baselineValue, double ratio, params double[] measured)
    {
        double[] sorted = measured.Length > 0 ? [.. measured.Order()] : [value];
        using var line = new MemoryStream();
        using (var json = new Utf8JsonWriter(line, new JsonWriterOptions { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping }))
        {
            json.WriteStartObject();
            json.WriteString("name", name);
            json.WriteNumber("value", Math.Round(value, 3));
            json.WriteString("unit", unit);
            json.WriteString("baseline", baseline);
            json.WriteNumber("baseline_value", Math.Round(baselineValue, 3));
            json.WriteNumber("ratio", Math.Round(ratio, 3));
            json.WriteNumber("p50", Percentile(50));
            json.WriteNumber("p20", Percentile(20));
            json.WriteNumber("p80", Percentile(80));
            json.WriteString("machine", Machine);
            json.WriteString("commit", commit);
            json.WriteString("command", $"scripts/benchmark.sh {name}");
            json.WriteEndObject();
        }

        string row = System.Text.Encoding.UTF8.GetString(line.ToArray());
        if (IsRehearsal)
        {
            Console.Error.WriteLine("rehearsal, no result: " + row);
        }
        else
        {
            Console.WriteLine(row);
        }

        RowsWritten++;

        double Percentile(int percent) => Math.Round(sorted[(int)Math.Round((sorted.Length - 1) * percent / 100.0)], 3);
    }

    /// <summary>A virtual machine may say no more of its model than the vendor's family name; the numbers beside it tell processors apart.</summary>
    private static string MachineName()
    {
        const string path = "/proc/cpuinfo";
        if (!File.Exists(path))
        {
            return $"{System.Runtime.InteropServices.RuntimeInformation.OSDescription}, {Environment.ProcessorCount} cores";
        }

        Dictionary<string, string> first = [];
        foreach (string line in File.ReadLines(path).TakeWhile(line => line.Length > 0))
        {
            string[] parts = line.Split(':', 2);
            first.TryAdd(parts[0].Trim(), parts.Length > 1 ? parts[1].Trim() : "");
        }

        string Value(string key) => first.GetValueOrDefault(key, "unknown");
        return $"{Value("model name")} ({Value("vendor_id")} family {Value("cpu family")} model {Value("model")} stepping {Value("stepping")}), {Environment.ProcessorCount} cores";
    }

    /// <summary>The commit that scripts/benchmark.sh names.</summary>
    private static string CommitName() => Environment.GetEnvironmentVariable("LT_BENCHMARK_COMMIT") is { Length: > 0 } given ? given : "unknown";
}
