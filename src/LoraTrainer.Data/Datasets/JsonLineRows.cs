using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Data.Datasets;

/// <summary>JSON lines: one object a line, blank lines skipped.</summary>
internal static class JsonLineRows
{
    public static IEnumerable<SourceRow> Read(ByteWindow window, RowFaults faults)
    {
        int row = 0;
        foreach ((int line, ReadOnlyMemory<byte>? content) in TextRows.Lines(window))
        {
            if (content is not { } bytes)
            {
                faults.Report(line, ++row, ByteWindow.TooLong);
                continue;
            }

            ReadOnlyMemory<byte> text = bytes.Trim(" \t\r"u8);
            if (!text.IsEmpty && Parse(text, line, ++row, faults) is { } parsed)
            {
                yield return parsed;
            }
        }
    }

    private static SourceRow? Parse(ReadOnlyMemory<byte> text, int line, int row, RowFaults faults)
    {
        if (RowReader.Utf8Fault(text.Span) is { } broken)
        {
            faults.Report(line, row, broken);
            return null;
        }

        try
        {
            using JsonDocument document = JsonDocument.Parse(text);
            return RowOf(document.RootElement, line, row, faults);
        }
        catch (JsonException exception)
        {
            faults.Report(line, row, $"not a JSON object on one line: {JsonProblem.Reason(exception, isOneLine: true)}", exception);
            return null;
        }
    }

    internal static SourceRow? RowOf(JsonElement element, int line, int row, RowFaults faults)
    {
        if (element.ValueKind == JsonValueKind.Object)
        {
            return new SourceRow(faults.At(line, row), element.Clone());
        }

        faults.Report(line, row, $"expected an object with named fields, found {JsonProblem.Kind(element.ValueKind)}");
        return null;
    }
}
