using System.Globalization;
using LoraTrainer.Storage;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>What came of a request.</summary>
public enum RequestResult
{
    Done,

    /// <summary>No process works on the run that could do it.</summary>
    NobodyWorks,

    /// <summary>The process that was asked ended without doing it.</summary>
    NotDone,

    /// <summary>It took longer than the one who asked wanted to wait; the request is withdrawn.</summary>
    TimedOut,
}

/// <summary>The answer to a request.</summary>
/// <param name="Result">In one word.</param>
/// <param name="Sentence">For people.</param>
/// <param name="RunName">Of the run that was asked.</param>
/// <param name="State">Of its lease afterwards; null where it has none.</param>
/// <param name="Newest">Its newest checkpoint; null where it has none.</param>
public sealed record RequestOutcome(RequestResult Result, string Sentence, string RunName, LeaseState? State, Checkpoint? Newest);

/// <summary>
/// Asks the process that works on a run, wherever it is, and waits until it has done it. The request lies beside the checkpoints and is gone when
/// this returns or throws, whatever came of it.
/// </summary>
public sealed class RunRequests : IAsyncDisposable
{
    private static readonly TimeSpan News = TimeSpan.FromSeconds(30);

    private readonly IObjectStore store;
    private readonly CheckpointStore checkpoints;
    private readonly TrainingConfig config;
    private readonly TimeProvider time;
    private readonly Action<string> onNotice;
    private readonly TimeSpan pause;

    private RunRequests(IObjectStore store, TrainingConfig config, TimeProvider time, Action<string> onNotice)
    {
        this.store = store;
        this.config = config;
        this.time = time;
        this.onNotice = onNotice;
        checkpoints = new CheckpointStore(store, config.RunName, time);
        pause = TimeSpan.FromSeconds(store is FolderStore ? 0.2 : 2);
    }

    /// <param name="place">An output_dir, a run's folder among the checkpoints, or its URI there.</param>
    /// <param name="time">The clock.</param>
    /// <param name="onNotice">Is told what is waited for.</param>
    /// <param name="cancellation">Gives up.</param>
    /// <exception cref="TrainingSetupException">There is no run.</exception>
    public static async Task<RunRequests> OpenAsync(string place, TimeProvider time, Action<string> onNotice, CancellationToken cancellation)
    {
        TrainingConfig config = await RunFolder.ConfigOfAsync(place, [], cancellation).ConfigureAwait(false);
        return new RunRequests(ObjectStore.Open(new RunFolder(config).CheckpointRoot), config, time, onNotice);
    }

    public ValueTask DisposeAsync() => store.DisposeAsync();

    /// <summary>A checkpoint now; the run goes on.</summary>
    /// <param name="timeout">How long to wait at most; null: as long as it takes.</param>
    /// <param name="cancellation">Withdraws the request.</param>
    public async Task<RequestOutcome> SaveAsync(TimeSpan? timeout, CancellationToken cancellation)
    {
        LeaseRecord? lease = await LeaseAsync(cancellation).ConfigureAwait(false);
        if (lease is not { State: LeaseState.Held } || lease.Holder.IsProvablyDead)
        {
            string why = lease?.State switch
            {
                null => "nobody has begun with it",
                LeaseState.Finished => "it is finished",
                LeaseState.Stopped => "it was stopped by request",
                LeaseState.Held => $"{lease.Holder} has ended without giving it back",
                _ => "the process before ended and gave it back",
            };
            return await OutcomeAsync(
                RequestResult.NobodyWorks, lease,
                newest => $"Nobody works on the run {config.RunName} ({why}), so there is nothing to save{(newest is null ? "" : $" beyond its checkpoint of step {newest.Step}")}.{(lease?.State == LeaseState.Finished ? "" : $" Go on with: lora-trainer resume {config.OutputDir}")}",
                cancellation).ConfigureAwait(false);
        }

        return await AskAsync(RunRequestKind.Save, lease, timeout, async (now, isThere, isSilent) =>
        {
            if (!isThere)
            {
                RequestOutcome done = await OutcomeAsync(
                    RequestResult.Done, now,
                    newest => newest is null ? "" : $"The checkpoint of step {newest.Step} is safe: {ObjectStore.Append(checkpoints.Location, newest.Name)}", cancellation).ConfigureAwait(false);
                return done.Newest is null
                    ? done with { Result = RequestResult.NotDone, Sentence = $"The run {config.RunName} ended before it had done a step: there is nothing to save." }
                    : done;
            }

            return now is { State: LeaseState.Held } && !isSilent ? null : await OutcomeAsync(
                RequestResult.NotDone, now,
                newest => $"{lease.Holder} {(isSilent ? "gives no sign of life" : "has ended")} and did not answer. {(newest is null ? "The run has no checkpoint" : $"The newest checkpoint is of step {newest.Step}")}; lora-trainer resume {config.OutputDir} goes on.",
                cancellation).ConfigureAwait(false);
        }, cancellation).ConfigureAwait(false);
    }

    /// <summary>A checkpoint, and the run stops; automatic restarts leave it alone then. A run that nobody works on is marked so.</summary>
    /// <param name="timeout">How long to wait at most; null: as long as it takes.</param>
    /// <param name="cancellation">Withdraws the request.</param>
    public async Task<RequestOutcome> StopAsync(TimeSpan? timeout, CancellationToken cancellation)
    {
        LeaseRecord? lease = await LeaseAsync(cancellation).ConfigureAwait(false);
        if (lease is not { State: LeaseState.Held } || lease.Holder.IsProvablyDead)
        {
            if (lease?.State is LeaseState.Finished or LeaseState.Stopped)
            {
                return await OutcomeAsync(RequestResult.Done, lease, _ => lease.State == LeaseState.Finished
                    ? $"The run {config.RunName} is finished: there is nothing to stop."
                    : $"The run {config.RunName} was stopped already.", cancellation).ConfigureAwait(false);
            }

            if (await MarkStoppedAsync(("", 0), cancellation).ConfigureAwait(false) is { } marked)
            {
                return marked;
            }

            // Somebody began with it this very moment.
            lease = await LeaseAsync(cancellation).ConfigureAwait(false);
        }

        (string Nonce, long Since) seen = (string.Empty, 0);
        return await AskAsync(RunRequestKind.Stop, lease!, timeout, async (now, isThere, isSilent) =>
        {
            if (now is { State: LeaseState.Held } && now.Nonce != seen.Nonce)
            {
                seen = (now.Nonce, time.GetTimestamp());
            }

            if (now is { State: LeaseState.Finished })
            {
                return await OutcomeAsync(RequestResult.Done, now, _ => $"The run {config.RunName} came to its end before it saw the request: it is finished.", cancellation).ConfigureAwait(false);
            }

            if (now is { State: LeaseState.Stopped } || (!isThere && now?.Epoch != lease!.Epoch))
            {
                return await OutcomeAsync(
                    RequestResult.Done, now,
                    newest => $"The run {config.RunName} has stopped{(newest is null ? " before it had anything to save" : $", with a checkpoint of step {newest.Step}")}. Nothing starts it again by itself; go on with: lora-trainer resume {config.OutputDir}",
                    cancellation).ConfigureAwait(false);
            }

            return now is { State: LeaseState.Held } && !isSilent ? null : await MarkStoppedAsync(seen, cancellation).ConfigureAwait(false);
        }, cancellation).ConfigureAwait(false);
    }

    /// <summary>Leaves the request and looks again and again, first at the lease: a process removes the requests that it has done before it gives its lease back.</summary>
    private async Task<RequestOutcome> AskAsync(RunRequestKind kind, LeaseRecord asked, TimeSpan? timeout, Func<LeaseRecord?, bool, bool, Task<RequestOutcome?>> judge, CancellationToken cancellation)
    {
        var request = RunRequest.New(kind, time.GetUtcNow());
        await checkpoints.AddRequestAsync(request, cancellation).ConfigureAwait(false);
        try
        {
            IReadOnlyList<AttemptRecord> attempts = await checkpoints.AttemptsAsync(cancellation).ConfigureAwait(false);
            TrainingPhase? phase = attempts.Count > 0 ? attempts[^1].Phase : null;
            onNotice(kind == RunRequestKind.Save
                ? $"Asked {asked.Holder} to save. Waiting until the checkpoint is safe{(phase is null or TrainingPhase.Training or TrainingPhase.Saving ? "" : $"; it was {phase.ToString()!.ToLowerInvariant()} when it last told, and saves after the next step")}."
                : $"Asked {asked.Holder} to save and stop. Waiting until it has.");
            long start = time.GetTimestamp(), told = start, seenAt = start;
            string nonce = asked.Nonce;
            while (true)
            {
                LeaseRecord? now = await LeaseAsync(cancellation).ConfigureAwait(false);
                bool isThere = (await checkpoints.RequestsAsync(cancellation).ConfigureAwait(false)).Contains(request);
                if (now is not null && now.Nonce != nonce)
                {
                    (nonce, seenAt) = (now.Nonce, time.GetTimestamp());
                }

                bool isSilent = now is { State: LeaseState.Held } && (now.Holder.IsProvablyDead || time.GetElapsedTime(seenAt).TotalSeconds >= now.Seconds);
                if (await judge(now, isThere, isSilent).ConfigureAwait(false) is { } outcome)
                {
                    return outcome;
                }

                if (timeout is { } longest && time.GetElapsedTime(start) >= longest)
                {
                    return await OutcomeAsync(
                        RequestResult.TimedOut, now,
                        _ => string.Create(CultureInfo.InvariantCulture, $"{now?.Holder} has not answered within {longest.TotalSeconds:0.#} s. The request is withdrawn; a run that has seen it already does it all the same."),
                        cancellation).ConfigureAwait(false);
                }

                if (time.GetElapsedTime(told) >= News)
                {
                    told = time.GetTimestamp();
                    onNotice(string.Create(CultureInfo.InvariantCulture, $"Still waiting for {now?.Holder}; its last sign of life came {time.GetElapsedTime(seenAt).TotalSeconds:0} s ago."));
                }

                await Task.Delay(pause, time, cancellation).ConfigureAwait(false);
            }
        }
        finally
        {
            await checkpoints.RemoveRequestAsync(request, CancellationToken.None).ConfigureAwait(false);
        }
    }

    /// <summary>Takes the lease and gives it back as stopped; null where somebody works on the run after all.</summary>
    /// <param name="seen">Since when the lease has been unchanged.</param>
    /// <param name="cancellation">Gives up before the lease is taken.</param>
    private async Task<RequestOutcome?> MarkStoppedAsync((string Nonce, long Since) seen, CancellationToken cancellation)
    {
        StoreAbilities abilities = await store.ProbeAsync($"{config.RunName}/probe", cancellation).ConfigureAwait(false);
        RunLease lease;
        try
        {
            lease = await RunLease.AcquireAsync(
                store,
                config.RunName,
                new LeaseRequest
                {
                    Seconds = config.Checkpoint.LeaseSeconds,
                    Waits = false,
                    Seen = seen,
                    IsSwapped = abilities.CompareAndSwap,
                    EpochFloor = await checkpoints.HighestEpochAsync(cancellation).ConfigureAwait(false),
                    Time = time,
                    OnNotice = onNotice,
                    OnWarning = onNotice,
                },
                cancellation).ConfigureAwait(false);
        }
        catch (TrainingSetupException)
        {
            return null;
        }

        await using (lease.ConfigureAwait(false))
        {
            bool wasFinished = lease.Previous?.State == LeaseState.Finished;
            await lease.ReleaseAsync(wasFinished ? LeaseState.Finished : LeaseState.Stopped).ConfigureAwait(false);
            LeaseRecord? now = await LeaseAsync(CancellationToken.None).ConfigureAwait(false);
            return now is { State: LeaseState.Stopped or LeaseState.Finished }
                ? await OutcomeAsync(RequestResult.Done, now, _ => wasFinished
                    ? $"The run {config.RunName} is finished: there is nothing to stop."
                    : $"Nobody worked on the run {config.RunName}. It is marked as stopped: nothing starts it again by itself; go on with: lora-trainer resume {config.OutputDir}", CancellationToken.None).ConfigureAwait(false)
                : await OutcomeAsync(RequestResult.NotDone, now, _ => $"The run {config.RunName} could not be marked as stopped: {now?.Holder.ToString() ?? "nobody"} has its lease now.", CancellationToken.None).ConfigureAwait(false);
        }
    }

    private Task<LeaseRecord?> LeaseAsync(CancellationToken cancellation) => RunLease.ReadAsync(store, config.RunName, cancellation);

    private async Task<RequestOutcome> OutcomeAsync(RequestResult result, LeaseRecord? lease, Func<Checkpoint?, string> sentence, CancellationToken cancellation)
    {
        IReadOnlyList<Checkpoint> saved = await checkpoints.ListAsync(onNotice, cancellation).ConfigureAwait(false);
        Checkpoint? newest = saved.Count > 0 ? saved[0] : null;
        return new RequestOutcome(result, sentence(newest), config.RunName, lease?.State, newest);
    }
}
