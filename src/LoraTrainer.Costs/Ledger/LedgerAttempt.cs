namespace LoraTrainer.Costs.Ledger;

/// <summary>The running attempt of this process in the ledger. Nothing here throws: the training is worth more than its bill.</summary>
public sealed class LedgerAttempt
{
    private readonly RunLedger _ledger;
    private readonly Lock _lock = new();

    internal LedgerAttempt(RunLedger ledger, AttemptSnapshot snapshot)
    {
        _ledger = ledger;
        Snapshot = snapshot;
    }

    /// <summary>As it was recorded last.</summary>
    public AttemptSnapshot Snapshot { get; private set; }

    /// <summary>Records how far it is; if this process is gone afterwards, its hours count up to here. One small transaction, or one line of the journal.</summary>
    public void Heartbeat(AttemptProgress progress) => Record(progress, ended: null);

    /// <summary>Records its end. Later calls of either method change nothing.</summary>
    /// <param name="how">Any end but <see cref="AttemptEnd.Killed"/>, which is for others to find.</param>
    /// <param name="progress">The last state; null where the last heartbeat is it.</param>
    public void End(AttemptEnd how, AttemptProgress? progress = null) => Record(progress ?? Snapshot.Progress, how);

    private void Record(AttemptProgress progress, AttemptEnd? ended)
    {
        // A heartbeat from another thread may not follow the end.
        lock (_lock)
        {
            if (Snapshot.Ended is null)
            {
                Snapshot = Snapshot with { Progress = progress, LastSeen = _ledger.Now, Ended = ended };
                _ledger.Record(new LedgerEvent { Attempt = Snapshot }, isHeartbeat: ended is null);
            }
        }
    }
}
