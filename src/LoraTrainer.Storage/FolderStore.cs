using System.Buffers;
using System.Security.Cryptography;

namespace LoraTrainer.Storage;

/// <summary>
/// A store in a folder: each object a file, its key the path. Objects appear whole, by rename, and new ones by link, which the file system
/// refuses where the name is taken; so several processes may write at once. Empty folders are removed with their last object.
/// </summary>
public sealed class FolderStore : IObjectStore
{
    private const int BufferBytes = 1 << 18;
    private const int FolderAttempts = 100;

    // Above it an object has no version: telling one would mean to read it all.
    private const long LargestVersioned = 1 << 20;

    private readonly string root;

    /// <param name="root">made with the first object if it is not there</param>
    public FolderStore(string root) => this.root = Path.GetFullPath(root);

    public string Location => root;

    /// <summary>A folder on a disk of this machine can do everything. Locks and links on network and user-space file systems may not reach other machines.</summary>
    public Task<StoreAbilities> ProbeAsync(string prefix, CancellationToken cancellation = default)
    {
        string? remote = FileSystemCalls.RemoteFileSystemOf(root);
        return Task.FromResult(remote is null
            ? new StoreAbilities(PutIfAbsent: true, CompareAndSwap: true, Lacking: null)
            : new StoreAbilities(PutIfAbsent: false, CompareAndSwap: false, $"{root} is on a {remote} mount, where a lock of one machine may not keep another one out."));
    }

    public async Task<string?> PutAsync(string key, Stream content, PutCondition condition = default, IProgress<long>? progress = null, CancellationToken cancellation = default)
    {
        string path = PathOf(key);
        long start = content.Position;
        for (int attempt = 1; ; attempt++)
        {
            using AtomicFile file = CreateIn(path);
            try
            {
                return await PutAsync(file, path, content, condition, progress, cancellation).ConfigureAwait(false);
            }
            catch (IOException) when (attempt < FolderAttempts && file.IsGone)
            {
                // Another process took it for what a dead one left behind; it does that once.
                content.Position = start;
            }
        }
    }

    private static async Task<string?> PutAsync(AtomicFile file, string path, Stream content, PutCondition condition, IProgress<long>? progress, CancellationToken cancellation)
    {
        if (condition.MustBeAbsent && File.Exists(path))
        {
            return null;
        }

        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        byte[] buffer = ArrayPool<byte>.Shared.Rent(BufferBytes);
        try
        {
            int read;
            while ((read = await content.ReadAsync(buffer, cancellation).ConfigureAwait(false)) > 0)
            {
                file.Append(buffer.AsSpan(0, read));
                hash.AppendData(buffer.AsSpan(0, read));
                progress?.Report(file.Length);
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }

        string version = file.Length <= LargestVersioned ? Convert.ToHexStringLower(hash.GetHashAndReset()) : string.Empty;
        if (condition.MustBeAbsent)
        {
            return file.TryCommitNew() ? version : null;
        }

        if (condition.Version is { } expected)
        {
            // All that waits for the disk is done without the lock: a process that is suspended while it has it keeps everybody out.
            file.Flush();

            // Between the comparison and the rename no other swap may come: they all take this lock.
            using (await FolderLock.TakeAsync(Path.GetDirectoryName(path)!, cancellation).ConfigureAwait(false))
            {
                if (expected.Length == 0 || !File.Exists(path) || new FileInfo(path).Length > LargestVersioned || ContentHash.OfFile(path, cancellation) != expected)
                {
                    return null;
                }

                file.Rename();
            }

            file.SynchronizeName();
            return version;
        }

        file.Commit();
        return version;
    }

    public async Task<StoredContent?> GetAsync(string key, CancellationToken cancellation = default)
    {
        FileStream stream;
        try
        {
            stream = new FileStream(PathOf(key), FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete, 1, FileOptions.Asynchronous);
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            return null;
        }

        string version = string.Empty;
        if (stream.Length <= LargestVersioned)
        {
            version = Convert.ToHexStringLower(await SHA256.HashDataAsync(stream, cancellation).ConfigureAwait(false));
            stream.Position = 0;
        }

        return new StoredContent(stream, stream.Length, version);
    }

    public Task<IReadOnlyList<StoredObject>> ListAsync(string prefix = "", CancellationToken cancellation = default)
    {
        if (prefix.Length > 0)
        {
            ObjectKey.Validate(prefix.EndsWith('/') ? prefix[..^1] : prefix);
        }

        // Only the part up to the last '/' names a folder; the rest is the start of a name in it.
        string folder = Path.Combine(root, prefix[..(prefix.LastIndexOf('/') + 1)]);
        var found = new List<StoredObject>();
        if (Directory.Exists(folder))
        {
            Collect(new DirectoryInfo(folder), prefix, found, cancellation);
        }

        found.Sort((a, b) => string.CompareOrdinal(a.Key, b.Key));
        return Task.FromResult<IReadOnlyList<StoredObject>>(found);
    }

    public Task<bool> DeleteAsync(string key, CancellationToken cancellation = default)
    {
        string path = PathOf(key);
        if (!File.Exists(path))
        {
            return Task.FromResult(false);
        }

        try
        {
            File.Delete(path);
        }
        catch (DirectoryNotFoundException)
        {
            // Another process removed it, and its folder, at the same moment.
            return Task.FromResult(false);
        }

        string folder = Path.GetDirectoryName(path)!;
        FileSystemCalls.SynchronizeFolder(folder);
        while (folder.Length > root.Length && TryRemoveEmpty(folder))
        {
            folder = Path.GetDirectoryName(folder)!;
        }

        return Task.FromResult(true);
    }

    public Task<bool> ExistsAsync(string key, CancellationToken cancellation = default) => Task.FromResult(File.Exists(PathOf(key)));

    public Task<int> RemoveUnfinishedAsync(string prefix, CancellationToken cancellation = default)
    {
        ObjectKey.Validate(prefix.TrimEnd('/'));
        string folder = Path.Combine(root, prefix[..(prefix.LastIndexOf('/') + 1)]);
        int removed = 0;
        if (Directory.Exists(folder))
        {
            foreach (string file in Directory.EnumerateFiles(folder, ".*.tmp", new EnumerationOptions { RecurseSubdirectories = true, AttributesToSkip = 0 }))
            {
                cancellation.ThrowIfCancellationRequested();
                if (AtomicFile.IsTemporary(Path.GetFileName(file)) && Path.GetRelativePath(root, file).StartsWith(prefix, StringComparison.Ordinal))
                {
                    File.Delete(file);
                    removed++;
                }
            }

            // Made for an object that never came.
            foreach (string inner in Directory.EnumerateDirectories(folder, "*", SearchOption.AllDirectories).OrderByDescending(path => path.Length))
            {
                if (Path.GetRelativePath(root, inner).StartsWith(prefix, StringComparison.Ordinal))
                {
                    TryRemoveEmpty(inner);
                }
            }
        }

        return Task.FromResult(removed);
    }

    public ValueTask DisposeAsync() => ValueTask.CompletedTask;

    private string PathOf(string key)
    {
        ObjectKey.Validate(key);
        return Path.Combine(root, key);
    }

    private void Collect(DirectoryInfo folder, string prefix, List<StoredObject> found, CancellationToken cancellation)
    {
        cancellation.ThrowIfCancellationRequested();
        try
        {
            foreach (FileSystemInfo item in folder.EnumerateFileSystemInfos())
            {
                string key = Path.GetRelativePath(root, item.FullName);
                if (item.Name[0] == '.')
                {
                    continue;
                }

                if (item is DirectoryInfo inner)
                {
                    if (key.StartsWith(prefix, StringComparison.Ordinal) || prefix.StartsWith(key, StringComparison.Ordinal))
                    {
                        Collect(inner, prefix, found, cancellation);
                    }
                }
                else if (key.StartsWith(prefix, StringComparison.Ordinal))
                {
                    found.Add(new StoredObject(key, ((FileInfo)item).Length));
                }
            }
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            // Removed by another process while it was listed: not there.
        }
    }

    /// <summary>
    /// Starts the file, making its folder; another process may remove that folder, still empty, at any moment in between. That shows as a
    /// missing folder, a missing file, or a folder that is there and is not, so every failure is tried again a few times.
    /// </summary>
    private AtomicFile CreateIn(string path)
    {
        for (int attempt = 1; ; attempt++)
        {
            try
            {
                MakeFolder(Path.GetDirectoryName(path)!);
                return AtomicFile.Create(path);
            }
            catch (IOException) when (attempt < FolderAttempts)
            {
            }
        }
    }

    private void MakeFolder(string folder)
    {
        if (Directory.Exists(folder))
        {
            return;
        }

        string? parent = Path.GetDirectoryName(folder);
        if (parent is not null && folder.Length > root.Length)
        {
            MakeFolder(parent);
        }

        Directory.CreateDirectory(folder);
        if (parent is not null && Directory.Exists(parent))
        {
            FileSystemCalls.SynchronizeFolder(parent);
        }
    }

    private static bool TryRemoveEmpty(string folder)
    {
        try
        {
            Directory.Delete(folder);
            return true;
        }
        catch (IOException)
        {
            // Not empty, or gone already.
            return false;
        }
    }
}
