namespace LoraTrainer.Models.Architectures;

/// <summary>The activation between gate and up.</summary>
public enum GatedActivation
{
    /// <summary>a * sigmoid(a)</summary>
    Silu,

    /// <summary>GELU in its tanh form.</summary>
    GeluTanh,
}

/// <summary>Which layers of a family see only the last sliding_window keys.</summary>
internal enum WindowRule
{
    /// <summary>None; sliding_window is not read.</summary>
    None,

    /// <summary>All of them, where sliding_window is a number.</summary>
    EveryLayer,

    /// <summary>Those from max_window_layers (28) on, where use_sliding_window is true; or those that layer_types names.</summary>
    FromMaxWindowLayers,

    /// <summary>The first, the third and so on; or those that layer_types names.</summary>
    EvenLayers,
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
        new("qwen2", "Qwen2ForCausalLM")
        {
            VocabSize = 151_936, HiddenSize = 4096, IntermediateSize = 22_016, NumHiddenLayers = 32, NumAttentionHeads = 32, NumKeyValueHeads = 32,
            MaxPositionEmbeddings = 32_768, RmsNormEps = 1e-6, RopeTheta = 10_000, HiddenAct = "silu",
            QueryKeyValueBias = true, Windows = WindowRule.FromMaxWindowLayers, SlidingWindow = 4096,
        },
        new("qwen3", "Qwen3ForCausalLM")
        {
            VocabSize = 151_936, HiddenSize = 4096, IntermediateSize = 22_016, NumHiddenLayers = 32, NumAttentionHeads = 32, NumKeyValueHeads = 32, HeadDim = 128,
            MaxPositionEmbeddings = 32_768, RmsNormEps = 1e-6, RopeTheta = 10_000, HiddenAct = "silu",
            AttentionBiasKey = true, QueryKeyNorm = true, Windows = WindowRule.FromMaxWindowLayers, SlidingWindow = 4096,
        },
        new("phi3", "Phi3ForCausalLM")
        {
            VocabSize = 32_064, HiddenSize = 3072, IntermediateSize = 8192, NumHiddenLayers = 32, NumAttentionHeads = 32,
            MaxPositionEmbeddings = 4096, RmsNormEps = 1e-5, RopeTheta = 10_000, HiddenAct = "silu", BosTokenId = 1, EosTokenId = 32_000, PadTokenId = 32_000,
            FusedProjections = true, OnlyPlainRope = true, Windows = WindowRule.EveryLayer,
        },
        new("gemma2", "Gemma2ForCausalLM")
        {
            VocabSize = 256_000, HiddenSize = 2304, IntermediateSize = 9216, NumHiddenLayers = 26, NumAttentionHeads = 8, NumKeyValueHeads = 4, HeadDim = 256,
            MaxPositionEmbeddings = 8192, RmsNormEps = 1e-6, RopeTheta = 10_000, HiddenActKey = "hidden_activation", HiddenAct = "gelu_pytorch_tanh",
            BosTokenId = 2, EosTokenId = 1, PadTokenId = 0, TieWordEmbeddings = true,
            AttentionBiasKey = true, SandwichNorms = true, NormGainOffset = 1, ScalesEmbeddings = true, Windows = WindowRule.EvenLayers, SlidingWindow = 4096,
            SoftcapKeys = true,
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

    /// <summary>Where config.json names the activation.</summary>
    public string HiddenActKey { get; init; } = "hidden_act";

    /// <summary>The activation, as config.json names it; no other is supported.</summary>
    public required string HiddenAct { get; init; }

    /// <summary>The family reads attention_bias: q, k, v and o have biases.</summary>
    public bool AttentionBiasKey { get; init; }

    /// <summary>q, k and v have biases whatever config.json says; o has none.</summary>
    public bool QueryKeyValueBias { get; init; }

    /// <summary>The family reads mlp_bias: gate, up and down have biases.</summary>
    public bool MlpBiasKey { get; init; }

    public WindowRule Windows { get; init; }

    /// <summary>sliding_window where config.json does not have it.</summary>
    public int? SlidingWindow { get; init; }

    /// <summary>See <see cref="ModelConfig.QueryKeyNorm"/>.</summary>
    public bool QueryKeyNorm { get; init; }

    /// <summary>See <see cref="ModelConfig.FusedProjections"/>.</summary>
    public bool FusedProjections { get; init; }

    /// <summary>The family's ways of stretching rotary frequencies (longrope, or yarn as another word for it) are not supported.</summary>
    public bool OnlyPlainRope { get; init; }

    /// <summary>See <see cref="ModelConfig.SandwichNorms"/>.</summary>
    public bool SandwichNorms { get; init; }

    /// <summary>See <see cref="ModelConfig.NormGainOffset"/>.</summary>
    public double NormGainOffset { get; init; }

    /// <summary>See <see cref="ModelConfig.ScalesEmbeddings"/>.</summary>
    public bool ScalesEmbeddings { get; init; }

    /// <summary>The family reads query_pre_attn_scalar (256), attn_logit_softcapping (50) and final_logit_softcapping (30).</summary>
    public bool SoftcapKeys { get; init; }

    public bool TieWordEmbeddings { get; init; }

    public int? BosTokenId { get; init; }

    public int? EosTokenId { get; init; }

    /// <summary>pad_token_id where config.json does not have it and the vocabulary does.</summary>
    public int? PadTokenId { get; init; }
}
