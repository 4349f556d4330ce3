namespace LoraTrainer.Cli;

/// <summary>What a column gives up where a table is wider than the terminal.</summary>
/// <param name="Column">Its index.</param>
/// <param name="Width">It may become as narrow as this, and no narrower than needed; 0: it is left out.</param>
/// <param name="Mark">Stands where a text was cut; empty for one that is whole when cut there, such as the day of a time.</param>
internal readonly record struct Narrowing(int Column, int Width = 0, string Mark = "…");

/// <summary>A table in plain text.</summary>
internal static class Columns
{
    private const int Gap = 2;

    /// <summary>Cells under each other, two spaces apart: words to the left, numbers to the right.</summary>
    /// <param name="rows">The first is the header; all have the same number of cells.</param>
    /// <param name="isNumber">Which columns hold numbers.</param>
    public static string Align(IReadOnlyList<string[]> rows, Func<int, bool> isNumber) => Align(rows, isNumber, null, []);

    /// <summary>The same within a width: columns give way in the order of <paramref name="narrowings"/> until every line fits, or none is left.</summary>
    /// <param name="rows">The first is the header; all have the same number of cells.</param>
    /// <param name="isNumber">Which columns hold numbers.</param>
    /// <param name="width">Of the terminal; null: any.</param>
    /// <param name="narrowings">What gives way first.</param>
    public static string Align(IReadOnlyList<string[]> rows, Func<int, bool> isNumber, int? width, IReadOnlyList<Narrowing> narrowings)
    {
        string[][] cells = [.. rows.Select(row => row.ToArray())];
        int[] widths = [.. Enumerable.Range(0, rows[0].Length).Select(column => cells.Max(row => row[column].Length))];
        var left = new SortedSet<int>(Enumerable.Range(0, widths.Length));
        foreach (Narrowing narrowing in narrowings)
        {
            int excess = left.Sum(column => widths[column] + Gap) - Gap - (width ?? int.MaxValue);
            if (excess <= 0)
            {
                break;
            }

            int column = narrowing.Column;
            if (narrowing.Width == 0)
            {
                left.Remove(column);
                continue;
            }

            int wanted = Math.Min(widths[column], narrowing.Mark.Length == 0 ? narrowing.Width : Math.Max(narrowing.Width, widths[column] - excess));
            foreach (string[] row in cells.Where(row => row[column].Length > wanted))
            {
                row[column] = row[column][..(wanted - narrowing.Mark.Length)] + narrowing.Mark;
            }

            widths[column] = wanted;
        }

        return string.Join(Environment.NewLine, cells.Select(row =>
            string.Join("  ", left.Select(column => isNumber(column) ? row[column].PadLeft(widths[column]) : row[column].PadRight(widths[column]))).TrimEnd()));
    }
}
