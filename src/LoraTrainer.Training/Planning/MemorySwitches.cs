using LoraTrainer.Models.Architectures;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Planning;

/// <summary>A key with which a run needs less memory of a GPU.</summary>
/// <param name="Words">As it is written in a config.</param>
/// <param name="Slowdown">About how much longer a step takes, as a share of it. Only the order counts.</param>
/// <param name="IsExact">The result has the same bits.</param>
/// <param name="Apply">Sets it.</param>
internal sealed record MemorySwitch(string Words, double Slowdown, bool IsExact, Func<TrainingConfig, TrainingConfig> Apply)
{
    /// <summary>A key that is true and may not be with it; null: none.</summary>
    public string? InsteadOf { get; init; }

    /// <summary>On the CPU it saves nothing.</summary>
    public bool NeedsGpu { get; init; }

    /// <summary>All that differs in the config, a key each.</summary>
    public IEnumerable<string> Keys => InsteadOf is null ? [Words] : [$"{InsteadOf}: false", Words];
}

/// <summary>What of the switches a run has not on yet. Paged moments are none of them: all of them must be free on the card when they are used.</summary>
internal static class MemorySwitches
{
    /// <summary>Every set of switches that a run can have, beginning with the one that costs least speed; the empty one is left out.</summary>
    /// <param name="config">The run.</param>
    /// <param name="shape">Of its base.</param>
    public static IReadOnlyList<IReadOnlyList<MemorySwitch>> Sets(TrainingConfig config, ModelConfig shape)
    {
        IEnumerable<MemorySwitch[]> sets = [[]];
        foreach (IReadOnlyList<MemorySwitch> group in Groups(config, shape))
        {
            sets = [.. sets, .. sets.SelectMany(set => group.Select(one => (MemorySwitch[])[.. set, one]))];
        }

        return [.. sets.Where(set => set.Length > 0).OrderBy(set => set.Sum(one => one.Slowdown)).ThenBy(set => set.Length)];
    }

    /// <summary>What the run can have and has not yet. Of each group one at most can be on; the first costs least speed.</summary>
    /// <param name="config">The run.</param>
    /// <param name="shape">Of its base.</param>
    public static IEnumerable<IReadOnlyList<MemorySwitch>> Groups(TrainingConfig config, ModelConfig shape)
    {
        bool hasAdapter = config.Adapter.Kind != AdapterKind.None;

        // Embedding and output layer that are one matrix, or that are trained, are where and as they are.
        bool hasFrozenEnds = hasAdapter && !shape.TieWordEmbeddings && config.Adapter is { ModulesToSave.Count: 0, TargetPattern: null } && !config.Adapter.TargetModules.Any(name => name.EndsWith("lm_head", StringComparison.Ordinal) || name.EndsWith("embed_tokens", StringComparison.Ordinal));
        if (hasFrozenEnds && config.Data.Tokens.Count == 0 && config.Device.Embeddings == EmbeddingPlacement.Device)
        {
            yield return [new("embeddings: host", 0.001, IsExact: true, run => run with { Device = run.Device with { Embeddings = EmbeddingPlacement.Host } }) { NeedsGpu = true }];
        }

        if (!config.Optimizer.IsEightBit)
        {
            (string words, OptimizerKind kind) = config.Optimizer.IsPaged ? ("paged_adamw_8bit", OptimizerKind.PagedAdamW8Bit) : ("adamw_8bit", OptimizerKind.AdamW8Bit);
            yield return [new($"optimizer: {words}", 0.002, IsExact: false, run => run with { Optimizer = run.Optimizer with { Kind = kind } }) { NeedsGpu = config.Optimizer.IsPaged }];
        }

        if (hasAdapter && shape.Quantization is null)
        {
            if (config.Quantization is { LoadIn4Bit: true, FourBit.DoubleQuantization: false })
            {
                yield return [new("bnb_config_kwargs.bnb_4bit_use_double_quant: true", 0.005, IsExact: false, run => run with { Quantization = run.Quantization with { FourBit = run.Quantization.FourBit with { DoubleQuantization = true } } })];
            }
            else if (!config.Quantization.LoadIn4Bit)
            {
                MemorySwitch fourBit = new("load_in_4bit: true", 0.03, IsExact: false, run => run with { Adapter = run.Adapter with { Kind = AdapterKind.Qlora }, Quantization = run.Quantization with { LoadIn4Bit = true, LoadIn8Bit = false } });
                yield return [config.Quantization.LoadIn8Bit ? fourBit with { Slowdown = 0.02, InsteadOf = "load_in_8bit" } : fourBit];
            }
        }

        if (hasFrozenEnds && config.Device.LmHead == LmHeadFormat.Bf16)
        {
            yield return [new("lm_head: int8", 0.01, IsExact: false, run => run with { Device = run.Device with { LmHead = LmHeadFormat.EightBit } })];
        }

        if (config.Device.GradientCheckpointing != GradientCheckpointing.Offload)
        {
            MemorySwitch offload = Recomputed("offload", 0.36, GradientCheckpointing.Offload) with { NeedsGpu = true };
            yield return config.Device.GradientCheckpointing == GradientCheckpointing.On ? [offload with { Slowdown = 0.03 }] : [Recomputed("true", 0.33, GradientCheckpointing.On), offload];
        }

        static MemorySwitch Recomputed(string word, double slowdown, GradientCheckpointing kind) =>
            new($"gradient_checkpointing: {word}", slowdown, IsExact: true, run => run with { Device = run.Device with { GradientCheckpointing = kind } });
    }
}
