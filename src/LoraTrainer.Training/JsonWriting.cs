using System.Globalization;
using System.Text.Json;

namespace LoraTrainer.Training;

/// <summary>What the program's JSON has in common: what is not known is null, and money is text.</summary>
public static class JsonWriting
{
    public static void WriteNumberOrNull(this Utf8JsonWriter json, string name, double? value)
    {
        if (value is { } number)
        {
            json.WriteNumber(name, number);
        }
        else
        {
            json.WriteNull(name);
        }
    }

    public static void WriteNumberOrNull(this Utf8JsonWriter json, string name, long? value)
    {
        if (value is { } number)
        {
            json.WriteNumber(name, number);
        }
        else
        {
            json.WriteNull(name);
        }
    }

    public static void WriteBooleanOrNull(this Utf8JsonWriter json, string name, bool? value)
    {
        if (value is { } truth)
        {
            json.WriteBoolean(name, truth);
        }
        else
        {
            json.WriteNull(name);
        }
    }

    /// <summary>As text, so that no reader turns it into a binary fraction.</summary>
    public static void WriteMoney(this Utf8JsonWriter json, string name, decimal? value) => json.WriteString(name, value?.ToString(CultureInfo.InvariantCulture));
}
