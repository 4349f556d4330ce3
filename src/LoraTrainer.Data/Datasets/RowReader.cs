using System.Text.Json;
using System.Text.Unicode;
using LoraTrainer.Storage;

namespace LoraTrainer.Data.Datasets;

/// <summary>
/// Reads the rows of a data file one by one: JSON lines (one object a line, blank lines skipped) or a JSON array of objects, whichever the first
/// character says. JSON lines need memory for the longest line only; an array is held as bytes.
/// </summary>
public static class RowReader
{
    private static readonly byte[] ByteOrderMark = [0xEF, 0xBB, 0xBF];

    /// <exception cref="DatasetException">While reading: the file is damaged; it names the line.</exception>
    public static IEnumerable<SourceRow> Read(string path)
    {
        if (!File.Exists(path))
        {
            throw new DatasetException(Directory.Exists(path) ? $"{path} is a folder; give the file with the rows" : $"{path}: no such file");
        }

        return StartsWithBracket(path) ? ReadArray(path) : ReadLines(path);
    }

    private static bool StartsWithBracket(string path)
    {
        using FileStream stream = File.OpenRead(path);
        for (int value = stream.ReadByte(); value >= 0; value = stream.ReadByte())
        {
            if (value is not (' ' or '\t' or '\r' or '\n') && !ByteOrderMark.Contains((byte)value))
            {
                return value == '[';
            }
        }

        return false;
    }

    private static IEnumerable<SourceRow> ReadLines(string path)
    {
        using var stream = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, 1 << 16, FileOptions.SequentialScan);
        byte[] buffer = new byte[1 << 16];
        int filled = 0, consumed = 0, line = 0, row = 0;
        while (true)
        {
            // Bytes already searched are not searched again, so a huge line costs linear time.
            int searched = consumed, newline;
            bool ended = false;
            while ((newline = buffer.AsSpan(searched, filled - searched).IndexOf((byte)'\n')) < 0 && !ended)
            {
                searched = filled;
                if (consumed > 0)
                {
                    buffer.AsSpan(consumed, filled - consumed).CopyTo(buffer);
                    searched -= consumed;
                    filled -= consumed;
                    consumed = 0;
                }

                if (filled == buffer.Length)
                {
                    Array.Resize(ref buffer, checked(2 * buffer.Length));
                }

                int read = stream.Read(buffer, filled, buffer.Length - filled);
                ended = read == 0;
                filled += read;
            }

            int end = newline < 0 ? filled : searched + newline;
            line++;
            ReadOnlyMemory<byte> text = buffer.AsMemory(consumed, end - consumed);
            if (line == 1 && text.Span.StartsWith(ByteOrderMark))
            {
                text = text[ByteOrderMark.Length..];
            }

            consumed = newline < 0 ? end : end + 1;
            text = Trim(text);
            if (!text.IsEmpty)
            {
                yield return ParseLine(text, new RowSource(path, line, ++row));
            }

            if (newline < 0)
            {
                yield break;
            }
        }
    }

    private static ReadOnlyMemory<byte> Trim(ReadOnlyMemory<byte> text)
    {
        ReadOnlySpan<byte> span = text.Span;
        int start = 0, end = span.Length;
        while (start < end && span[start] is (byte)' ' or (byte)'\t' or (byte)'\r')
        {
            start++;
        }

        while (end > start && span[end - 1] is (byte)' ' or (byte)'\t' or (byte)'\r')
        {
            end--;
        }

        return text[start..end];
    }

    private static SourceRow ParseLine(ReadOnlyMemory<byte> text, RowSource source)
    {
        CheckUtf8(text.Span, source.ToString());
        try
        {
            using JsonDocument document = JsonDocument.Parse(text);
            return Row(document.RootElement, source);
        }
        catch (JsonException exception)
        {
            throw new DatasetException($"{source}: not a JSON object on one line: {JsonProblem.Reason(exception, isOneLine: true)}", exception);
        }
    }

    private static IEnumerable<SourceRow> ReadArray(string path)
    {
        byte[] bytes = File.ReadAllBytes(path);
        int start = bytes.AsSpan().StartsWith(ByteOrderMark) ? ByteOrderMark.Length : 0;
        CheckUtf8(bytes.AsSpan(start), Path.GetFileName(path));
        JsonReaderState state = default;
        int at = start, line = 1, counted = start;
        for (int row = 1; ; row++)
        {
            JsonElement? element = Next(bytes, row == 1, ref at, ref line, ref counted, ref state, path, row);
            if (element is not { } fields)
            {
                yield break;
            }

            yield return Row(fields, new RowSource(path, line, row));
        }
    }

    /// <summary>The next element of the array; null at its end, after which nothing may follow.</summary>
    private static JsonElement? Next(byte[] bytes, bool first, ref int at, ref int line, ref int counted, ref JsonReaderState state, string path, int row)
    {
        try
        {
            var reader = new Utf8JsonReader(bytes.AsSpan(at), isFinalBlock: true, state);
            if (first)
            {
                reader.Read();
            }

            reader.Read();
            int token = at + (int)reader.TokenStartIndex;
            line += bytes.AsSpan(counted, token - counted).Count((byte)'\n');
            counted = token;
            if (reader.TokenType == JsonTokenType.EndArray)
            {
                reader.Read();
                return null;
            }

            JsonElement element = JsonElement.ParseValue(ref reader);
            at += (int)reader.BytesConsumed;
            state = reader.CurrentState;
            return element;
        }
        catch (JsonException exception)
        {
            throw new DatasetException($"{new RowSource(path, line, row)}: not a JSON array of objects: {JsonProblem.Reason(exception)}", exception);
        }
    }

    private static void CheckUtf8(ReadOnlySpan<byte> text, string place)
    {
        if (!Utf8.IsValid(text))
        {
            throw new DatasetException($"{place}: not valid UTF-8 at byte {FirstInvalidByte(text) + 1}");
        }
    }

    private static int FirstInvalidByte(ReadOnlySpan<byte> text)
    {
        int at = 0;
        while (at < text.Length && System.Text.Rune.DecodeFromUtf8(text[at..], out _, out int length) == System.Buffers.OperationStatus.Done)
        {
            at += length;
        }

        return at;
    }

    private static SourceRow Row(JsonElement element, RowSource source)
        => element.ValueKind == JsonValueKind.Object
            ? new SourceRow(source, element.Clone())
            : throw new DatasetException($"{source}: expected an object with named fields, found {JsonProblem.Kind(element.ValueKind)}");
}
