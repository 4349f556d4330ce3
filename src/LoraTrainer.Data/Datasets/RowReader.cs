using System.Text.Unicode;

namespace LoraTrainer.Data.Datasets;

/// <summary>
/// Reads the rows of data files one by one, whatever kind the files are of; see <see cref="DataFileKind"/>. The kind comes from a file's name, else from its first bytes.
/// All kinds but Parquet may be packed with gzip or Zstandard. Memory is needed for the longest row, in Parquet for one row group.
/// </summary>
public static class RowReader
{
    private const int HeadBytes = 512;

    /// <summary>All rows. One that cannot be read comes with its <see cref="SourceRow.Fault"/>, and the reading goes on behind it.</summary>
    /// <param name="path">A file, a folder, or a path with wildcards: <see cref="DataFiles"/>.</param>
    /// <param name="kind">Of all its files; null: each file says its own.</param>
    /// <exception cref="DatasetException">At once: there is no such file. While reading: a file is damaged so that what follows cannot be found.</exception>
    public static IEnumerable<SourceRow> Read(string path, DataFileKind? kind = null) => DataFiles.Of(path).SelectMany(file => ReadFile(file, kind));

    private static IEnumerable<SourceRow> ReadFile(string file, DataFileKind? asked)
    {
        var places = new RowPlaces(file);
        using DecodedFile content = DecodedFile.Open(file);
        var window = new ByteWindow(content);
        window.Ensure(HeadBytes);
        DataFileKind kind = asked ?? DataFileKinds.OfName(file) ?? KindOfContent(file, window.Span);
        if (kind != DataFileKind.Parquet && DataFileKinds.Foreign(window.Span) is { } foreign)
        {
            throw new DatasetException($"{file} {foreign}");
        }

        if (kind == DataFileKind.Parquet && content.Compression is { } compression)
        {
            throw new DatasetException($"{file}: a Parquet file inside {compression} cannot be read; unpack it (Parquet is compressed inside)");
        }

        window.SkipByteOrderMark();
        IEnumerable<SourceRow> rows = kind switch
        {
            DataFileKind.Json when StartsWithBracket(window) => JsonArrayRows.Read(window, places),
            DataFileKind.Json => JsonLineRows.Read(window, places),
            DataFileKind.Csv or DataFileKind.Tsv => DelimitedRows.Read(window, kind, places),
            DataFileKind.Paragraphs => TextRows.Paragraphs(window, places),
            DataFileKind.Document => TextRows.Document(window, places),
            _ => ParquetRows.Read(file, places),
        };
        foreach (SourceRow row in rows)
        {
            yield return row;
        }
    }

    private static DataFileKind KindOfContent(string file, ReadOnlySpan<byte> head)
    {
        if (head.StartsWith("PAR1"u8))
        {
            return DataFileKind.Parquet;
        }

        ReadOnlySpan<byte> text = head.StartsWith("\uFEFF"u8) ? head[3..] : head;
        return text.TrimStart(" \t\r\n"u8) switch
        {
            [(byte)'{' or (byte)'[', ..] or [] => DataFileKind.Json,
            _ => throw new DatasetException(DataFileKinds.Foreign(head) is { } foreign
                ? $"{file} {foreign}"
                : $"{file}: neither its name nor its first bytes say what kind of file this is. Name it with one of {DataFileKinds.Known}, or set ds_type."),
        };
    }

    private static bool StartsWithBracket(ByteWindow window)
    {
        int at = 0;
        while (true)
        {
            window.Ensure(at + 1);
            if (at >= window.Length || at > ByteWindow.MostRowBytes)
            {
                return false;
            }

            if (window.Span[at] is not ((byte)' ' or (byte)'\t' or (byte)'\r' or (byte)'\n'))
            {
                return window.Span[at] == '[';
            }

            at++;
        }
    }

    /// <summary>Null for valid UTF-8; else what is wrong with it.</summary>
    internal static string? Utf8Fault(ReadOnlySpan<byte> text)
    {
        if (Utf8.IsValid(text))
        {
            return null;
        }

        int at = 0;
        while (at < text.Length && System.Text.Rune.DecodeFromUtf8(text[at..], out _, out int length) == System.Buffers.OperationStatus.Done)
        {
            at += length;
        }

        return $"not valid UTF-8 at byte {at + 1}";
    }
}
