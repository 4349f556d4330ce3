using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Interruptions;

namespace LoraTrainer.Training;

/// <summary>Why a run is to stop before its end.</summary>
internal enum StopReason
{
    /// <summary>Ctrl-C or SIGTERM.</summary>
    Signal,

    /// <summary>The machine will be taken away.</summary>
    Notice,

    /// <summary>Somebody asked for it from another terminal.</summary>
    Request,

    /// <summary>Another machine works on the run now.</summary>
    LeaseLost,

    /// <summary>A limit of money or hours is reached.</summary>
    Budget,
}

/// <summary>
/// What the outside asks of a run: to stop, by whatever way that was said, or to save now. Any thread asks; the training looks between two steps,
/// and everything that takes long before and after it watches <see cref="Stop"/>.
/// </summary>
internal sealed class RunControl : IDisposable
{
    private readonly CancellationTokenSource stop = new();
    private readonly CancellationTokenRegistration signal;
    private readonly Lock gate = new();
    private readonly List<RunRequest> toSave = [];
    private readonly HashSet<string> seen = new(StringComparer.Ordinal);
    private bool savesNow;

    public RunControl(CancellationToken signal) => this.signal = signal.Register(() => RequestStop(StopReason.Signal));

    public CancellationToken Stop => stop.Token;

    /// <summary>Of the first that asked; null while nobody has.</summary>
    public StopReason? Reason { get; private set; }

    /// <summary>How a run ends that was asked to stop.</summary>
    public RunEnding Ending => Reason switch
    {
        StopReason.Request => RunEnding.Stopped,
        StopReason.Budget => RunEnding.BudgetReached,
        _ => RunEnding.Interrupted,
    };

    /// <summary>The notice that says when the machine goes away; null where there is none.</summary>
    public InterruptionNotice? Notice { get; private set; }

    /// <param name="reason">Who asks.</param>
    /// <param name="notice">Where a notice does; the first stays.</param>
    public void RequestStop(StopReason reason, InterruptionNotice? notice = null)
    {
        lock (gate)
        {
            Reason ??= reason;
            Notice ??= notice;
        }

        stop.Cancel();
    }

    /// <summary>Asks for a checkpoint now.</summary>
    /// <param name="request">To be answered when it is safe, and looked at once however often it is seen; null where nobody waits.</param>
    public void RequestSave(RunRequest? request)
    {
        lock (gate)
        {
            if (request is null || seen.Add(request.Name))
            {
                savesNow = true;
                toSave.AddRange(request is null ? [] : [request]);
            }
        }
    }

    /// <summary>True once after somebody asked for a checkpoint; the requests to answer when it is safe.</summary>
    public bool TakeSave(out RunRequest[] requests)
    {
        lock (gate)
        {
            requests = [.. toSave];
            toSave.Clear();
            (bool wanted, savesNow) = (savesNow, false);
            return wanted;
        }
    }

    /// <summary>A request that could not be answered is looked at again.</summary>
    public void Forget(RunRequest request)
    {
        lock (gate)
        {
            seen.Remove(request.Name);
        }
    }

    public void Dispose()
    {
        signal.Dispose();
        stop.Dispose();
    }
}
