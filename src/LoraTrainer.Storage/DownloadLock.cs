using System.Diagnostics;

namespace LoraTrainer.Storage;

/// <summary>
/// The right to write one downloaded file, among the threads and processes of this machine and, by the same flock on the same file, Python's huggingface_hub. It ends with
/// the process, however that ends. The file stays: removing it would let two holders in.
/// </summary>
internal sealed class DownloadLock : IDisposable
{
    private static readonly TimeSpan Pause = TimeSpan.FromMilliseconds(100);
    private static readonly TimeSpan WaitUntold = TimeSpan.FromSeconds(5);

    private readonly FileStream file;

    private DownloadLock(FileStream file) => this.file = file;

    /// <summary>Waits as long as the other one takes: it downloads the same.</summary>
    /// <param name="path">The lock's file.</param>
    /// <param name="shown">What is downloaded, for the notice.</param>
    /// <param name="tell">Is told once where the waiting takes longer.</param>
    /// <param name="cancellation">Ends the waiting.</param>
    public static async Task<DownloadLock> TakeAsync(string path, string shown, Action<string>? tell, CancellationToken cancellation)
    {
        long start = Stopwatch.GetTimestamp();
        bool told = false;
        try
        {
            Directory.CreateDirectory(Path.GetDirectoryName(path)!);
            while (true)
            {
                try
                {
                    // On Unix this is an flock for one holder.
                    return new DownloadLock(new FileStream(path, FileMode.OpenOrCreate, FileAccess.Write, FileShare.None));
                }
                catch (IOException exception) when (exception is not (DirectoryNotFoundException or FileNotFoundException or PathTooLongException) && HttpFailure.OfDisk(exception, path) is null)
                {
                    if (!told && Stopwatch.GetElapsedTime(start) > WaitUntold)
                    {
                        tell?.Invoke($"Another process on this machine fetches {shown}; waiting for it.");
                        told = true;
                    }

                    await Task.Delay(Pause, cancellation).ConfigureAwait(false);
                }
            }
        }
        catch (Exception exception) when (HttpFailure.OfDisk(exception, path) is { } disk)
        {
            throw disk;
        }
    }

    public void Dispose() => file.Dispose();
}
