using System.Globalization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Planning;

/// <summary>What a run that does not fit is told: what its memory is for, and what of the switches that save some is not on yet.</summary>
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
    /// <param name="plan">Its plan on a GPU.</param>
    public static string ForGpu(TrainingConfig config, MemoryPlan plan)
    {
        IEnumerable<string> parts = plan.ByKind.Where(item => item.Value > 0).OrderByDescending(item => item.Value).Take(4)
            .Select(item => string.Create(CultureInfo.InvariantCulture, $"{Name(item.Key)} {item.Value:N0}"));
        return $"The plan's largest parts: {string.Join(", ", parts)}. Less is needed with {Smaller(config, isGpu: true)}.";
    }

    /// <summary>A list that ends with "or".</summary>
    /// <param name="config">The run.</param>
    /// <param name="isGpu">It runs on a GPU.</param>
    public static string Smaller(TrainingConfig config, bool isGpu)
    {
        bool hasAdapter = config.Adapter.Kind != AdapterKind.None;
        List<string> ways = ["a smaller micro_batch_size or sequence_len"];
        if (config.Device.GradientCheckpointing == GradientCheckpointing.Off)
        {
            ways.Insert(0, "gradient_checkpointing: true");
        }
        else if (isGpu && config.Device.GradientCheckpointing == GradientCheckpointing.On)
        {
            ways.Add("gradient_checkpointing: offload");
        }

        if (hasAdapter && !config.Quantization.LoadIn4Bit)
        {
            ways.Add("load_in_4bit: true");
        }

        if (hasAdapter && config.Device.LmHead == LmHeadFormat.Bf16)
        {
            ways.Add("lm_head: int8");
        }

        if (isGpu && hasAdapter && config.Device.Embeddings == EmbeddingPlacement.Device)
        {
            ways.Add("embeddings: host");
        }

        return ways.Count == 1 ? ways[0] : $"{string.Join(", ", ways.SkipLast(1))} or {ways[^1]}";
    }
}
