using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;

namespace LoraTrainer.Training.Config;

/// <summary>What a difference between two configurations of one run means.</summary>
public enum ResumeEffect
{
    /// <summary>The result stays the same, bit by bit.</summary>
    Allowed,

    /// <summary>The run can go on, but the result is no longer that of either configuration.</summary>
    NeedsForce,

    /// <summary>What the checkpoint holds does not fit any more.</summary>
    Refused,
}

/// <summary>One key that differs; a value that is absent on one side is shown as <c>null</c>.</summary>
public sealed record ConfigurationDifference(string Key, string Old, string New, ResumeEffect Effect);

public sealed partial record TrainingConfig
{
    /// <summary>
    /// SHA-256 (lower-case hex) over the keys that decide what is learned. Left out are <see cref="ResolvedConfiguration.WithoutEffectOnResult"/>,
    /// and paths, whose contents are compared instead; the two batch keys count by their product.
    /// </summary>
    public string Hash => ResolvedConfiguration.Hash(this);

    /// <summary>The resolved whole as YAML: every key that means something in this configuration, in a fixed order. Reading it gives an equal configuration.</summary>
    public string ToYaml() => ConfigurationYaml.Write(ConfigurationKeys.Root.Write(this));

    /// <summary>The resolved whole as one JSON object, with the keys and the order of <see cref="ToYaml"/>. Amounts of money are strings.</summary>
    public void WriteJson(Utf8JsonWriter json)
    {
        Write("", ConfigurationKeys.Root.Write(this));

        void Write(string path, ConfigurationNode node)
        {
            switch (node.Kind)
            {
                case NodeKind.Mapping:
                    json.WriteStartObject();
                    foreach (ConfigurationEntry entry in node.Entries)
                    {
                        json.WritePropertyName(entry.Key);
                        Write(path.Length == 0 ? entry.Key : $"{path}.{entry.Key}", entry.Value);
                    }

                    json.WriteEndObject();
                    break;

                case NodeKind.Sequence:
                    json.WriteStartArray();
                    foreach (ConfigurationNode item in node.Items)
                    {
                        Write(path + "[]", item);
                    }

                    json.WriteEndArray();
                    break;

                default:
                    bool literal = node.IsPlain && (node.IsNull || node.IsTrue || node.IsFalse || (Numbers.IsNumber(node.Text) && path is not ("cost.rate" or "cost.budget")));
                    if (literal)
                    {
                        json.WriteRawValue(node.Text);
                    }
                    else
                    {
                        json.WriteStringValue(node.Text);
                    }

                    break;
            }
        }
    }

    /// <summary>What differs between the configuration of a run and the one it is to be resumed with, in the order of the file.</summary>
    public static IReadOnlyList<ConfigurationDifference> CompareForResume(TrainingConfig old, TrainingConfig @new) => ResolvedConfiguration.Compare(old, @new);
}

/// <summary>The flat view of a configuration: every value with its path.</summary>
internal static partial class ResolvedConfiguration
{
    /// <summary>Keys that do not change what is learned. A name covers everything below it.</summary>
    public static IReadOnlyList<string> WithoutEffectOnResult { get; } =
    [
        "run_name", "output_dir", "device", "threads", "gradient_checkpointing", "embeddings", "cuda_graphs", "logging_steps", "use_tensorboard", "otlp_endpoint", "checkpoint", "quantized_cache", "interruption", "resume", "resume_from_checkpoint",
        "on_nonfinite", "max_rollbacks", "on_finish", "cost", "evaluate_before", "evaluate_after", "eval_max_new_tokens", "convert_to_lora", "lora_model_dir",
    ];

    /// <summary>What is evaluated and when: of no effect on what is learned, unless evaluations decide when the training ends or what is written.</summary>
    public static IReadOnlyList<string> OfEvaluation { get; } = ["test_datasets", "eval_max_samples", "eval_strategy", "eval_steps", "evals_per_epoch"];

    /// <summary>Paths of what is read. A run knows its base and its data by their contents, which are compared when they are loaded.</summary>
    public static IReadOnlyList<string> ComparedByContent { get; } = ["base_model", "revision_of_model", "datasets[].path", "datasets[].revision", "datasets[].name", "datasets[].data_files"];

    /// <summary>The two keys whose product is the batch of a step.</summary>
    public static IReadOnlyList<string> BatchShape { get; } = ["micro_batch_size", "gradient_accumulation_steps"];

    /// <summary>Keys that a run can go on with when told to. All that is in no list here is refused.</summary>
    public static IReadOnlyList<string> ChangeableByForce { get; } =
    [
        "lora_alpha", "lora_alpha_pattern", "lora_dropout", "peft_use_rslora", "num_epochs", "max_steps", "learning_rate", "loraplus_lr_ratio", "loraplus_lr_embedding", "adam_beta1", "adam_beta2",
        "adam_epsilon", "weight_decay", "max_grad_norm", "neftune_noise_alpha", "early_stopping_patience", "early_stopping_threshold", "load_best_model_at_end", "lr_scheduler", "lr_scheduler_kwargs", "cosine_min_lr_ratio", "warmup_steps", "warmup_ratio", "lm_head",
    ];

    /// <summary>What a key that is not given comes to, where that is more than its absence: a run is the same whether it was written down or not.</summary>
    private static readonly Dictionary<string, string> Unset = new(StringComparer.Ordinal)
    {
        ["bnb_config_kwargs.bnb_4bit_quant_type"] = "nf4",
        ["bnb_config_kwargs.bnb_4bit_use_double_quant"] = "true",
    };

    /// <summary>The path with each index replaced by nothing: <c>datasets[3].path</c> becomes <c>datasets[].path</c>.</summary>
    public static string Pattern(string path) => path.Contains('[', StringComparison.Ordinal) ? IndexPattern().Replace(path, "[]") : path;

    public static string Hash(TrainingConfig config)
    {
        StringBuilder text = new("lora-trainer configuration 1\n");
        foreach ((string path, string value) in Flatten(config))
        {
            string pattern = Pattern(path);
            if (!IsWithoutEffect(config, pattern) && !ComparedByContent.Contains(pattern) && !BatchShape.Contains(pattern))
            {
                text.Append(path).Append(": ").Append(value).Append('\n');
            }
        }

        text.Append("batch: ").Append(config.Batch.GlobalBatchSize).Append('\n');
        return Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(text.ToString())));
    }

    public static IReadOnlyList<ConfigurationDifference> Compare(TrainingConfig old, TrainingConfig @new)
    {
        Dictionary<string, string> before = Flatten(old).ToDictionary(pair => pair.Path, pair => pair.Value, StringComparer.Ordinal);
        List<(string Path, string Value)> after = Flatten(@new);
        IEnumerable<string> vanished = before.Keys.Except(after.Select(pair => pair.Path));
        return
        [
            .. after.Where(pair => before.GetValueOrDefault(pair.Path) != pair.Value)
                .Select(pair => Difference(pair.Path, before.GetValueOrDefault(pair.Path, "null"), pair.Value)),
            .. vanished.Select(path => Difference(path, before[path], "null")),
        ];

        ConfigurationDifference Difference(string path, string oldValue, string newValue) => new(path, oldValue, newValue, EffectOf(Pattern(path)));

        ResumeEffect EffectOf(string pattern) =>
            pattern == "checkpoint.every_steps" && old.OnNonFinite == NonFiniteAction.Rollback && @new.OnNonFinite == NonFiniteAction.Rollback ? ResumeEffect.NeedsForce
            : (IsWithoutEffect(old, pattern) && IsWithoutEffect(@new, pattern)) || ComparedByContent.Contains(pattern) ? ResumeEffect.Allowed
            : BatchShape.Contains(pattern) && old.Batch.GlobalBatchSize == @new.Batch.GlobalBatchSize ? ResumeEffect.Allowed
            : Covers(ChangeableByForce, pattern) || Covers(OfEvaluation, pattern) ? ResumeEffect.NeedsForce
            : ResumeEffect.Refused;
    }

    private static bool IsWithoutEffect(TrainingConfig config, string pattern) =>
        Covers(WithoutEffectOnResult, pattern) || (!config.Evaluation.DecidesTheResult && Covers(OfEvaluation, pattern));

    private static List<(string Path, string Value)> Flatten(TrainingConfig config)
    {
        List<(string Path, string Value)> values = [];
        Walk("", ConfigurationKeys.Root.Write(config));
        return values;

        void Walk(string path, ConfigurationNode node)
        {
            foreach (ConfigurationEntry entry in node.Entries)
            {
                Walk(path.Length == 0 ? entry.Key : $"{path}.{entry.Key}", entry.Value);
            }

            bool records = node.Items.Any(item => item.Kind == NodeKind.Mapping);
            for (int i = 0; records && i < node.Items.Count; i++)
            {
                Walk($"{path}[{i}]", node.Items[i]);
            }

            if (node.Entries.Count == 0 && !records)
            {
                values.Add((path, node.IsNull && Unset.TryGetValue(path, out string? value) ? value : ConfigurationYaml.WriteInline(node)));
            }
        }
    }

    private static bool Covers(IReadOnlyList<string> names, string pattern) =>
        names.Any(name => pattern == name || (pattern.StartsWith(name, StringComparison.Ordinal) && pattern[name.Length] is '.' or '['));

    [GeneratedRegex(@"\[[0-9]+\]")]
    private static partial Regex IndexPattern();
}
