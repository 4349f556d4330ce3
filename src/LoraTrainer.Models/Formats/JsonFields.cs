using System.Globalization;
using System.Text;
using System.Text.Json;
using LoraTrainer.Storage;
using System.Text.Unicode;

namespace LoraTrainer.Models.Formats;

/// <summary>
/// The fields of one JSON object in a file from elsewhere (config.json, an index, adapter_config.json). Each read checks type and range,
/// and a refusal names the file, the line and the key. Tells a missing field from an explicit null, since model configs do.
/// </summary>
internal sealed class JsonFields
{
    private const long MaximumFileBytes = 256L << 20;

    private readonly JsonElement element;
    private readonly string file;
    private readonly ReadOnlyMemory<byte> text;
    private readonly string[] location;

    private JsonFields(string file, ReadOnlyMemory<byte> text, JsonElement element, string[] location)
    {
        this.file = file;
        this.text = text;
        this.element = element;
        this.location = location;
    }

    /// <summary>The names of all fields, as in the file.</summary>
    public IEnumerable<string> Names => element.EnumerateObject().Select(property => property.Name);

    /// <summary>Reads and parses a file whose top is an object.</summary>
    public static JsonFields Read(string path)
    {
        long length = new FileInfo(path).Length;
        return length > MaximumFileBytes
            ? throw new ModelFormatException($"{path}: the file has {length} bytes; a JSON file of this kind has at most {MaximumFileBytes}. It is not the file it should be.")
            : Parse(path, File.ReadAllBytes(path));
    }

    public static JsonFields Parse(string file, ReadOnlyMemory<byte> text)
    {
        ReadOnlyMemory<byte> json = text.Span.StartsWith("\uFEFF"u8) ? text[3..] : text;
        if (!Utf8.IsValid(json.Span))
        {
            throw new ModelFormatException($"{file}: the file is not valid UTF-8. Fetch it again, or save it as UTF-8.");
        }

        try
        {
            var options = new JsonDocumentOptions { AllowDuplicateProperties = false, MaxDepth = 32 };
            using var document = JsonDocument.Parse(json, options);
            JsonElement root = document.RootElement.Clone();
            return root.ValueKind == JsonValueKind.Object
                ? new JsonFields(file, json, root, [])
                : throw new ModelFormatException($"{file}: the file holds {Kind(root)}; it must hold an object, {{...}}.");
        }
        catch (JsonException exception)
        {
            string place = exception.LineNumber is { } line ? $":{line + 1}" : "";
            throw new ModelFormatException($"{file}{place}: this is not the JSON it should be: {JsonProblem.Reason(exception, isOneLine: true)}. Repair or fetch the file again.", exception);
        }
        catch (InvalidOperationException exception)
        {
            throw new ModelFormatException($"{file}: a key holds an escape that is half a character (a lone surrogate). Repair or fetch the file again.", exception);
        }
    }

    public bool Has(string name) => element.TryGetProperty(name, out _);

    /// <summary>True where the field is there and not null.</summary>
    public bool HasValue(string name) => element.TryGetProperty(name, out JsonElement value) && value.ValueKind != JsonValueKind.Null;

    public JsonElement Raw(string name) => element.GetProperty(name);

    public int Integer(string name, int missing, int minimum, int maximum) => Has(name) ? Integer(name, minimum, maximum) : missing;

    /// <summary>Null where the field is missing or null.</summary>
    public int? OptionalInteger(string name, int minimum, int maximum) => HasValue(name) ? Integer(name, minimum, maximum) : null;

    public double Number(string name, double missing, double minimum, double maximum) => Has(name) ? Number(name, minimum, maximum) : missing;

    public double? OptionalNumber(string name, double minimum, double maximum) => HasValue(name) ? Number(name, minimum, maximum) : null;

    public bool Truth(string name, bool missing)
    {
        if (!element.TryGetProperty(name, out JsonElement value))
        {
            return missing;
        }

        return value.ValueKind is JsonValueKind.True or JsonValueKind.False ? value.GetBoolean() : throw Wrong(name, "true or false");
    }

    /// <summary>Null where the field is missing or null.</summary>
    public string? Text(string name)
    {
        if (!HasValue(name))
        {
            return null;
        }

        JsonElement value = element.GetProperty(name);
        return value.ValueKind == JsonValueKind.String ? TextOf(name, value) : throw Wrong(name, "a string");
    }

    /// <summary>Null where the field is missing or null.</summary>
    public JsonFields? Object(string name)
    {
        if (!HasValue(name))
        {
            return null;
        }

        JsonElement value = element.GetProperty(name);
        return value.ValueKind == JsonValueKind.Object ? new JsonFields(file, text, value, [.. location, name]) : throw Wrong(name, "an object");
    }

    /// <summary>A list of strings; null where the field is missing or null.</summary>
    public IReadOnlyList<string>? Texts(string name) => HasValue(name) ? [.. Items(name, "a list of strings").Select(item =>
        item.ValueKind == JsonValueKind.String ? TextOf(name, item) : throw Wrong(name, "a list of strings"))] : null;

    /// <summary>One whole number or a list of them; null where the field is missing or null.</summary>
    public IReadOnlyList<int>? Integers(string name, int minimum, int maximum)
    {
        if (!HasValue(name))
        {
            return null;
        }

        string expected = $"a whole number from {minimum} to {maximum}, or a list of such numbers";
        return Raw(name).ValueKind == JsonValueKind.Number
            ? [Integer(name, minimum, maximum)]
            : [.. Items(name, expected).Select(item => item.ValueKind == JsonValueKind.Number && item.TryGetInt32(out int number) && number >= minimum && number <= maximum
                ? number
                : throw Wrong(name, expected))];
    }

    /// <summary>The error for a field whose value is of no use here.</summary>
    public ModelFormatException Wrong(string name, string expected, string next = "")
        => Error(name, $"must be {expected}, got {Shorten(Raw(name).GetRawText())}.{(next.Length > 0 ? " " + next : "")}");

    /// <summary>A message about a field: file, line and key before it.</summary>
    public ModelFormatException Error(string name, string message) => new($"{Place(name)} {message}");

    /// <summary>FILE:LINE: KEY</summary>
    public string Place(string name)
    {
        string key = string.Join('.', [.. location, name]);
        int? line = LineOf([.. location, name]);
        return line is null ? $"{file}: {key}" : string.Create(CultureInfo.InvariantCulture, $"{file}:{line}: {key}");
    }

    private int Integer(string name, int minimum, int maximum)
    {
        JsonElement value = element.GetProperty(name);
        return value.ValueKind == JsonValueKind.Number && value.TryGetInt32(out int number) && number >= minimum && number <= maximum
            ? number
            : throw Wrong(name, $"a whole number from {minimum} to {maximum}");
    }

    private double Number(string name, double minimum, double maximum)
    {
        JsonElement value = element.GetProperty(name);
        return value.ValueKind == JsonValueKind.Number && value.TryGetDouble(out double number) && number >= minimum && number <= maximum
            ? number
            : throw Wrong(name, string.Create(CultureInfo.InvariantCulture, $"a number from {minimum} to {maximum}"));
    }

    private JsonElement.ArrayEnumerator Items(string name, string expected)
    {
        JsonElement value = element.GetProperty(name);
        return value.ValueKind == JsonValueKind.Array ? value.EnumerateArray() : throw Wrong(name, expected);
    }

    private string TextOf(string name, JsonElement value)
    {
        try
        {
            return value.GetString()!;
        }
        catch (InvalidOperationException exception)
        {
            throw new ModelFormatException($"{Place(name)} holds an escape that is half a character (a lone surrogate). Repair or fetch the file again.", exception);
        }
    }

    /// <summary>The line (from 1) of the key at <paramref name="keys"/>; null where it is not in the file.</summary>
    private int? LineOf(ReadOnlySpan<string> keys)
    {
        var reader = new Utf8JsonReader(text.Span);
        int matched = 0;
        while (reader.Read())
        {
            if (reader.TokenType == JsonTokenType.PropertyName && reader.CurrentDepth == matched + 1)
            {
                if (!reader.ValueTextEquals(keys[matched]))
                {
                    reader.Skip();
                }
                else if (++matched == keys.Length)
                {
                    return 1 + text.Span[..(int)reader.TokenStartIndex].Count((byte)'\n');
                }
            }
        }

        return null;
    }

    private static string Shorten(string raw)
    {
        string flat = string.Join(' ', raw.Split(['\n', '\r', ' ', '\t'], StringSplitOptions.RemoveEmptyEntries));
        return flat.Length <= 100 ? flat : string.Concat(flat.AsSpan(0, 100), "...");
    }

    private static string Kind(JsonElement value) => value.ValueKind switch
    {
        JsonValueKind.Array => "a list",
        JsonValueKind.String => "a string",
        JsonValueKind.Number => "a number",
        JsonValueKind.Null => "null",
        _ => "a truth value",
    };
}

/// <summary>Writes numbers and objects as Python's json module does, so that the files look like those that the reference libraries write.</summary>
internal static class PythonJson
{
    private static readonly JsonWriterOptions Options = new()
    {
        Indented = true,
        IndentSize = 2,
        NewLine = "\n",
        Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    };

    /// <summary>An indented object with its keys in ordinal order.</summary>
    public static string WriteSorted(SortedDictionary<string, Action<Utf8JsonWriter>> fields)
    {
        using var buffer = new MemoryStream();
        using (var writer = new Utf8JsonWriter(buffer, Options))
        {
            WriteObject(writer, fields);
        }

        return Encoding.UTF8.GetString(buffer.GetBuffer(), 0, (int)buffer.Length);
    }

    public static void WriteObject(Utf8JsonWriter writer, SortedDictionary<string, Action<Utf8JsonWriter>> fields)
    {
        writer.WriteStartObject();
        foreach ((string name, Action<Utf8JsonWriter> write) in fields)
        {
            writer.WritePropertyName(name);
            write(writer);
        }

        writer.WriteEndObject();
    }

    public static void WriteFloat(Utf8JsonWriter writer, double value) => writer.WriteRawValue(Float(value));

    /// <summary>A float keeps its point: 8.0, not 8, since Python takes the type from the spelling.</summary>
    public static string Float(double value)
    {
        string digits = value.ToString("R", CultureInfo.InvariantCulture).Replace("E", "e", StringComparison.Ordinal);
        return digits.AsSpan().ContainsAny('.', 'e') ? digits : digits + ".0";
    }

    /// <summary>A whole number without a point, any other as a float.</summary>
    public static void WriteNumber(Utf8JsonWriter writer, double value)
    {
        if (value == Math.Truncate(value) && Math.Abs(value) < 1e15)
        {
            writer.WriteNumberValue((long)value);
        }
        else
        {
            WriteFloat(writer, value);
        }
    }

    public static void WriteTexts(Utf8JsonWriter writer, IEnumerable<string> texts)
    {
        writer.WriteStartArray();
        foreach (string text in texts)
        {
            writer.WriteStringValue(text);
        }

        writer.WriteEndArray();
    }
}
