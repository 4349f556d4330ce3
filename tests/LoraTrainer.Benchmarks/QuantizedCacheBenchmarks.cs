using System.Text.Json;

namespace LoraTrainer.Benchmarks;

/// <summary>
/// What keeping a quantized base is worth at the shape of TinyLlama-1.1B in NF4 with double quantization: the time from the start of the program to its first step, and that of
/// loading alone, beside the same without. The base's files are in the system's cache for both.
/// </summary>
internal static class QuantizedCacheBenchmarks
{
    private const string Prefix = "quantized_cache_1.1b_";
    private const int Rounds = 3;

    public static void Run(BenchmarkReport report)
    {
        // A base of 1.1 billion parameters takes minutes to make: only where it is asked for.
        if (report.IsFiltered && report.Wants(Prefix + "first_step"))
        {
            Measure(report);
        }
    }

    private static void Measure(BenchmarkReport report)
    {
        string folder = Directory.CreateTempSubdirectory("lora-trainer-benchmark-").FullName, root = ProgramRun.RepositoryRoot;
        try
        {
            File.WriteAllText(Path.Combine(folder, "config.json"), CheckpointBenchmarks.Shape);
            ProgramRun.ToItsEnd("random-model", Path.Combine(folder, "config.json"), Path.Combine(folder, "base"), "--tokenizer", Path.Combine(root, "quickstart", "base"));
            string cache = "quantized_cache.path=" + Path.Combine(folder, "cache");

            // Fills the cache, and warms up.
            Start(folder, "fill", "--set", cache);
            double[] with = new double[Rounds], without = new double[Rounds], loadWith = new double[Rounds], loadWithout = new double[Rounds];
            for (int round = 0; round < Rounds; round++)
            {
                (without[round], loadWithout[round]) = Start(folder, $"without-{round}");
                (with[round], loadWith[round]) = Start(folder, $"with-{round}", "--set", cache);
            }

            double first = CudaBench.Median(with), firstWithout = CudaBench.Median(without), load = CudaBench.Median(loadWith), loadedWithout = CudaBench.Median(loadWithout);
            report.Add(Prefix + "first_step", first, "s", "without a cache", firstWithout, firstWithout / first, with);
            report.Add(Prefix + "load", load, "s", "without a cache", loadedWithout, loadedWithout / load, loadWith);
            double gigabytes = Directory.EnumerateFiles(Path.Combine(folder, "cache"), "*.safetensors").Sum(file => new FileInfo(file).Length) / 1e9;
            double baseGigabytes = Directory.EnumerateFiles(Path.Combine(folder, "base"), "*.safetensors").Sum(file => new FileInfo(file).Length) / 1e9;
            report.Add(Prefix + "size", gigabytes, "GB", "the base's files", baseGigabytes, baseGigabytes / gigabytes);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    /// <summary>One step of training: seconds to it, and those of loading.</summary>
    private static (double FirstStep, double Load) Start(string folder, string name, params string[] settings)
    {
        string root = ProgramRun.RepositoryRoot, output = Path.Combine(folder, name);
        double first = ProgramRun.SecondsToLine(
            "step 1/",
            [
                "train", Path.Combine(root, "configs", "quickstart.yaml"), "--set", "output_dir=" + output, "--set", "run_name=" + name, "--set", "base_model=" + Path.Combine(folder, "base"), "--set", "adapter=qlora", "--set", "load_in_4bit=true",
                "--set", "max_steps=1", "--set", "warmup_steps=0", "--set", "micro_batch_size=1", "--set", "logging_steps=1", "--set", "evaluate_before=false", "--set", "evaluate_after=false",
                "--set", "datasets.0.path=" + Path.Combine(root, "quickstart", "task", "train.jsonl"), .. settings,
            ]);
        using JsonDocument record = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(output, "checkpoints", name, "attempts", "1.json")));
        JsonElement phases = record.RootElement.GetProperty("phase_seconds");
        double Seconds(string phase) => phases.TryGetProperty(phase, out JsonElement value) ? value.GetDouble() : 0;
        return (first, Seconds("loading") + Seconds("quantizing"));
    }
}
