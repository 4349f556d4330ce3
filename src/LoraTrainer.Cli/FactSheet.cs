using System.Globalization;
using System.Text.Json;

namespace LoraTrainer.Cli;

/// <summary>What is known of a thing, once: a line each for people, a field each for programs, and tables below.</summary>
internal sealed class FactSheet
{
    private readonly List<(string Label, string Text)> lines = [];
    private readonly List<string> blocks = [];
    private readonly List<(string Name, Action<Utf8JsonWriter> Write)> fields = [];

    public void Add(string label, string name, string text)
    {
        lines.Add((label, text));
        Field(name, json => json.WriteStringValue(text));
    }

    /// <summary>A number with the words around it for people; by itself without them.</summary>
    public void Add(string label, string name, long value, string? text = null)
    {
        lines.Add((label, text ?? value.ToString("#,0", CultureInfo.InvariantCulture)));
        Field(name, json => json.WriteNumberValue(value));
    }

    /// <summary>Texts, apart by commas for people.</summary>
    public void Add(string label, string name, IReadOnlyList<string> texts)
    {
        lines.Add((label, string.Join(", ", texts)));
        Field(name, json =>
        {
            json.WriteStartArray();
            foreach (string text in texts)
            {
                json.WriteStringValue(text);
            }

            json.WriteEndArray();
        });
    }

    /// <summary>For people only.</summary>
    public void Line(string label, string text) => lines.Add((label, text));

    /// <summary>For programs only.</summary>
    public void Field(string name, Action<Utf8JsonWriter> write) => fields.Add((name, write));

    /// <summary>A table or a sentence below the lines, for people only.</summary>
    public void Block(string text) => blocks.Add(text);

    /// <summary>What is known of a part: its lines and tables behind those that are there, its fields in an object of their own.</summary>
    public void Nest(string name, FactSheet part)
    {
        lines.AddRange(part.lines);
        blocks.AddRange(part.blocks);
        Field(name, part.Write);
    }

    /// <summary>All of it for people; long texts go on under themselves.</summary>
    /// <param name="width">Of the terminal; null: any.</param>
    public string Words(int? width)
    {
        int label = lines.Count == 0 ? 0 : lines.Max(line => line.Label.Length) + 3;
        int room = Math.Max(20, (width ?? int.MaxValue) - label);
        IEnumerable<string> wrapped = lines.Select(line => (line.Label.Length > 0 ? line.Label + ":" : "").PadRight(label) + string.Join(Environment.NewLine + new string(' ', label), Wrapped(line.Text, room)));
        return string.Join(Environment.NewLine + Environment.NewLine, new[] { string.Join(Environment.NewLine, wrapped) }.Concat(blocks).Where(block => block.Length > 0));
    }

    public void Write(Utf8JsonWriter json)
    {
        json.WriteStartObject();
        foreach ((string name, Action<Utf8JsonWriter> write) in fields)
        {
            json.WritePropertyName(name);
            write(json);
        }

        json.WriteEndObject();
    }

    private static IEnumerable<string> Wrapped(string text, int room)
    {
        while (text.Length > room)
        {
            int cut = text.LastIndexOf(' ', room);
            if (cut <= 0)
            {
                break;
            }

            yield return text[..cut];
            text = text[(cut + 1)..];
        }

        yield return text;
    }
}
