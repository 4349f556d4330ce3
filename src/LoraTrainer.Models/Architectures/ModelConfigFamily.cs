namespace LoraTrainer.Models.Architectures;

/// <summary>
/// A model family: its names, and the values that a config.json may leave out because they are the family's defaults
/// (transformers, models/NAME/configuration_NAME.py). Another family of the same block structure is another row.
/// </summary>
internal sealed record ModelConfigFamily(string ModelType, string Architecture)
{
    public static readonly IReadOnlyList<ModelConfigFamily> Supported =
    [
        new("llama", "LlamaForCausalLM")
        {
            VocabSize = 32_000, HiddenSize = 4096, IntermediateSize = 11_008, NumHiddenLayers = 32, NumAttentionHeads = 32,
            MaxPositionEmbeddings = 2048, RmsNormEps = 1e-6, RopeTheta = 10_000, HiddenAct = "silu", BosTokenId = 1, EosTokenId = 2,
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

    public bool TieWordEmbeddings { get; init; }

    public int? BosTokenId { get; init; }

    public int? EosTokenId { get; init; }
}
