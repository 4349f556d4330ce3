using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>
/// Keeps a second process on this machine away from a run folder. The lock is on an open file (flock), so the kernel gives it back when the process ends,
/// however it ends; the file itself stays and means nothing. Machines are kept apart by <see cref="Checkpoints.RunLease"/>.
/// </summary>
internal sealed class RunLock : IDisposable
{
    public const string FileName = ".lock";

    // EWOULDBLOCK of Linux and macOS, ERROR_SHARING_VIOLATION of Windows.
    private static readonly int[] HeldByAnother = [11, 35, unchecked((int)0x80070020)];

    private readonly FileStream file;

    /// <param name="folder">Exists.</param>
    /// <exception cref="TrainingSetupException">Another process works on the run.</exception>
    public RunLock(string folder)
    {
        try
        {
            file = new FileStream(Path.Combine(folder, FileName), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None, bufferSize: 1);
        }
        catch (IOException exception) when (HeldByAnother.Contains(exception.HResult))
        {
            throw new TrainingSetupException($"Another process is working on the run in {folder}. Wait until it ends, or stop it with lora-trainer stop {folder}; then lora-trainer resume goes on.", exception);
        }
    }

    public void Dispose() => file.Dispose();
}
