namespace LoraTrainer.Costs.Ledger;

/// <summary>How a ledger is opened.</summary>
public sealed record LedgerOptions
{
    /// <summary>
    /// The type of the file system of a path where other machines or a user-space program may be behind it, null for disks of this machine. Locks and
    /// shared memory, which SQLite needs, cannot be relied on there.
    /// </summary>
    public required Func<string, string?> RemoteFileSystemOf { get; init; }

    /// <summary>Told each problem once, as a sentence. Also in <see cref="RunLedger.Warnings"/>.</summary>
    public Action<string>? Warn { get; init; }

    /// <summary>A run goes on without a ledger that cannot be used, and is told so by a warning. Whoever only looks at it gets the problem as what ends him, and no word of a run.</summary>
    public bool IsOfRun { get; init; } = true;

    public TimeProvider Time { get; init; } = TimeProvider.System;

    /// <summary>How long opening, and what a person asks for, waits while another process has the ledger locked.</summary>
    public TimeSpan BusyTimeout { get; init; } = TimeSpan.FromSeconds(5);

    /// <summary>How long a heartbeat waits for the same, at least a second in effect: its caller waits with it.</summary>
    public TimeSpan HeartbeatTimeout { get; init; } = TimeSpan.FromSeconds(1);

    /// <summary>After a failure, how long events go to the journal before the ledger is tried again.</summary>
    public TimeSpan RetryInterval { get; init; } = TimeSpan.FromSeconds(30);

    /// <summary>Where the journal goes when it cannot be written beside the ledger. Default: the user's state folder, see <see cref="LedgerPath"/>.</summary>
    public string? FallbackFolder { get; init; }
}
