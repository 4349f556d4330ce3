using System.Text.RegularExpressions;
using Microsoft.Win32.SafeHandles;

namespace LoraTrainer.Storage;

/// <summary>
/// A file that appears whole or not at all. It is written under a temporary name in the folder of its final name, flushed to disk, and renamed;
/// then the folder is flushed, so that the name survives a power cut too. Disposing without a commit removes what was written.
/// A process killed in between leaves a file named <c>.NAME.*.tmp</c>, which nothing reads.
/// </summary>
public sealed partial class AtomicFile : IDisposable
{
    private readonly string finalPath;
    private readonly string temporaryPath;
    private readonly SafeFileHandle handle;
    private readonly bool durable;
    private bool committed;

    private AtomicFile(string finalPath, string temporaryPath, SafeFileHandle handle, bool durable)
    {
        this.finalPath = finalPath;
        this.temporaryPath = temporaryPath;
        this.handle = handle;
        this.durable = durable;
    }

    /// <summary>Bytes written so far.</summary>
    public long Length { get; private set; }

    /// <summary>Starts a file that will be named <paramref name="path"/>. The folder must exist.</summary>
    /// <param name="path">The final name.</param>
    /// <param name="durable">Waits for the disk before the name is given. False for a file that means nothing after a crash, such as one that is copied on from here.</param>
    public static AtomicFile Create(string path, bool durable = true)
    {
        string finalPath = Path.GetFullPath(path);
        string folder = Path.GetDirectoryName(finalPath) ?? throw new ArgumentException($"{path} is not the path of a file.", nameof(path));
        string temporaryPath = Path.Combine(folder, $".{Path.GetFileName(finalPath)}.{Guid.NewGuid():N}.tmp");
        SafeFileHandle handle = File.OpenHandle(temporaryPath, FileMode.CreateNew, FileAccess.ReadWrite, FileShare.Read);
        return new AtomicFile(finalPath, temporaryPath, handle, durable);
    }

    /// <summary>For tests of failing disks: writes to an existing device, which stays when this is disposed.</summary>
    internal static AtomicFile Over(string finalPath, string device)
        => new(finalPath, finalPath + ".none", File.OpenHandle(device, FileMode.Open, FileAccess.Write, FileShare.ReadWrite), durable: true);

    /// <summary>Writes the whole content and commits it, over whatever has that name.</summary>
    /// <param name="path">The final name.</param>
    /// <param name="content">All of it.</param>
    /// <param name="durable">As in <see cref="Create"/>.</param>
    public static void WriteAllBytes(string path, ReadOnlySpan<byte> content, bool durable = true)
    {
        using AtomicFile file = Create(path, durable);
        file.Append(content);
        file.Commit();
    }

    /// <summary>Writes <paramref name="bytes"/> behind what is there.</summary>
    /// <exception cref="IOException">the disk is full or failed; names the final path and how far the writing had come</exception>
    public void Append(ReadOnlySpan<byte> bytes)
    {
        ObjectDisposedException.ThrowIf(handle.IsClosed, this);
        try
        {
            RandomAccess.Write(handle, bytes, Length);
        }
        catch (IOException exception)
        {
            throw new IOException(
                $"{finalPath} could not be written: after {Length} bytes, {bytes.Length} more did not fit or failed ({exception.Message}). "
                + "Nothing was left behind and an older file of that name is untouched. Free space on that disk, or choose another folder.",
                exception) { HResult = exception.HResult };
        }

        Length += bytes.Length;
    }

    /// <summary>Gives the file its final name, replacing an older one; durably, unless it was created otherwise.</summary>
    public void Commit()
    {
        Flush();
        Rename();
        SynchronizeName();
    }

    /// <summary>The quick middle part of <see cref="Commit"/>, for callers that hold a lock meanwhile: <see cref="Flush"/> before it, <see cref="SynchronizeName"/> after it.</summary>
    internal void Rename()
    {
        File.Move(temporaryPath, finalPath, overwrite: true);
        committed = true;
    }

    internal void SynchronizeName()
    {
        if (durable)
        {
            FileSystemCalls.SynchronizeFolder(Path.GetDirectoryName(finalPath)!);
        }
    }

    /// <summary>Makes the file durable under its final name, unless that name is taken: then nothing changes and false is returned. Of several writers at once exactly one gets true.</summary>
    public bool TryCommitNew()
    {
        Flush();
        if (!FileSystemCalls.TryLink(temporaryPath, finalPath))
        {
            return false;
        }

        SynchronizeName();
        return true;
    }

    /// <summary>Somebody removed what was written before it had its final name.</summary>
    internal bool IsGone => !committed && !File.Exists(temporaryPath);

    public void Dispose()
    {
        handle.Dispose();
        if (!IsGone && !committed)
        {
            try
            {
                File.Delete(temporaryPath);
            }
            catch (DirectoryNotFoundException)
            {
                // Removed with its folder in this moment.
            }
        }
    }

    /// <summary>True for the name of a file that was being written.</summary>
    public static bool IsTemporary(string name) => TemporaryName().IsMatch(name);

    [GeneratedRegex(@"^\..+\.[0-9a-f]{32}\.tmp$", RegexOptions.CultureInvariant)]
    private static partial Regex TemporaryName();

    /// <summary>Makes the content durable under its temporary name, where that is wanted; nothing can be appended after it.</summary>
    internal void Flush()
    {
        ObjectDisposedException.ThrowIf(handle.IsClosed, this);
        try
        {
            if (durable)
            {
                RandomAccess.FlushToDisk(handle);
            }
        }
        catch (IOException exception)
        {
            throw new IOException($"{finalPath} could not be flushed to disk ({exception.Message}). Nothing was left behind. Free space on that disk, or choose another folder.", exception) { HResult = exception.HResult };
        }

        handle.Dispose();
    }
}
