using System.Text.Json;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;

namespace LoraTrainer.Models.Adapters;

/// <summary>Which biases are trained beside the adapter.</summary>
public enum AdapterBias
{
    None,

    /// <summary>All biases of the model.</summary>
    All,

    /// <summary>The biases of the modules that carry an adapter.</summary>
    LoraOnly,
}

/// <summary>Names of modules: either a list, whose entries match whole components at the end of a path, or one regular expression that matches a whole path.</summary>
public sealed record ModuleNames
{
    private ModuleNames(IReadOnlyList<string>? list, string? pattern)
    {
        List = list;
        Pattern = pattern;
    }

    /// <summary>Null where it is a pattern.</summary>
    public IReadOnlyList<string>? List { get; }

    /// <summary>Null where it is a list. In target_modules "all-linear" has its own meaning.</summary>
    public string? Pattern { get; }

    public static ModuleNames Of(params IReadOnlyList<string> names) => new(names, null);

    public static ModuleNames Matching(string pattern) => new(null, pattern);
}

/// <summary>
/// The settings of a LoRA adapter, as PEFT's adapter_config.json has them (huggingface/peft, tuners/lora/config.py). Reading keeps to PEFT's
/// defaults; a setting that changes the mathematics and is not supported is refused, other unknown ones become notices.
/// </summary>
public sealed record AdapterConfig
{
    public const string FileName = "adapter_config.json";

    // Set to anything but off, these change what the adapter computes or which parameters it has.
    private static readonly string[] UnsupportedFields =
    [
        "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "megatron_config", "monteclora_config", "target_parameters",
        "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
    ];

    // These say how the start values were made, or are notes; an adapter with its weights needs none of them.
    private static readonly string[] StartOnlyFields = ["auto_mapping", "corda_config", "eva_config", "loftq_config", "lora_ga_config"];

    private static readonly string[] KnownFields =
    [
        "alpha_pattern", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "inference_mode",
        "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout", "megatron_core",
        "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
        "target_modules", "task_type", "use_dora", "use_rslora",
    ];

    public string? BaseModelNameOrPath { get; init; }

    /// <summary>A sentence where a folder does not look like the base that the adapter was trained on; null: it does, or the adapter names none. The shapes of two models may be alike.</summary>
    /// <param name="baseFolder">What the adapter is to go onto.</param>
    public string? DoubtAbout(string baseFolder)
    {
        string name = Path.GetFileName(Path.TrimEndingDirectorySeparator(BaseModelNameOrPath ?? ""));
        return name.Trim('.').Length == 0 || Path.GetFullPath(baseFolder).Contains(name, StringComparison.OrdinalIgnoreCase)
            ? null
            : $"The adapter was trained on {BaseModelNameOrPath} and goes onto {baseFolder} here. If that is another model, the result means nothing, although the shapes fit.";
    }

    public string? Revision { get; init; }

    public string? TaskType { get; init; } = "CAUSAL_LM";

    public string? PeftVersion { get; init; }

    public bool InferenceMode { get; init; } = true;

    /// <summary>The rank of modules that no pattern names.</summary>
    public int R { get; init; } = 8;

    /// <summary>The alpha of modules that no pattern names.</summary>
    public double LoraAlpha { get; init; } = 8;

    public double LoraDropout { get; init; }

    /// <summary>Null: the family's default modules.</summary>
    public ModuleNames? TargetModules { get; init; }

    public ModuleNames? ExcludeModules { get; init; }

    public AdapterBias Bias { get; init; }

    public bool UseRslora { get; init; }

    public bool UseDora { get; init; }

    /// <summary>B has a bias.</summary>
    public bool LoraBias { get; init; }

    /// <summary>How the start values are made: "true", "false", "gaussian", "pissa", "olora", ...</summary>
    public string InitLoraWeights { get; init; } = "true";

    /// <summary>Modules trained in full and saved whole.</summary>
    public IReadOnlyList<string>? ModulesToSave { get; init; }

    /// <summary>Null or empty: all layers.</summary>
    public IReadOnlyList<int>? LayersToTransform { get; init; }

    /// <summary>The name before the layer's number in a path; null or empty: any.</summary>
    public IReadOnlyList<string>? LayersPattern { get; init; }

    /// <summary>Ranks by pattern; the first that matches a module counts.</summary>
    public IReadOnlyList<KeyValuePair<string, int>> RankPattern { get; init; } = [];

    /// <summary>Alphas by pattern; the first that matches a module counts.</summary>
    public IReadOnlyList<KeyValuePair<string, double>> AlphaPattern { get; init; } = [];

    public bool EnsureWeightTying { get; init; }

    /// <summary>What the file had that is not used here, a sentence each.</summary>
    public IReadOnlyList<string> Notices { get; init; } = [];

    /// <summary>The factor on B·A: alpha / rank, with rsLoRA alpha / sqrt(rank) (Kalajdzievski 2023).</summary>
    public double Scaling(int rank, double alpha) => UseRslora ? alpha / Math.Sqrt(rank) : alpha / rank;

    /// <summary>Every rank doubled with the factor on B·A unchanged, as a plain adapter: for what started from the base's weights.</summary>
    public AdapterConfig WithDoubledRank()
    {
        double more = UseRslora ? Math.Sqrt(2) : 2;
        return this with
        {
            R = 2 * R,
            LoraAlpha = more * LoraAlpha,
            RankPattern = [.. RankPattern.Select(pair => KeyValuePair.Create(pair.Key, 2 * pair.Value))],
            AlphaPattern = [.. AlphaPattern.Select(pair => KeyValuePair.Create(pair.Key, more * pair.Value))],
            InitLoraWeights = "true",
        };
    }

    /// <summary>Reads adapter_config.json, or the one in the folder <paramref name="path"/>.</summary>
    /// <exception cref="ModelFormatException">missing, damaged, or with settings that are not supported</exception>
    public static AdapterConfig Parse(string path)
    {
        string file = Directory.Exists(path) ? Path.Combine(path, FileName) : path;
        return File.Exists(file)
            ? Parse(JsonFields.Read(file))
            : throw new ModelFormatException($"{file}: there is no such file. An adapter is a folder with {FileName} and {PeftAdapterFolder.WeightsFileName}; check the path.");
    }

    /// <summary>Reads the content of an adapter_config.json; <paramref name="file"/> names it in messages.</summary>
    public static AdapterConfig Parse(string file, ReadOnlyMemory<byte> utf8) => Parse(JsonFields.Parse(file, utf8));

    private static AdapterConfig Parse(JsonFields json)
    {
        if (json.Text("peft_type") is not "LORA")
        {
            throw json.HasValue("peft_type")
                ? json.Wrong("peft_type", "\"LORA\"", "Other kinds of adapter are not supported.")
                : json.Error("peft_type", "is missing; it says what kind of adapter this is. Check that the file is the adapter_config.json that PEFT wrote.");
        }

        List<string> notices = NoteUnused(json);
        return new AdapterConfig
        {
            BaseModelNameOrPath = json.Text("base_model_name_or_path"),
            Revision = json.Text("revision"),
            TaskType = json.Text("task_type"),
            PeftVersion = json.Text("peft_version"),
            InferenceMode = json.Truth("inference_mode", false),
            R = json.Integer("r", 8, 1, 1 << 16),
            LoraAlpha = json.Number("lora_alpha", 8, 0, 1e9),
            LoraDropout = json.Number("lora_dropout", 0, 0, 1),
            TargetModules = Names(json, "target_modules"),
            ExcludeModules = Names(json, "exclude_modules"),
            Bias = !json.Has("bias") ? AdapterBias.None : json.Text("bias") switch
            {
                "none" => AdapterBias.None,
                "all" => AdapterBias.All,
                "lora_only" => AdapterBias.LoraOnly,
                _ => throw json.Wrong("bias", "none, all or lora_only"),
            },
            UseRslora = json.Truth("use_rslora", false),
            UseDora = json.Truth("use_dora", false),
            LoraBias = json.Truth("lora_bias", false),
            InitLoraWeights = Start(json),
            ModulesToSave = json.Texts("modules_to_save"),
            LayersToTransform = json.Integers("layers_to_transform", 0, 1 << 20),
            LayersPattern = Names(json, "layers_pattern") is { } layers ? layers.List ?? [layers.Pattern!] : null,
            RankPattern = Pattern(json, "rank_pattern", (fields, name) => fields.OptionalInteger(name, 1, 1 << 16)),
            AlphaPattern = Pattern(json, "alpha_pattern", (fields, name) => fields.OptionalNumber(name, 0, 1e9)),
            EnsureWeightTying = json.Truth("ensure_weight_tying", false),
            Notices = notices,
        };
    }

    private static List<string> NoteUnused(JsonFields json)
    {
        var notices = new List<string>();
        foreach (string name in UnsupportedFields)
        {
            if (json.Has(name) && !IsOff(json.Raw(name)))
            {
                throw json.Error(name, "is set: it changes what the adapter computes, and is not supported. Use an adapter without it.");
            }
        }

        if (json.HasValue("fan_in_fan_out") && json.Truth("fan_in_fan_out", false))
        {
            notices.Add($"{json.Place("fan_in_fan_out")} is true, which has no meaning for linear layers; taken as false, as PEFT does.");
        }

        foreach (string name in json.Names.Except([.. UnsupportedFields, .. KnownFields], StringComparer.Ordinal))
        {
            if (IsOff(json.Raw(name)))
            {
                continue;
            }

            if (StartOnlyFields.Contains(name))
            {
                notices.Add($"{json.Place(name)} only says how the adapter was started or written; it is not used.");
                continue;
            }

            // What PEFT adds later and switches on by these names is a variant of LoRA with other mathematics.
            if (name.StartsWith("use_", StringComparison.Ordinal) || name.EndsWith("_config", StringComparison.Ordinal))
            {
                throw json.Error(SafetensorsFile.Shorten(name), "is set and not known here: it may change what the adapter computes. Use an adapter without it.");
            }

            notices.Add($"{json.Place(SafetensorsFile.Shorten(name))} is not known here; it is not used.");
        }

        return notices;
    }

    /// <summary>Null, false, and empty lists, objects and strings are how PEFT writes that a setting is not in use.</summary>
    private static bool IsOff(JsonElement value) => value.ValueKind switch
    {
        JsonValueKind.Null or JsonValueKind.False => true,
        JsonValueKind.Array => value.GetArrayLength() == 0,
        JsonValueKind.Object => !value.EnumerateObject().Any(),
        JsonValueKind.String => value.ValueEquals(""),
        _ => false,
    };

    private static ModuleNames? Names(JsonFields json, string name) => !json.HasValue(name) ? null
        : json.Raw(name).ValueKind == JsonValueKind.String ? ModuleNames.Matching(json.Text(name)!)
        : ModuleNames.Of(json.Texts(name)!);

    private static string Start(JsonFields json) => !json.Has("init_lora_weights") ? "true" : json.Raw("init_lora_weights").ValueKind switch
    {
        JsonValueKind.True => "true",
        JsonValueKind.False or JsonValueKind.Null => "false",
        JsonValueKind.String => json.Text("init_lora_weights")!,
        _ => throw json.Wrong("init_lora_weights", "true, false or the name of a method"),
    };

    private static IReadOnlyList<KeyValuePair<string, T>> Pattern<T>(JsonFields json, string name, Func<JsonFields, string, T?> read)
        where T : struct
        => json.Object(name) is { } fields
            ? [.. fields.Names.Select(key => KeyValuePair.Create(key, read(fields, key) ?? throw fields.Wrong(key, "a number")))]
            : [];

    /// <summary>
    /// The file's content as PEFT writes it: keys in ordinal order, indented by 2, no line break at the end. The patterns keep their own order,
    /// since the first match counts.
    /// </summary>
    public string ToJson()
    {
        var fields = new SortedDictionary<string, Action<Utf8JsonWriter>>(StringComparer.Ordinal);
        foreach (string name in (string[])
            ["alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config", "kasa_config", "layer_replication", "lora_ga_config",
             "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "velora_config"])
        {
            fields[name] = writer => writer.WriteNullValue();
        }

        AddText("base_model_name_or_path", BaseModelNameOrPath);
        AddText("bias", Bias switch { AdapterBias.All => "all", AdapterBias.LoraOnly => "lora_only", _ => "none" });
        AddText("megatron_core", "megatron.core");
        AddText("peft_type", "LORA");
        AddText("revision", Revision);
        AddText("task_type", TaskType);
        if (PeftVersion is not null)
        {
            AddText("peft_version", PeftVersion);
        }

        AddTruth("ensure_weight_tying", EnsureWeightTying);
        AddTruth("fan_in_fan_out", false);
        AddTruth("inference_mode", InferenceMode);
        AddTruth("lora_bias", LoraBias);
        AddTruth("use_dora", UseDora);
        AddTruth("use_qalora", false);
        AddTruth("use_rslora", UseRslora);
        fields["init_lora_weights"] = writer =>
        {
            if (InitLoraWeights is "true" or "false")
            {
                writer.WriteBooleanValue(InitLoraWeights == "true");
            }
            else
            {
                writer.WriteStringValue(InitLoraWeights);
            }
        };
        fields["r"] = writer => writer.WriteNumberValue(R);
        fields["qalora_group_size"] = writer => writer.WriteNumberValue(16);
        fields["lora_alpha"] = writer => PythonJson.WriteNumber(writer, LoraAlpha);
        fields["lora_dropout"] = writer => PythonJson.WriteFloat(writer, LoraDropout);
        AddNames("target_modules", TargetModules);
        AddNames("exclude_modules", ExcludeModules);
        AddNames("modules_to_save", ModulesToSave is null ? null : ModuleNames.Of(ModulesToSave));
        AddNames("layers_pattern", LayersPattern is null ? null : ModuleNames.Of(LayersPattern));
        fields["layers_to_transform"] = writer =>
        {
            if (LayersToTransform is null)
            {
                writer.WriteNullValue();
                return;
            }

            writer.WriteStartArray();
            foreach (int layer in LayersToTransform)
            {
                writer.WriteNumberValue(layer);
            }

            writer.WriteEndArray();
        };
        fields["loftq_config"] = writer =>
        {
            writer.WriteStartObject();
            writer.WriteEndObject();
        };
        AddPattern("rank_pattern", RankPattern, (writer, rank) => writer.WriteNumberValue(rank));
        AddPattern("alpha_pattern", AlphaPattern, PythonJson.WriteNumber);
        return PythonJson.WriteSorted(fields);

        void AddText(string name, string? value) => fields[name] = writer => writer.WriteStringValue(value);

        void AddTruth(string name, bool value) => fields[name] = writer => writer.WriteBooleanValue(value);

        void AddNames(string name, ModuleNames? names) => fields[name] = writer =>
        {
            if (names?.List is { } list)
            {
                PythonJson.WriteTexts(writer, list);
            }
            else
            {
                writer.WriteStringValue(names?.Pattern);
            }
        };

        void AddPattern<T>(string name, IReadOnlyList<KeyValuePair<string, T>> pattern, Action<Utf8JsonWriter, T> write) => fields[name] = writer =>
        {
            writer.WriteStartObject();
            foreach ((string key, T value) in pattern)
            {
                writer.WritePropertyName(key);
                write(writer, value);
            }

            writer.WriteEndObject();
        };
    }

    /// <summary>Writes adapter_config.json into the folder.</summary>
    /// <param name="folder">Must exist.</param>
    /// <param name="durable">As in <see cref="AtomicFile.Create"/>.</param>
    public void Save(string folder, bool durable = true) => AtomicFile.WriteAllBytes(Path.Combine(folder, FileName), System.Text.Encoding.UTF8.GetBytes(ToJson()), durable);
}
