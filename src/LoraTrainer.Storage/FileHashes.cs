using System.Text.Json;

namespace LoraTrainer.Storage;

/// <summary>
/// SHA-256 of files, remembered in a file of its own, so that files of many gigabytes are not read again each time. A file counts as unchanged while its path, device,
/// inode, size, and the times of its last write and of its last change of any kind (ctime) are the same. Who writes into a file and sets the machine's clock back, or works on the disk beneath the
/// file system, can make it lie. Files that changed less than two seconds before they were read are not remembered, since a clock's step may hide a second
/// change. Where the system does not tell all of this (anything but Linux), nothing is remembered.
/// </summary>
/// <param name="path">The file that remembers. Made when there is something to remember; one that cannot be read or written costs time and nothing else.</param>
/// <param name="time">The clock.</param>
public sealed class FileHashes(string path, TimeProvider time)
{
    private const int Version = 1;
    private const int MostFiles = 4096;
    private const long LargestBytes = 8 << 20;
    private static readonly TimeSpan Settled = TimeSpan.FromSeconds(2);

    /// <summary>The hash of the file as it is, 64 lower-case hexadecimal digits.</summary>
    public string Of(string file, CancellationToken cancellation = default)
    {
        string full = Path.GetFullPath(file);
        FileIdentity? before = FileSystemCalls.IdentityOf(full);
        if (before is { } identity && Read().TryGetValue(full, out (FileIdentity Identity, string Hash) known) && known.Identity == identity)
        {
            return known.Hash;
        }

        DateTimeOffset now = time.GetUtcNow();
        string hash = ContentHash.OfFile(full, cancellation);
        if (before is { } then && FileSystemCalls.IdentityOf(full) == then && now - then.LastChange > Settled)
        {
            Remember(full, then, hash);
        }

        return hash;
    }

    private Dictionary<string, (FileIdentity Identity, string Hash)> Read()
    {
        var known = new Dictionary<string, (FileIdentity Identity, string Hash)>(StringComparer.Ordinal);
        try
        {
            if (!File.Exists(path) || new FileInfo(path).Length > LargestBytes)
            {
                return known;
            }

            using JsonDocument json = JsonDocument.Parse(File.ReadAllBytes(path));
            if (json.RootElement.GetProperty("version").GetInt32() != Version)
            {
                return known;
            }

            foreach (JsonProperty item in json.RootElement.GetProperty("files").EnumerateObject())
            {
                long Number(string name) => item.Value.GetProperty(name).GetInt64();
                string hash = item.Value.GetProperty("sha256").GetString() ?? "";
                if (hash.Length == 64 && hash.All(char.IsAsciiHexDigitLower))
                {
                    known[item.Name] = (new FileIdentity(Number("device"), Number("inode"), Number("size"), Number("modified_ns"), Number("changed_ns")), hash);
                }
            }
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or JsonException or KeyNotFoundException or InvalidOperationException or FormatException)
        {
            // What is damaged is written anew.
            known.Clear();
        }

        return known;
    }

    private void Remember(string file, FileIdentity identity, string hash)
    {
        // Read again: another process may have added something. Of two at once one is forgotten, and hashed again next time.
        Dictionary<string, (FileIdentity Identity, string Hash)> known = Read();
        known[file] = (identity, hash);
        try
        {
            using var buffer = new MemoryStream();
            using (var json = new Utf8JsonWriter(buffer, new JsonWriterOptions { Indented = true }))
            {
                json.WriteStartObject();
                json.WriteNumber("version", Version);
                json.WriteStartObject("files");
                foreach ((string name, (FileIdentity what, string sha256)) in known.Where(item => item.Key == file || File.Exists(item.Key)).OrderBy(item => item.Key, StringComparer.Ordinal).TakeLast(MostFiles))
                {
                    json.WriteStartObject(name);
                    json.WriteNumber("device", what.Device);
                    json.WriteNumber("inode", what.Inode);
                    json.WriteNumber("size", what.SizeBytes);
                    json.WriteNumber("modified_ns", what.ModifiedNanoseconds);
                    json.WriteNumber("changed_ns", what.ChangedNanoseconds);
                    json.WriteString("sha256", sha256);
                    json.WriteEndObject();
                }

                json.WriteEndObject();
                json.WriteEndObject();
            }

            Directory.CreateDirectory(Path.GetDirectoryName(Path.GetFullPath(path))!);
            AtomicFile.WriteAllBytes(path, buffer.ToArray(), durable: false);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // It is only time that is lost.
        }
    }
}

/// <summary>What tells a file from another one, and from itself before it was changed; times in nanoseconds since 1970.</summary>
internal readonly record struct FileIdentity(long Device, long Inode, long SizeBytes, long ModifiedNanoseconds, long ChangedNanoseconds)
{
    public DateTimeOffset LastChange => DateTimeOffset.UnixEpoch.AddTicks(Math.Max(ModifiedNanoseconds, ChangedNanoseconds) / TimeSpan.NanosecondsPerTick);
}
