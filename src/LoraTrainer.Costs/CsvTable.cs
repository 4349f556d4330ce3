using System.Globalization;
using System.Text;

namespace LoraTrainer.Costs;

/// <summary>A CSV file that is not as it should be: the file, the line, the field, what was got, what was expected.</summary>
public sealed class CsvFormatException(string message) : FormatException(message);

/// <summary>A CSV file (RFC 4180) whose header names known columns; lines that start with '#' and empty lines are passed over.</summary>
internal static class CsvTable
{
    /// <summary>The rows of a file.</summary>
    /// <param name="file">Names it in messages.</param>
    /// <param name="text">Its content.</param>
    /// <param name="columns">All columns that it may have.</param>
    /// <param name="optional">Those of them that it may lack; a field of one that is missing is empty.</param>
    /// <exception cref="CsvFormatException">It is not as it should be.</exception>
    public static IReadOnlyList<CsvRow> Parse(string file, string text, IReadOnlyList<string> columns, params IReadOnlyList<string> optional)
    {
        var rows = new List<CsvRow>();
        Dictionary<string, int>? header = null;
        foreach ((int line, string[] fields) in Rows(file, text))
        {
            if (header is null)
            {
                header = Header(file, line, fields, columns, optional);
                continue;
            }

            rows.Add(fields.Length == header.Count
                ? new CsvRow(file, line, fields, header)
                : throw new CsvFormatException($"{file}, line {line}: {fields.Length} fields, expected {header.Count} as in the header. A comma within a field needs the field in double quotes."));
        }

        return header is null ? throw new CsvFormatException($"{file}: there is no header line. Expected: {string.Join(',', columns)}") : rows;
    }

    /// <summary>A file that is part of the program.</summary>
    /// <param name="beside">A type in the namespace whose folder holds it.</param>
    /// <param name="name">Its name.</param>
    public static string Shipped(Type beside, string name)
    {
        using Stream stream = beside.Assembly.GetManifestResourceStream($"{beside.Namespace}.{name}")
            ?? throw new InvalidOperationException($"{name} is missing from the program");
        using var reader = new StreamReader(stream, Encoding.UTF8);
        return reader.ReadToEnd();
    }

    private static Dictionary<string, int> Header(string file, int line, string[] fields, IReadOnlyList<string> columns, IReadOnlyList<string> optional)
    {
        var header = new Dictionary<string, int>(StringComparer.Ordinal);
        for (int i = 0; i < fields.Length; i++)
        {
            if (!columns.Contains(fields[i], StringComparer.Ordinal) || !header.TryAdd(fields[i], i))
            {
                throw new CsvFormatException($"{file}, line {line}: the header names '{fields[i]}'{(header.ContainsKey(fields[i]) ? " twice" : ", which is no column")}. Columns are: {string.Join(", ", columns)}.");
            }
        }

        string[] missing = [.. columns.Except(fields, StringComparer.Ordinal).Except(optional, StringComparer.Ordinal)];
        return missing.Length == 0 ? header : throw new CsvFormatException($"{file}, line {line}: the header lacks {string.Join(", ", missing)}.");
    }

    /// <summary>Records with the line that each starts in.</summary>
    private static IEnumerable<(int Line, string[] Fields)> Rows(string file, string text)
    {
        var fields = new List<string>();
        var field = new StringBuilder();
        int line = 1, start = 1, position = 0;
        while (position < text.Length)
        {
            if (fields.Count == 0 && field.Length == 0 && (text[position] is '#' or '\r' or '\n'))
            {
                int end = text.IndexOf('\n', position);
                position = end < 0 ? text.Length : end + 1;
                start = ++line;
                continue;
            }

            bool isQuoted = text[position] == '"';
            if (isQuoted)
            {
                position = Quoted(file, text, position, field, ref line);
            }

            while (position < text.Length && text[position] is not (',' or '\n'))
            {
                if (isQuoted && text[position] != '\r')
                {
                    throw new CsvFormatException($"{file}, line {line}: '{text[position]}' after the closing quote of a field; expected a comma or the end of the line.");
                }

                field.Append(text[position] == '\r' ? "" : text[position]);
                position++;
            }

            fields.Add(field.ToString().Trim());
            field.Clear();
            bool isEnd = position >= text.Length || text[position] == '\n';
            position++;
            if (isEnd)
            {
                yield return (start, [.. fields]);
                fields.Clear();
                start = ++line;
            }
        }
    }

    private static int Quoted(string file, string text, int position, StringBuilder field, ref int line)
    {
        int opened = line;
        for (position++; position < text.Length; position++)
        {
            if (text[position] == '"')
            {
                if (position + 1 < text.Length && text[position + 1] == '"')
                {
                    position++;
                }
                else
                {
                    return position + 1;
                }
            }

            line += text[position] == '\n' ? 1 : 0;
            field.Append(text[position]);
        }

        throw new CsvFormatException($"{file}, line {opened}: a field starts with a double quote that is never closed.");
    }
}

/// <summary>One record, read field by field with an error that says where.</summary>
internal readonly record struct CsvRow(string File, int Line, string[] Fields, Dictionary<string, int> Header)
{
    public string Place => string.Create(CultureInfo.InvariantCulture, $"{File}, line {Line}");

    /// <summary>Empty where the file lacks the column.</summary>
    public string Field(string name) => Header.TryGetValue(name, out int column) ? Fields[column] : string.Empty;

    public string Text(string name) => Field(name) is { Length: > 0 } text ? text : throw Wrong(name, "a text");

    public string Currency(string name) => Field(name) is { Length: 3 } text && text.All(char.IsAsciiLetterUpper) ? text : throw Wrong(name, "three capital letters such as USD");

    public DateOnly Day(string name) =>
        DateOnly.TryParseExact(Field(name), "yyyy-MM-dd", CultureInfo.InvariantCulture, DateTimeStyles.None, out DateOnly day) ? day : throw Wrong(name, "a day such as 2026-05-07");

    public decimal Number(string name, decimal least, decimal most) =>
        decimal.TryParse(Field(name), NumberStyles.AllowDecimalPoint | NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out decimal number) && number >= least && number <= most
            ? number
            : throw Wrong(name, string.Create(CultureInfo.InvariantCulture, $"a number from {least} to {most}"));

    /// <summary>Null where the field is empty.</summary>
    public decimal? NumberOrNull(string name, decimal least, decimal most) => Field(name).Length == 0 ? null : Number(name, least, most);

    public int Whole(string name, int least, int most) =>
        int.TryParse(Field(name), NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int number) && number >= least && number <= most
            ? number
            : throw Wrong(name, string.Create(CultureInfo.InvariantCulture, $"a whole number from {least} to {most}"));

    public T Word<T>(string name, (string Word, T Value)[] words)
    {
        string given = Field(name);
        foreach ((string word, T value) in words)
        {
            if (word == given)
            {
                return value;
            }
        }

        throw Wrong(name, "one of " + string.Join(", ", words.Select(pair => pair.Word)));
    }

    public CsvFormatException Wrong(string name, string expected) => new($"{File}, line {Line}, {name}: got '{Field(name)}', expected {expected}.");
}
