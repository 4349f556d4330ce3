using System.Text.Json;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>One object or value of a tokenizer's JSON file with its place, for reading with errors that name both.</summary>
internal readonly struct JsonPart(string file, string place, JsonElement element)
{
    public JsonValueKind Kind => element.ValueKind;

    public bool IsNull => element.ValueKind is JsonValueKind.Null or JsonValueKind.Undefined;

    public TokenizerFormatException Error(string problem, Exception? cause = null) => new(file, place.Length == 0 ? problem : $"{place}: {problem}", cause);

    /// <summary>The member <paramref name="name"/>; a null part where there is none.</summary>
    public JsonPart this[string name]
    {
        get
        {
            Expect(JsonValueKind.Object);
            return new JsonPart(file, place.Length == 0 ? name : $"{place}.{name}", element.TryGetProperty(name, out JsonElement member) ? member : default);
        }
    }

    public bool Has(string name) => Kind == JsonValueKind.Object && element.TryGetProperty(name, out _);

    /// <summary>Refuses every member that is not in the list: what is not understood may change the ids.</summary>
    public JsonPart Only(params ReadOnlySpan<string> names)
    {
        foreach (JsonProperty member in Members())
        {
            string name = NameOf(member);
            if (!names.Contains(name))
            {
                throw Error($"the key '{name}' is not supported; known here: {string.Join(", ", names!)}");
            }
        }

        return this;
    }

    public JsonElement.ObjectEnumerator Members()
    {
        Expect(JsonValueKind.Object);
        return element.EnumerateObject();
    }

    /// <summary>The name of one of the members.</summary>
    public string NameOf(JsonProperty member)
    {
        try
        {
            return member.Name;
        }
        catch (InvalidOperationException exception)
        {
            throw Error("a name is not valid Unicode (a surrogate without its partner)", exception);
        }
    }

    public List<JsonPart> Items()
    {
        Expect(JsonValueKind.Array);
        var items = new List<JsonPart>(element.GetArrayLength());
        foreach (JsonElement item in element.EnumerateArray())
        {
            items.Add(new JsonPart(file, $"{place}[{items.Count}]", item));
        }

        return items;
    }

    public string Text()
    {
        Expect(JsonValueKind.String);
        try
        {
            return element.GetString()!;
        }
        catch (InvalidOperationException exception)
        {
            throw Error("the text is not valid Unicode (a surrogate without its partner)", exception);
        }
    }

    public string? TextOrNull() => IsNull ? null : Text();

    public char Character()
    {
        string text = Text();
        return text.Length == 1 ? text[0] : throw Error($"expected one character of the basic plane, found '{text}'");
    }

    public bool Flag(bool absent) => Kind switch
    {
        JsonValueKind.True => true,
        JsonValueKind.False => false,
        JsonValueKind.Null or JsonValueKind.Undefined => absent,
        _ => throw Error($"expected true or false, found {Kind}"),
    };

    public int Number()
    {
        Expect(JsonValueKind.Number);
        return element.TryGetInt32(out int value) && value >= 0 ? value : throw Error($"expected a number from 0 to {int.MaxValue}, found {element.GetRawText()}");
    }

    public double Fraction()
    {
        Expect(JsonValueKind.Number);
        return element.TryGetDouble(out double value) && double.IsFinite(value) ? value : throw Error($"expected a number, found {element.GetRawText()}");
    }

    private void Expect(JsonValueKind kind)
    {
        if (Kind != kind)
        {
            throw Error(IsNull ? $"missing; expected {kind}" : $"expected {kind}, found {Kind}");
        }
    }
}
