using System.Text;

namespace LoraTrainer.Data.Datasets;

/// <summary>
/// Rows of a table as RFC 4180 has it: a header, fields apart by one character, a field in double quotes may hold that character, line ends and doubled quotes. Blank
/// lines are skipped. A row with more or fewer fields than the header, or with text behind a closing quote, is a faulty row; a quote that is never closed ends the
/// reading, as it takes in everything behind it. A reader of our own, because the known ones take such a quote as a row and do not tell broken UTF-8 by row.
/// </summary>
internal static class DelimitedRows
{
    private const int MostColumns = 10_000;

    public static IEnumerable<SourceRow> Read(ByteWindow window, DataFileKind kind, RowPlaces places)
    {
        var cursor = new Cursor(window, places);
        cursor.Delimiter = kind == DataFileKind.Tsv ? (byte)'\t' : DelimiterOf(window);
        if (!cursor.Next())
        {
            yield break;
        }

        string[] header = Header(cursor, places);
        int row = 0;
        while (cursor.Next())
        {
            row++;
            string? wrong = cursor.Fault ?? (cursor.Fields.Count == header.Length ? null
                : $"{cursor.Fields.Count} {(cursor.Fields.Count == 1 ? "field" : "fields")}, but the header has {header.Length}");
            for (int i = 0; i < cursor.Fields.Count && wrong is null; i++)
            {
                wrong = RowReader.Utf8Fault(cursor.Fields[i].Span) is { } broken ? $"field '{header[i]}': {broken}" : null;
            }

            yield return wrong is null ? new SourceRow(places.At(cursor.Line, row), TextRows.FieldsOf(header, cursor.Fields)) : places.Faulty(cursor.Line, row, wrong);
        }
    }

    /// <summary>The comma; where the first line has none, a semicolon or a tab that it has.</summary>
    private static byte DelimiterOf(ByteWindow window)
    {
        while (window.Span.IndexOf((byte)'\n') < 0 && window.Length < 1 << 20 && window.More())
        {
        }

        int end = window.Span.IndexOf((byte)'\n');
        ReadOnlySpan<byte> first = end < 0 ? window.Span : window.Span[..end];
        return first.Contains((byte)',') ? (byte)',' : first.Contains((byte)';') ? (byte)';' : first.Contains((byte)'\t') ? (byte)'\t' : (byte)',';
    }

    private static string[] Header(Cursor cursor, RowPlaces places)
    {
        string? wrong = cursor.Fault ?? cursor.Fields.Select(field => RowReader.Utf8Fault(field.Span)).FirstOrDefault(broken => broken is not null);
        if (wrong is not null)
        {
            throw places.Lost(cursor.Line, 0, $"the header, which names the fields, is {wrong}");
        }

        string[] names = [.. cursor.Fields.Select(field => Encoding.UTF8.GetString(field.Span).Trim())];
        string? twice = names.GroupBy(name => name, StringComparer.Ordinal).FirstOrDefault(group => group.Count() > 1)?.Key;
        return twice is null ? names
            : throw places.Lost(cursor.Line, 0, twice.Length == 0
                ? "the header, which names the fields, has two empty names. Give each column a name."
                : $"the header names the field '{twice}' twice. Give each column a name of its own.");
    }

    private sealed class Cursor(ByteWindow window, RowPlaces places)
    {
        private readonly List<ReadOnlyMemory<byte>> fields = [];
        private int rowLength;
        private int rows;
        private int nextLine = 1;
        private bool isQuoted;

        public byte Delimiter { get; set; }

        /// <summary>Valid until <see cref="Next"/> is called again.</summary>
        public List<ReadOnlyMemory<byte>> Fields => fields;

        /// <summary>Of the row's first byte.</summary>
        public int Line { get; private set; }

        /// <summary>What is wrong with the row's quotes; null: nothing.</summary>
        public string? Fault { get; private set; }

        public bool Next()
        {
            do
            {
                window.Consume(rowLength);
                rowLength = 0;
                Line = nextLine;
                if (!Scan())
                {
                    return false;
                }
            }
            while (fields.Count == 1 && fields[0].Span.IndexOfAnyExcept(" \t\r"u8) < 0 && Fault is null && !isQuoted);

            rows++;
            return true;
        }

        /// <summary>Splits the next row; false at the end.</summary>
        private bool Scan()
        {
            // First the row's end, so that the bytes stay where they are while fields refer to them.
            int end = EndOfRow(out int length);
            if (end < 0)
            {
                return false;
            }

            fields.Clear();
            Fault = null;
            isQuoted = false;
            ReadOnlyMemory<byte> row = window.Memory(0, end);
            nextLine = Line + row.Span.Count((byte)'\n') + 1;
            rowLength = length;
            int at = 0;
            while (true)
            {
                at = Field(row, at);
                bool isLast = at >= row.Length - 1;
                if (at == row.Length - 1)
                {
                    // Nothing stands behind the last delimiter, which is a field too.
                    fields.Add(default);
                }

                if (fields.Count > MostColumns)
                {
                    // A field takes more memory than the comma behind it.
                    Fault = $"more than {MostColumns} columns";
                    return true;
                }

                if (isLast)
                {
                    return true;
                }

                at++;
            }
        }

        /// <summary>The length of the next row without its line end, and with it; -1 where there is none.</summary>
        private int EndOfRow(out int withEnd)
        {
            int at = 0, openedAt = -1;
            bool atFieldStart = true, inQuotes = false;
            while (true)
            {
                if (at == window.Length)
                {
                    if (at > ByteWindow.MostRowBytes)
                    {
                        throw places.Lost(Line, rows, inQuotes ? Unclosed(openedAt) : ByteWindow.TooLong);
                    }

                    if (!window.More())
                    {
                        withEnd = at;
                        return inQuotes ? throw places.Lost(Line, rows, Unclosed(openedAt)) : at == 0 ? -1 : at;
                    }
                }

                ReadOnlySpan<byte> span = window.Span;
                byte c = span[at];
                if (inQuotes)
                {
                    int quote = span[at..].IndexOf((byte)'"');
                    at = quote < 0 ? span.Length : at + quote + 1;
                    inQuotes = quote < 0;
                    continue;
                }

                if (c != Delimiter && c is not ((byte)'"' or (byte)'\n'))
                {
                    int plain = span[at..].IndexOfAny(Delimiter, (byte)'"', (byte)'\n');
                    at = plain < 0 ? span.Length : at + plain;
                    atFieldStart = false;
                    continue;
                }

                if (c == '\n')
                {
                    withEnd = at + 1;
                    return at > 0 && span[at - 1] == '\r' ? at - 1 : at;
                }

                if (c == '"' && (atFieldStart || (openedAt >= 0 && span[at - 1] == '"')))
                {
                    // The second of two quotes goes on with the field that the first one seemed to close.
                    inQuotes = true;
                    openedAt = atFieldStart ? at : openedAt;
                }

                if (c == Delimiter)
                {
                    openedAt = -1;
                }

                atFieldStart = c == Delimiter;
                at++;
            }
        }

        private string Unclosed(int openedAt)
            => $"the double quote that opens a field at line {Line + window.Span[..openedAt].Count((byte)'\n')} is never closed, so the rows behind it cannot be told apart. Close it, or double quotes that belong to the text";

        /// <summary>Adds the field that begins at <paramref name="at"/>; returns where the delimiter behind it, or the row's end, is.</summary>
        private int Field(ReadOnlyMemory<byte> row, int at)
        {
            ReadOnlySpan<byte> span = row.Span;
            if (at >= span.Length || span[at] != '"')
            {
                int next = span[at..].IndexOf(Delimiter);
                int end = next < 0 ? span.Length : at + next;
                fields.Add(row[at..end]);
                return end;
            }

            isQuoted = true;
            int start = at + 1, from = start;
            bool hasDoubled = false;
            while (true)
            {
                int quote = span[from..].IndexOf((byte)'"');
                int close = quote < 0 ? span.Length : from + quote;
                if (close + 1 < span.Length && span[close + 1] == '"')
                {
                    hasDoubled = true;
                    from = close + 2;
                    continue;
                }

                fields.Add(hasDoubled ? Undoubled(span[start..close]) : row[start..close]);
                int behind = Math.Min(close + 1, span.Length);
                int next = span[behind..].IndexOf(Delimiter);
                int end = next < 0 ? span.Length : behind + next;
                if (span[behind..end].IndexOfAnyExcept(" \t"u8) >= 0)
                {
                    Fault ??= $"text behind the closing quote of field {fields.Count}; quotes inside a quoted field are doubled";
                }

                return end;
            }
        }

        private static byte[] Undoubled(ReadOnlySpan<byte> quoted)
        {
            byte[] text = new byte[quoted.Length];
            int length = 0;
            for (int i = 0; i < quoted.Length; i++)
            {
                text[length++] = quoted[i];
                i += quoted[i] == '"' ? 1 : 0;
            }

            return text[..length];
        }
    }
}
