using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace LoraTrainer.Storage;

/// <summary>The few calls (POSIX.1-2017: open, fsync, close, link; flock of BSD and Linux; statx of Linux) that .NET has no method for. All return -1 and set errno on failure.</summary>
internal static partial class FileSystemCalls
{
    private const int OpenReadOnlyCloseOnExec = 0x80000;
    private const int NoSuchFileError = 2;
    private const int FileExistsError = 17;
    private const int InterruptedError = 4;
    private const int WouldBlockLinux = 11;
    private const int WouldBlockMac = 35;
    private const int AtCurrentFolder = -100;
    private const uint BasicStatus = 0x7ff;
    private const int LockExclusive = 2;
    private const int LockWithoutWaiting = 4;

    // As the third column of /proc/mounts has them; with a dot and more behind it for those in user space.
    private static readonly string[] RemoteTypes =
        ["nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "fuse", "ocfs2", "gfs2", "davfs", "juicefs"];

    // In user space and yet of this machine: the root of a container without root.
    private const string LocalOverlay = "fuse.fuse-overlayfs";

    /// <summary>Makes a rename or a new name in <paramref name="folder"/> durable: a name is on disk only once its folder is. A folder that is gone has nothing left to flush.</summary>
    public static void SynchronizeFolder(string folder)
    {
        int descriptor = Open(folder, OpenReadOnlyCloseOnExec);
        if (descriptor < 0)
        {
            if (Marshal.GetLastPInvokeError() == NoSuchFileError)
            {
                return;
            }

            throw Failure($"The folder {folder} cannot be opened to flush it to disk");
        }

        try
        {
            if (Synchronize(descriptor) != 0)
            {
                throw Failure($"The folder {folder} cannot be flushed to disk");
            }
        }
        finally
        {
            _ = Close(descriptor);
        }
    }

    /// <summary>Gives the file a second name in one atomic step; false where <paramref name="newPath"/> already exists.</summary>
    public static bool TryLink(string existingPath, string newPath)
    {
        if (Link(existingPath, newPath) == 0)
        {
            return true;
        }

        return Marshal.GetLastPInvokeError() == FileExistsError
            ? false
            : throw Failure($"{newPath} cannot be created (hard links are needed to create a file only where none is)");
    }

    /// <summary>
    /// The type of the file system that <paramref name="path"/>, or its nearest folder that exists, is on, where other machines or a user-space program
    /// may be behind it: nfs, cifs, fuse.gcsfuse, ... Null for disks of this machine.
    /// </summary>
    public static string? RemoteFileSystemOf(string path)
    {
        string full = Path.GetFullPath(path);
        while (!Path.Exists(full) && Path.GetDirectoryName(full) is { } parent)
        {
            full = parent;
        }

        const string mounts = "/proc/self/mounts";
        string best = string.Empty;
        string type = string.Empty;
        foreach (string line in File.Exists(mounts) ? File.ReadLines(mounts) : [])
        {
            // proc(5): device, mount point with octal escapes, type, ...
            string[] words = line.Split(' ');
            string point = words.Length > 2 ? words[1].Replace("\\040", " ", StringComparison.Ordinal) : string.Empty;
            bool holds = point.Length > 0 && (full == point || full.StartsWith(point.TrimEnd('/') + "/", StringComparison.Ordinal));
            if (holds && point.Length >= best.Length)
            {
                (best, type) = (point, words[2]);
            }
        }

        return type != LocalOverlay && Array.Exists(RemoteTypes, remote => type == remote || type.StartsWith(remote + ".", StringComparison.Ordinal)) ? type : null;
    }

    /// <summary>Tries to lock the folder itself against other processes and handles; false where another holds the lock. The lock ends when the handle is closed, however the process ends.</summary>
    public static bool TryLockFolder(SafeFileHandle folder) => Lock(folder, LockExclusive | LockWithoutWaiting) == 0
        ? true
        : Marshal.GetLastPInvokeError() is WouldBlockLinux or WouldBlockMac or InterruptedError
            ? false
            : throw Failure("The folder cannot be locked");

    /// <summary>An open folder.</summary>
    public static SafeFileHandle OpenFolder(string folder)
    {
        int descriptor = Open(folder, OpenReadOnlyCloseOnExec);
        return descriptor >= 0 ? new SafeFileHandle(descriptor, ownsHandle: true) : throw Failure($"The folder {folder} cannot be opened");
    }

    /// <summary>What tells the file from others and from its earlier contents; null where the system does not say it.</summary>
    public static unsafe FileIdentity? IdentityOf(string path)
    {
        if (!OperatingSystem.IsLinux())
        {
            return null;
        }

        // struct statx (statx(2)) is the same on every architecture.
        Span<byte> status = stackalloc byte[256];
        try
        {
            fixed (byte* buffer = status)
            {
                if (Status(AtCurrentFolder, path, 0, BasicStatus, buffer) != 0)
                {
                    return null;
                }
            }
        }
        catch (EntryPointNotFoundException)
        {
            return null;
        }

        ReadOnlySpan<byte> read = status;
        return new FileIdentity(
            Device: (long)BitConverter.ToUInt32(read[136..]) << 32 | BitConverter.ToUInt32(read[140..]),
            Inode: BitConverter.ToInt64(read[32..]),
            SizeBytes: BitConverter.ToInt64(read[40..]),
            ModifiedNanoseconds: Nanoseconds(read[112..]),
            ChangedNanoseconds: Nanoseconds(read[96..]));

        static long Nanoseconds(ReadOnlySpan<byte> timestamp) => BitConverter.ToInt64(timestamp) * 1_000_000_000 + BitConverter.ToUInt32(timestamp[8..]);
    }

    private static IOException Failure(string what)
    {
        int error = Marshal.GetLastPInvokeError();
        return new IOException($"{what}: {Marshal.GetPInvokeErrorMessage(error)}.");
    }

    [LibraryImport("libc", EntryPoint = "open", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Open(string path, int flags);

    [LibraryImport("libc", EntryPoint = "fsync", SetLastError = true)]
    private static partial int Synchronize(int descriptor);

    [LibraryImport("libc", EntryPoint = "close", SetLastError = true)]
    private static partial int Close(int descriptor);

    [LibraryImport("libc", EntryPoint = "flock", SetLastError = true)]
    private static partial int Lock(SafeFileHandle file, int operation);

    [LibraryImport("libc", EntryPoint = "link", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Link(string existingPath, string newPath);

    [LibraryImport("libc", EntryPoint = "statx", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static unsafe partial int Status(int folder, string path, int flags, uint mask, byte* status);
}
