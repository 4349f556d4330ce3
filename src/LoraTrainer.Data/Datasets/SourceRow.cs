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
    /// <summary>Why the row cannot be read; it has no fields then. Null for a row that can.</summary>
    public string? Fault { get; init; }

    /// <summary>The names of its fields in file order.</summary>
    public string FieldNames => string.Join(", ", Fields.EnumerateObject().Select(member => member.Name));

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
            throw new DatasetException(Source, $"field '{field}' is not a text but {JsonProblem.Kind(value.ValueKind)}");
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
