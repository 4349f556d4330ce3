using System.Security.Cryptography;
using System.Text;
using System.Text.Json;

namespace LoraTrainer.Costs.Ledger;

/// <summary>
/// Events that could not be written to the ledger: JSON lines, each on disk before <see cref="TryAppend"/> returns. Every process writes a file of its own
/// and keeps it locked; the next one that can write the ledger merges and removes those that nobody holds. A killed process leaves at most a torn last line.
/// </summary>
internal sealed class LedgerJournal(string ledger, string fallbackFolder) : IDisposable
{
    private readonly string _fallbackFolder = fallbackFolder;
    private FileStream? _file;

    /// <summary>The file that is written to; null while nothing was.</summary>
    public string? Path => _file?.Name;

    /// <summary>Writes the event and flushes it to disk, beside the ledger or in the fallback folder.</summary>
    /// <param name="item">The event.</param>
    /// <param name="problem">Why it could be written nowhere.</param>
    public bool TryAppend(LedgerEvent item, out string? problem)
    {
        byte[] line = [.. JsonSerializer.SerializeToUtf8Bytes(item, LedgerJson.Default.LedgerEvent), (byte)'\n'];
        problem = null;
        if (_file is not null && TryWrite(_file, line, out problem))
        {
            return true;
        }

        foreach ((string folder, string prefix) in Places())
        {
            FileStream? file = null;
            try
            {
                Directory.CreateDirectory(folder);
                file = new FileStream(System.IO.Path.Combine(folder, $"{prefix}{Guid.NewGuid():N}.jsonl"), FileMode.CreateNew, FileAccess.ReadWrite, FileShare.None, bufferSize: 0);
                if (TryWrite(file, line, out problem))
                {
                    // A file that holds events stays as it is: it is released, for the next process to merge.
                    _file?.Dispose();
                    _file = file;
                    return true;
                }

                File.Delete(file.Name);
            }
            catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
            {
                problem = exception.Message;
            }

            if (file != _file)
            {
                file?.Dispose();
            }
        }

        return false;
    }

    /// <summary>Hands every event of files that no living process writes to <paramref name="write"/>, and removes the files once it returns.</summary>
    /// <param name="write">Writes all of them to the ledger, or throws.</param>
    /// <param name="warnings">Told of files that hold more than a torn last line; they are kept under another name.</param>
    public void Merge(Action<IReadOnlyList<LedgerEvent>> write, Action<string> warnings)
    {
        _file?.Dispose();
        _file = null;
        foreach ((string folder, string prefix) in Places())
        {
            foreach (string path in Directory.Exists(folder) ? Directory.GetFiles(folder, prefix + "*.jsonl") : [])
            {
                // The lock goes with the file that is removed: a second process that had it open by then reads nothing twice that counts twice.
                FileStream file;
                try
                {
                    file = new FileStream(path, FileMode.Open, FileAccess.ReadWrite, FileShare.None, bufferSize: 0);
                }
                catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
                {
                    continue;
                }

                using (file)
                {
                    (List<LedgerEvent> events, int rejected) = Read(file);
                    if (events.Count > 0)
                    {
                        write(events);
                    }

                    try
                    {
                        if (rejected == 0)
                        {
                            File.Delete(path);
                        }
                        else
                        {
                            string kept = path + ".rejected";
                            File.Move(path, kept, overwrite: true);
                            warnings($"{rejected} lines of the ledger's journal could not be read; they are kept in {kept}.");
                        }
                    }
                    catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
                    {
                        warnings($"The ledger's journal {path} was merged but cannot be removed: {exception.Message} Nothing counts twice by it.");
                    }
                }
            }
        }
    }

    /// <summary>Every journal of this ledger, also those that could not be read (<c>.rejected</c>).</summary>
    public IReadOnlyList<string> Files() =>
        [.. Places().Where(place => Directory.Exists(place.Folder)).SelectMany(place => Directory.GetFiles(place.Folder, place.Prefix + "*")).Order(StringComparer.Ordinal)];

    public void Dispose() => _file?.Dispose();

    private static bool TryWrite(FileStream file, byte[] line, out string? problem)
    {
        long length = 0;
        problem = null;
        try
        {
            length = file.Length;
            file.Position = length;
            file.Write(line);
            file.Flush(flushToDisk: true);
            return true;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            problem = exception.Message;
            try
            {
                // No torn line but a last one.
                file.SetLength(length);
            }
            catch (IOException)
            {
                // The reader skips it.
            }

            return false;
        }
    }

    private static (List<LedgerEvent> Events, int Rejected) Read(FileStream file)
    {
        var bytes = new byte[file.Length];
        file.ReadExactly(bytes);
        var events = new List<LedgerEvent>();
        int rejected = 0;
        ReadOnlySpan<byte> rest = bytes;

        // What has no newline behind it is a torn last line.
        for (int end; (end = rest.IndexOf((byte)'\n')) >= 0; rest = rest[(end + 1)..])
        {
            try
            {
                events.Add(JsonSerializer.Deserialize(rest[..end], LedgerJson.Default.LedgerEvent)!);
            }
            catch (Exception exception) when (exception is JsonException or ArgumentException or NotSupportedException)
            {
                rejected++;
            }
        }

        return (events, rejected);
    }

    private IEnumerable<(string Folder, string Prefix)> Places()
    {
        yield return (System.IO.Path.GetDirectoryName(ledger)!, System.IO.Path.GetFileName(ledger) + ".pending-");

        // Several ledgers share the fallback folder.
        string hash = Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(ledger)))[..16];
        yield return (_fallbackFolder, $"ledger-{hash}.pending-");
    }
}
