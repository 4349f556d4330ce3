using System.Globalization;
using System.Text;
using LoraTrainer.Costs.Ledger;

namespace LoraTrainer.Costs.Estimates;

/// <summary>
/// The file in which finished trainings leave what they measured, a row of JSON a line. It is an aid: whatever is wrong with it is a warning, and never
/// the run's or the plan's error.
/// </summary>
/// <param name="path">Made with the first row.</param>
/// <param name="warn">Is told what is wrong, a sentence each.</param>
public sealed class CalibrationFile(string path, Action<string> warn)
{
    /// <summary>A file that is used where none is asked for.</summary>
    public const string Variable = "LT_CALIBRATION";

    /// <summary>Rows that are kept for each device, the newest.</summary>
    public const int RowsPerDevice = 200;

    // A few hundred bytes a row: well above it only where something else wrote into it.
    private const int LongestLine = 1 << 16;

    /// <summary>The file that is asked for, else that of <see cref="Variable"/>, else <c>calibration.jsonl</c> beside the usual ledger.</summary>
    public static string Locate(string? asked) => asked
        ?? (Environment.GetEnvironmentVariable(Variable) is { Length: > 0 } named ? named : Path.Combine(Path.GetDirectoryName(LedgerPath.Default)!, "calibration.jsonl"));

    /// <summary>The rows of one device, the oldest first. A line that is not a row is passed over with a warning.</summary>
    public IReadOnlyList<CalibrationRow> RowsOf(string device) => [.. Read(warn).Where(row => row.Device == device).TakeLast(RowsPerDevice)];

    /// <summary>Adds a row. One write of a whole line: processes that end at the same moment do not tear each other's rows.</summary>
    public void Append(CalibrationRow row)
    {
        try
        {
            Directory.CreateDirectory(Path.GetDirectoryName(Path.GetFullPath(path))!);
            byte[] line = Encoding.UTF8.GetBytes((EndsWithinLine() ? "\n" : "") + row.ToLine() + "\n");
            using (FileStream stream = new(path, new FileStreamOptions { Mode = FileMode.Append, Access = FileAccess.Write, Share = FileShare.ReadWrite, BufferSize = 0 }))
            {
                stream.Write(line);
            }

            Shorten(row.Device);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or NotSupportedException or ArgumentException)
        {
            warn($"What this run measured could not be kept for later plans: {exception.Message} {Variable} names another file.");
        }
    }

    private List<CalibrationRow> Read(Action<string> tell)
    {
        var rows = new List<CalibrationRow>();
        if (!File.Exists(path))
        {
            return rows;
        }

        try
        {
            int number = 0;
            foreach (string line in File.ReadLines(path, Encoding.UTF8))
            {
                number++;
                if (string.IsNullOrWhiteSpace(line))
                {
                    continue;
                }

                try
                {
                    if ((line.Length > LongestLine ? throw new FormatException($"{line.Length} characters are no row") : CalibrationRow.FromLine(line)) is { } row)
                    {
                        rows.Add(row);
                    }
                }
                catch (FormatException exception)
                {
                    tell(string.Create(CultureInfo.InvariantCulture, $"{path}:{number}: this line is not a measured row ({exception.Message}); it is passed over. Remove it to be rid of this warning."));
                }
            }
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            tell($"What earlier runs measured cannot be read: {exception.Message}");
        }

        return rows;
    }

    /// <summary>A process that was killed while it wrote leaves half a line: the next row must not become part of it.</summary>
    private bool EndsWithinLine()
    {
        if (!File.Exists(path))
        {
            return false;
        }

        using FileStream stream = new(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
        if (stream.Length == 0)
        {
            return false;
        }

        stream.Seek(-1, SeekOrigin.End);
        return stream.ReadByte() != '\n';
    }

    /// <summary>Leaves out the oldest rows of a device that has too many, by a new file in the old one's place. Rows of other versions go too.</summary>
    private void Shorten(string device)
    {
        // What is wrong with other lines is told to those who read them. Not each time: a device that is over the limit by a few rows costs nothing. A row that another process adds meanwhile may be lost.
        List<CalibrationRow> rows = Read(_ => { });
        int tooMany = rows.Count(row => row.Device == device) - RowsPerDevice;
        if (tooMany < RowsPerDevice / 10)
        {
            return;
        }

        string temporary = $"{path}.{Environment.ProcessId}.tmp";
        File.WriteAllLines(temporary, rows.Where(row => row.Device != device || tooMany-- <= 0).Select(row => row.ToLine()));
        File.Move(temporary, path, overwrite: true);
    }
}
