using System.Diagnostics;
using Microsoft.Win32.SafeHandles;

namespace LoraTrainer.Storage;

/// <summary>Keeps other holders of a lock on the same folder waiting, in this process and in others on this machine, until it is disposed. Leaves nothing behind.</summary>
internal sealed class FolderLock : IDisposable
{
    private static readonly TimeSpan Pause = TimeSpan.FromMilliseconds(5);

    // Holders do not even wait for a disk.
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

    private readonly SafeFileHandle handle;

    private FolderLock(SafeFileHandle handle) => this.handle = handle;

    /// <summary>Waits for the lock. Holders do little while they have it.</summary>
    /// <exception cref="StoreException">One does not give it back: it must have been suspended in that moment, and may go on at any other.</exception>
    public static async Task<FolderLock> TakeAsync(string folder, CancellationToken cancellation, TimeSpan? longest = null)
    {
        TimeSpan limit = longest ?? Patience;
        SafeFileHandle handle = FileSystemCalls.OpenFolder(folder);
        try
        {
            long start = Stopwatch.GetTimestamp();
            while (!FileSystemCalls.TryLockFolder(handle))
            {
                if (Stopwatch.GetElapsedTime(start) > limit)
                {
                    throw new StoreException(
                        StoreProblem.Unreachable,
                        $"Another process on this machine has held the lock on {folder} for {limit.TotalSeconds:0} s: it was suspended in the middle of a change. Let it go on (fg, or kill -CONT) or end it; then try again.");
                }

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
