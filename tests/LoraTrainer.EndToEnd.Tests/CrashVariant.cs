using System.Globalization;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>One way to train that is killed at many moments: a new one joins as a line of <see cref="All"/>.</summary>
/// <param name="Name">Names it in the tests.</param>
/// <param name="Seed">Of the moments.</param>
/// <param name="KillsInFolder">How often it is killed with its checkpoints in a folder.</param>
/// <param name="KillsInS3">How often with its checkpoints in S3, every second time with the disk lost.</param>
/// <param name="Changes">To the config of <see cref="TinyRun.Config"/>, which is LoRA with dropout; without it adapters share products.</param>
internal sealed record CrashVariant(string Name, int Seed, int KillsInFolder, int KillsInS3, params (string Key, object? Value)[] Changes)
{
    public static CrashVariant[] All { get; } =
    [
        new("lora", 11, 8, 8),
        new("packed", 12, 4, 0, ("sample_packing", "true"), ("sequence_len", 96), ("micro_batch_size", 1), ("gradient_accumulation_steps", 4)),
        new("qlora", 13, 3, 6, ("adapter", "qlora"), ("load_in_4bit", "true"), ("gradient_checkpointing", "true"), ("lora_dropout", 0)),
        new("full", 14, 4, 4, [.. TinyRun.AllParameters, ("learning_rate", "1e-3")]),
        new("eight_bit", 16, 4, 0, ("load_in_8bit", "true"), ("optimizer", "adamw_bnb_8bit"), ("lora_r", 32)),
        new("paged", 17, 3, 4, ("optimizer", "paged_adamw_8bit"), ("lora_r", 32)),
        new("dora", 18, 3, 4, ("peft_use_dora", "true"), ("adapter", "qlora"), ("load_in_4bit", "true"), ("loraplus_lr_ratio", 4)),
        new("modules", 19, 3, 0, ("lora_modules_to_save", "[embed_tokens, lm_head]"), ("peft_init_lora_weights", "pissa")),
        new("evaluated", 20, 4, 0, ("eval_steps", 2), ("load_best_model_at_end", "true"), ("learning_rate", 0.9), ("lora_alpha", 64), ("lr_scheduler", "constant_with_warmup"), ("warmup_steps", 15)),

        // Rows are cut to one length, so that most micro-batches are launched as graphs.
        new("cuda", 15, 3, 0, ("device", "cuda"), ("cuda_graphs", "true"), ("sequence_len", 10), ("excess_length_strategy", "truncate"), ("train_on_inputs", "true")),
        new("cuda_paged", 21, 2, 0, ("device", "cuda"), ("optimizer", "paged_adamw_8bit"), ("lora_r", 32), ("gradient_checkpointing", "offload"), ("lora_dropout", 0)),
    ];

    public static TheoryData<string> InFolder => [.. All.Where(variant => variant.KillsInFolder > 0).Select(variant => variant.Name)];

    public static TheoryData<string> InS3 => [.. All.Where(variant => variant.KillsInS3 > 0).Select(variant => variant.Name)];

    /// <summary>Of the processes: the stand-in's for a GPU.</summary>
    public IReadOnlyDictionary<string, string>? Environment => Changes.Contains(("device", "cuda")) ? new Dictionary<string, string> { ["LT_CUDA_DIR"] = CudaStandin.Folder } : null;

    public static CrashVariant Of(string name) => All.Single(variant => variant.Name == name);

    /// <summary>The number as it is, or its share of the kills that LT_KILLS asks for in all.</summary>
    public static int Scaled(int kills) => int.TryParse(System.Environment.GetEnvironmentVariable("LT_KILLS"), NumberStyles.None, CultureInfo.InvariantCulture, out int all)
        ? (int)Math.Ceiling((double)kills * all / All.Sum(variant => variant.KillsInFolder + variant.KillsInS3))
        : kills;
}
