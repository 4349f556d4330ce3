using System.Globalization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Planning;

/// <summary>What a run that does not fit is told: what its memory is for, and what of <see cref="MemorySwitches"/> would need less.</summary>
public static class MemoryAdvice
{
    /// <summary>What a kind of memory holds, for people.</summary>
    public static string Name(MemoryKind kind) => kind switch
    {
        MemoryKind.Weights => "frozen weights",
        MemoryKind.Parameters => "trained numbers",
        MemoryKind.KeyValueCache => "keys and values",
        _ => kind.ToString().ToLowerInvariant(),
    };

    /// <summary>Two sentences for an error: the largest parts of the plan, and <see cref="Smaller"/>.</summary>
    /// <param name="config">The run.</param>
    /// <param name="shape">Of its base.</param>
    /// <param name="plan">Its plan on a GPU.</param>
    public static string ForGpu(TrainingConfig config, ModelConfig shape, MemoryPlan plan)
    {
        IEnumerable<string> parts = plan.ByKind.Where(item => item.Value > 0).OrderByDescending(item => item.Value).Take(4)
            .Select(item => string.Create(CultureInfo.InvariantCulture, $"{Name(item.Key)} {item.Value:N0}"));
        return $"The plan's largest parts: {string.Join(", ", parts)}. Less is needed with {Smaller(config, shape, isGpu: true)}.";
    }

    /// <summary>A list that ends with "or": smaller passes, then the switches, those that cost least speed first.</summary>
    /// <param name="config">The run.</param>
    /// <param name="shape">Of its base.</param>
    /// <param name="isGpu">It runs on a GPU.</param>
    public static string Smaller(TrainingConfig config, ModelConfig shape, bool isGpu)
    {
        IEnumerable<MemorySwitch> switches = MemorySwitches.Groups(config, shape)
            .Select(group => group.FirstOrDefault(one => isGpu || !one.NeedsGpu)).OfType<MemorySwitch>().OrderBy(one => one.Slowdown);
        string[] ways =
        [
            $"a smaller {(config.Batch.MicroBatchSize > 1 ? "micro_batch_size or " : "")}sequence_len",
            .. switches.Select(one => one.InsteadOf is null ? one.Words : $"{one.Words} instead of {one.InsteadOf}"),
        ];
        return ways.Length == 1 ? ways[0] : $"{string.Join(", ", ways.SkipLast(1))} or {ways[^1]}";
    }
}
