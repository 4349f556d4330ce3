using LoraTrainer.Models.Formats;

namespace LoraTrainer.Models.Architectures;

/// <summary>
/// A base whose linear layers bitsandbytes has quantized already, as the <c>quantization_config</c> of its config.json says (transformers,
/// utils/quantization_config.py). It is loaded as it is: nothing is expanded and quantized again.
/// </summary>
/// <param name="Format">Of every linear layer of the blocks that is not skipped.</param>
/// <param name="SkippedModules">Names of modules that stayed as they were: whole paths, their ends, or parts of them up to a dot.</param>
public sealed record StoredQuantization(BaseFormat Format, IReadOnlyList<string> SkippedModules)
{
    /// <summary>For a sentence: in 4 bits (nf4), for example.</summary>
    public string Description => Format switch
    {
        BaseFormat.Nf4 => "in 4 bits (nf4)",
        BaseFormat.Nf4DoubleQuantized => "in 4 bits (nf4, scales quantized too)",
        BaseFormat.Fp4 => "in 4 bits (fp4)",
        BaseFormat.Fp4DoubleQuantized => "in 4 bits (fp4, scales quantized too)",
        BaseFormat.EightBit => "in 8 bits",
        _ => throw new InvalidOperationException($"{Format} is no quantization."),
    };

    /// <summary>
    /// True where <see cref="SkippedModules"/> names the module, by the rules of transformers before and since release 5. Where the files are here they decide; this is
    /// for plans without them.
    /// </summary>
    /// <param name="module">The whole path, such as model.layers.0.mlp.up_proj.</param>
    public bool Skips(string module) => SkippedModules.Any(name => module.EndsWith(name, StringComparison.Ordinal) || module.Contains(name + ".", StringComparison.Ordinal));

    /// <summary>Reads quantization_config; null where there is none.</summary>
    internal static StoredQuantization? Parse(JsonFields config)
    {
        const string key = "quantization_config";
        if (config.Object(key) is not { } json)
        {
            return null;
        }

        bool isFourBit = Truth(json, "load_in_4bit"), isEightBit = Truth(json, "load_in_8bit");
        if (json.Text("quant_method") is { } method && method != "bitsandbytes")
        {
            throw json.Wrong("quant_method", "bitsandbytes", "Weights that something else has quantized are not read. Use the model's original weights; they are quantized here while they are loaded.");
        }

        if (isFourBit == isEightBit)
        {
            throw config.Error(key, isFourBit
                ? "has both load_in_4bit and load_in_8bit. The files hold one of them; fetch config.json again."
                : "says neither load_in_4bit nor load_in_8bit, so it is not known what the files hold. Fetch config.json again, or use the model's original weights.");
        }

        if (isEightBit && json.Has("llm_int8_has_fp16_weight") && json.Truth("llm_int8_has_fp16_weight", false))
        {
            throw json.Wrong("llm_int8_has_fp16_weight", "false", "Such files keep f16 weights beside the signed bytes. Use the model's original weights with load_in_8bit: true.");
        }

        string[] skipped = [.. json.Texts("llm_int8_skip_modules") ?? []];
        if (isEightBit)
        {
            return new StoredQuantization(BaseFormat.EightBit, skipped);
        }

        // Both defaults are those of transformers.
        string type = json.Text("bnb_4bit_quant_type") ?? "fp4";
        bool isDoubleQuantized = json.Truth("bnb_4bit_use_double_quant", false);
        return new StoredQuantization(
            (type, isDoubleQuantized) switch
            {
                ("nf4", false) => BaseFormat.Nf4,
                ("nf4", true) => BaseFormat.Nf4DoubleQuantized,
                ("fp4", false) => BaseFormat.Fp4,
                ("fp4", true) => BaseFormat.Fp4DoubleQuantized,
                _ => throw json.Wrong("bnb_4bit_quant_type", "nf4 or fp4"),
            },
            skipped);
    }

    /// <summary>Releases differ in whether the name starts with an underscore; some write both.</summary>
    private static bool Truth(JsonFields json, string name) => json.Truth(name, false) || json.Truth("_" + name, false);
}
