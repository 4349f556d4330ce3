using System.Text.Json;

namespace LoraTrainer.Data.Datasets;

/// <summary>Plain text as rows with the one field <c>text</c>.</summary>
internal static class TextRows
{
    public const string Field = "text";

    /// <summary>The lines of what is left, without their ends; a line that is too long to be one comes as null. Valid until the next one is asked for.</summary>
    public static IEnumerable<(int Number, ReadOnlyMemory<byte>? Content)> Lines(ByteWindow window)
    {
        for (int number = 1; ; number++)
        {
            // Bytes already searched are not searched again, so a huge line costs linear time.
            int searched = 0, newline;
            bool isTooLong = false, isLast = false;
            while ((newline = window.Span[searched..].IndexOf((byte)'\n')) < 0 && !isLast)
            {
                searched = window.Length;
                if (searched > ByteWindow.MostRowBytes)
                {
                    isTooLong = true;
                    window.Consume(searched);
                    searched = 0;
                }

                isLast = !window.More();
            }

            int length = newline < 0 ? window.Length : searched + newline;
            yield return (number, isTooLong ? default(ReadOnlyMemory<byte>?) : window.Memory(0, length));
            window.Consume(newline < 0 ? length : length + 1);
            if (newline < 0)
            {
                yield break;
            }
        }
    }

    /// <summary>Rows of paragraphs: lines up to a blank one, joined by line feeds.</summary>
    public static IEnumerable<SourceRow> Paragraphs(ByteWindow window, RowPlaces places)
    {
        using var paragraph = new MemoryStream();
        int first = 0, row = 0;
        bool isTooLong = false;
        foreach ((int line, ReadOnlyMemory<byte>? content) in Lines(window).Append((0, ReadOnlyMemory<byte>.Empty)))
        {
            ReadOnlyMemory<byte> text = content?.TrimEnd((byte)'\r') ?? default;
            bool isBlank = content is not null && text.Span.IndexOfAnyExcept(" \t\r\f"u8) < 0;
            if (!isBlank)
            {
                first = first == 0 ? line : first;
                isTooLong |= content is null || paragraph.Length + text.Length > ByteWindow.MostRowBytes;
                if (isTooLong)
                {
                    paragraph.SetLength(0);
                    continue;
                }

                if (paragraph.Length > 0)
                {
                    paragraph.WriteByte((byte)'\n');
                }

                paragraph.Write(text.Span);
            }
            else if (first > 0)
            {
                yield return RowOf(paragraph.GetBuffer().AsMemory(0, (int)paragraph.Length), first, ++row, isTooLong, places);
                paragraph.SetLength(0);
                first = 0;
                isTooLong = false;
            }
        }
    }

    /// <summary>The whole file as one row; none where it is blank.</summary>
    public static IEnumerable<SourceRow> Document(ByteWindow window, RowPlaces places)
    {
        while (window.Length <= ByteWindow.MostRowBytes && window.More())
        {
        }

        ReadOnlyMemory<byte> text = window.Memory(0, window.Length);
        if (text.Span.IndexOfAnyExcept(" \t\r\n\f"u8) >= 0)
        {
            yield return RowOf(text, 1, 1, text.Length > ByteWindow.MostRowBytes, places);
        }
    }

    private static SourceRow RowOf(ReadOnlyMemory<byte> text, int line, int row, bool isTooLong, RowPlaces places)
        => (isTooLong ? ByteWindow.TooLong : RowReader.Utf8Fault(text.Span)) is { } wrong
            ? places.Faulty(line, row, wrong)
            : new SourceRow(places.At(line, row), FieldsOf([Field], [text]));

    /// <summary>Fields that are all texts, as an object.</summary>
    /// <param name="names">Of the fields.</param>
    /// <param name="values">Valid UTF-8.</param>
    internal static JsonElement FieldsOf(IReadOnlyList<string> names, IReadOnlyList<ReadOnlyMemory<byte>> values)
    {
        using var bytes = new MemoryStream();
        using (var json = new Utf8JsonWriter(bytes, new JsonWriterOptions { SkipValidation = true, Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping }))
        {
            json.WriteStartObject();
            for (int i = 0; i < names.Count; i++)
            {
                json.WriteString(names[i], values[i].Span);
            }

            json.WriteEndObject();
        }

        return JsonElement.Parse(bytes.GetBuffer().AsSpan(0, (int)bytes.Length));
    }
}
