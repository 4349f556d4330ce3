namespace LoraTrainer.Training.Interruptions;

/// <summary>The pauses and limits of the watch; the defaults are what the providers advise.</summary>
internal sealed record WatchTimings
{
    /// <summary>All first questions together; what is slower is a notice like any other.</summary>
    public TimeSpan FirstRound { get; init; } = TimeSpan.FromSeconds(1.5);

    public TimeSpan Connect { get; init; } = TimeSpan.FromSeconds(1);

    /// <summary>One question, from sending to the last byte.</summary>
    public TimeSpan Answer { get; init; } = TimeSpan.FromSeconds(3);

    public TimeSpan Aws { get; init; } = TimeSpan.FromSeconds(5);

    public TimeSpan Gcp { get; init; } = TimeSpan.FromSeconds(1);

    /// <summary>How long Google's server is asked to wait for a change.</summary>
    public TimeSpan GcpWait { get; init; } = TimeSpan.FromSeconds(60);

    public TimeSpan GcpMaintenance { get; init; } = TimeSpan.FromSeconds(30);

    public TimeSpan Azure { get; init; } = TimeSpan.FromSeconds(1);

    /// <summary>The question that switches Azure's service on.</summary>
    public TimeSpan AzureFirst { get; init; } = TimeSpan.FromMinutes(3);

    public TimeSpan File { get; init; } = TimeSpan.FromSeconds(1);

    /// <summary>A source that failed this often and never answered is asked rarely.</summary>
    public int FailuresUntilRare { get; init; } = 3;

    public TimeSpan Rare { get; init; } = TimeSpan.FromMinutes(1);
}
