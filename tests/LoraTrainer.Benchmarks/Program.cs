using System.Globalization;
using LoraTrainer.Benchmarks;

// Usage: LoraTrainer.Benchmarks [--shrink] [FILTER]
//          Runs every row whose name contains FILTER and prints it as one JSON object a line. --shrink: the cuda_* rows with tiny shapes, to try them.
//        LoraTrainer.Benchmarks --compile-kernels [ARCHITECTURE...]
//          Compiles every GPU kernel, for the GPU of this machine or for the architectures given (80 90 120), and prints what each came to.
if (args is ["--compile-kernels", .. var architectures])
{
    return CudaCompileCheck.Run(architectures);
}

// Usage: LoraTrainer.Benchmarks --ready-kernels FOLDER ARCHITECTURE...
//          Compiles every GPU kernel for the architectures into a folder, for a release that runs without NVRTC.
if (args is ["--ready-kernels", var folder, .. { Length: > 0 } wanted])
{
    return CudaCompileCheck.WriteReady(folder, wanted);
}

if (args is ["--openblas-rate"])
{
    Console.WriteLine(GemmBenchmarks.OpenBlasRate().ToString(CultureInfo.InvariantCulture));
    return 0;
}

bool shrink = args.Contains("--shrink");
var report = new BenchmarkReport(args.FirstOrDefault(argument => argument != "--shrink") ?? "");
bool complete = GemmBenchmarks.Run(report);
StepBenchmarks.Run(report);
MemoryBenchmarks.Run(report);
TokenizerBenchmarks.Run(report);
RunBenchmarks.Run(report);
CheckpointBenchmarks.Run(report);
QuantizedCacheBenchmarks.Run(report);
CudaBenchmarks.Run(report, shrink);
return report.RowsWritten > 0 && (complete || !report.IsFiltered) ? 0 : 1;
