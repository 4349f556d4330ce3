using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>
/// Keeps a second process on this machine away from a run. The lock is on an open file (flock), so the kernel gives it back when the process ends,
/// however it ends; the file itself stays and means nothing. Machines that share a folder over a network are not kept apart by it.
/// </summary>
internal sealed class RunLock : IDisposable
{
    public const string FileName = ".lock";

    // EWOULDBLOCK of Linux and macOS, ERROR_SHARING_VIOLATION of Windows.
    private static readonly int[] HeldByAnother = [11, 35, unchecked((int)0x80070020)];

    private readonly List<FileStream> files = [];

    /// <summary>Locks every folder, or none.</summary>
    /// <param name="folders">Exist.</param>
    /// <exception cref="TrainingSetupException">Another process works on the run.</exception>
    public RunLock(IEnumerable<string> folders)
    {
        foreach (string folder in folders)
        {
            try
            {
                files.Add(new FileStream(Path.Combine(folder, FileName), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None, bufferSize: 1));
            }
            catch (IOException exception) when (HeldByAnother.Contains(exception.HResult))
            {
                Dispose();
                throw new TrainingSetupException($"Another process is working on the run in {folder}. Wait until it ends, or stop it with Ctrl-C or SIGTERM; then lora-trainer resume goes on.", exception);
            }
        }
    }

    public void Dispose()
    {
        foreach (FileStream file in files)
        {
            file.Dispose();
        }
    }
}
