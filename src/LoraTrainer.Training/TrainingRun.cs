using System.Diagnostics;
using System.Security.Cryptography;
using System.Text;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Training;

/// <summary>How a run ended.</summary>
public enum RunEnding
{
    /// <summary>All steps are done and the outputs are written.</summary>
    Finished,

    /// <summary>Stopped in good order by a signal, after a checkpoint.</summary>
    Interrupted,
}

/// <summary>
/// One training run from config to adapter: read the data, plan the memory, load the base, evaluate, train with checkpoints, evaluate, write.
/// A run that was stopped anywhere goes on from its newest checkpoint, and ends with the same bytes.
/// </summary>
public sealed class TrainingRun
{
    private const string LessMemory = "Less is needed with a smaller micro_batch_size or sequence_len, gradient_checkpointing: true or adapter: qlora.";

    private readonly TrainingConfig config;
    private readonly ITrainingObserver observer;
    private readonly TimeProvider time;
    private readonly RunFolder folder;
    private readonly long started;
    private readonly PhaseClock phases;
    private int attempt;

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

    /// <summary>What the run came to; filled when <see cref="RunAsync"/> returns.</summary>
    public RunSummary? Summary { get; private set; }

    /// <summary>Runs to the end, or until <paramref name="stop"/> asks for a stop in good order.</summary>
    /// <param name="resume">Go on with the run that is in the folder; otherwise the folder must be free.</param>
    /// <param name="force">Go on although settings that decide the result have changed.</param>
    /// <param name="stop">The first Ctrl-C or SIGTERM.</param>
    /// <exception cref="TrainingSetupException">The run cannot start as it was asked for.</exception>
    public async Task<RunEnding> RunAsync(bool resume, bool force, CancellationToken stop)
    {
        observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Starting });
        IReadOnlyList<string> differences = folder.Check(resume, force);
        using RunLock claimed = folder.Claim();
        bool isNew = !folder.HoldsRun;
        if (!resume && !isNew)
        {
            // Another process started this very run between the check and the claim.
            folder.Check(resume, force);
        }

        foreach (string difference in differences)
        {
            observer.OnNotice(difference);
        }

        Session session;
        try
        {
            if (isNew)
            {
                folder.WriteConfig();
            }

            attempt = folder.CountAttempt(isNew);
            session = Prepare(stop);
        }
        catch (Exception exception) when (exception is not OperationCanceledException)
        {
            Withdraw(isNew);
            throw;
        }

        using Device device = session.Device;
        RunEnding ending = await session.RunAsync(isNew, stop).ConfigureAwait(false);
        Summary = session.Summary;
        return ending;
    }

    /// <summary>A process that could not start leaves nothing: no new run, and no count of one that goes on.</summary>
    private void Withdraw(bool isNew)
    {
        if (isNew)
        {
            folder.Withdraw();
        }
        else if (attempt > 0)
        {
            try
            {
                folder.StoreAttempts(attempt - 1);
            }
            catch (IOException)
            {
                // A full disk may be why it failed; that is what is told, and the count stays one too high.
            }
        }
    }

    /// <summary>Data, plan, base: everything before the first computation.</summary>
    private Session Prepare(CancellationToken stop)
    {
        ModelFolder.RequireFolder(config.BaseModel);
        ModelConfig shape = ModelConfig.Parse(config.BaseModel);
        Tokenizer tokenizer = Tokenizer.Load(config.BaseModel);
        foreach (string notice in shape.Notices.Concat(tokenizer.Notices))
        {
            observer.OnNotice(notice);
        }

        DeviceSelection selection = DeviceSelection.ForRun(config.Device.Choice, config.Device.Threads);
        phases.Enter(TrainingPhase.Tokenizing);
        TrainingData data = TrainingData.Load(config, tokenizer, shape.VocabSize, selection.Threads, observer, stop);
        using ModelFolder weights = ModelFolder.Open(config.BaseModel);
        PlannedPasses passes = new(Trainer.LargestMicroBatch(config, data).Tokens, data.HeldOut, config.Data.SequenceLen);
        MemoryPlan plan = MemoryPlan.Measure(config, shape, weights, selection, passes);

        phases.Enter(TrainingPhase.Loading);
        ReturnGarbage();
        long baseline = ProcessMemory.ResidentBytes();
        Device device = selection.Open(plan.ArenaBytes, LessMemory, observer.OnNotice);
        try
        {
            observer.OnNotice(selection.Describe(device));
            TrainedModel trained = Load(shape, weights, device);
            ReturnGarbage();
            return new Session(this, shape, tokenizer, data, trained, plan, baseline, HashOfBase(weights), device);
        }
        catch
        {
            device.Dispose();
            throw;
        }
    }

    /// <summary>What reading the data and the weights left behind goes back to the system before the peak, which the plan is about.</summary>
    private static void ReturnGarbage() => GC.Collect(GC.MaxGeneration, GCCollectionMode.Aggressive, blocking: true, compacting: true);

    private TrainedModel Load(ModelConfig shape, ModelFolder weights, Device device)
    {
        TrainedModel trained = TrainedModel.Build(config, shape, weights, device, (tensor, fraction) =>
            observer.OnProgress(new TrainingProgress { Phase = config.Quantization.LoadIn4Bit ? TrainingPhase.Quantizing : TrainingPhase.Loading, Message = tensor, Fraction = fraction }));
        foreach (string notice in trained.Adapters?.Notices ?? [])
        {
            observer.OnNotice(notice);
        }

        return trained;
    }

    /// <summary>SHA-256 over the names, sizes and SHA-256 of the weight files and of config.json.</summary>
    private static string HashOfBase(ModelFolder weights)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (string path in weights.Files.Select(file => file.Path).Append(Path.Combine(weights.Path, "config.json")).Order(StringComparer.Ordinal))
        {
            hash.AppendData(Encoding.UTF8.GetBytes($"{Path.GetFileName(path)} {ContentHash.OfFile(path)}\n"));
        }

        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }

    /// <summary>The part of a run in which its model is in memory.</summary>
    private sealed class Session
    {
        private readonly TrainingRun run;
        private readonly TrainingConfig config;
        private readonly ITrainingObserver observer;
        private readonly ModelConfig shape;
        private readonly Tokenizer tokenizer;
        private readonly TrainingData data;
        private readonly TrainedModel trained;
        private readonly MemoryPlan plan;
        private readonly long baselineBytes;
        private readonly string baseHash;
        private readonly Trainer trainer;
        private readonly CheckpointStore checkpoints;
        private readonly List<double> losses = [];
        private TrainerState state;
        private long lastCheckpoint = Stopwatch.GetTimestamp();
        private int lastCheckpointStep = -1;

        public Session(TrainingRun run, ModelConfig shape, Tokenizer tokenizer, TrainingData data, TrainedModel trained, MemoryPlan plan, long baselineBytes, string baseHash, Device device)
        {
            this.run = run;
            config = run.config;
            observer = run.observer;
            this.shape = shape;
            this.tokenizer = tokenizer;
            this.data = data;
            this.trained = trained;
            this.plan = plan;
            this.baselineBytes = baselineBytes;
            this.baseHash = baseHash;
            Device = device;
            trainer = new Trainer(config, trained, data);
            checkpoints = new CheckpointStore(new FolderStore(run.folder.CheckpointRoot), config.RunName, epoch: 1, run.time);
            state = new TrainerState
            {
                Step = 0,
                TotalSteps = trainer.TotalSteps,
                RunId = Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(16)),
                ConfigHash = config.Hash,
                BaseHash = baseHash,
                DataHash = data.Train.ContentHash,
                Attempts = run.attempt,
                Losses = [],
            };
        }

        public Device Device { get; }

        public RunSummary? Summary { get; private set; }

        public async Task<RunEnding> RunAsync(bool isNew, CancellationToken stop)
        {
            if (!isNew)
            {
                try
                {
                    await RestoreAsync(stop).ConfigureAwait(false);
                }
                catch (Exception exception) when (exception is not OperationCanceledException)
                {
                    run.Withdraw(isNew);
                    throw;
                }

                // Not earlier: a resume that is refused leaves the run as it was.
                run.folder.WriteConfig();
            }

            using RunLog log = run.folder.OpenLog(state.Step);
            try
            {
                if (state.Step == 0 && state.EvaluationBefore is null)
                {
                    state = state with { EvaluationBefore = Evaluate(config.Evaluation.Before, stop) };
                }

                await TrainAsync(log, stop).ConfigureAwait(false);
                if (lastCheckpointStep != trainer.CompletedSteps)
                {
                    await SaveAsync().ConfigureAwait(false);
                }

                if (trainer.CompletedSteps < trainer.TotalSteps)
                {
                    return RunEnding.Interrupted;
                }

                EvaluationResult? after = Evaluate(config.Evaluation.After, stop);
                WriteOutputs(after);
                return RunEnding.Finished;
            }
            catch (OperationCanceledException) when (stop.IsCancellationRequested)
            {
                // Evaluations change nothing: what is worth keeping is what the last step left.
                if (trainer.CompletedSteps > 0 && lastCheckpointStep != trainer.CompletedSteps)
                {
                    await SaveAsync().ConfigureAwait(false);
                }

                return RunEnding.Interrupted;
            }
        }

        private async Task TrainAsync(RunLog log, CancellationToken stop)
        {
            run.phases.Enter(TrainingPhase.Training);
            observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Training, Step = trainer.CompletedSteps, TotalSteps = trainer.TotalSteps });
            while (trainer.CompletedSteps < trainer.TotalSteps && !stop.IsCancellationRequested)
            {
                StepResult step = trainer.Step();
                losses.Add(step.Loss);
                state = state with
                {
                    Step = step.Step,
                    Tokens = state.Tokens + step.Tokens,
                    SupervisedTokens = state.SupervisedTokens + step.SupervisedTokens,
                    TrainSeconds = state.TrainSeconds + step.Seconds,
                };
                if (step.Step % config.LoggingSteps == 0 || step.Step == trainer.TotalSteps)
                {
                    log.Write(step, data.Order.EpochsBefore(step.Step - 1));
                }

                Tell(step);
                if (IsCheckpointDue(step.Step))
                {
                    await SaveAsync().ConfigureAwait(false);
                    run.phases.Enter(TrainingPhase.Training);
                }
            }
        }

        private void Tell(in StepResult step)
        {
            double perStep = state.TrainSeconds / step.Step;
            observer.OnProgress(new TrainingProgress
            {
                Phase = TrainingPhase.Training,
                Step = step.Step,
                TotalSteps = trainer.TotalSteps,
                Loss = step.Loss,
                LearningRate = step.LearningRate,
                GradientNorm = step.GradientNorm,
                TokensPerSecond = step.Tokens / step.Seconds,
                SupervisedTokensPerSecond = step.SupervisedTokens / step.Seconds,
                MemoryBytes = ProcessMemory.ResidentBytes(),
                Elapsed = Stopwatch.GetElapsedTime(run.started),
                Remaining = TimeSpan.FromSeconds(perStep * (trainer.TotalSteps - step.Step)),
                Fraction = (double)step.Step / trainer.TotalSteps,
            });
        }

        private bool IsCheckpointDue(int step) =>
            (config.Checkpoint.EverySteps > 0 && step % config.Checkpoint.EverySteps == 0)
            || (config.Checkpoint.EveryMinutes > 0 && Stopwatch.GetElapsedTime(lastCheckpoint).TotalMinutes >= config.Checkpoint.EveryMinutes);

        private EvaluationResult? Evaluate(bool wanted, CancellationToken stop)
        {
            if (!wanted || data.HeldOut.Count == 0)
            {
                return null;
            }

            run.phases.Enter(TrainingPhase.Evaluating);
            int tokens = Trainer.LargestMicroBatch(config, data).Tokens;
            return new Evaluator(trained.Model, data.HeldOut, tokenizer, config.Evaluation.MaxNewTokens, tokens).Evaluate(observer, stop);
        }

        private async Task SaveAsync()
        {
            run.phases.Enter(TrainingPhase.Saving);
            observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Saving, Step = trainer.CompletedSteps, TotalSteps = trainer.TotalSteps });
            using StagingFolder staging = run.folder.Stage();
            CheckpointFiles.Write(staging.Path, config, trained, state with { Losses = [.. losses], TotalSeconds = state.TotalSeconds + Stopwatch.GetElapsedTime(run.started).TotalSeconds });
            Checkpoint saved = await checkpoints.SaveAsync(trainer.CompletedSteps, staging.Path).ConfigureAwait(false);
            await checkpoints.ApplyRetentionAsync(config.Checkpoint.Keep, saved).ConfigureAwait(false);
            lastCheckpoint = Stopwatch.GetTimestamp();
            lastCheckpointStep = trainer.CompletedSteps;
        }

        private async Task RestoreAsync(CancellationToken stop)
        {
            if (await checkpoints.FindNewestIntactAsync(observer.OnWarning, stop).ConfigureAwait(false) is not { } newest)
            {
                observer.OnNotice("There is no intact checkpoint of this run: it starts at step 0.");
                return;
            }

            using StagingFolder staging = run.folder.Stage();
            await checkpoints.DownloadAsync(newest, staging.Path, stop).ConfigureAwait(false);
            TrainerState saved = CheckpointFiles.ReadState(staging.Path);
            RefuseOtherInputs(saved);
            CheckpointFiles.Restore(staging.Path, trained, observer.OnNotice);
            losses.AddRange(saved.Losses);
            trainer.CompletedSteps = saved.Step;
            lastCheckpointStep = saved.Step;
            state = saved with { Attempts = Math.Max(run.attempt, saved.Attempts + 1), Losses = [] };
            if (state.Attempts > run.attempt)
            {
                // The checkpoints came here without the count.
                run.folder.StoreAttempts(state.Attempts);
            }

            // What a process was killed before deleting: a run that has no step left would never come to it.
            await checkpoints.ApplyRetentionAsync(config.Checkpoint.Keep, newest, stop).ConfigureAwait(false);
            observer.OnNotice($"Resumed after step {saved.Step} of {trainer.TotalSteps}, from the checkpoint {newest.Name}.");
        }

        private void RefuseOtherInputs(TrainerState saved)
        {
            if (saved.BaseHash != baseHash)
            {
                throw new TrainingSetupException($"{config.BaseModel} is not the base model that this run was started with (its files have another SHA-256). Give the original with --set base_model=FOLDER.");
            }

            if (saved.DataHash != data.Train.ContentHash)
            {
                throw new TrainingSetupException("The training data are not those that this run was started with: their tokens have another SHA-256. Give the original files with --set datasets.0.path=FILE.");
            }
        }

        private void WriteOutputs(EvaluationResult? after)
        {
            run.phases.Enter(TrainingPhase.Saving);
            string weights = run.folder.WriteModel(config, shape, trained);
            double total = state.TotalSeconds + Stopwatch.GetElapsedTime(run.started).TotalSeconds;
            run.phases.Enter(TrainingPhase.Done);
            Summary = new RunSummary
            {
                RunName = config.RunName,
                Steps = trainer.CompletedSteps,
                Tokens = state.Tokens,
                SupervisedTokens = state.SupervisedTokens,
                TotalSeconds = total,
                TrainSeconds = state.TrainSeconds,
                PhaseSeconds = run.phases.Seconds,
                PeakBytes = ProcessMemory.PeakBytes(),
                BaselineBytes = baselineBytes,
                ArenaBytes = trained.Model.Device.Arena.HighWaterBytes,
                PlannedArenaBytes = plan.ArenaBytes,
                ByKind = Enum.GetValues<MemoryKind>().ToDictionary(kind => kind, trained.Model.Device.Arena.HighWaterOf),
                FirstLoss = losses.Count > 0 ? losses[0] : null,
                LastLoss = losses.Count > 0 ? losses[^1] : null,
                Before = state.EvaluationBefore,
                After = after,
                AdapterPath = weights,
                AdapterSha256 = ContentHash.OfFile(weights),
                TrainableParameters = trained.Model.Parameters.TrainableCount,
                Cost = RunCost.Of(config.Cost, TimeSpan.FromSeconds(total)),
                Attempts = state.Attempts,
            };
            run.folder.WriteSummary(Summary);
            observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Done, Step = trainer.CompletedSteps, TotalSteps = trainer.TotalSteps, Elapsed = Stopwatch.GetElapsedTime(run.started) });
        }
    }
}
