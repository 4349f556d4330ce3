using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Data.Datasets;

/// <summary>Where a row stands in its file; lines and rows count from 1; line 0: the file has none.</summary>
public readonly record struct RowSource(string File, int Line, int Row)
{
    public override string ToString() => Line > 0 ? $"{Path.GetFileName(File)}:{Line} (row {Row})" : $"{Path.GetFileName(File)} (row {Row})";
}

/// <summary>One object of a data file, with its place.</summary>
public readonly record struct SourceRow(RowSource Source, JsonElement Fields)
{
    private const int MostNames = 30, LongestQuote = 100;

    /// <summary>Why the row cannot be read; it has no fields then. Null for a row that can.</summary>
    public string? Fault { get; init; }

    /// <summary>The names of its fields in file order, for a sentence.</summary>
    public string FieldNames => NamesOf(Fields);

    /// <summary>The names of the first fields of an object. A stranger's file can have thousands, and long ones.</summary>
    internal static string NamesOf(JsonElement fields)
    {
        string[] names = [.. fields.EnumerateObject().Take(MostNames + 1).Select(member => Quoted(member.Name))];
        return names.Length <= MostNames ? string.Join(", ", names) : $"{string.Join(", ", names[..MostNames])}, ...";
    }

    /// <summary>A text out of a file as a sentence can hold it.</summary>
    internal static string Quoted(string text) => text.Length <= LongestQuote ? text : text[..LongestQuote] + "...";

    public bool Has(string field) => Fields.TryGetProperty(field, out _);

    /// <summary>The text of <paramref name="field"/>, which has to be there.</summary>
    /// <exception cref="DatasetException">It is not there, or is not a text.</exception>
    public string Text(string field)
        => Fields.TryGetProperty(field, out JsonElement value)
            ? TextOf(field, value)
            : throw new DatasetException(Source, $"no field '{field}'; the row has: {FieldNames}");

    /// <summary>The text of <paramref name="field"/>; empty where there is none, or null.</summary>
    public string OptionalText(string? field)
        => field is not null && Fields.TryGetProperty(field, out JsonElement value) && value.ValueKind != JsonValueKind.Null ? TextOf(field, value) : "";

    private string TextOf(string field, JsonElement value)
    {
        if (value.ValueKind != JsonValueKind.String)
        {
            string messages = ConversationFormat.AreMessages(value) ? " of messages. Put all messages of a row into one list, messages" : "";
            throw new DatasetException(Source, $"field '{field}' is not a text but {JsonProblem.Kind(value.ValueKind)}{messages}");
        }

        try
        {
            return value.GetString()!;
        }
        catch (InvalidOperationException exception)
        {
            throw new DatasetException(Source, $"field '{field}' is not valid Unicode (a surrogate without its partner)", exception);
        }
    }
}
