using System.Text.Json;
using LoraTrainer.Storage;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>What is going on with a run.</summary>
public enum RunState
{
    /// <summary>Nobody has begun with it, or its lease was deleted; whoever comes begins.</summary>
    Waiting,

    /// <summary>A process works on it.</summary>
    Training,

    /// <summary>A process has its lease, and is dead or has not renewed it in time.</summary>
    Silent,

    /// <summary>Nobody works on it; whoever comes goes on.</summary>
    Released,

    /// <summary>Nobody works on it because somebody asked for that; only an explicit resume goes on.</summary>
    Stopped,

    Finished,
}

/// <summary>
/// How a run stands, as it can be read beside its checkpoints from any machine, and from its log where that lies here. Takes no lock, no lease, and
/// writes nothing.
/// </summary>
public sealed record RunStatus
{
    public required string RunName { get; init; }

    /// <summary>Null before the first lease.</summary>
    public string? RunId { get; init; }

    public required RunState State { get; init; }

    /// <summary>The process that has the lease, or had it last.</summary>
    public LeaseHolder? Holder { get; init; }

    /// <summary>How the newest process ended, as its record says: finished, interrupted, stopped, budgetreached, failed; null while it runs, and where it was killed.</summary>
    public string? Ended { get; init; }

    /// <summary>What the newest process does, or did last.</summary>
    public TrainingPhase? Phase { get; init; }

    /// <summary>When that process started, by its machine's clock.</summary>
    public DateTimeOffset? Since { get; init; }

    /// <summary>Its last sign of life, by the same clock.</summary>
    public DateTimeOffset? LastSeen { get; init; }

    /// <summary>Steps that are done, as far as anybody has told.</summary>
    public required int Step { get; init; }

    /// <summary>Null while no process has counted them.</summary>
    public int? TotalSteps { get; init; }

    public double? Loss { get; init; }

    /// <summary>Of the newest process; null where it has done no step.</summary>
    public double? TokensPerSecond { get; init; }

    /// <summary>Null while none was opened.</summary>
    public string? Device { get; init; }

    /// <summary>What a resume would go on from; null where there is none.</summary>
    public Checkpoint? SafeCheckpoint { get; init; }

    /// <summary>Processes that have worked on the run.</summary>
    public required int Attempts { get; init; }

    /// <summary>Those of them that ended before the run did, and that nobody asked to stop: interrupted, failed, killed.</summary>
    public required int Interruptions { get; init; }

    /// <summary>Of all processes together, up to their last signs of life.</summary>
    public required double Hours { get; init; }

    /// <summary>What other terminals have asked for and what is not done yet.</summary>
    public required IReadOnlyList<RunRequest> Requests { get; init; }

    /// <summary>Where the run lies among the checkpoints.</summary>
    public required string Location { get; init; }

    public required string OutputDir { get; init; }

    /// <summary>The output_dir is on this machine; otherwise <see cref="Location"/> alone names the run here.</summary>
    public required bool IsHere { get; init; }

    /// <summary>Reads it all.</summary>
    /// <param name="place">An output_dir, a run's folder among the checkpoints, or its URI there.</param>
    /// <param name="time">The clock.</param>
    /// <param name="onNotice">Is told where it takes longer, and what cannot be read.</param>
    /// <param name="cancellation">Gives up.</param>
    /// <exception cref="TrainingSetupException">There is no run.</exception>
    public static async Task<RunStatus> ReadAsync(string place, TimeProvider time, Action<string> onNotice, CancellationToken cancellation = default)
    {
        TrainingConfig config = await RunFolder.ConfigOfAsync(place, [], cancellation).ConfigureAwait(false);
        var folder = new RunFolder(config);
        IObjectStore store = ObjectStore.Open(folder.CheckpointRoot);
        await using (store.ConfigureAwait(false))
        {
            var checkpoints = new CheckpointStore(store, config.RunName, time);
            LeaseRecord? lease = await RunLease.ReadAsync(store, config.RunName, cancellation).ConfigureAwait(false);
            RunState state = await StateOfAsync(store, config.RunName, lease, time, onNotice, cancellation).ConfigureAwait(false);
            IReadOnlyList<AttemptRecord> attempts = await checkpoints.AttemptsAsync(cancellation).ConfigureAwait(false);
            IReadOnlyList<Checkpoint> saved = await checkpoints.ListAsync(onNotice, cancellation).ConfigureAwait(false);
            Checkpoint? safe = saved.Count > 0 ? saved[0] : null;
            AttemptRecord? newest = attempts.Count > 0 ? attempts[^1] : null;

            // A process that was killed before its first renewal left no numbers; its checkpoint, or that of the one before, has them.
            TrainerState? kept = safe is not null && (newest is not { TotalSteps: > 0, Loss: not null } || newest.Step < safe.Step)
                && await checkpoints.ReadFileAsync(safe, CheckpointFiles.StateName, cancellation).ConfigureAwait(false) is { } json
                    ? TrainerState.Parse(safe.Name, json)
                    : null;
            int step = Math.Max(newest?.Step ?? 0, safe?.Step ?? 0);
            double? loss = newest is { Loss: { } told } && newest.Step == step ? told : kept?.Losses.LastOrDefault(double.IsFinite, double.NaN) is { } last && double.IsFinite(last) ? last : newest?.Loss;
            if (state == RunState.Training && newest is not null && RunLog.LastStep(folder.LogFile, after: newest.LastSeen) is { } logged && logged.Step > step)
            {
                // The log lies here, and its last line is younger than what the process last told of itself.
                (step, loss) = logged;
            }

            return new RunStatus
            {
                RunName = config.RunName,
                RunId = lease?.RunId ?? newest?.RunId,
                State = state,
                Holder = lease?.Holder ?? newest?.Holder,
                Ended = newest?.Ended,
                Phase = newest?.Phase,
                Since = newest?.Started,
                LastSeen = Later(newest?.LastSeen, lease?.Written),
                Step = step,
                TotalSteps = attempts.LastOrDefault(attempt => attempt.TotalSteps > 0)?.TotalSteps ?? kept?.TotalSteps ?? (config.Batch.MaxSteps > 0 ? config.Batch.MaxSteps : null),
                Loss = loss,
                TokensPerSecond = newest?.TokensPerSecond,
                Device = attempts.LastOrDefault(attempt => attempt.Device.Length > 0)?.Device,
                SafeCheckpoint = safe,
                Attempts = attempts.Count,
                Interruptions = attempts.Count(attempt => attempt.Ended is null or "interrupted" or AttemptRecord.Failed && !(state == RunState.Training && attempt == newest)),
                Hours = attempts.Sum(attempt => attempt.Seconds) / 3600,
                Requests = await checkpoints.RequestsAsync(cancellation).ConfigureAwait(false),
                Location = checkpoints.Location,
                OutputDir = config.OutputDir,
                IsHere = folder.HoldsRun,
            };
        }
    }

    public void Write(Utf8JsonWriter json)
    {
        json.WriteStartObject();
        json.WriteString("run_name", RunName);
        json.WriteString("run_id", RunId);
        json.WriteString("state", State.ToString().ToLowerInvariant());
        json.WriteString("ended", Ended);
        json.WriteString("host", Holder?.Host);
        json.WriteNumberOrNull("process", (long?)Holder?.ProcessId);
        json.WriteString("phase", Phase?.ToString().ToLowerInvariant());
        WriteTime("since", Since);
        WriteTime("last_seen", LastSeen);
        json.WriteNumber("step", Step);
        json.WriteNumberOrNull("total_steps", (long?)TotalSteps);
        json.WriteNumberOrNull("loss", Loss);
        json.WriteNumberOrNull("tokens_per_second", TokensPerSecond is { } speed ? Math.Round(speed, 2) : null);
        json.WriteString("device", Device);
        if (SafeCheckpoint is { } safe)
        {
            json.WriteStartObject("checkpoint");
            json.WriteNumber("step", safe.Step);
            json.WriteString("name", safe.Name);
            WriteTime("created", safe.Created);
            json.WriteString("location", ObjectStore.Append(Location, safe.Name));
            json.WriteNumber("bytes", safe.Files.Sum(file => file.SizeBytes));
            json.WriteEndObject();
        }
        else
        {
            json.WriteNull("checkpoint");
        }

        json.WriteNumber("attempts", Attempts);
        json.WriteNumber("interruptions", Interruptions);
        json.WriteNumber("hours", Math.Round(Hours, 5));
        json.WriteStartArray("requests");
        foreach (RunRequest request in Requests)
        {
            json.WriteStringValue(request.Kind.ToString().ToLowerInvariant());
        }

        json.WriteEndArray();
        json.WriteString("output_dir", OutputDir);
        json.WriteString("location", Location);
        json.WriteEndObject();

        void WriteTime(string name, DateTimeOffset? value)
        {
            if (value is { } when)
            {
                json.WriteString(name, when);
            }
            else
            {
                json.WriteNull(name);
            }
        }
    }

    /// <summary>
    /// Clocks of two machines need not agree, so a lease that looks too old, or comes from the future, is watched for one and a half times the pause
    /// between two renewals: who lives changes it.
    /// </summary>
    private static async Task<RunState> StateOfAsync(IObjectStore store, string runName, LeaseRecord? lease, TimeProvider time, Action<string> onNotice, CancellationToken cancellation)
    {
        if (lease is not { State: LeaseState.Held })
        {
            return StateOf(lease);
        }

        if (lease.Holder.IsProvablyDead)
        {
            return RunState.Silent;
        }

        double age = (time.GetUtcNow() - lease.Written).TotalSeconds;
        if (age >= 0 && age < lease.Seconds)
        {
            return RunState.Training;
        }

        TimeSpan patience = TimeSpan.FromSeconds(lease.Seconds / 2);
        onNotice($"The lease of {lease.Holder} looks old; it is watched for {patience.TotalSeconds:0.#} s, in which a living process renews it.");
        long start = time.GetTimestamp();
        while (time.GetElapsedTime(start) < patience)
        {
            await Task.Delay(patience / 10, time, cancellation).ConfigureAwait(false);
            LeaseRecord? now = await RunLease.ReadAsync(store, runName, cancellation).ConfigureAwait(false);
            if (now?.Nonce != lease.Nonce)
            {
                return now is { State: LeaseState.Held } ? RunState.Training : StateOf(now);
            }
        }

        return RunState.Silent;
    }

    private static RunState StateOf(LeaseRecord? given) => given?.State switch
    {
        null => RunState.Waiting,
        LeaseState.Released => RunState.Released,
        LeaseState.Stopped => RunState.Stopped,
        LeaseState.Finished => RunState.Finished,
        _ => RunState.Training,
    };

    private static DateTimeOffset? Later(DateTimeOffset? one, DateTimeOffset? other) => one is null || other > one ? other : one;
}
