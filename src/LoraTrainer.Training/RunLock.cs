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
    private static readonly TimeSpan Poll = TimeSpan.FromSeconds(0.5);

    private readonly FileStream file;

    private RunLock(FileStream file) => this.file = file;

    /// <param name="folder">Exists.</param>
    /// <param name="onWaiting">Is told once that another process works on the run, which is then waited for; null: that is an error.</param>
    /// <param name="cancellation">Ends the waiting.</param>
    /// <exception cref="TrainingSetupException">Another process works on the run.</exception>
    public static async Task<RunLock> AcquireAsync(string folder, Action<string>? onWaiting, CancellationToken cancellation)
    {
        bool isTold = false;
        while (true)
        {
            try
            {
                return new RunLock(new FileStream(Path.Combine(folder, FileName), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None, bufferSize: 1));
            }
            catch (IOException exception) when (HeldByAnother.Contains(exception.HResult))
            {
                string held = $"Another process is working on the run in {folder}.";
                if (onWaiting is null)
                {
                    throw new TrainingSetupException($"{held} Wait until it ends, or stop it with lora-trainer stop {folder}; then lora-trainer resume goes on. With resume: auto this would wait.", exception);
                }

                if (!isTold)
                {
                    isTold = true;
                    onWaiting($"{held} This process waits and goes on when that one ends. Who does not want to wait stops the other one with lora-trainer stop {folder}");
                }
            }

            await Task.Delay(Poll, cancellation).ConfigureAwait(false);
        }
    }

    public void Dispose() => file.Dispose();
}
