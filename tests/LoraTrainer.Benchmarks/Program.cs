using LoraTrainer.Benchmarks;

// Usage: LoraTrainer.Benchmarks [FILTER]. Runs every row whose name contains FILTER and prints it as one JSON object a line.
var report = new BenchmarkReport(args.Length > 0 ? args[0] : "");
GemmBenchmarks.Run(report);
StepBenchmarks.Run(report);
MemoryBenchmarks.Run(report);
return report.RowsWritten > 0 ? 0 : 1;
