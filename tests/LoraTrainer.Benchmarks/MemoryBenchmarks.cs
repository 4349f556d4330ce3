using System.Text.Json;

namespace LoraTrainer.Benchmarks;

/// <summary>
/// The memory of whole runs of the program against its own plan: planned arena bytes over what the process really took (VmHWM less what was
/// resident before the model was loaded). 1 is exact; below 1 the process took more than was planned.
/// </summary>
internal static class MemoryBenchmarks
{
    private const int Steps = 2;

    /// <summary>SmolLM2-135M and TinyLlama-1.1B.</summary>
    private static readonly (string Name, string Shape)[] Shapes =
    [
        ("135m", """{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": true, "torch_dtype": "bfloat16"}"""),
        ("1.1b", """{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000, "torch_dtype": "bfloat16"}"""),
    ];

    public static void Run(BenchmarkReport report)
    {
        foreach ((string size, string shape) in Shapes)
        {
            foreach (string format in new[] { "nf4", "bf16" })
            {
                string name = $"memory_{size}_{format}";

                // A base of 1.1 billion parameters takes minutes to make: only where it is asked for.
                if (report.Wants(name) && (size != "1.1b" || report.IsFiltered))
                {
                    (double taken, _, double planned) = Train(shape, format == "nf4", "gradient_checkpointing=true");
                    report.Add(name, taken / 1e6, "MB", "own plan", planned / 1e6, planned / taken);
                }
            }
        }

        // The whole process at the shape of step_qlora_nf4_135m: full sequences, one a step.
        foreach (string recompute in new[] { "false", "true" })
        {
            string name = "process_memory_step_qlora_nf4_135m" + (recompute == "true" ? "_recompute" : "");
            if (report.Wants(name))
            {
                (_, double process, double planned) = Train(Shapes[0].Shape, fourBit: true, "gradient_checkpointing=" + recompute, "sequence_len=512", "micro_batch_size=1");
                report.Add(name, process / 1e6, "MB", "own plan", planned / 1e6, planned / process);
            }
        }
    }

    /// <summary>Bytes: what a run took beyond what was resident before its model was loaded; the process's peak; its plan.</summary>
    private static (double Taken, double Process, double Planned) Train(string shape, bool fourBit, params string[] settings)
    {
        string root = ProgramRun.RepositoryRoot;
        string folder = Directory.CreateTempSubdirectory("lora-trainer-benchmark-").FullName;
        try
        {
            File.WriteAllText(Path.Combine(folder, "config.json"), shape);
            ProgramRun.ToItsEnd("random-model", Path.Combine(folder, "config.json"), Path.Combine(folder, "base"), "--tokenizer", Path.Combine(root, "quickstart", "base"));
            ProgramRun.ToItsEnd([
                "train", Path.Combine(root, "configs", "quickstart.yaml"), "--set", "base_model=" + Path.Combine(folder, "base"), "--set", "output_dir=" + Path.Combine(folder, "out"),
                "--set", $"load_in_4bit={(fourBit ? "true" : "false")}", "--set", $"adapter={(fourBit ? "qlora" : "lora")}", "--set", $"max_steps={Steps}", "--set", "warmup_steps=0",
                "--set", "evaluate_before=false", "--set", "evaluate_after=false",
                "--set", "datasets.0.path=" + Path.Combine(root, "quickstart", "task", "train.jsonl"), .. settings.SelectMany(setting => new[] { "--set", setting })]);
            using JsonDocument summary = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "out", "summary.json")));
            JsonElement memory = summary.RootElement.GetProperty("memory");
            double peak = memory.GetProperty("peak_bytes").GetDouble();
            return (peak - memory.GetProperty("baseline_bytes").GetDouble(), peak, memory.GetProperty("planned_arena_bytes").GetDouble());
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }
}
