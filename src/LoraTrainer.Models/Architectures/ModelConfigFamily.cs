namespace LoraTrainer.Models.Architectures;

/// <summary>Which layers of a family see only the last sliding_window keys.</summary>
internal enum WindowRule
{
    /// <summary>None; sliding_window is not read.</summary>
    None,

    /// <summary>All of them, where sliding_window is a number.</summary>
    EveryLayer,
}

/// <summary>
/// A model family: its names, and the values that a config.json may leave out because they are the family's defaults
/// (transformers, models/NAME/configuration_NAME.py). Another family of the same block structure is another row.
/// </summary>
/// <param name="ModelType">model_type in config.json.</param>
/// <param name="Architecture">The class that transformers loads it with.</param>
internal sealed record ModelConfigFamily(string ModelType, string Architecture)
{
    public static readonly IReadOnlyList<ModelConfigFamily> Supported =
    [
        new("llama", "LlamaForCausalLM")
        {
            VocabSize = 32_000, HiddenSize = 4096, IntermediateSize = 11_008, NumHiddenLayers = 32, NumAttentionHeads = 32,
            MaxPositionEmbeddings = 2048, RmsNormEps = 1e-6, RopeTheta = 10_000, HiddenAct = "silu", BosTokenId = 1, EosTokenId = 2,
            AttentionBiasKey = true, MlpBiasKey = true,
        },
        new("mistral", "MistralForCausalLM")
        {
            VocabSize = 32_000, HiddenSize = 4096, IntermediateSize = 14_336, NumHiddenLayers = 32, NumAttentionHeads = 32, NumKeyValueHeads = 8,
            MaxPositionEmbeddings = 131_072, RmsNormEps = 1e-6, RopeTheta = 10_000, HiddenAct = "silu", BosTokenId = 1, EosTokenId = 2,
            Windows = WindowRule.EveryLayer, SlidingWindow = 4096,
        },
    ];

    public required int VocabSize { get; init; }

    public required int HiddenSize { get; init; }

    public required int IntermediateSize { get; init; }

    public required int NumHiddenLayers { get; init; }

    public required int NumAttentionHeads { get; init; }

    /// <summary>Null: as many as query heads.</summary>
    public int? NumKeyValueHeads { get; init; }

    /// <summary>Null: hidden_size / num_attention_heads.</summary>
    public int? HeadDim { get; init; }

    public required int MaxPositionEmbeddings { get; init; }

    public required double RmsNormEps { get; init; }

    public required double RopeTheta { get; init; }

    public required string HiddenAct { get; init; }

    /// <summary>The family reads attention_bias: q, k, v and o have biases.</summary>
    public bool AttentionBiasKey { get; init; }

    /// <summary>The family reads mlp_bias: gate, up and down have biases.</summary>
    public bool MlpBiasKey { get; init; }

    public WindowRule Windows { get; init; }

    /// <summary>sliding_window where config.json does not have it.</summary>
    public int? SlidingWindow { get; init; }

    public bool TieWordEmbeddings { get; init; }

    public int? BosTokenId { get; init; }

    public int? EosTokenId { get; init; }
}
