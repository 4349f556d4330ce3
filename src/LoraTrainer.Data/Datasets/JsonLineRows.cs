using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Data.Datasets;

/// <summary>JSON lines: one object a line, blank lines skipped.</summary>
internal static class JsonLineRows
{
    public static IEnumerable<SourceRow> Read(ByteWindow window, RowPlaces places)
    {
        int row = 0;
        foreach ((int line, ReadOnlyMemory<byte>? content) in TextRows.Lines(window))
        {
            if (content is not { } bytes)
            {
                yield return places.Faulty(line, ++row, ByteWindow.TooLong);
                continue;
            }

            ReadOnlyMemory<byte> text = bytes.Trim(" \t\r"u8);
            if (!text.IsEmpty)
            {
                yield return Parse(text, line, ++row, places);
            }
        }
    }

    private static SourceRow Parse(ReadOnlyMemory<byte> text, int line, int row, RowPlaces places)
    {
        if (RowReader.Utf8Fault(text.Span) is { } broken)
        {
            return places.Faulty(line, row, broken);
        }

        try
        {
            using JsonDocument document = JsonDocument.Parse(text);
            return RowOf(document.RootElement, line, row, places);
        }
        catch (JsonException exception)
        {
            return places.Faulty(line, row, $"not a JSON object on one line: {JsonProblem.Reason(exception, isOneLine: true)}");
        }
    }

    internal static SourceRow RowOf(JsonElement element, int line, int row, RowPlaces places)
        => element.ValueKind == JsonValueKind.Object
            ? new SourceRow(places.At(line, row), element.Clone())
            : places.Faulty(line, row, $"expected an object with named fields, found {JsonProblem.Kind(element.ValueKind)}");
}
