using System.Globalization;

namespace LoraTrainer.Storage;

/// <summary>Tells how several downloads together come on: a line at the start, one each ten seconds, one at the end.</summary>
internal sealed class DownloadProgress(string what, int files, long? totalBytes, Action<string>? tell, TimeProvider time)
{
    private static readonly TimeSpan Between = TimeSpan.FromSeconds(10);

    private readonly long start = time.GetTimestamp();
    private readonly Lock gate = new();
    private TimeSpan told;
    private long arrived;
    private long moved;
    private int finished;

    public void Begin(long alreadyHere, string place)
    {
        arrived = alreadyHere;
        string count = files == 1 ? "1 file" : string.Create(CultureInfo.InvariantCulture, $"{files} files");
        string rest = alreadyHere > 0 ? $", {Size(alreadyHere)} of it here already" : "";
        tell?.Invoke($"Fetching {what}: {count}{(totalBytes is { } total ? $", {Size(total)}" : "")}{rest}, to {place}");
    }

    public void Add(long bytes)
    {
        string line;
        lock (gate)
        {
            arrived += bytes;
            moved += Math.Max(0, bytes);
            TimeSpan now = time.GetElapsedTime(start);
            if (now - told < Between)
            {
                return;
            }

            told = now;
            double rate = moved / now.TotalSeconds;
            string left = totalBytes is { } total && rate > 0 ? string.Create(CultureInfo.InvariantCulture, $", {Math.Max(0, total - arrived) / rate:0} s left") : "";
            line = $"{what}: {Size(arrived)}{(totalBytes is { } all ? $" of {Size(all)}" : "")}{(files > 1 ? string.Create(CultureInfo.InvariantCulture, $", {finished} of {files} files") : "")}, {Size((long)rate)}/s{left}";
        }

        tell?.Invoke(line);
    }

    public void FileFinished() => Interlocked.Increment(ref finished);

    public void End() => tell?.Invoke(string.Create(CultureInfo.InvariantCulture, $"Fetched {what}: {Size(Interlocked.Read(ref moved))} in {time.GetElapsedTime(start).TotalSeconds:0.#} s."));

    /// <summary>Bytes in the decimal unit that fits: 4.9 GB.</summary>
    public static string Size(long bytes) => bytes switch
    {
        >= 1_000_000_000 => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1e9:0.##} GB"),
        >= 1_000_000 => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1e6:0.#} MB"),
        >= 1_000 => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1e3:0.#} kB"),
        _ => string.Create(CultureInfo.InvariantCulture, $"{bytes} bytes"),
    };

    /// <summary>Refuses what cannot fit, before it is begun. The system does not always tell; then nothing is refused.</summary>
    public static void RequireSpace(string folder, long bytes, string what, string key, Func<string, long?>? freeBytes = null)
    {
        if ((freeBytes ?? FreeBytes)(folder) is { } free && free < bytes)
        {
            throw new StoreException(StoreProblem.Full, $"{what} needs {Size(bytes)} and there are {Size(free)} on the disk of {folder}. Free space there, or put the cache on another disk with {key}.");
        }
    }

    private static long? FreeBytes(string folder)
    {
        try
        {
            return new DriveInfo(folder).AvailableFreeSpace;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or ArgumentException)
        {
            return null;
        }
    }
}
