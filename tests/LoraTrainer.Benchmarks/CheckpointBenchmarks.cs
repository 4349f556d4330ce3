using System.Diagnostics;
using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Benchmarks;

/// <summary>
/// What checkpoints cost a run at the shape of TinyLlama-1.1B with LoRA of rank 16 on all linear layers: how long saves keep the steps waiting, how
/// fast they reach the store, how soon another machine is at its first step. In the folder or the s3:// URI that LT_BENCHMARK_STORE names; else in a
/// folder of this machine.
/// </summary>
internal static class CheckpointBenchmarks
{
    private const string Prefix = "checkpoint_1.1b_";
    private const int Steps = 8;
    private const int SavesDuringSteps = Steps / 2;
    private const double StallGoalPercent = 1;

    internal const string Shape =
        """{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000, "torch_dtype": "bfloat16"}""";

    public static void Run(BenchmarkReport report)
    {
        // A base of 1.1 billion parameters takes minutes to make: only where it is asked for.
        if (report.IsFiltered && report.Wants(Prefix + "stall"))
        {
            Measure(report).GetAwaiter().GetResult();
        }
    }

    private static async Task Measure(BenchmarkReport report)
    {
        string root = ProgramRun.RepositoryRoot, folder = Directory.CreateTempSubdirectory("lora-trainer-benchmark-").FullName;
        string place = Environment.GetEnvironmentVariable("LT_BENCHMARK_STORE") ?? Path.Combine(folder, "store");
        string name = "benchmark-" + Path.GetFileName(folder)[^6..].Replace('.', '-');
        string kind = ObjectStore.IsUri(place) ? "s3" : "folder";
        try
        {
            File.WriteAllText(Path.Combine(folder, "config.json"), Shape);
            ProgramRun.ToItsEnd("random-model", Path.Combine(folder, "config.json"), Path.Combine(folder, "base"), "--tokenizer", Path.Combine(root, "quickstart", "base"));
            string[] settings =
            [
                "--set", "base_model=" + Path.Combine(folder, "base"), "--set", "load_in_4bit=false", "--set", "adapter=lora", "--set", "lora_r=16", "--set", $"max_steps={Steps}",
                "--set", "warmup_steps=0", "--set", "micro_batch_size=1", "--set", "logging_steps=1", "--set", "evaluate_before=false", "--set", "evaluate_after=false",
                "--set", "datasets.0.path=" + Path.Combine(root, "quickstart", "task", "train.jsonl"), "--set", "checkpoint.uri=" + place, "--set", "checkpoint.every_steps=2", "--set", "run_name=" + name,
            ];
            double first = ProgramRun.SecondsToLine("step 1/", ["train", Path.Combine(root, "configs", "quickstart.yaml"), "--set", "output_dir=" + Path.Combine(folder, "out"), .. settings]);
            IObjectStore store = ObjectStore.Open(place);
            await using (store)
            {
                StoredContent attempt = await store.GetAsync($"{name}/attempts/1.json") ?? throw new InvalidOperationException("the run left no record of its attempt");
                await using (attempt)
                {
                    using JsonDocument record = await JsonDocument.ParseAsync(attempt.Content);
                    double stalled = record.RootElement.GetProperty("stall_seconds").GetDouble(), training = record.RootElement.GetProperty("phase_seconds").GetProperty("training").GetDouble();
                    double percent = 100 * stalled / training;
                    report.Add($"{Prefix}stall_{kind}", percent, "% of the steps' time, a save each 2 steps", "goal", StallGoalPercent, StallGoalPercent / percent);

                    // The interval from which on a save takes less than the goal.
                    report.Add($"{Prefix}stall_seconds_{kind}", stalled / SavesDuringSteps, "s a save", "two steps", training / Steps * 2, training / Steps * 2 / (stalled / SavesDuringSteps));
                }

                await Upload(report, store, name, kind);

                // As a machine that has nothing of the run: the newest checkpoint but the last is where it goes on.
                StoredObject last = (await store.ListAsync($"{name}/step-{Steps:D8}-")).Single(item => item.Key.EndsWith("/manifest.json", StringComparison.Ordinal));
                await store.DeleteAsync(last.Key);
                double resumed = ProgramRun.SecondsToLine($"step {Steps - 1}/", "resume", ObjectStore.Append(place, name), "--set", "output_dir=" + Path.Combine(folder, "elsewhere"));
                report.Add($"{Prefix}resume_first_step_{kind}", resumed, "s", "first step of a new run", first, first / resumed);
                foreach (StoredObject item in await store.ListAsync(name + "/"))
                {
                    await store.DeleteAsync(item.Key);
                }
            }
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    /// <summary>The files of a checkpoint one by one, hashed and put as a save does it, against one object of the same size.</summary>
    private static async Task Upload(BenchmarkReport report, IObjectStore store, string name, string kind)
    {
        const int rounds = 5;
        StoredObject[] files = [.. (await store.ListAsync($"{name}/step-{Steps:D8}-")).Where(item => !item.Key.EndsWith("/manifest.json", StringComparison.Ordinal))];
        long bytes = files.Sum(file => file.SizeBytes);
        byte[][] contents = [.. files.Select(file => RandomBytes(file.SizeBytes))];
        byte[] whole = RandomBytes(bytes);
        double[] rates = new double[rounds], plain = new double[rounds];
        for (int round = 0; round < rounds; round++)
        {
            long start = Stopwatch.GetTimestamp();
            foreach (byte[] content in contents)
            {
                ContentHash.OfBytes(content);
                await store.PutAsync($"{name}/upload/{round}-{content.Length}", new MemoryStream(content));
            }

            rates[round] = bytes / 1e6 / Stopwatch.GetElapsedTime(start).TotalSeconds;
            start = Stopwatch.GetTimestamp();
            await store.PutAsync($"{name}/upload/{round}-whole", new MemoryStream(whole));
            plain[round] = bytes / 1e6 / Stopwatch.GetElapsedTime(start).TotalSeconds;
        }

        double median = CudaBench.Median(rates), baseline = CudaBench.Median(plain);
        report.Add($"{Prefix}upload_{kind}", median, "MB/s", "one object of that size", baseline, median / baseline, rates);
    }

    private static byte[] RandomBytes(long count)
    {
        byte[] bytes = new byte[count];
        new Random(1).NextBytes(bytes);
        return bytes;
    }
}
