using LoraTrainer.Engine.Numerics;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.Models.Architectures;

/// <summary>How rotary frequencies are stretched for contexts longer than the model was made for (transformers, modeling_rope_utils.py).</summary>
public enum RopeType
{
    /// <summary>Not at all.</summary>
    Default,

    /// <summary>All frequencies divided by the factor.</summary>
    Linear,

    /// <summary>A larger base once a batch is longer than the model's context.</summary>
    Dynamic,

    /// <summary>Low frequencies divided, high ones kept, a ramp between.</summary>
    Llama3,

    /// <summary>The same idea with a ramp over dimensions, and a factor on cos and sin (Peng et al. 2023).</summary>
    Yarn,
}

/// <summary>The angles of rotary embedding: one inverse frequency for each pair of dimensions, and the factor on cos and sin.</summary>
public readonly record struct RopeFrequencies(float[] InverseFrequencies, float AttentionScaling);

/// <summary>The rotary settings of a model, from <c>rope_theta</c> with <c>rope_scaling</c>, or from <c>rope_parameters</c>.</summary>
public sealed record RopeParameters
{
    public RopeType Type { get; init; } = RopeType.Default;

    /// <summary>The base of the frequencies.</summary>
    public double Theta { get; init; } = 10_000;

    /// <summary>Null only for yarn, where it is then max_position_embeddings / original_max_position_embeddings.</summary>
    public double? Factor { get; init; }

    /// <summary>llama3: wavelengths above original / this are divided by the factor.</summary>
    public double LowFreqFactor { get; init; } = 1;

    /// <summary>llama3: wavelengths below original / this are kept.</summary>
    public double HighFreqFactor { get; init; } = 4;

    /// <summary>llama3, yarn: the context the model was first trained with; null means max_position_embeddings.</summary>
    public int? OriginalMaxPositionEmbeddings { get; init; }

    /// <summary>yarn: rotations over the original context from which a dimension is kept.</summary>
    public double BetaFast { get; init; } = 32;

    /// <summary>yarn: rotations up to which a dimension is divided by the factor.</summary>
    public double BetaSlow { get; init; } = 1;

    /// <summary>yarn: round the ends of the ramp to whole dimensions.</summary>
    public bool Truncate { get; init; } = true;

    /// <summary>yarn: the factor on cos and sin; null computes it from the factor.</summary>
    public double? AttentionFactor { get; init; }

    public double? MScale { get; init; }

    public double? MScaleAllDim { get; init; }

    /// <summary>
    /// inv_i = 1 / theta^(2i/d) for i = 0 .. d/2-1, stretched by <see cref="Type"/>; computed in double and rounded once.
    /// </summary>
    /// <param name="rotaryDimension">d, the number of dimensions of a head that rotate; even</param>
    /// <param name="maxPositionEmbeddings">the model's context length</param>
    /// <param name="sequenceLength">dynamic: the largest position of this batch plus one; other types do not look at it</param>
    public RopeFrequencies ComputeInverseFrequencies(int rotaryDimension, int maxPositionEmbeddings, long sequenceLength = 0)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(rotaryDimension, 2);
        ArgumentOutOfRangeException.ThrowIfNotEqual(rotaryDimension % 2, 0, nameof(rotaryDimension));
        ArgumentOutOfRangeException.ThrowIfLessThan(maxPositionEmbeddings, 1);
        var values = new double[rotaryDimension / 2];
        double theta = Type == RopeType.Dynamic ? DynamicTheta(rotaryDimension, maxPositionEmbeddings, sequenceLength) : Theta;
        for (int i = 0; i < values.Length; i++)
        {
            values[i] = 1 / DeterministicMath.Pow(theta, 2.0 * i / rotaryDimension);
        }

        double scaling = 1;
        switch (Type)
        {
            case RopeType.Linear:
                Divide(values, Factor!.Value);
                break;
            case RopeType.Llama3:
                StretchLlama3(values);
                break;
            case RopeType.Yarn:
                scaling = StretchYarn(values, rotaryDimension, maxPositionEmbeddings);
                break;
        }

        return new RopeFrequencies(Array.ConvertAll(values, value => (float)value), (float)scaling);
    }

    /// <summary>The factor that yarn uses: the given one, else max_position_embeddings / original_max_position_embeddings.</summary>
    internal double YarnFactor(int maxPositionEmbeddings) => Factor ?? (double)maxPositionEmbeddings / (OriginalMaxPositionEmbeddings ?? maxPositionEmbeddings);

    // theta' = theta * (f*Ls/L - (f-1))^(d/(d-2)) with Ls = max(sequence, L)
    private double DynamicTheta(int dimension, int maxPositionEmbeddings, long sequenceLength)
    {
        double length = Math.Max(sequenceLength, maxPositionEmbeddings);
        double factor = Factor!.Value;
        double growth = (factor * length / maxPositionEmbeddings) - (factor - 1);
        return growth == 1 ? Theta : Theta * DeterministicMath.Pow(growth, (double)dimension / (dimension - 2));
    }

    private static void Divide(Span<double> values, double factor)
    {
        foreach (ref double value in values)
        {
            value /= factor;
        }
    }

    // wavelength < O/b: keep; > O/a: divide by f; else m = (O/wavelength - a)/(b - a), (1-m)*inv/f + m*inv
    private void StretchLlama3(Span<double> values)
    {
        double factor = Factor!.Value;
        double original = OriginalMaxPositionEmbeddings!.Value;
        foreach (ref double value in values)
        {
            double wavelength = 2 * Math.PI / value;
            if (wavelength > original / LowFreqFactor)
            {
                value /= factor;
            }
            else if (wavelength >= original / HighFreqFactor)
            {
                double smooth = ((original / wavelength) - LowFreqFactor) / (HighFreqFactor - LowFreqFactor);
                value = ((1 - smooth) * value / factor) + (smooth * value);
            }
        }
    }

    // The dimension that turns r times over the original context: c(r) = d * ln(O/(2*pi*r)) / (2*ln(theta)).
    // ramp_i = clamp((i - low)/(high - low), 0, 1) between c(beta_fast) and c(beta_slow); inv_i = ramp_i*inv_i/f + (1 - ramp_i)*inv_i.
    private double StretchYarn(Span<double> values, int dimension, int maxPositionEmbeddings)
    {
        double original = OriginalMaxPositionEmbeddings ?? maxPositionEmbeddings;
        double factor = YarnFactor(maxPositionEmbeddings);
        double low = DimensionOf(BetaFast);
        double high = DimensionOf(BetaSlow);
        if (Truncate)
        {
            low = Math.Floor(low);
            high = Math.Ceiling(high);
        }

        low = Math.Max(low, 0);
        high = Math.Min(high, dimension - 1);
        if (low == high)
        {
            high += 0.001;
        }

        for (int i = 0; i < values.Length; i++)
        {
            double ramp = Math.Clamp((i - low) / (high - low), 0, 1);
            values[i] = (ramp * values[i] / factor) + ((1 - ramp) * values[i]);
        }

        if (AttentionFactor is { } given)
        {
            return given;
        }

        // A zero counts as absent, as in the reference.
        return MScale is { } mscale && MScaleAllDim is { } allDim && mscale != 0 && allDim != 0
            ? Temperature(factor, mscale) / Temperature(factor, allDim)
            : Temperature(factor, 1);

        double DimensionOf(double rotations) => dimension * DeterministicMath.Log(original / (2 * Math.PI * rotations)) / (2 * DeterministicMath.Log(Theta));
    }

    private static double Temperature(double factor, double mscale) => factor <= 1 ? 1 : (0.1 * mscale * DeterministicMath.Log(factor)) + 1;


    /// <summary>Reads both spellings: a non-null rope_scaling wins over rope_parameters, a theta inside the dictionary over the one outside.</summary>
    internal static RopeParameters Parse(JsonFields config, double familyTheta, int maxPositionEmbeddings, List<string> notices)
    {
        const double largest = 1e12;
        string key = config.HasValue("rope_scaling") ? "rope_scaling" : "rope_parameters";
        double theta = config.OptionalNumber("rope_theta", 1.0001, largest) ?? familyTheta;
        JsonFields? fields = config.Object(key);
        if (fields is null)
        {
            return new RopeParameters { Theta = theta };
        }

        string typeKey = fields.HasValue("rope_type") || !fields.HasValue("type") ? "rope_type" : "type";
        RopeType type = fields.Text(typeKey) switch
        {
            "default" or null => RopeType.Default,
            "linear" => RopeType.Linear,
            "dynamic" => RopeType.Dynamic,
            "llama3" => RopeType.Llama3,
            "yarn" => RopeType.Yarn,
            _ => throw fields.Wrong(typeKey, "one of default, linear, dynamic, llama3, yarn", "Training with other angles than the model's own would ruin it."),
        };
        if (!fields.HasValue(typeKey) && fields.HasValue("factor"))
        {
            throw fields.Error("factor", "is given, but no rope_type that says what to do with it. Add rope_type: linear, dynamic, llama3 or yarn.");
        }

        if (fields.OptionalNumber("partial_rotary_factor", 0, 1) is { } rotating && rotating != 1)
        {
            throw fields.Wrong("partial_rotary_factor", "1 for this family", $"Heads that rotate only in part are not supported here.");
        }

        var defaults = new RopeParameters();
        var rope = new RopeParameters
        {
            Type = type,
            Theta = fields.OptionalNumber("rope_theta", 1.0001, largest) ?? theta,
            Factor = type == RopeType.Default ? null : fields.OptionalNumber("factor", 1, 1e6),
            OriginalMaxPositionEmbeddings = type is RopeType.Llama3 or RopeType.Yarn ? fields.OptionalInteger("original_max_position_embeddings", 1, int.MaxValue) : null,
            LowFreqFactor = type == RopeType.Llama3 ? Require(fields, "low_freq_factor", 1e-6, 1e6) : defaults.LowFreqFactor,
            HighFreqFactor = type == RopeType.Llama3 ? Require(fields, "high_freq_factor", 1e-6, 1e6) : defaults.HighFreqFactor,
            BetaFast = type == RopeType.Yarn ? fields.OptionalNumber("beta_fast", 1e-6, 1e6) ?? defaults.BetaFast : defaults.BetaFast,
            BetaSlow = type == RopeType.Yarn ? fields.OptionalNumber("beta_slow", 1e-6, 1e6) ?? defaults.BetaSlow : defaults.BetaSlow,
            Truncate = type != RopeType.Yarn || fields.Truth("truncate", defaults.Truncate),
            AttentionFactor = type == RopeType.Yarn ? fields.OptionalNumber("attention_factor", 1e-6, 1e6) : null,
            MScale = type == RopeType.Yarn ? fields.OptionalNumber("mscale", 0, 1e6) : null,
            MScaleAllDim = type == RopeType.Yarn ? fields.OptionalNumber("mscale_all_dim", 0, 1e6) : null,
        };
        if (type is RopeType.Linear or RopeType.Dynamic or RopeType.Llama3)
        {
            Require(fields, "factor", 1, 1e6);
        }

        if (type == RopeType.Llama3)
        {
            Require(fields, "original_max_position_embeddings", 1, int.MaxValue);
            if (rope.HighFreqFactor <= rope.LowFreqFactor)
            {
                throw fields.Wrong("high_freq_factor", "above low_freq_factor");
            }
        }

        if (type == RopeType.Yarn && rope is { Factor: { } factor, OriginalMaxPositionEmbeddings: { } original } && factor != (double)maxPositionEmbeddings / original)
        {
            notices.Add($"{fields.Place("factor")} is not max_position_embeddings / original_max_position_embeddings = {maxPositionEmbeddings}/{original}. The given factor is used; some releases of transformers took the quotient.");
        }

        return rope;
    }

    /// <summary>The old spelling's dictionary; null where nothing is stretched.</summary>
    internal SortedDictionary<string, Action<System.Text.Json.Utf8JsonWriter>>? ToFields()
    {
        if (Type == RopeType.Default)
        {
            return null;
        }

        var fields = new SortedDictionary<string, Action<System.Text.Json.Utf8JsonWriter>>(StringComparer.Ordinal);
        string name = Type switch { RopeType.Linear => "linear", RopeType.Dynamic => "dynamic", RopeType.Llama3 => "llama3", _ => "yarn" };
        fields["rope_type"] = writer => writer.WriteStringValue(name);
        AddNumber("factor", Factor);
        if (OriginalMaxPositionEmbeddings is { } original)
        {
            fields["original_max_position_embeddings"] = writer => writer.WriteNumberValue(original);
        }

        if (Type == RopeType.Llama3)
        {
            AddNumber("low_freq_factor", LowFreqFactor);
            AddNumber("high_freq_factor", HighFreqFactor);
        }

        if (Type == RopeType.Yarn)
        {
            AddNumber("beta_fast", BetaFast);
            AddNumber("beta_slow", BetaSlow);
            AddNumber("attention_factor", AttentionFactor);
            AddNumber("mscale", MScale);
            AddNumber("mscale_all_dim", MScaleAllDim);
            fields["truncate"] = writer => writer.WriteBooleanValue(Truncate);
        }

        return fields;

        void AddNumber(string key, double? value)
        {
            if (value is { } number)
            {
                fields[key] = writer => PythonJson.WriteFloat(writer, number);
            }
        }
    }

    private static double Require(JsonFields fields, string name, double minimum, double maximum)
        => fields.OptionalNumber(name, minimum, maximum) ?? throw fields.Error(name, "is missing; this rope_type needs it. Add it as in the model's original config.json.");
}
