using System.Buffers;

namespace LoraTrainer.Storage;

/// <summary>
/// A store in a folder: each object a file, its key the path. Objects appear whole, by rename, and new ones by link, which the file system
/// refuses where the name is taken; so several processes may write at once. Empty folders are removed with their last object.
/// </summary>
public sealed class FolderStore : IObjectStore
{
    private const int BufferBytes = 1 << 18;
    private const int FolderAttempts = 100;

    private readonly string root;

    /// <param name="root">made with the first object if it is not there</param>
    public FolderStore(string root) => this.root = Path.GetFullPath(root);

    public async Task<bool> PutAsync(string key, Stream content, bool ifAbsent = false, CancellationToken cancellation = default)
    {
        string path = PathOf(key);
        if (ifAbsent && File.Exists(path))
        {
            return false;
        }

        using AtomicFile file = CreateIn(path);
        byte[] buffer = ArrayPool<byte>.Shared.Rent(BufferBytes);
        try
        {
            int read;
            while ((read = await content.ReadAsync(buffer, cancellation).ConfigureAwait(false)) > 0)
            {
                file.Append(buffer.AsSpan(0, read));
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }

        if (ifAbsent)
        {
            return file.TryCommitNew();
        }

        file.Commit();
        return true;
    }

    public Task<Stream?> GetAsync(string key, CancellationToken cancellation = default)
    {
        try
        {
            return Task.FromResult<Stream?>(new FileStream(PathOf(key), FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete, 1, FileOptions.Asynchronous));
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            return Task.FromResult<Stream?>(null);
        }
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
