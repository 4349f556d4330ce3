using System.Globalization;
using LoraTrainer.Benchmarks;

// Usage: LoraTrainer.Benchmarks [FILTER]. Runs every row whose name contains FILTER and prints it as one JSON object a line.
if (args is ["--openblas-rate"])
{
    Console.WriteLine(GemmBenchmarks.OpenBlasRate().ToString(CultureInfo.InvariantCulture));
    return 0;
}

var report = new BenchmarkReport(args.Length > 0 ? args[0] : "");
bool complete = GemmBenchmarks.Run(report);
StepBenchmarks.Run(report);
MemoryBenchmarks.Run(report);
RunBenchmarks.Run(report);
return report.RowsWritten > 0 && (complete || !report.IsFiltered) ? 0 : 1;
