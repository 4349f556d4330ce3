using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Data.Datasets;

/// <summary>JSON lines: one object a line, blank lines skipped.</summary>
internal static class JsonLineRows
{
    public static IEnumerable<SourceRow> Read(ByteWindow window, RowPlaces places)
    {
        int row = 0;
        bool isSpread = false;
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
                yield return Parse(text, line, ++row, places, ref isSpread);
            }
        }
    }

    /// <param name="text">Of the line.</param>
    /// <param name="line">Its number.</param>
    /// <param name="row">Its number among those that are not blank.</param>
    /// <param name="places">Of the file.</param>
    /// <param name="isSpread">Whether an object was found to go on behind its line: up to the next whole one the lines hold parts of objects.</param>
    private static SourceRow Parse(ReadOnlyMemory<byte> text, int line, int row, RowPlaces places, ref bool isSpread)
    {
        if (RowReader.Utf8Fault(text.Span) is { } broken)
        {
            return places.Faulty(line, row, broken);
        }

        try
        {
            using JsonDocument document = JsonDocument.Parse(text);
            isSpread = false;
            return RowOf(document.RootElement, line, row, places);
        }
        catch (JsonException exception)
        {
            if (GoesOn(text.Span))
            {
                isSpread = true;
                return places.Faulty(line, row, "not a JSON object on one line: a JSON Lines file has one whole object a line, and here an object goes over several or is cut off. Write each on one line, or all as one list, [...]");
            }

            return places.Faulty(line, row, isSpread ? "not a JSON object on one line, but as it seems a part of one that begins on a line above" : $"not a JSON object on one line: {JsonProblem.Reason(exception, isOneLine: true)}");
        }
    }

    /// <summary>Whether a text is right as far as it goes, and is only not whole.</summary>
    private static bool GoesOn(ReadOnlySpan<byte> text)
    {
        var reader = new Utf8JsonReader(text, isFinalBlock: false, default);
        try
        {
            while (reader.Read())
            {
            }

            return true;
        }
        catch (JsonException)
        {
            return false;
        }
    }

    internal static SourceRow RowOf(JsonElement element, int line, int row, RowPlaces places)
        => element.ValueKind == JsonValueKind.Object
            ? new SourceRow(places.At(line, row), element.Clone())
            : places.Faulty(line, row, $"expected an object with named fields, found {JsonProblem.Kind(element.ValueKind)}{(ConversationFormat.AreMessages(element) ? " of messages. Give it a name: {\"messages\": [...]}" : "")}");
}
