using System.Globalization;

namespace LoraTrainer.Training.Interruptions;

/// <summary>What a notice asks for.</summary>
public enum NoticeKind
{
    /// <summary>The machine goes away: save, then end.</summary>
    Stop,

    /// <summary>It may go away, or pauses: save now and go on.</summary>
    Save,
}

/// <summary>One announcement that the machine is about to be taken away.</summary>
public sealed record InterruptionNotice
{
    private readonly TimeProvider time;
    private readonly long receivedAt;

    /// <param name="time">Its monotonic clock counts from now on.</param>
    internal InterruptionNotice(TimeProvider time)
    {
        this.time = time;
        receivedAt = time.GetTimestamp();
    }

    /// <summary>Who says it: "AWS spot", "Azure scheduled event", "SIGUSR1".</summary>
    public required string Source { get; init; }

    public required NoticeKind Kind { get; init; }

    /// <summary>The first half of the sentence, without a full stop: "AWS takes this machine back".</summary>
    public required string Event { get; init; }

    /// <summary>When it happens, as the source says it; null if it does not say. Of another clock than this machine's: count with <see cref="TimeLeft"/>.</summary>
    public DateTimeOffset? Deadline { get; init; }

    /// <summary>What was left when the notice was received; null if that is not known.</summary>
    public TimeSpan? TimeLeftAtReceipt { get; init; }

    /// <summary>How long ahead this source usually announces, or what the configuration says; null if that is not known.</summary>
    public TimeSpan? Grace { get; init; }

    /// <summary>What is left now, counted by the monotonic clock, so that a wrong or corrected wall clock does no harm; never below zero. Null if not known.</summary>
    public TimeSpan? TimeLeft => TimeLeftAtReceipt is { } left ? Max(left - time.GetElapsedTime(receivedAt), TimeSpan.Zero) : null;

    /// <summary>What happens and when: "AWS takes this machine back at 08:22:00 UTC (in 118 s)".</summary>
    public string Announcement => Event + When;

    /// <summary>For the user: the announcement, and what the program does about it.</summary>
    public string Sentence => $"{Announcement}: {(Kind == NoticeKind.Stop ? "a checkpoint is saved, then the program ends" : "a checkpoint is saved, and the training goes on")}.";

    /// <summary>Two notices with one key are the same; the watcher raises the first.</summary>
    internal string Key { get; init; } = "";

    /// <summary>The source that can be told that the run is ready, or null.</summary>
    internal NoticeSource? Origin { get; init; }

    private string When
    {
        get
        {
            string seconds = TimeLeftAtReceipt is { } left ? ((long)left.TotalSeconds).ToString(CultureInfo.InvariantCulture) : "";
            return (Deadline, TimeLeftAtReceipt) switch
            {
                ({ } at, not null) => string.Create(CultureInfo.InvariantCulture, $" at {at.UtcDateTime:HH:mm:ss} UTC (in {seconds} s)"),
                ({ } at, null) => string.Create(CultureInfo.InvariantCulture, $" at {at.UtcDateTime:HH:mm:ss} UTC"),
                (null, not null) => TimeLeftAtReceipt == TimeSpan.Zero ? " now" : $" within {seconds} s",
                _ => "",
            };
        }
    }

    private static TimeSpan Max(TimeSpan a, TimeSpan b) => a > b ? a : b;
}
