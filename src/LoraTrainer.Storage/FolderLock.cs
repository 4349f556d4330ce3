using Microsoft.Win32.SafeHandles;

namespace LoraTrainer.Storage;

/// <summary>Keeps other holders of a lock on the same folder waiting, in this process and in others on this machine, until it is disposed. Leaves nothing behind.</summary>
internal sealed class FolderLock : IDisposable
{
    private static readonly TimeSpan Pause = TimeSpan.FromMilliseconds(5);

    private readonly SafeFileHandle handle;

    private FolderLock(SafeFileHandle handle) => this.handle = handle;

    /// <summary>Waits for the lock. Holders do little while they have it.</summary>
    public static async Task<FolderLock> TakeAsync(string folder, CancellationToken cancellation)
    {
        SafeFileHandle handle = FileSystemCalls.OpenFolder(folder);
        try
        {
            while (!FileSystemCalls.TryLockFolder(handle))
            {
                await Task.Delay(Pause, cancellation).ConfigureAwait(false);
            }

            return new FolderLock(handle);
        }
        catch
        {
            handle.Dispose();
            throw;
        }
    }

    public void Dispose() => handle.Dispose();
}
