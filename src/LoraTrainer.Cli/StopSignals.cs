using System.Diagnostics;
using System.Runtime.InteropServices;

namespace LoraTrainer.Cli;

/// <summary>
/// Ctrl-C and SIGTERM. Until a verb listens they end the program at once, as anywhere. Once one listens, the first asks it to stop in good order
/// and the second aborts.
/// </summary>
internal sealed class StopSignals(Terminal terminal) : IDisposable
{
    // Who stops a machine may signal a process and its group: that is one stop, not an impatient second one.
    private static readonly TimeSpan OneStop = TimeSpan.FromSeconds(1);

    private readonly CancellationTokenSource stop = new();
    private readonly TaskCompletionSource aborted = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly List<PosixSignalRegistration> registrations = [];
    private int received;
    private long first;

    /// <summary>Completes with the second signal.</summary>
    public Task Aborted => aborted.Task;

    public bool StopRequested => stop.IsCancellationRequested;

    /// <summary>From now on a first signal cancels the token that is returned, after saying <paramref name="whatHappensNow"/>.</summary>
    /// <param name="whatHappensNow">A sentence.</param>
    /// <param name="say">Says it, where something else draws on the terminal; null: the terminal does.</param>
    public CancellationToken Listen(string whatHappensNow, Action<string>? say = null)
    {
        foreach (PosixSignal signal in new[] { PosixSignal.SIGINT, PosixSignal.SIGTERM })
        {
            registrations.Add(PosixSignalRegistration.Create(signal, context =>
            {
                context.Cancel = true;
                if (signal == PosixSignal.SIGTERM && received > 0 && Stopwatch.GetElapsedTime(first) < OneStop)
                {
                    return;
                }

                if (Interlocked.Increment(ref received) == 1)
                {
                    first = Stopwatch.GetTimestamp();
                    (say ?? terminal.Warn)($"Stop requested. {whatHappensNow} Press Ctrl-C again to abort at once.");
                    stop.Cancel();
                }
                else
                {
                    aborted.TrySetResult();
                }
            }));
        }

        return stop.Token;
    }

    /// <summary>Until the result is disposed Ctrl-C calls <paramref name="action"/> and ends nothing: for a piece of work that can be given up by itself.</summary>
    public static PosixSignalRegistration OnInterrupt(Action action) => PosixSignalRegistration.Create(PosixSignal.SIGINT, context =>
    {
        context.Cancel = true;
        action();
    });

    public void Dispose()
    {
        foreach (PosixSignalRegistration registration in registrations)
        {
            registration.Dispose();
        }

        stop.Dispose();
    }
}
