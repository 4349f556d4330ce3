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

    private const int Attempts = 200;
    private static readonly TimeSpan BetweenAttempts = TimeSpan.FromMilliseconds(20);

    // A few hundred bytes a row: well above it only where something else wrote into it.
    private const int LongestLine = 1 << 16;

    /// <summary>The file that is asked for, else that of <see cref="Variable"/>, else <c>calibration.jsonl</c> beside the usual ledger.</summary>
    public static string Locate(string? asked) => asked
        ?? (Environment.GetEnvironmentVariable(Variable) is { Length: > 0 } named ? named : Path.Combine(Path.GetDirectoryName(LedgerPath.Default)!, "calibration.jsonl"));

    /// <summary>The rows of one device, the oldest first. A line that is not a row is passed over with a warning.</summary>
    public IReadOnlyList<CalibrationRow> RowsOf(string device) => [.. Read().Where(row => row.Device == device).TakeLast(RowsPerDevice)];

    /// <summary>Adds a row, one process after the other: each writes its whole line at the end while it has the file for itself.</summary>
    public void Append(CalibrationRow row)
    {
        try
        {
            Directory.CreateDirectory(Path.GetDirectoryName(Path.GetFullPath(path))!);
            using FileStream stream = Open(FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None);
            stream.Seek(0, SeekOrigin.End);
            stream.Write(Encoding.UTF8.GetBytes((EndsWithinLine(stream) ? "\n" : "") + row.ToLine() + "\n"));
            stream.Flush();
            Shorten(row.Device, stream);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or NotSupportedException or ArgumentException)
        {
            warn($"What this run measured could not be kept for later plans: {exception.Message} {Variable} names another file.");
        }
    }

    /// <summary>Waits for another process that adds a row, which takes milliseconds.</summary>
    private FileStream Open(FileMode mode, FileAccess access, FileShare share)
    {
        for (int attempt = 1; ; attempt++)
        {
            try
            {
                return new FileStream(path, mode, access, share);
            }
            catch (IOException) when (attempt < Attempts && File.Exists(path))
            {
                Thread.Sleep(BetweenAttempts);
            }
        }
    }

    private List<CalibrationRow> Read()
    {
        if (!File.Exists(path))
        {
            return [];
        }

        try
        {
            using FileStream stream = Open(FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
            return Read(stream, warn);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            warn($"What earlier runs measured cannot be read: {exception.Message}");
            return [];
        }
    }

    private List<CalibrationRow> Read(FileStream stream, Action<string> tell)
    {
        var rows = new List<CalibrationRow>();
        int number = 0;
        using var reader = new StreamReader(stream, Encoding.UTF8, leaveOpen: true);
        while (reader.ReadLine() is { } line)
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

        return rows;
    }

    /// <summary>A process that was killed while it wrote leaves half a line: the next row must not become part of it. The stream is at its end before and after.</summary>
    private static bool EndsWithinLine(FileStream stream)
    {
        if (stream.Length == 0)
        {
            return false;
        }

        stream.Seek(-1, SeekOrigin.End);
        return stream.ReadByte() != '\n';
    }

    /// <summary>
    /// Leaves out the oldest rows of a device that has too many, by a new file in the old one's place, while the old one is held. Rows of other versions go too.
    /// </summary>
    private void Shorten(string device, FileStream stream)
    {
        // What is wrong with other lines is told to those who read them. Not each time: a device that is over the limit by a few rows costs nothing.
        stream.Seek(0, SeekOrigin.Begin);
        List<CalibrationRow> rows = Read(stream, _ => { });
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
