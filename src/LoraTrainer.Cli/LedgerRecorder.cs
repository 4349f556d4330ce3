using System.Globalization;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.Storage;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli;

/// <summary>
/// Writes a run's attempts into the ledger: its own every few seconds, and those of other machines as their records beside the checkpoints tell them.
/// One way for both, which may be gone any number of times. A ledger that cannot be written is a warning, never an error of the run.
/// </summary>
internal sealed class LedgerRecorder : IDisposable
{
    private readonly RunLedger ledger;
    private readonly TrainingConfig config;
    private readonly Lock gate = new();
    private readonly Action<string> warn;
    private readonly HashSet<int> refused = [];
    private bool isTidy;

    // Of the first attempt that knew: what was expected before anything was paid for.
    private double? plannedHours;

    public LedgerRecorder(string? path, TrainingConfig config, Action<string> warn)
    {
        this.config = config;
        this.warn = warn;
        ledger = Open(path ?? config.Cost.Ledger, warn, isOfRun: true);
    }

    /// <summary>The ledger at a path; null: the usual one.</summary>
    public static RunLedger Open(string? path, Action<string> warn, bool isOfRun = false) =>
        RunLedger.Open(path, new LedgerOptions { RemoteFileSystemOf = MountedFileSystem.RemoteTypeOf, Warn = warn, IsOfRun = isOfRun });

    /// <summary>A ledger that is looked at: one that is named must be there.</summary>
    public static RunLedger OpenExisting(string? path, Action<string> warn) => path is null || File.Exists(path)
        ? Open(path, warn)
        : throw new FileNotFoundException($"{PathTrouble.NotThere(path, "ledger")} Without --ledger the usual one is read.");

    /// <summary>True where the process that held an attempt has certainly ended.</summary>
    public static bool IsGone(AttemptHolder holder) => new LeaseHolder(holder.Host, holder.BootId, holder.ProcessId, holder.ProcessStart).IsProvablyDead;

    /// <summary>Up to when the ledger has time of the holder's machine since it booted; null where it has none.</summary>
    public DateTimeOffset? BilledUntil(LeaseHolder holder) => ledger.LastSeenOn(holder.Host, holder.BootId);

    /// <summary>Takes what is known of an attempt. Called from any thread; what the ledger does not take is a warning.</summary>
    public void Record(AttemptRecord attempt)
    {
        lock (gate)
        {
            try
            {
                Merge(attempt);
            }
            catch (ArgumentException exception) when (refused.Add(attempt.Epoch))
            {
                warn($"Attempt {attempt.Epoch} of the run does not get into the ledger: {exception.Message}");
            }
            catch (ArgumentException)
            {
                // Told before.
            }
        }
    }

    private void Merge(AttemptRecord attempt)
    {
        plannedHours ??= attempt.ExpectedHours;
        ledger.Merge(Snapshot(attempt));
        if (attempt.Holder == LeaseHolder.Current && !isTidy)
        {
            // Attempts that nobody ended and that this one replaces are closed with what they last said.
            isTidy = true;
            ledger.CloseDead(IsGone, attempt.RunId);
        }
    }

    public void Dispose() => ledger.Dispose();

    private AttemptSnapshot Snapshot(AttemptRecord attempt) => new()
    {
        Start = new AttemptStart
        {
            Run = new RunFacts
            {
                RunId = attempt.RunId,
                Name = config.RunName,
                Project = config.Cost.Project ?? string.Empty,
                Tags = [.. config.Cost.Tags.Select(tag => $"{tag.Key}={tag.Value}")],
                Model = config.BaseModel,
                Config = FactsOf(attempt),
                Created = attempt.Started,
            },
            Epoch = attempt.Epoch,
            Holder = new AttemptHolder(attempt.Holder.Host, attempt.Holder.BootId, attempt.Holder.ProcessId, attempt.Holder.ProcessStart),
            Provider = attempt.Machine.Provider,
            InstanceType = attempt.Machine.InstanceType,
            Region = attempt.Machine.Region,
            GpuKind = attempt.Gpu,
            Pricing = attempt.Machine.IsSpot switch
            {
                true => Pricing.Spot,
                false => Pricing.OnDemand,
                _ => Pricing.Unknown,
            },
            Rate = attempt.Rate,
            Started = attempt.Started,
        },
        Progress = new AttemptProgress
        {
            Elapsed = TimeSpan.FromSeconds(attempt.Seconds),
            Phases = attempt.PhaseSeconds.GroupBy(item => PhaseOf(item.Key)).ToDictionary(group => group.Key, group => TimeSpan.FromSeconds(group.Sum(item => item.Value))),
            FirstStep = attempt.FirstStep,
            LastStep = attempt.Step,
            SavedStep = attempt.SavedStep,
            Tokens = attempt.Tokens,
            Samples = attempt.Samples,
        },
        LastSeen = attempt.LastSeen,
        Ended = attempt.Ended switch
        {
            null => null,
            "finished" => AttemptEnd.Finished,
            "stopped" or "budgetreached" => AttemptEnd.Stopped,
            AttemptRecord.Failed => AttemptEnd.Failed,
            _ => AttemptEnd.Interrupted,
        },
    };

    /// <summary>What reports of the run need besides.</summary>
    private Dictionary<string, string> FactsOf(AttemptRecord attempt)
    {
        var facts = new Dictionary<string, string> { [RunFacts.OutputDir] = Path.GetFullPath(config.OutputDir) };
        if (plannedHours is { } hours)
        {
            facts.Add(RunFacts.PlannedHours, ((decimal)hours).ToString(CultureInfo.InvariantCulture));
            if (attempt.Rate is { } rate)
            {
                facts.Add(RunFacts.PlannedCost, rate.BilledCostOf((decimal)hours * 3600, gpuCount: 1).Amount.ToString(CultureInfo.InvariantCulture));
            }
        }

        return facts;
    }

    private static LedgerPhase PhaseOf(TrainingPhase phase) => phase switch
    {
        TrainingPhase.Starting => LedgerPhase.Start,
        TrainingPhase.Loading => LedgerPhase.Load,
        TrainingPhase.Quantizing => LedgerPhase.Quantize,
        TrainingPhase.Tokenizing => LedgerPhase.Tokenize,
        TrainingPhase.Evaluating => LedgerPhase.Evaluate,
        TrainingPhase.Training => LedgerPhase.Train,
        TrainingPhase.Saving => LedgerPhase.Save,
        _ => LedgerPhase.Idle,
    };
}
