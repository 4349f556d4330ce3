namespace LoraTrainer.Models.Adapters;

/// <summary>What a tensor of an adapter file is.</summary>
public enum PeftTensorKind
{
    /// <summary>(rank, in)</summary>
    LoraA,

    /// <summary>(out, rank)</summary>
    LoraB,

    /// <summary>(out)</summary>
    LoraBBias,

    /// <summary>(rank, vocabulary)</summary>
    LoraEmbeddingA,

    /// <summary>(hidden, rank)</summary>
    LoraEmbeddingB,

    /// <summary>DoRA's magnitude, (out)</summary>
    Magnitude,

    /// <summary>The bias of a module that carries an adapter.</summary>
    BaseBias,

    /// <summary>Rows that replace rows of an embedding.</summary>
    TrainableTokens,

    /// <summary>The weight of a module trained in full.</summary>
    SavedWeight,

    /// <summary>The bias of a module trained in full, or trained alone.</summary>
    SavedBias,
}

/// <summary>
/// The name of a tensor in adapter_model.safetensors: <c>base_model.model.</c>, the module's path, and an ending for what it is
/// (huggingface/peft, utils/save_and_load.py). The magnitude and the embedding matrices have no ".weight".
/// The module is named as in the base model: model.layers.0.self_attn.q_proj.
/// </summary>
public readonly record struct PeftAdapterFolderKey(string Module, PeftTensorKind Kind)
{
    private const string Prefix = "base_model.model.";

    // The plain endings come last, since the longer ones end in them.
    private static readonly (string Ending, PeftTensorKind Kind)[] Endings =
    [
        (".lora_A.weight", PeftTensorKind.LoraA),
        (".lora_B.weight", PeftTensorKind.LoraB),
        (".lora_B.bias", PeftTensorKind.LoraBBias),
        (".lora_embedding_A", PeftTensorKind.LoraEmbeddingA),
        (".lora_embedding_B", PeftTensorKind.LoraEmbeddingB),
        (".lora_magnitude_vector", PeftTensorKind.Magnitude),
        (".base_layer.bias", PeftTensorKind.BaseBias),
        (".token_adapter.trainable_tokens_delta", PeftTensorKind.TrainableTokens),
        (".weight", PeftTensorKind.SavedWeight),
        (".bias", PeftTensorKind.SavedBias),
    ];

    /// <summary>Null where the name is none that PEFT writes.</summary>
    public static PeftAdapterFolderKey? Parse(string name)
    {
        if (name.StartsWith(Prefix, StringComparison.Ordinal))
        {
            foreach ((string ending, PeftTensorKind kind) in Endings)
            {
                if (name.Length > Prefix.Length + ending.Length && name.EndsWith(ending, StringComparison.Ordinal))
                {
                    string module = name[Prefix.Length..^ending.Length];
                    return new PeftAdapterFolderKey(module, kind);
                }
            }
        }

        return null;
    }

    /// <summary>The name in the file.</summary>
    public override string ToString()
    {
        PeftTensorKind kind = Kind;
        return Prefix + Module + Endings.First(row => row.Kind == kind).Ending;
    }
}
