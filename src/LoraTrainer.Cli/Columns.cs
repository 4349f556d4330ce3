namespace LoraTrainer.Cli;

/// <summary>A table in plain text.</summary>
internal static class Columns
{
    /// <summary>Cells under each other, two spaces apart: words to the left, numbers to the right.</summary>
    /// <param name="rows">The first is the header; all have the same number of cells.</param>
    /// <param name="isNumber">Which columns hold numbers.</param>
    public static string Align(IReadOnlyList<string[]> rows, Func<int, bool> isNumber)
    {
        int[] widths = [.. Enumerable.Range(0, rows[0].Length).Select(column => rows.Max(row => row[column].Length))];
        return string.Join(Environment.NewLine, rows.Select(row =>
            string.Join("  ", row.Select((cell, column) => isNumber(column) ? cell.PadLeft(widths[column]) : cell.PadRight(widths[column]))).TrimEnd()));
    }
}
