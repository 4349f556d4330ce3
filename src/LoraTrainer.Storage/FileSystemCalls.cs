using System.Runtime.InteropServices;

namespace LoraTrainer.Storage;

/// <summary>The few POSIX calls (POSIX.1-2017: open, fsync, close, link) that .NET has no method for. All return -1 and set errno on failure.</summary>
internal static partial class FileSystemCalls
{
    private const int OpenReadOnlyCloseOnExec = 0x80000;
    private const int NoSuchFileError = 2;
    private const int FileExistsError = 17;

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

    [LibraryImport("libc", EntryPoint = "link", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Link(string existingPath, string newPath);
}
