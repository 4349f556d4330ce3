using System.Text.Json.Serialization;

namespace LoraTrainer.Costs.Ledger;

/// <summary>How a machine is paid for.</summary>
public enum Pricing
{
    Unknown,
    Spot,
    OnDemand,
    Owned,
}

/// <summary>What an attempt's time went into.</summary>
public enum LedgerPhase
{
    Start,
    Load,
    Quantize,
    Tokenize,
    Train,
    Evaluate,
    Save,

    /// <summary>Time of the machine that no other phase accounts for.</summary>
    Idle,

    /// <summary>Steps after the last saved one. Found by the ledger, from the steps: an attempt cannot know what of it will be lost.</summary>
    Lost,
}

/// <summary>How an attempt ended. All but the last by itself, in order.</summary>
public enum AttemptEnd
{
    Finished,
    Interrupted,
    Stopped,
    Failed,

    /// <summary>It was gone without a word; its hours are those of its last heartbeat.</summary>
    Killed,
}

/// <summary>The process that works on an attempt, so that others can tell whether it still lives.</summary>
/// <param name="Host">Name of its machine.</param>
/// <param name="BootId">Of its machine; another one after each start.</param>
/// <param name="ProcessId">On its machine.</param>
/// <param name="ProcessStart">Of the process, in the units of its system: process ids come again.</param>
public sealed record AttemptHolder(string Host, string BootId, int ProcessId, long ProcessStart);

/// <summary>What is known of a run as a whole. Empty is unknown.</summary>
public sealed record RunFacts
{
    /// <summary>Key of <see cref="Config"/>: the run's folder, absolute, on the machine of its newest attempt.</summary>
    public const string OutputDir = "output_dir";

    /// <summary>Key of <see cref="Config"/>: hours that the run was expected to take before its first step.</summary>
    public const string PlannedHours = "planned_hours";

    /// <summary>Key of <see cref="Config"/>: what they would have cost, in the currency of the run's rate.</summary>
    public const string PlannedCost = "planned_cost";

    /// <summary>Made with the run's first lease; two runs of one name differ by it.</summary>
    public required string RunId { get; init => field = Check.Text(value, "run id"); }

    public string Name { get; init; } = string.Empty;

    public string Project { get; init; } = string.Empty;

    public IReadOnlyList<string> Tags { get; init; } = [];

    /// <summary>The base model, as the configuration names it.</summary>
    public string Model { get; init; } = string.Empty;

    /// <summary>What of the configuration explains the price: rank, sequence_len, ...</summary>
    public IReadOnlyDictionary<string, string> Config { get; init; } = new Dictionary<string, string>();

    public required DateTimeOffset Created { get; init; }
}

/// <summary>What is known of an attempt when it starts.</summary>
public sealed record AttemptStart
{
    public required RunFacts Run { get; init; }

    /// <summary>Of its lease: one for each attempt of a run.</summary>
    public required int Epoch { get; init => field = Check.AtLeast(value, 0, "epoch"); }

    public required AttemptHolder Holder { get; init; }

    public string Provider { get; init; } = string.Empty;

    public string InstanceType { get; init; } = string.Empty;

    public string Region { get; init; } = string.Empty;

    /// <summary>Empty for a machine without one.</summary>
    public string GpuKind { get; init; } = string.Empty;

    /// <summary>A machine without a GPU counts as one.</summary>
    public int GpuCount { get; init => field = Check.AtLeast(value, 1, "number of GPUs"); } = 1;

    public Pricing Pricing { get; init; }

    /// <summary>Null where nobody knows it; <see cref="RunLedger.SetRate"/> gives it later.</summary>
    public AttemptRate? Rate { get; init; }

    public required DateTimeOffset Started { get; init; }
}

/// <summary>How far an attempt is. Everything counts from its start, so that a later record makes an earlier one needless.</summary>
public sealed record AttemptProgress
{
    /// <summary>Machine time of the attempt so far, by a clock that nobody sets.</summary>
    public required TimeSpan Elapsed { get; init => field = value >= TimeSpan.Zero ? value : throw new ArgumentException($"An attempt cannot have lasted {value}."); }

    /// <summary>Time of each phase so far; what they leave of <see cref="Elapsed"/> is idle.</summary>
    public IReadOnlyDictionary<LedgerPhase, TimeSpan> Phases { get; init; } = new Dictionary<LedgerPhase, TimeSpan>();

    /// <summary>The step that it started after.</summary>
    public int FirstStep { get; init => field = Check.AtLeast(value, 0, "first step"); }

    /// <summary>Steps of the run that are done.</summary>
    public int LastStep { get; init => field = Check.AtLeast(value, 0, "last step"); }

    /// <summary>The step of its newest checkpoint; null while it has saved none.</summary>
    public int? SavedStep { get; init; }

    /// <summary>Tokens of its own steps.</summary>
    public long Tokens { get; init; }

    /// <summary>Rows of the data that its own steps were trained on, each as often as it was.</summary>
    public long Samples { get; init; }
}

/// <summary>All that is known of an attempt at one moment. Of two snapshots of one attempt the later one holds the earlier.</summary>
public sealed record AttemptSnapshot
{
    public required AttemptStart Start { get; init; }

    public required AttemptProgress Progress { get; init; }

    public required DateTimeOffset LastSeen { get; init; }

    /// <summary>Null while it runs, and where nobody has noticed yet that it does not.</summary>
    public AttemptEnd? Ended { get; init; }

    /// <summary>Whether its hours are those of its last heartbeat, with at most one interval missing.</summary>
    public bool Estimated { get; init; }

    [JsonIgnore]
    public string RunId => Start.Run.RunId;

    /// <summary>
    /// The attempt with the steps that it did after it was last heard of: where the one that follows went on later than that, a checkpoint had them. Their
    /// tokens and samples are as many for a step as its own, or the next one's where it told of none.
    /// </summary>
    /// <param name="next">Of the attempt that did the next steps that are known.</param>
    /// <param name="isFirst">Of the run: what nobody else can have done it did.</param>
    internal AttemptSnapshot UpTo(AttemptProgress next, bool isFirst)
    {
        int own = Progress.LastStep - Progress.FirstStep, more = next.FirstStep - Progress.LastStep;
        if (more <= 0 || own <= 0 && !isFirst)
        {
            return this;
        }

        AttemptProgress measured = own > 0 ? Progress : next;
        decimal perStep = (decimal)more / (measured.LastStep - measured.FirstStep);
        return this with
        {
            Progress = Progress with { LastStep = next.FirstStep, SavedStep = next.FirstStep, Tokens = Progress.Tokens + (long)(measured.Tokens * perStep), Samples = Progress.Samples + (long)(measured.Samples * perStep) },
        };
    }
}
