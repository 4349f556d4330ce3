using System.Text.Json;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.Models.Architectures;

/// <summary>
/// The shape of a model, from its config.json (transformers, models/llama/configuration_llama.py). Fields have the file's names. Reads the
/// spelling of releases before 5 (rope_theta, rope_scaling, torch_dtype) and since (rope_parameters, dtype). A value that would change the
/// mathematics and is not supported is refused, never ignored.
/// </summary>
public sealed partial record ModelConfig
{
    /// <summary>Rows of an embedding that are believed.</summary>
    public const int LargestVocabulary = 1 << 24;

    private const int LargestWidth = 1 << 20;

    public required string ModelType { get; init; }

    /// <summary>The class that transformers loads the model with.</summary>
    public required string Architecture { get; init; }

    /// <summary>Rows of the embedding and of the output layer, <see cref="AddedRows"/> included.</summary>
    public required int VocabSize { get; init; }

    /// <summary>How many of the last rows the weight files do not have: those of added tokens. They start as the mean of the others.</summary>
    public int AddedRows { get; init; }

    public required int HiddenSize { get; init; }

    public required int IntermediateSize { get; init; }

    public required int NumHiddenLayers { get; init; }

    public required int NumAttentionHeads { get; init; }

    public required int NumKeyValueHeads { get; init; }

    /// <summary>Not always hidden_size / num_attention_heads.</summary>
    public required int HeadDim { get; init; }

    public required int MaxPositionEmbeddings { get; init; }

    public required double RmsNormEps { get; init; }

    /// <summary>q, k and v have biases.</summary>
    public bool AttentionBias { get; init; }

    /// <summary>o has a bias.</summary>
    public bool OutputBias { get; init; }

    /// <summary>gate, up and down have biases.</summary>
    public bool MlpBias { get; init; }

    /// <summary>W: in a layer that slides a query sees W keys at most, its own included. Null where no layer does.</summary>
    public int? SlidingWindow { get; init; }

    /// <summary>For each layer whether it slides; empty where none does.</summary>
    public IReadOnlyList<bool> SlidingLayers { get; init; } = [];

    /// <summary>Each head of q and of k has an RMS norm before the rotary embedding.</summary>
    public bool QueryKeyNorm { get; init; }

    /// <summary>One linear layer gives q, k and v (qkv_proj), and one gate and up (gate_up_proj).</summary>
    public bool FusedProjections { get; init; }

    /// <summary>What attention and MLP add to the residual stream is normed first.</summary>
    public bool SandwichNorms { get; init; }

    /// <summary>The gain of a norm is its weight and this: 0, or 1.</summary>
    public double NormGainOffset { get; init; }

    /// <summary>act in down(act(gate) * up).</summary>
    public GatedActivation Activation { get; init; }

    /// <summary>Scores are divided by the square root of this; null means head_dim.</summary>
    public double? QueryPreAttnScalar { get; init; }

    /// <summary>c: scores s become c * tanh(s/c) before they are masked; null for none.</summary>
    public double? AttentionSoftcap { get; init; }

    /// <summary>c: logits z become c * tanh(z/c); null for none.</summary>
    public double? LogitSoftcap { get; init; }

    /// <summary>The embedding's rows are multiplied by sqrt(hidden_size).</summary>
    public bool ScalesEmbeddings { get; init; }

    /// <summary>lm_head is the embedding matrix.</summary>
    public bool TieWordEmbeddings { get; init; }

    public RopeParameters Rope { get; init; } = new();

    public double InitializerRange { get; init; } = 0.02;

    public int? BosTokenId { get; init; }

    /// <summary>The tokens that end a text; a config may name none, one or several.</summary>
    public IReadOnlyList<int> EosTokenIds { get; init; } = [];

    public int? PadTokenId { get; init; }

    /// <summary>The type the weights are stored in, as the config says; null where it does not. The weight files have the last word.</summary>
    public SafetensorsDType? DType { get; init; }

    /// <summary>How the files hold the linear layers of the blocks; null where as numbers.</summary>
    public StoredQuantization? Quantization { get; init; }

    /// <summary>Oddities of the file that change nothing here, a sentence each.</summary>
    public IReadOnlyList<string> Notices { get; init; } = [];

    /// <summary>Reads config.json, or the config.json in the folder <paramref name="path"/>.</summary>
    /// <exception cref="ModelFormatException">missing, damaged, of another family, or with settings that are not supported</exception>
    public static ModelConfig Parse(string path)
    {
        string file = Directory.Exists(path) ? Path.Combine(path, "config.json") : path;
        return File.Exists(file)
            ? Parse(JsonFields.Read(file))
            : throw new ModelFormatException(file == path && !path.EndsWith(".json", StringComparison.OrdinalIgnoreCase) ? ModelFolder.NoSuchFolder(path) : $"{file}: there is no such file. It says what the model looks like and must lie beside the weights; fetch it from where the model came.");
    }

    /// <summary>Reads the content of a config.json; <paramref name="file"/> names it in messages.</summary>
    public static ModelConfig Parse(string file, ReadOnlyMemory<byte> utf8) => Parse(JsonFields.Parse(file, utf8));

    /// <summary>The window of a layer's attention; 0 for none.</summary>
    internal int WindowOf(int layer) => SlidingWindow is { } window && SlidingLayers[layer] ? window : 0;

    /// <summary>Multiplies the products of queries and keys.</summary>
    internal float AttentionScale => (float)(1 / Math.Sqrt(QueryPreAttnScalar ?? HeadDim));

    /// <summary>Multiplies the embedding's rows; transformers rounds it to their type.</summary>
    internal float EmbeddingScale(bool inBF16)
    {
        float scale = ScalesEmbeddings ? (float)Math.Sqrt(HiddenSize) : 1;
        return inBF16 ? BrainFloat.Round(scale) : scale;
    }

    private static ModelConfig Parse(JsonFields json)
    {
        var notices = new List<string>();
        ModelConfigFamily family = FamilyOf(json);
        RefuseOtherMathematics(json, family, notices);

        int hidden = json.Integer("hidden_size", family.HiddenSize, 1, LargestWidth);
        int heads = json.Integer("num_attention_heads", family.NumAttentionHeads, 1, 1 << 14);
        int keyValueHeads = json.Has("num_key_value_heads")
            ? json.OptionalInteger("num_key_value_heads", 1, 1 << 14) ?? heads
            : family.NumKeyValueHeads ?? heads;
        int maxPositions = json.Integer("max_position_embeddings", family.MaxPositionEmbeddings, 1, 1 << 30);
        int vocabulary = json.Integer("vocab_size", family.VocabSize, 1, LargestVocabulary);
        int layers = json.Integer("num_hidden_layers", family.NumHiddenLayers, 1, 4096);
        bool attentionBias = family.AttentionBiasKey && json.Truth("attention_bias", false);
        (int? window, IReadOnlyList<bool> sliding) = Windows(json, family, layers);
        var config = new ModelConfig
        {
            ModelType = family.ModelType,
            Architecture = family.Architecture,
            VocabSize = vocabulary,
            HiddenSize = hidden,
            IntermediateSize = json.Integer("intermediate_size", family.IntermediateSize, 1, LargestWidth * 4),
            NumHiddenLayers = layers,
            NumAttentionHeads = heads,
            NumKeyValueHeads = keyValueHeads,
            HeadDim = HeadDimension(json, family, hidden, heads),
            MaxPositionEmbeddings = maxPositions,
            RmsNormEps = json.Number("rms_norm_eps", family.RmsNormEps, 0, 1),
            AttentionBias = family.QueryKeyValueBias || attentionBias,
            OutputBias = attentionBias,
            MlpBias = family.MlpBiasKey && json.Truth("mlp_bias", false),
            QueryKeyNorm = family.QueryKeyNorm,
            FusedProjections = family.FusedProjections,
            SandwichNorms = family.SandwichNorms,
            NormGainOffset = family.NormGainOffset,
            Activation = family.HiddenAct == "silu" ? GatedActivation.Silu : GatedActivation.GeluTanh,
            ScalesEmbeddings = family.ScalesEmbeddings,
            QueryPreAttnScalar = family.SoftcapKeys ? json.Number("query_pre_attn_scalar", 256, 1e-6, 1e9) : null,
            AttentionSoftcap = family.SoftcapKeys ? Softcap(json, "attn_logit_softcapping", 50) : null,
            LogitSoftcap = family.SoftcapKeys ? Softcap(json, "final_logit_softcapping", 30) : null,
            SlidingWindow = window,
            SlidingLayers = sliding,
            TieWordEmbeddings = json.Truth("tie_word_embeddings", family.TieWordEmbeddings),
            Rope = RopeParameters.Parse(json, family.RopeTheta, maxPositions, notices),
            InitializerRange = json.Number("initializer_range", 0.02, 0, 1e3),
            BosTokenId = json.Has("bos_token_id") ? json.OptionalInteger("bos_token_id", 0, int.MaxValue) : family.BosTokenId,
            EosTokenIds = json.Has("eos_token_id") ? json.Integers("eos_token_id", 0, int.MaxValue) ?? [] : family.EosTokenId is { } eos ? [eos] : [],
            PadTokenId = Padding(json, family, vocabulary, notices),
            DType = StorageType(json),
            Quantization = StoredQuantization.Parse(json),
            Notices = notices,
        };
        CheckTogether(json, config);
        return config;
    }

    private static ModelConfigFamily FamilyOf(JsonFields json)
    {
        string supported = string.Join(", ", ModelConfigFamily.Supported.Select(family => family.ModelType));
        string? architecture = json.Texts("architectures") is [string first, ..] ? first : null;
        string? type = json.Text("model_type");
        if (type is null)
        {
            return ModelConfigFamily.Supported.FirstOrDefault(family => family.Architecture == architecture)
                ?? throw json.Error("model_type", $"is missing, so the model's family is not known. Supported: {supported}. Check that this is the config.json of a language model.");
        }

        ModelConfigFamily found = ModelConfigFamily.Supported.FirstOrDefault(family => family.ModelType == type)
            ?? throw json.Error("model_type", $"is '{SafetensorsFile.Shorten(type)}', a family that is not supported. Supported: {supported}. Choose a base model of one of these.");
        return architecture is null || string.Equals(architecture, found.Architecture, StringComparison.OrdinalIgnoreCase)
            ? found
            : throw json.Error("architectures", $"says '{SafetensorsFile.Shorten(architecture)}'; of the family {type} only {found.Architecture}, the language model, is supported. Choose a base model of that class.");
    }

    private static void RefuseOtherMathematics(JsonFields json, ModelConfigFamily family, List<string> notices)
    {
        string activation = json.Has(family.HiddenActKey) ? json.Text(family.HiddenActKey) ?? "null" : family.HiddenAct;
        if (activation != family.HiddenAct && !(activation == "swish" && family.HiddenAct == "silu"))
        {
            throw json.Wrong(family.HiddenActKey, family.HiddenAct, "Another activation is not supported for this family.");
        }

        foreach (string dropout in new[] { "resid_pdrop", "embd_pdrop" })
        {
            if ((json.OptionalNumber(dropout, 0, 1) ?? 0) != 0)
            {
                throw json.Wrong(dropout, "0", "Dropout in the base model is not supported; set it to 0 to train without.");
            }
        }

        if (json.HasValue("use_bidirectional_attention") && json.Truth("use_bidirectional_attention", false))
        {
            throw json.Wrong("use_bidirectional_attention", "false", "Only causal attention is supported.");
        }

        if (family.OnlyPlainRope && (json.Object("rope_scaling") ?? json.Object("rope_parameters")) is { } rope)
        {
            string typeKey = rope.HasValue("rope_type") || !rope.HasValue("type") ? "rope_type" : "type";
            if (rope.Text(typeKey) is not (null or "default"))
            {
                throw rope.Wrong(typeKey, $"default in the family {family.ModelType}", "Its long contexts (longrope) are not supported; choose a model of this family without rope_scaling.");
            }
        }

        if (json.Number("attention_dropout", 0, 0, 1) != 0)
        {
            throw json.Wrong("attention_dropout", "0", "Dropout on attention weights is not supported; set it to 0 to train without.");
        }

        if (json.OptionalNumber("partial_rotary_factor", 0, 1) is not (null or 1))
        {
            throw json.Wrong("partial_rotary_factor", "1 for this family", "Heads that rotate only in part are not supported here.");
        }

        if (json.Integer("pretraining_tp", 1, 0, 1 << 20) > 1)
        {
            notices.Add($"{json.Place("pretraining_tp")} has no effect here: it only splits the same products into parts.");
        }

        if (json.HasValue("auto_map"))
        {
            notices.Add($"{json.Place("auto_map")} names Python code that came with the model; it is not run. If it changes the mathematics of {family.ModelType}, results differ.");
        }
    }

    /// <summary>The window and the layers that have it.</summary>
    private static (int? Window, IReadOnlyList<bool> Layers) Windows(JsonFields json, ModelConfigFamily family, int layers)
    {
        if (family.Windows == WindowRule.None)
        {
            return (null, []);
        }

        int? window = json.Has("sliding_window") ? json.OptionalInteger("sliding_window", 1, int.MaxValue) : family.SlidingWindow;
        int first = 0;
        if (family.Windows == WindowRule.FromMaxWindowLayers)
        {
            window = json.Truth("use_sliding_window", false) ? window : null;
            first = json.Integer("max_window_layers", 28, 0, int.MaxValue);
        }

        bool[] slides = [.. Enumerable.Range(0, layers).Select(layer => family.Windows == WindowRule.EvenLayers ? layer % 2 == 0 : window is not null && layer >= first)];
        if (json.Texts("layer_types") is { } types)
        {
            bool[] named = LayerTypes(json, types, layers);
            if (family.Windows == WindowRule.EveryLayer && !named.SequenceEqual(slides))
            {
                throw json.Error("layer_types", $"does not fit sliding_window, which in the family {family.ModelType} holds for every layer. Remove layer_types, or set sliding_window to null if no layer slides.");
            }

            slides = named;
        }

        return !slides.Contains(true) ? (null, [])
            : window is not null ? (window, slides)
            : throw json.Error(json.Has("layer_types") ? "layer_types" : "sliding_window", "gives layers a sliding window, but there is no size: sliding_window is null, or use_sliding_window is false. One of them is wrong.");
    }

    private static bool[] LayerTypes(JsonFields json, IReadOnlyList<string> types, int layers) => types.Count != layers
        ? throw json.Error("layer_types", $"names {types.Count} layers, but num_hidden_layers is {layers}. One of the two is wrong.")
        : [.. types.Select(type => type switch
        {
            "sliding_attention" => true,
            "full_attention" => false,
            _ => throw json.Wrong("layer_types", "a list of full_attention and sliding_attention", "Another kind of layer is not supported."),
        })];

    private static int HeadDimension(JsonFields json, ModelConfigFamily family, int hidden, int heads)
    {
        int? given = json.Has("head_dim") ? json.OptionalInteger("head_dim", 2, 1 << 14) : family.HeadDim;
        if (given is null && hidden % heads != 0)
        {
            throw json.Error("hidden_size", $"is {hidden}, which the {heads} num_attention_heads do not divide, and head_dim is not given. One of the three is wrong.");
        }

        int dimension = given ?? hidden / heads;
        return dimension % 2 == 0 && dimension > 0
            ? dimension
            : throw json.Error(given is null ? "hidden_size" : "head_dim", $"gives heads of {dimension} dimensions; rotary embedding turns pairs, so the number must be even.");
    }

    /// <summary>An explicit null switches a softcap off.</summary>
    private static double? Softcap(JsonFields json, string name, double missing) => json.Has(name) ? json.OptionalNumber(name, 1e-6, 1e9) : missing;

    private static int? Padding(JsonFields json, ModelConfigFamily family, int vocabulary, List<string> notices)
    {
        if (!json.Has("pad_token_id"))
        {
            return family.PadTokenId < vocabulary ? family.PadTokenId : null;
        }

        int? padding = json.OptionalInteger("pad_token_id", int.MinValue, int.MaxValue);
        if (padding < 0)
        {
            notices.Add($"{json.Place("pad_token_id")} is {padding}, which is no token; taken as none.");
            return null;
        }

        return padding >= vocabulary
            ? throw json.Wrong("pad_token_id", $"below vocab_size, {vocabulary}")
            : padding;
    }

    private static SafetensorsDType? StorageType(JsonFields json)
    {
        string key = json.HasValue("dtype") ? "dtype" : "torch_dtype";
        return json.Text(key) switch
        {
            null or "auto" => null,
            "float32" or "torch.float32" or "float" => SafetensorsDType.F32,
            "float16" or "torch.float16" or "half" => SafetensorsDType.F16,
            "bfloat16" or "torch.bfloat16" => SafetensorsDType.BF16,
            _ => throw json.Wrong(key, "float32, float16 or bfloat16"),
        };
    }

    private static void CheckTogether(JsonFields json, ModelConfig config)
    {
        if (config.NumAttentionHeads % config.NumKeyValueHeads != 0)
        {
            throw json.Error("num_key_value_heads", $"is {config.NumKeyValueHeads}, which does not divide the {config.NumAttentionHeads} num_attention_heads; each key head serves the same number of query heads.");
        }

        if ((long)config.NumAttentionHeads * config.HeadDim > LargestWidth * 4)
        {
            throw json.Error("num_attention_heads", $"is {config.NumAttentionHeads} with head_dim {config.HeadDim}, together {(long)config.NumAttentionHeads * config.HeadDim}; at most {LargestWidth * 4} is accepted.");
        }
    }

    /// <summary>A config.json for this model, in the spelling that every release of transformers reads. Ends with a line break.</summary>
    public string ToJson()
    {
        var fields = new SortedDictionary<string, Action<Utf8JsonWriter>>(StringComparer.Ordinal)
        {
            ["architectures"] = writer => PythonJson.WriteTexts(writer, [Architecture]),
            ["attention_dropout"] = writer => PythonJson.WriteFloat(writer, 0),
            ["bos_token_id"] = writer => WriteNumber(writer, BosTokenId),
            ["eos_token_id"] = WriteEos,
            ["head_dim"] = writer => writer.WriteNumberValue(HeadDim),
            ["hidden_size"] = writer => writer.WriteNumberValue(HiddenSize),
            ["initializer_range"] = writer => PythonJson.WriteFloat(writer, InitializerRange),
            ["intermediate_size"] = writer => writer.WriteNumberValue(IntermediateSize),
            ["max_position_embeddings"] = writer => writer.WriteNumberValue(MaxPositionEmbeddings),
            ["model_type"] = writer => writer.WriteStringValue(ModelType),
            ["num_attention_heads"] = writer => writer.WriteNumberValue(NumAttentionHeads),
            ["num_hidden_layers"] = writer => writer.WriteNumberValue(NumHiddenLayers),
            ["num_key_value_heads"] = writer => writer.WriteNumberValue(NumKeyValueHeads),
            ["pad_token_id"] = writer => WriteNumber(writer, PadTokenId),
            ["rms_norm_eps"] = writer => PythonJson.WriteFloat(writer, RmsNormEps),
            ["rope_scaling"] = writer =>
            {
                if (Rope.ToFields() is { } rope)
                {
                    PythonJson.WriteObject(writer, rope);
                }
                else
                {
                    writer.WriteNullValue();
                }
            },
            ["rope_theta"] = writer => PythonJson.WriteFloat(writer, Rope.Theta),
            ["tie_word_embeddings"] = writer => writer.WriteBooleanValue(TieWordEmbeddings),
            ["use_cache"] = writer => writer.WriteBooleanValue(true),
            ["vocab_size"] = writer => writer.WriteNumberValue(VocabSize),
        };
        AddFamilyFields(fields, ModelConfigFamily.Supported.Single(family => family.ModelType == ModelType));
        if (DType is { } dtype)
        {
            fields["torch_dtype"] = writer => writer.WriteStringValue(dtype switch { SafetensorsDType.F16 => "float16", SafetensorsDType.BF16 => "bfloat16", _ => "float32" });
        }

        return PythonJson.WriteSorted(fields) + "\n";
    }

    /// <summary>The fields that only some families have.</summary>
    private void AddFamilyFields(SortedDictionary<string, Action<Utf8JsonWriter>> fields, ModelConfigFamily family)
    {
        fields[family.HiddenActKey] = writer => writer.WriteStringValue(family.HiddenAct);
        if (family.AttentionBiasKey)
        {
            fields["attention_bias"] = writer => writer.WriteBooleanValue(AttentionBias);
        }

        if (family.MlpBiasKey)
        {
            fields["mlp_bias"] = writer => writer.WriteBooleanValue(MlpBias);
        }

        if (family.Windows != WindowRule.None)
        {
            fields["sliding_window"] = writer => WriteNumber(writer, SlidingWindow);
        }

        if (family.SoftcapKeys)
        {
            fields["query_pre_attn_scalar"] = writer =>
            {
                // A whole number in the class of transformers.
                double scalar = QueryPreAttnScalar!.Value;
                if (scalar == (int)scalar)
                {
                    writer.WriteNumberValue((int)scalar);
                }
                else
                {
                    PythonJson.WriteFloat(writer, scalar);
                }
            };
            fields["attn_logit_softcapping"] = writer => WriteFloat(writer, AttentionSoftcap);
            fields["final_logit_softcapping"] = writer => WriteFloat(writer, LogitSoftcap);
        }

        if (family.Windows is WindowRule.FromMaxWindowLayers or WindowRule.EvenLayers)
        {
            bool[] slides = [.. Enumerable.Range(0, NumHiddenLayers).Select(layer => WindowOf(layer) > 0)];
            fields["layer_types"] = writer => PythonJson.WriteTexts(writer, [.. slides.Select(layer => layer ? "sliding_attention" : "full_attention")]);
            if (family.Windows == WindowRule.EvenLayers)
            {
                return;
            }

            // Releases that do not know layer_types read these.
            fields["max_window_layers"] = writer => writer.WriteNumberValue(slides.TakeWhile(layer => !layer).Count());
            fields["use_sliding_window"] = writer => writer.WriteBooleanValue(SlidingWindow is not null);
        }
    }

    private void WriteEos(Utf8JsonWriter writer)
    {
        if (EosTokenIds.Count < 2)
        {
            WriteNumber(writer, EosTokenIds.Count == 1 ? EosTokenIds[0] : null);
            return;
        }

        writer.WriteStartArray();
        foreach (int token in EosTokenIds)
        {
            writer.WriteNumberValue(token);
        }

        writer.WriteEndArray();
    }

    private static void WriteFloat(Utf8JsonWriter writer, double? value)
    {
        if (value is { } number)
        {
            PythonJson.WriteFloat(writer, number);
        }
        else
        {
            writer.WriteNullValue();
        }
    }

    private static void WriteNumber(Utf8JsonWriter writer, int? value)
    {
        if (value is { } number)
        {
            writer.WriteNumberValue(number);
        }
        else
        {
            writer.WriteNullValue();
        }
    }
}
