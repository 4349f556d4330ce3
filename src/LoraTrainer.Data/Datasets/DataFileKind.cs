namespace LoraTrainer.Data.Datasets;

/// <summary>How the rows of a file are written.</summary>
public enum DataFileKind
{
    /// <summary>One object a line, or one array of objects: the first character says which.</summary>
    Json,

    /// <summary>RFC 4180 with a header: commas, or semicolons or tabs where the header has no comma. Every field is a text.</summary>
    Csv,

    /// <summary>The same with tabs.</summary>
    Tsv,

    /// <summary>Plain text: each paragraph, up to a blank line, is a row with the field <c>text</c>.</summary>
    Paragraphs,

    /// <summary>Plain text: the file is one row with the field <c>text</c>.</summary>
    Document,

    /// <summary>Apache Parquet.</summary>
    Parquet,
}

/// <summary>The kind of a file by its name.</summary>
internal static class DataFileKinds
{
    /// <summary>What names can end in, for sentences.</summary>
    public const string Known = ".jsonl, .json, .csv, .tsv, .txt, .md and .parquet, each but the last also with .gz or .zst behind it";

    /// <summary>Null where the name does not say it.</summary>
    public static DataFileKind? OfName(string path)
    {
        string name = Path.GetFileName(path).ToLowerInvariant();
        if (name.EndsWith(".gz", StringComparison.Ordinal) || name.EndsWith(".zst", StringComparison.Ordinal))
        {
            name = Path.GetFileNameWithoutExtension(name);
        }

        return Path.GetExtension(name) switch
        {
            ".jsonl" or ".ndjson" or ".json" => DataFileKind.Json,
            ".csv" => DataFileKind.Csv,
            ".tsv" or ".tab" => DataFileKind.Tsv,
            ".txt" or ".text" => DataFileKind.Paragraphs,
            ".md" or ".markdown" => DataFileKind.Document,
            ".parquet" or ".pq" => DataFileKind.Parquet,
            _ => null,
        };
    }

    /// <summary>What a file is that is none of these, by its first bytes, with what to do; null where they say nothing.</summary>
    public static string? Foreign(ReadOnlySpan<byte> head) => head switch
    {
        [0xFF, 0xFE, ..] or [0xFE, 0xFF, ..] => "is UTF-16 text; save it as UTF-8",
        [(byte)'P', (byte)'K', 3, 4, ..] => "is a ZIP file (or a spreadsheet); unpack it, or save the sheet as CSV",
        [(byte)'B', (byte)'Z', (byte)'h', ..] => "is compressed with bzip2; unpack it, or use .gz or .zst",
        [0xFD, (byte)'7', (byte)'z', (byte)'X', (byte)'Z', ..] => "is compressed with xz; unpack it, or use .gz or .zst",
        [(byte)'A', (byte)'R', (byte)'R', (byte)'O', (byte)'W', (byte)'1', ..] => "is an Arrow file; save the data set as Parquet or JSON lines",
        [(byte)'O', (byte)'b', (byte)'j', 1, ..] => "is an Avro file; save the data set as Parquet or JSON lines",
        _ => null,
    };
}
