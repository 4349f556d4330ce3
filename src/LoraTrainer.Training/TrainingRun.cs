using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Security.Cryptography;
using System.Text;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Interruptions;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;
using LoraTrainer.Training.Sources;

namespace LoraTrainer.Training;

/// <summary>How a run ended.</summary>
public enum RunEnding
{
    /// <summary>All steps are done and the outputs are written.</summary>
    Finished,

    /// <summary>Stopped in good order by a signal or a notice, after a checkpoint; whoever starts it again goes on.</summary>
    Interrupted,

    /// <summary>Stopped because somebody asked for it; only an explicit resume goes on.</summary>
    Stopped,

    /// <summary>Stopped in good order because a limit of money or hours is reached; it can go on with a higher one.</summary>
    BudgetReached,
}

/// <summary>
/// One training run from config to adapter: read the data, plan the memory, load the base, evaluate, train with checkpoints, evaluate, write.
/// A run that was stopped anywhere goes on from its newest checkpoint, on this machine or another, and ends with the same bytes.
/// </summary>
public sealed class TrainingRun
{
    private static readonly TimeSpan Heartbeat = TimeSpan.FromSeconds(5);

    private TrainingConfig config;
    private readonly ITrainingObserver observer;
    private readonly TimeProvider time;
    private readonly RunFolder folder;
    private readonly long started;
    private readonly PhaseClock phases;

    /// <param name="config">Resolved.</param>
    /// <param name="observer">Is told how it goes.</param>
    /// <param name="time">The clock.</param>
    public TrainingRun(TrainingConfig config, ITrainingObserver observer, TimeProvider time)
    {
        this.config = config;
        this.observer = observer;
        this.time = time;
        folder = new RunFolder(config);
        started = Stopwatch.GetTimestamp();
        phases = new PhaseClock();
    }

    /// <summary>Is given what is known of each attempt: of the earlier ones once, of this one every few seconds and at its end. From any thread; must not throw.</summary>
    public Action<AttemptRecord>? AttemptSeen { get; init; }

    /// <summary>What an hour of a machine with such a GPU costs, for runs without <c>cost.rate</c>; null where it is not known. Must not throw.</summary>
    public Func<MachineIdentity, string, AttemptRate?>? PriceOf { get; init; }

    /// <summary>How many hours a run is expected to take, from its first step to its last; null where that is not known. Must not throw.</summary>
    public Func<ExpectedRun, double?>? HoursOf { get; init; }

    /// <summary>Up to when the ledger has time of the machine of a process since it booted; null where it has none. Must not throw.</summary>
    public Func<LeaseHolder, DateTimeOffset?>? BilledUntil { get; init; }

    /// <summary>What the run came to; filled when <see cref="RunAsync"/> returns.</summary>
    public RunSummary? Summary { get; private set; }

    /// <summary>What a process that came to the end measured of its device; null where that is nothing.</summary>
    public RunMeasurement? Measurement { get; private set; }

    /// <summary>True once this process has the run, which there is then something of to resume.</summary>
    public bool HasBegun { get; private set; }

    /// <summary>True where the steps came to their end in this process, and not in an earlier one.</summary>
    public bool IsFirstEnd { get; private set; }

    /// <summary>Runs to the end, or until <paramref name="signal"/>, a notice or a request asks for a stop in good order.</summary>
    /// <param name="resume">Go on with the run that is there, waiting for another process that works on it; otherwise there must be none.</param>
    /// <param name="force">Go on although settings that decide the result have changed.</param>
    /// <param name="evenIfStopped">Go on although somebody asked the run to stop.</param>
    /// <param name="signal">The first Ctrl-C or SIGTERM.</param>
    /// <exception cref="TrainingSetupException">The run cannot start as it was asked for.</exception>
    public async Task<RunEnding> RunAsync(bool resume, bool force, bool evenIfStopped, CancellationToken signal)
    {
        observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Starting });
        using var control = new RunControl(signal);
        InterruptionWatcher watcher = InterruptionWatcher.Start(config.Interruption, notice => OnInterruption(control, notice), observer.OnWarning, time);
        await using ConfiguredAsyncDisposable watching = watcher.ConfigureAwait(false);
        await watcher.FirstRoundAsync().ConfigureAwait(false);
        if (watcher.Pending is { Kind: NoticeKind.Stop })
        {
            // A run that is not begun needs no saving, and another machine need not wait for it.
            return RunEnding.Interrupted;
        }

        if (watcher.Provider.Judge(save: null) is { } judgement)
        {
            observer.OnNotice(judgement);
        }

        if (File.Exists(folder.CheckpointRoot))
        {
            throw new TrainingSetupException($"checkpoint.uri {folder.CheckpointRoot} is a file. Give a folder, which is made where there is none, or an s3:// URI.");
        }

        IObjectStore store = ObjectStore.Open(folder.CheckpointRoot);
        await using (store.ConfigureAwait(false))
        {
            var checkpoints = new CheckpointStore(store, config.RunName, time);
            try
            {
                RunEnding ending = await ClaimAsync(store, checkpoints, control, watcher, resume, force, evenIfStopped).ConfigureAwait(false);
                if (control.Notice is { } notice)
                {
                    await InterruptionWatcher.AcknowledgeAsync(notice, CancellationToken.None).ConfigureAwait(false);
                }

                return ending;
            }
            catch (OperationCanceledException) when (control.Stop.IsCancellationRequested)
            {
                return control.Ending;
            }
        }
    }

    /// <summary>Called from any thread.</summary>
    private void OnInterruption(RunControl control, InterruptionNotice notice)
    {
        observer.OnWarning(notice.Sentence);
        if (notice.Kind == NoticeKind.Stop)
        {
            control.RequestStop(StopReason.Notice, notice);
        }
        else
        {
            control.RequestSave(null);
        }
    }

    /// <summary>Sees that the run may start, makes it this process's, and gives it back at the end.</summary>
    private async Task<RunEnding> ClaimAsync(IObjectStore store, CheckpointStore checkpoints, RunControl control, InterruptionWatcher watcher, bool resume, bool force, bool evenIfStopped)
    {
        CancellationToken stop = control.Stop;
        byte[]? stored = await checkpoints.ReadConfigAsync(stop).ConfigureAwait(false);
        IReadOnlyList<string> differences = folder.Check(stored, resume, force);
        LeaseState? left = resume ? (await RunLease.ReadAsync(store, config.RunName, stop).ConfigureAwait(false))?.State : null;
        if (left == LeaseState.Stopped && !evenIfStopped)
        {
            return LeftAlone();
        }

        if (left == LeaseState.Finished && differences.Count == 0 && folder.HoldsWholeResult())
        {
            observer.OnNotice($"The run {config.RunName} is finished, and its result is in {config.OutputDir}: there is nothing left to do.");
            return RunEnding.Finished;
        }

        // Before anything is taken or counted: a start that is refused is no attempt.
        DateTimeOffset? billed = config.Cost.BillFrom == BillingStart.Boot ? BilledHere(await checkpoints.AttemptsAsync(stop).ConfigureAwait(false)) : null;
        BilledMachine machine = BilledMachine.Here(config, await watcher.IdentifyAsync().ConfigureAwait(false), PriceOf, billed, observer, time);
        RunBudget.RequireRate(config.Cost, machine.Rate);
        using RunLock claimed = await folder.ClaimAsync(resume ? observer.OnNotice : null, stop).ConfigureAwait(false);
        StoreAbilities abilities;
        RunLease lease;
        try
        {
            abilities = await RequireAbilitiesAsync(store, stop).ConfigureAwait(false);
            lease = await AcquireAsync(store, checkpoints, abilities, waits: resume, stop).ConfigureAwait(false);
        }
        catch (Exception exception) when (!folder.HoldsRun)
        {
            folder.Withdraw();

            // The lease is the first thing that is written there.
            if (PathTrouble.OfFolder(config.Checkpoint.Uri is null ? "The folder" : "checkpoint.uri", folder.CheckpointRoot, exception) is { } trouble)
            {
                throw trouble;
            }

            throw;
        }

        await using (lease.ConfigureAwait(false))
        {
            if (resume && !evenIfStopped && lease.Previous?.State == LeaseState.Stopped)
            {
                // It was stopped while this process waited for it.
                await lease.ReleaseAsync(LeaseState.Stopped).ConfigureAwait(false);
                return LeftAlone();
            }

            checkpoints.WriteUnder(lease, abilities);
            if (evenIfStopped)
            {
                await ForgetStopsAsync(checkpoints, stop).ConfigureAwait(false);
            }

            var pulse = new RunPulse(lease, machine, phases, time);
            lease.Lost.Register(() => control.RequestStop(StopReason.LeaseLost));
            lease.StartRenewing(cancellation => checkpoints.WriteAttemptAsync(pulse.Take(), cancellation));
            using var listening = new CancellationTokenSource();
            Task listener = Task.WhenAll(ListenAsync(store, checkpoints, control, listening.Token), BeatAsync(pulse, listening.Token));
            try
            {
                RunEnding ending = await WorkAsync(checkpoints, lease, pulse, machine, control, watcher.Provider, resume, force, differences).ConfigureAwait(false);
                return await EndAsync(checkpoints, lease, pulse, ending).ConfigureAwait(false);
            }
            catch (OperationCanceledException) when (stop.IsCancellationRequested)
            {
                // Before the first computation: there is nothing to save.
                return await EndAsync(checkpoints, lease, pulse, control.Ending).ConfigureAwait(false);
            }
            catch (LeaseLostException) when (lease.Lost.IsCancellationRequested)
            {
                return await EndAsync(checkpoints, lease, pulse, RunEnding.Interrupted).ConfigureAwait(false);
            }
            finally
            {
                await listening.CancelAsync().ConfigureAwait(false);
                await listener.ConfigureAwait(false);
            }
        }
    }

    /// <summary>Up to when the time of this machine since it booted is counted, by attempts of this run or, as the ledger knows, of any.</summary>
    private DateTimeOffset? BilledHere(IReadOnlyList<AttemptRecord> attempts) =>
        new[] { BilledUntil?.Invoke(LeaseHolder.Current), attempts.Where(attempt => attempt.Holder.BootId == LeaseHolder.Current.BootId).Max(attempt => (DateTimeOffset?)attempt.LastSeen) }.Max();

    /// <summary>An explicit resume overrides who asked for a stop before it, and whose terminal may have died since.</summary>
    private static async Task ForgetStopsAsync(CheckpointStore checkpoints, CancellationToken stop)
    {
        foreach (RunRequest request in await checkpoints.RequestsAsync(stop).ConfigureAwait(false))
        {
            if (request.Kind == RunRequestKind.Stop)
            {
                await checkpoints.RemoveRequestAsync(request, stop).ConfigureAwait(false);
            }
        }
    }

    private RunEnding LeftAlone()
    {
        observer.OnNotice($"The run {config.RunName} was stopped by request and is left alone. Go on with: lora-trainer resume {config.OutputDir}");
        return RunEnding.Stopped;
    }

    private async Task<RunEnding> WorkAsync(CheckpointStore checkpoints, RunLease lease, RunPulse pulse, BilledMachine machine, RunControl control, ProviderInfo provider, bool resume, bool force, IReadOnlyList<string> differences)
    {
        if (QuantizedCache.Open(config.QuantizedCache, observer, time, control.Stop) is not { } cache)
        {
            return await WorkAsync(null, checkpoints, lease, pulse, machine, control, provider, resume, force, differences).ConfigureAwait(false);
        }

        await using (cache.ConfigureAwait(false))
        {
            return await WorkAsync(cache, checkpoints, lease, pulse, machine, control, provider, resume, force, differences).ConfigureAwait(false);
        }
    }

    /// <summary>Everything that happens under the lease.</summary>
    private async Task<RunEnding> WorkAsync(QuantizedCache? cache, CheckpointStore checkpoints, RunLease lease, RunPulse pulse, BilledMachine machine, RunControl control, ProviderInfo provider, bool resume, bool force, IReadOnlyList<string> differences)
    {
        // Another process may have made the run, or gone on with it, since the first look.
        byte[]? stored = await checkpoints.ReadConfigAsync(control.Stop).ConfigureAwait(false);
        bool isNew = stored is null && !folder.HoldsRun;
        byte[] begun = folder.ResolvedConfig;
        Session session;
        try
        {
            if (!isNew)
            {
                differences = folder.Check(stored, resume, force);
            }

            foreach (string difference in differences)
            {
                observer.OnNotice(difference);
            }

            await checkpoints.RemoveUnfinishedAsync(control.Stop).ConfigureAwait(false);
            if (isNew)
            {
                folder.WriteConfig();
                await checkpoints.WriteConfigAsync(folder.ResolvedConfig, control.Stop).ConfigureAwait(false);
            }

            HasBegun = true;
            await checkpoints.WriteAttemptAsync(pulse.Take(), control.Stop).ConfigureAwait(false);
            IReadOnlyList<AttemptRecord> attempts = await checkpoints.AttemptsAsync(control.Stop).ConfigureAwait(false);
            foreach (AttemptRecord attempt in attempts.Where(attempt => attempt.Epoch != lease.Epoch))
            {
                AttemptSeen?.Invoke(attempt);
            }

            var budget = new RunBudget(config.Cost, machine.Rate, attempts.Where(attempt => attempt.Epoch != lease.Epoch));
            bool hasAllSteps = attempts.Any(attempt => attempt.TotalSteps > 0 && attempt.SavedStep >= attempt.TotalSteps);
            if (!hasAllSteps && budget.ReasonToStop(pulse.ProcessSeconds, stepSeconds: 0, commit: null) is { } reason)
            {
                observer.OnWarning(reason);
                return RunEnding.BudgetReached;
            }

            session = await PrepareAsync(cache, checkpoints, lease, pulse, control, provider, budget, attempts).ConfigureAwait(false);
        }
        catch (Exception exception) when (exception is not OperationCanceledException)
        {
            await WithdrawAsync(checkpoints, lease, pulse, isNew).ConfigureAwait(false);
            throw;
        }

        using Device device = session.Device;
        using TrainingData data = session.Data;
        session.Open();
        bool wasFinished = lease.Previous?.State == LeaseState.Finished;
        try
        {
            if (isNew)
            {
                session.TakeStartingAdapter();
            }
            else
            {
                await session.RestoreAsync().ConfigureAwait(false);
            }

            session.TryLargest(isNew);

            // Not earlier: a resume that is refused leaves the run as it was. What a new run has fetched has the names of its commits only now.
            if (!isNew || !folder.ResolvedConfig.AsSpan().SequenceEqual(begun))
            {
                folder.WriteConfig();
                await checkpoints.WriteConfigAsync(folder.ResolvedConfig, control.Stop).ConfigureAwait(false);
            }
        }
        catch (Exception exception) when (exception is not OperationCanceledException)
        {
            await WithdrawAsync(checkpoints, lease, pulse, isNew).ConfigureAwait(false);
            throw;
        }

        try
        {
            RunEnding ending = await session.RunAsync().ConfigureAwait(false);
            Summary = session.Summary;
            Measurement = ending == RunEnding.Finished ? session.Measurement : null;
            IsFirstEnd = ending == RunEnding.Finished && !wasFinished;
            return ending;
        }
        catch (Exception exception) when (exception is not OperationCanceledException && !lease.Lost.IsCancellationRequested)
        {
            AttemptRecord failed = pulse.Take(AttemptRecord.Failed);
            AttemptSeen?.Invoke(failed);
            await TellAsync(() => checkpoints.WriteAttemptAsync(failed)).ConfigureAwait(false);
            await lease.ReleaseAsync(LeaseState.Released).ConfigureAwait(false);
            throw;
        }
    }

    /// <summary>Without compare-and-swap nothing keeps two machines apart: the user has to say that he does.</summary>
    private async Task<StoreAbilities> RequireAbilitiesAsync(IObjectStore store, CancellationToken stop)
    {
        StoreAbilities abilities = await store.ProbeAsync($"{config.RunName}/{CheckpointStore.ProbePrefix}", stop).ConfigureAwait(false);
        if (abilities.Lacking is { } lacking)
        {
            if (!config.Checkpoint.SingleWriter && !abilities.CompareAndSwap)
            {
                throw new TrainingSetupException(
                    $"{lacking} So two machines that start this run at once would spoil each other's work. Set checkpoint.single_writer: true if you see to it that only one works on it at a time, or use another place for checkpoint.uri.");
            }

            observer.OnNotice(abilities.CompareAndSwap ? lacking : $"{lacking} As checkpoint.single_writer says, nothing keeps a second machine away from this run.");
        }

        return abilities;
    }

    private async Task<RunLease> AcquireAsync(IObjectStore store, CheckpointStore checkpoints, StoreAbilities abilities, bool waits, CancellationToken stop) =>
        await RunLease.AcquireAsync(
            store,
            config.RunName,
            new LeaseRequest
            {
                Seconds = config.Checkpoint.LeaseSeconds,
                Waits = waits,
                IsSwapped = abilities.CompareAndSwap,
                EpochFloor = await checkpoints.HighestEpochAsync(stop).ConfigureAwait(false),
                Time = time,
                OnNotice = observer.OnNotice,
                OnWarning = observer.OnWarning,
            },
            stop).ConfigureAwait(false);

    /// <summary>Tells of this attempt every few seconds until it is cancelled.</summary>
    private async Task BeatAsync(RunPulse pulse, CancellationToken cancellation)
    {
        while (AttemptSeen is not null && !cancellation.IsCancellationRequested)
        {
            AttemptSeen(pulse.Take());
            try
            {
                await Task.Delay(Heartbeat, cancellation).ConfigureAwait(false);
            }
            catch (OperationCanceledException)
            {
                return;
            }
        }
    }

    /// <summary>Looks for requests of other terminals until it is cancelled; often where that costs nothing.</summary>
    private async Task ListenAsync(IObjectStore store, CheckpointStore checkpoints, RunControl control, CancellationToken cancellation)
    {
        TimeSpan pause = store is FolderStore ? TimeSpan.FromSeconds(0.5) : TimeSpan.FromSeconds(Math.Max(2, config.Checkpoint.LeaseSeconds / 3));
        while (!cancellation.IsCancellationRequested)
        {
            try
            {
                await Task.Delay(pause, cancellation).ConfigureAwait(false);
                foreach (RunRequest request in await checkpoints.RequestsAsync(cancellation).ConfigureAwait(false))
                {
                    control.RequestSave(request);
                    if (request.Kind == RunRequestKind.Stop)
                    {
                        control.RequestStop(StopReason.Request);
                    }
                }
            }
            catch (OperationCanceledException) when (cancellation.IsCancellationRequested)
            {
                return;
            }
            catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
            {
                // The renewals of the lease say that the store does not answer.
            }
        }
    }

    /// <summary>Says how this process ended, and gives the run back. A process that lost the run has not ended it, however far it came: the one that has it now does.</summary>
    private async Task<RunEnding> EndAsync(CheckpointStore checkpoints, RunLease lease, RunPulse pulse, RunEnding ending)
    {
        AttemptRecord last = pulse.Take((lease.Lost.IsCancellationRequested ? RunEnding.Interrupted : ending).ToString().ToLowerInvariant());
        AttemptSeen?.Invoke(last);
        if (!lease.Lost.IsCancellationRequested)
        {
            await TellAsync(async () =>
            {
                await checkpoints.WriteAttemptAsync(last).ConfigureAwait(false);
                await checkpoints.RemoveProbesAsync().ConfigureAwait(false);
                foreach (RunRequest request in await checkpoints.RequestsAsync().ConfigureAwait(false))
                {
                    await checkpoints.RemoveRequestAsync(request).ConfigureAwait(false);
                }
            }).ConfigureAwait(false);
            await lease.ReleaseAsync(ending switch
            {
                RunEnding.Finished => LeaseState.Finished,
                RunEnding.Stopped => LeaseState.Stopped,

                // What was finished stays so, also where this process did not come to say it again.
                _ => lease.Previous?.State == LeaseState.Finished ? LeaseState.Finished : LeaseState.Released,
            }).ConfigureAwait(false);
        }

        if (lease.Lost.IsCancellationRequested)
        {
            observer.OnWarning("Another process has taken this run over and goes on with it. This one stops and writes nothing more to it.");
            return RunEnding.Interrupted;
        }

        return ending;
    }

    /// <summary>What is said about the run for others: a store that does not take it is a warning and no more.</summary>
    private async Task TellAsync(Func<Task> write)
    {
        try
        {
            await write().ConfigureAwait(false);
        }
        catch (Exception exception) when (exception is IOException and not LeaseLostException or UnauthorizedAccessException)
        {
            observer.OnWarning($"How this process ended could not be written beside the checkpoints: {exception.Message}");
        }
        catch (LeaseLostException)
        {
            // The one that has the run now says how it goes on.
        }
    }

    /// <summary>A process that could not start leaves nothing: no new run, and no count of one that goes on.</summary>
    private async Task WithdrawAsync(CheckpointStore checkpoints, RunLease lease, RunPulse pulse, bool isNew)
    {
        AttemptSeen?.Invoke(pulse.Take(AttemptRecord.Failed));
        await lease.StopRenewingAsync().ConfigureAwait(false);
        try
        {
            await checkpoints.WithdrawAsync(isNew).ConfigureAwait(false);
            if (isNew)
            {
                folder.Withdraw();
            }
            else
            {
                await lease.ReleaseAsync(lease.Previous is { State: LeaseState.Finished or LeaseState.Stopped } before ? before.State : LeaseState.Released).ConfigureAwait(false);
            }
        }
        catch (IOException)
        {
            // A full disk or a lost connection may be why it failed; that is what is told.
        }
    }

    /// <summary>Data, plan, base: everything before the first computation.</summary>
    private async Task<Session> PrepareAsync(QuantizedCache? cache, CheckpointStore checkpoints, RunLease lease, RunPulse pulse, RunControl control, ProviderInfo provider, RunBudget budget, IReadOnlyList<AttemptRecord> attempts)
    {
        CancellationToken stop = control.Stop;
        config = FetchedSources.Fetch(folder.Config, SourceNeeds.Weights | SourceNeeds.Data, observer.OnNotice, stop);
        folder.Locate(config);
        ModelFolder.RequireFolder(config.BaseFolder);
        Tokenizer tokenizer = Vocabulary.TokenizerOf(config);
        ModelConfig shape = Vocabulary.ShapeOf(config, tokenizer);
        foreach (string notice in shape.Notices.Concat(tokenizer.Notices))
        {
            observer.OnNotice(notice);
        }

        DeviceSelection selection = DeviceSelection.ForRun(config.Device.Choice, config.Device.Threads);
        foreach (string notice in TrainedModel.WithoutEffect(config, selection.Platform))
        {
            observer.OnNotice(notice);
        }

        _ = TrainedModel.WithBase(config, shape);
        if (shape.Quantization is { } quantization)
        {
            observer.OnNotice($"{config.BaseModel} is quantized already, {quantization.Description}; it is taken as it is.");
        }

        phases.Enter(TrainingPhase.Tokenizing);
        TrainingData data = TrainingData.Load(config, tokenizer, shape.VocabSize, selection.Threads, Directory.Exists(config.OutputDir) ? config.OutputDir : Path.GetTempPath(), observer, stop);
        Device? device = null;
        try
        {
            using ModelFolder weights = ModelFolder.Open(config.BaseFolder);
            PlannedPasses passes = new(LargestMicroBatch.Of(config, data).Tokens, data.HeldOut, config.Data.SequenceLen);
            MemoryPlan plan = MemoryPlan.Measure(config, shape, weights, selection, passes);
            WorkPlan work = WorkPlan.Measure(config, shape, weights, selection, StepBins.Of(data), config.Batch.MicroBatchSize, data);
            pulse.Expects(HoursOf?.Invoke(new ExpectedRun(selection, work, weights.TotalBytes, phases.Seconds[TrainingPhase.Tokenizing])));

            phases.Enter(TrainingPhase.Loading);
            ReturnGarbage();
            long baseline = ProcessMemory.ResidentBytes();
            device = selection.Open(plan.Memory, MemoryAdvice.ForGpu(config, shape, plan), observer.OnNotice);
            observer.OnNotice(selection.Describe(device));
            string baseHash = HashOfBase(weights, cache is null ? path => ContentHash.OfFile(path, stop) : cache.HashOf);
            TrainedModel trained;
            try
            {
                trained = await LoadAsync(shape, weights, baseHash, cache, device, stop).ConfigureAwait(false);
            }
            catch (CudaException exception) when (exception.IsOutOfMemory)
            {
                throw new TrainingSetupException($"{exception.Message} {MemoryAdvice.ForGpu(config, shape, plan)}");
            }

            ReturnGarbage();
            return new Session
            {
                Config = config,
                Observer = observer,
                Folder = folder,
                Phases = phases,
                Started = started,
                Checkpoints = checkpoints,
                Lease = lease,
                Pulse = pulse,
                Control = control,
                Provider = provider,
                Budget = budget,
                Time = time,
                Attempts = attempts,
                Shape = shape,
                Tokenizer = tokenizer,
                Data = data,
                Trained = trained,
                Plan = plan,
                Work = work,
                WeightBytes = weights.TotalBytes,
                BaselineBytes = baseline,
                BaseHash = baseHash,
                Device = device,
            };
        }
        catch
        {
            device?.Dispose();
            data.Dispose();
            throw;
        }
    }

    /// <summary>What reading the data and the weights left behind goes back to the system before the peak, which the plan is about.</summary>
    private static void ReturnGarbage() => GC.Collect(GC.MaxGeneration, GCCollectionMode.Aggressive, blocking: true, compacting: true);

    /// <summary>The base with fresh adapters; as it was quantized before, where it was and is kept.</summary>
    private async Task<TrainedModel> LoadAsync(ModelConfig shape, ModelFolder weights, string baseHash, QuantizedCache? cache, Device device, CancellationToken stop)
    {
        bool quantizes = shape.Quantization is null && TrainedModel.FormatOf(config.Quantization) != BaseFormat.AsStored;
        bool isKept = cache is not null && quantizes && !TrainedModel.ChangesBase(config);
        string key = QuantizedBaseFile.KeyOf(baseHash, TrainedModel.FormatOf(config.Quantization), device.Platform);
        using QuantizedBaseFile? kept = isKept ? await cache!.FindAsync(key).ConfigureAwait(false) : null;
        bool isDamaged = false;
        TrainingPhase phase = quantizes && kept is null ? TrainingPhase.Quantizing : TrainingPhase.Loading;
        TrainedModel trained = TrainedModel.Build(
            config, shape, weights, device,
            (tensor, fraction) =>
            {
                stop.ThrowIfCancellationRequested();
                observer.OnProgress(new TrainingProgress { Phase = phase, Message = tensor, Fraction = fraction });
            },
            kept,
            why =>
            {
                isDamaged = true;
                phase = TrainingPhase.Quantizing;
                cache!.Reject(key, why);
            });
        if (kept is not null && !isDamaged)
        {
            observer.OnNotice($"The base was read as it was quantized before, from {kept.Path}.");
        }
        else if (isKept)
        {
            cache!.Keep(key, trained.Model);
        }

        foreach (string notice in trained.Model.Notices.Concat(trained.Adapters?.Notices ?? []))
        {
            observer.OnNotice(notice);
        }

        return trained;
    }

    /// <summary>SHA-256 over the names and the SHA-256 of the weight files and of config.json.</summary>
    private static string HashOfBase(ModelFolder weights, Func<string, string> hashOf)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (string path in weights.Files.Select(file => file.Path).Append(Path.Combine(weights.Path, "config.json")).Order(StringComparer.Ordinal))
        {
            hash.AppendData(Encoding.UTF8.GetBytes($"{Path.GetFileName(path)} {hashOf(path)}\n"));
        }

        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }
}
