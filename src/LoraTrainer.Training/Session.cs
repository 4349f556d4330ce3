using System.Diagnostics;
using System.Globalization;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Storage;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Interruptions;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Training;

/// <summary>The part of a run in which its model is in memory: restore, evaluate, train with checkpoints, evaluate, write.</summary>
internal sealed partial class Session
{
    // A stop that comes while nothing was saved yet must not be lost to a first save that never came.
    private static readonly TimeSpan FirstAutomaticSave = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan BetweenTries = TimeSpan.FromSeconds(10);
    private static readonly TimeSpan UploadNews = TimeSpan.FromMilliseconds(500);

    private readonly List<double> losses = [];
    private readonly List<double> secondsPerToken = [];
    private Trainer trainer = null!;
    private CheckpointWriter writer = null!;
    private TrainerState state = null!;
    private long lastCheckpoint = Stopwatch.GetTimestamp();
    private int lastCheckpointStep = -1;
    private bool isJudged;

    private EvaluationSchedule evaluations = null!;
    private EvaluationHistory history = null!;

    // What an evaluation during the training took last.
    private double evaluationSeconds;

    // The longest that a save has kept the steps waiting.
    private TimeSpan stall;

    public required TrainingConfig Config { get; init; }

    public required ITrainingObserver Observer { get; init; }

    public required RunFolder Folder { get; init; }

    public required PhaseClock Phases { get; init; }

    /// <summary>When the process began with the run, on <see cref="Stopwatch"/>.</summary>
    public required long Started { get; init; }

    public required CheckpointStore Checkpoints { get; init; }

    public required RunLease Lease { get; init; }

    public required RunPulse Pulse { get; init; }

    public required RunControl Control { get; init; }

    public required RunBudget Budget { get; init; }

    /// <summary>Who runs this machine, and how long ahead it says that it takes it back.</summary>
    public required ProviderInfo Provider { get; init; }

    public required TimeProvider Time { get; init; }

    /// <summary>Processes that worked on the run, this one included.</summary>
    public required IReadOnlyList<AttemptRecord> Attempts { get; init; }

    public required ModelConfig Shape { get; init; }

    public required Tokenizer Tokenizer { get; init; }

    public required TrainingData Data { get; init; }

    public required TrainedModel Trained { get; init; }

    public required MemoryPlan Plan { get; init; }

    /// <summary>The work of the whole run, for those who want to know how fast this device does it.</summary>
    public required WorkPlan Work { get; init; }

    /// <summary>Of the base's files.</summary>
    public required long WeightBytes { get; init; }

    /// <summary>Of the process, just before the model was loaded.</summary>
    public required long BaselineBytes { get; init; }

    /// <summary>SHA-256 over the base model's files.</summary>
    public required string BaseHash { get; init; }

    public required Device Device { get; init; }

    /// <summary>Filled where the run comes to its end.</summary>
    public RunSummary? Summary { get; private set; }

    /// <summary>What this process measured; null where its steps are too few to say anything.</summary>
    public RunMeasurement? Measurement
    {
        get
        {
            // The first step compiles code and touches memory for the first time.
            double[] steps = [.. secondsPerToken.Skip(1).Order()];
            return steps.Length < RunMeasurement.LeastSteps ? null : new RunMeasurement
            {
                Device = Device.Platform,
                Threads = Device.ThreadCount,
                Work = Work,
                WeightBytes = WeightBytes,
                SecondsPerToken = steps[steps.Length / 2],
                Steps = steps.Length,
                IsWhole = secondsPerToken.Count == trainer.TotalSteps,
                PhaseSeconds = Phases.Seconds,
            };
        }
    }

    private CancellationToken Stop => Control.Stop;

    /// <summary>So many evaluations in a row were no better that the training ends.</summary>
    private bool IsPlateau => Config.Evaluation.EarlyStoppingPatience is { } patience && history.WithoutImprovement >= patience;

    /// <summary>No step is left to do.</summary>
    private bool HasAllSteps => trainer.CompletedSteps >= trainer.TotalSteps || (IsPlateau && !IsEvaluationDue);

    private bool IsEvaluationDue => evaluations.IsDue(trainer.CompletedSteps) && history.At(trainer.CompletedSteps) is null;

    /// <summary>Makes what the steps need; to be called once, before anything else.</summary>
    public void Open()
    {
        trainer = new Trainer(Config, Trained, Data);
        trainer.TellOfGraphs(Observer.OnNotice, isBefore: true);
        evaluations = EvaluationSchedule.From(Config.Evaluation, Data);
        history = new EvaluationHistory(Config.Evaluation.EarlyStoppingThreshold, []);
        writer = new CheckpointWriter(Checkpoints, Config.Checkpoint.Keep, Observer.OnWarning, OnSafe);
        state = new TrainerState
        {
            Step = 0,
            TotalSteps = trainer.TotalSteps,
            Updates = 0,
            RunId = Lease.RunId,
            ConfigHash = Config.Hash,
            BaseHash = BaseHash,
            DataHash = Data.Train.ContentHash,
            Attempts = Attempts.Count,
            Losses = [],
        };
        Pulse.Opened(Device.Description, trainer.TotalSteps);
    }

    /// <summary>Called behind the training.</summary>
    private void OnSafe(int step, TimeSpan time)
    {
        Pulse.Saved(step);
        Observer.OnNotice(string.Create(CultureInfo.InvariantCulture, $"The checkpoint of step {step} is safe, after {time.TotalSeconds:0.0} s."));
        if (!isJudged && Provider.Judge(time) is { } judgement)
        {
            Observer.OnNotice(judgement);
        }

        isJudged = true;
    }

    /// <summary>Puts the values of the adapter that the config starts from in the place of fresh ones.</summary>
    /// <exception cref="Models.Formats.ModelFormatException">The folder is missing, or its adapter does not fit.</exception>
    public void TakeStartingAdapter()
    {
        if (Config.Adapter.StartFolder is { } path && Trained.Adapters is { } adapters)
        {
            using PeftAdapterFolder folder = PeftAdapterFolder.Open(path);
            RefuseOtherTokens(path);
            adapters.Load(folder);
            Observer.OnNotice($"The adapter starts from {path}.");
        }
    }

    /// <summary>Rows that were trained for some tokens must not become those of others.</summary>
    private void RefuseOtherTokens(string folder)
    {
        if (!Tokenizer.IsIn(folder))
        {
            return;
        }

        int known = Tokenizer.Load(Config.BaseFolder).VocabularySize;
        var adapters = Tokenizer.Load(folder);
        string[] theirs = Added(adapters), ours = Added(Tokenizer);
        if (!theirs.SequenceEqual(ours))
        {
            throw new TrainingSetupException(
                $"lora_model_dir: the adapter in {folder} was trained with {(theirs.Length == 0 ? "no added tokens" : $"the added tokens {Quoted(theirs)}")}, and this run has {(ours.Length == 0 ? "none" : Quoted(ours))}. Write tokens: [{(theirs.Length == 0 ? "" : Quoted(theirs))}].");
        }

        string[] Added(Tokenizer tokenizer) => [.. Enumerable.Range(known, Math.Max(0, tokenizer.VocabularySize - known)).Select(id => tokenizer.TokenOf(id) ?? "")];

        static string Quoted(IEnumerable<string> tokens) => string.Join(", ", tokens.Select(token => $"'{token}'"));
    }

    /// <summary>Goes on from the newest intact checkpoint, if there is one.</summary>
    public async Task RestoreAsync()
    {
        if (await Checkpoints.FindNewestIntactAsync(Observer.OnWarning, Stop).ConfigureAwait(false) is not { } newest)
        {
            if (Folder.HoldsResult)
            {
                throw new TrainingSetupException(
                    $"{Config.OutputDir} holds the result of this run, and no intact checkpoint of it is left in {Folder.CheckpointRoot}: going on would train it anew, over that result. Use the result as it is, or train again in another output_dir.");
            }

            Observer.OnNotice("There is no intact checkpoint of this run: it starts at step 0.");
            TakeStartingAdapter();
            return;
        }

        using StagingFolder staging = Folder.Stage();
        await Checkpoints.DownloadAsync(newest, staging.Path, Stop).ConfigureAwait(false);
        TrainerState saved = CheckpointFiles.ReadState(staging.Path);
        RefuseOtherInputs(saved);
        CheckpointFiles.Restore(staging.Path, Trained, Observer.OnNotice);
        Folder.RestoreLog(Path.Combine(staging.Path, CheckpointFiles.LogName));
        losses.AddRange(saved.Losses);
        history = new EvaluationHistory(Config.Evaluation.EarlyStoppingThreshold, saved.Evaluations);
        trainer.CompletedSteps = saved.Step;
        trainer.CompletedUpdates = saved.Updates;
        lastCheckpointStep = saved.Step;
        state = saved with { Attempts = Math.Max(Attempts.Count, saved.Attempts + 1), Losses = [] };
        Checkpoints.ContinueFrom(newest);
        Pulse.StartsAfter(saved.Step);

        // What a process was killed before deleting: a run that has no step left would never come to it.
        await Checkpoints.ApplyRetentionAsync(Config.Checkpoint.Keep, newest, Stop).ConfigureAwait(false);
        Observer.OnNotice($"Resumed after step {saved.Step} of {trainer.TotalSteps}, from the checkpoint {newest.Name}.");
    }

    public async Task<RunEnding> RunAsync()
    {
        using RunLog log = Folder.OpenLog(state.Step, history.Points.Count > 0 ? history.Points[^1].Step : 0);
        try
        {
            if (state.Step == 0 && state.EvaluationBefore is null)
            {
                state = state with { EvaluationBefore = Evaluate(Config.Evaluation.Before) };
            }

            if (Config.OnNonFinite == NonFiniteAction.Rollback && trainer.CompletedSteps == 0 && lastCheckpointStep < 0)
            {
                // The start is where a run goes back to before its first checkpoint by steps.
                Save();
            }

            await TrainAsync(log).ConfigureAwait(false);
            trainer.TellOfGraphs(Observer.OnNotice, isBefore: false);
            await SaveLastAsync().ConfigureAwait(false);
            if (!HasAllSteps || IsEvaluationDue || Lease.Lost.IsCancellationRequested)
            {
                return Control.Ending;
            }

            await WriteOutputsAsync().ConfigureAwait(false);
            return RunEnding.Finished;
        }
        catch (OperationCanceledException) when (Stop.IsCancellationRequested)
        {
            // Evaluations change nothing: what is worth keeping is what the last step left.
            if (trainer.CompletedSteps > 0)
            {
                await SaveLastAsync().ConfigureAwait(false);
            }

            return Control.Ending;
        }
        catch (CudaException exception)
        {
            await writer.FlushAsync().ConfigureAwait(false);
            SayWhereItGoesOn(exception.IsOutOfMemory);
            throw;
        }
        finally
        {
            // Whatever ended the steps: what they handed over before is worth keeping.
            await writer.FlushAsync().ConfigureAwait(false);
        }
    }

    private async Task TrainAsync(RunLog log)
    {
        Phases.Enter(TrainingPhase.Training);
        Observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Training, Step = trainer.CompletedSteps, TotalSteps = trainer.TotalSteps });
        double stepSeconds = 0;
        if (IsEvaluationDue)
        {
            // The process before this one was stopped when it came to it.
            EvaluateDuring(log);
        }

        while (!HasAllSteps && !Stop.IsCancellationRequested)
        {
            double seconds = Pulse.ProcessSeconds;
            if (Budget.Warning(seconds) is { } warning)
            {
                Observer.OnWarning(warning);
            }

            if (Budget.ReasonToStop(seconds, stepSeconds + (evaluations.IsDue(trainer.CompletedSteps + 1) ? evaluationSeconds : 0), writer.CommitTime) is { } reason)
            {
                Observer.OnWarning(reason);
                Control.RequestStop(StopReason.Budget);
                break;
            }

            try
            {
                StepResult step = trainer.Step();
                stepSeconds = step.Seconds;
                Did(step, log);
            }
            catch (NonFiniteException exception) when (Config.OnNonFinite == NonFiniteAction.Rollback)
            {
                await LeaveOutAsync(exception, log).ConfigureAwait(false);
            }

            if (IsEvaluationDue)
            {
                EvaluateDuring(log);
            }

            bool isAsked = Control.TakeSave(out RunRequest[] requests);
            if (lastCheckpointStep != trainer.CompletedSteps && (isAsked || IsCheckpointDue(trainer.CompletedSteps)))
            {
                Save();
                Phases.Enter(TrainingPhase.Training);
            }

            if (requests.Length > 0)
            {
                Answer(requests);
            }

            if (Config.Checkpoint.OnError == CheckpointErrorAction.Stop && writer.FirstFailure is { } failure && !Lease.Lost.IsCancellationRequested)
            {
                throw Lost(failure);
            }
        }

        if (IsPlateau && trainer.CompletedSteps < trainer.TotalSteps)
        {
            Pulse.EndsAt(trainer.CompletedSteps);
            Observer.OnNotice($"The training ends after step {trainer.CompletedSteps} of {trainer.TotalSteps}: {history.WithoutImprovement} evaluations in a row were no better than the best before them (early_stopping_patience).");
        }
    }

    private void Did(in StepResult step, RunLog log)
    {
        losses.Add(step.Loss);
        secondsPerToken.Add(step.Seconds / step.Tokens);
        state = state with
        {
            Step = step.Step,
            Updates = trainer.CompletedUpdates,
            Tokens = state.Tokens + step.Tokens,
            SupervisedTokens = state.SupervisedTokens + step.SupervisedTokens,
            TrainSeconds = state.TrainSeconds + step.Seconds,
        };
        Pulse.Did(step);
        if (step.Step % Config.LoggingSteps == 0 || step.Step == trainer.TotalSteps)
        {
            log.Write(step, Data.Order.EpochsBefore(step.Step - 1));
        }

        Tell(step);
    }

    /// <summary>
    /// Goes on without the step that is not finite. Nothing of it was applied, so the first time only its rows are left out. Where the step after that is not finite either
    /// the fault is in what is trained: the run goes back to the checkpoint of a multiple of every_steps and leaves out all since. Everything is decided by the numbers of steps,
    /// so that a resumed run does the same.
    /// </summary>
    private async Task LeaveOutAsync(NonFiniteException exception, RunLog log)
    {
        int failed = trainer.CompletedSteps + 1, applied = LastApplied;
        bool isAlone = applied == trainer.CompletedSteps;
        if (state.LeftOut.Count >= Config.MaxRollbacks)
        {
            throw new NonFiniteException(exception.Finding, $"The step was not applied. on_nonfinite: rollback has left out steps {state.LeftOut.Count} times in this run and gives up (max_rollbacks). A lower learning_rate or a smaller max_grad_norm usually helps.");
        }

        if (!isAlone && (applied == 0 || state.LeftOut[^1] is { } last && last.First < last.Last))
        {
            throw new NonFiniteException(exception.Finding, "The step was not applied. on_nonfinite: rollback gives up: the step before it was left out too, and there is no earlier state to go back to that is any better. A lower learning_rate or a smaller max_grad_norm usually helps.");
        }

        var leftOut = new LeftOutSteps(failed, failed, applied);
        if (!isAlone)
        {
            int back = AnchorBefore(applied);
            leftOut = new LeftOutSteps(back + 1, failed, back);
            await writer.FlushAsync().ConfigureAwait(false);
            using StagingFolder staging = Folder.Stage();
            if (!await Checkpoints.TryDownloadAsync(back, staging.Path, Observer.OnWarning, Stop).ConfigureAwait(false))
            {
                throw new NonFiniteException(exception.Finding, $"The step was not applied. on_nonfinite: rollback cannot go back to step {back}: there is no whole checkpoint of it.{(writer.Failure is { } failure ? $" {failure.Message}" : "")}");
            }

            CheckpointFiles.RestoreTensors(staging.Path, Trained);
            trainer.CompletedUpdates = CheckpointFiles.ReadState(staging.Path).Updates;
        }

        trainer.CompletedSteps = failed;
        losses.Add(double.NaN);
        state = state with { Step = failed, Updates = trainer.CompletedUpdates, LeftOut = [.. state.LeftOut, leftOut] };
        log.Write(leftOut, exception.Finding);
        string done = isAlone ? "Its rows are left out" : $"The run goes back to step {leftOut.BackTo} and leaves out all rows since";
        Observer.OnWarning($"{exception.Finding}. {done}; the next step is {failed + 1} ({state.LeftOut.Count} of at most {Config.MaxRollbacks} times).");
    }

    /// <summary>The step whose values the model has.</summary>
    private int LastApplied => state.LeftOut.Count > 0 && state.LeftOut[^1].Last == trainer.CompletedSteps ? state.LeftOut[^1].BackTo : trainer.CompletedSteps;

    /// <summary>The last checkpoint by steps that is older than the values of a step.</summary>
    private int AnchorBefore(int step) => step == 0 ? 0 : (step - 1) / Config.Checkpoint.EverySteps * Config.Checkpoint.EverySteps;

    /// <summary>Measures the held-out loss. The best so far becomes a checkpoint, which stays while no other is better.</summary>
    private void EvaluateDuring(RunLog log)
    {
        long start = Stopwatch.GetTimestamp();
        Phases.Enter(TrainingPhase.Evaluating);
        int step = trainer.CompletedSteps;
        EvaluationResult result = new Evaluator(Trained.Model, Data.HeldOut, Tokenizer, maxNewTokens: 0, trainer.LargestTokens).Evaluate(Observer, Stop);
        var point = new EvaluationPoint(step, result.Loss);
        history.Add(point);
        state = state with { Evaluations = [.. history.Points] };
        bool isBest = history.Best == point;
        evaluationSeconds = Stopwatch.GetElapsedTime(start).TotalSeconds;
        log.Write(point, Data.Order.EpochsBefore(step), result.Rows, evaluationSeconds);
        Observer.OnEvaluation(point, isBest);
        if (isBest && lastCheckpointStep != step)
        {
            Save();
        }

        Phases.Enter(TrainingPhase.Training);
    }

    private void Tell(in StepResult step)
    {
        var remaining = TimeSpan.FromSeconds((state.TrainSeconds / step.Step * (trainer.TotalSteps - step.Step)) + (evaluationSeconds * evaluations.After(step.Step)));
        double seconds = Pulse.ProcessSeconds;
        Observer.OnProgress(new TrainingProgress
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
            Elapsed = Stopwatch.GetElapsedTime(Started),
            Remaining = remaining,
            Fraction = (double)step.Step / trainer.TotalSteps,
            MoneySpent = Budget.Spent(seconds),
            MoneyForecast = Budget.Forecast(seconds, remaining),
            Currency = Budget.Currency,
        });
    }

    private bool IsCheckpointDue(int step)
    {
        TimeSpan since = Stopwatch.GetElapsedTime(lastCheckpoint);
        CheckpointOptions options = Config.Checkpoint;
        bool isDue = options.Interval == CheckpointInterval.Fixed
            && ((options.EverySteps > 0 && step % options.EverySteps == 0) || (options.EveryMinutes > 0 && since.TotalMinutes >= options.EveryMinutes));

        // Where a save does not fit into the notice, what was computed since the last one is lost each time: then too the interval is the one that loses least.
        bool mustBeOften = Provider.Grace is { } grace && writer.CommitTime is { } commit && !DeadlinePolicy.CanCommit(grace, commit);
        return isDue || ((options.Interval == CheckpointInterval.Auto || mustBeOften) && since >= BestInterval());
    }

    /// <summary>By Daly's formula, from what a save costs the steps and how often runs like this were interrupted; never before the last one can be safe.</summary>
    private TimeSpan BestInterval()
    {
        if (writer.CommitTime is not { } commit)
        {
            return FirstAutomaticSave;
        }

        double hours = Attempts.Sum(attempt => attempt.Seconds) / 3600 + Stopwatch.GetElapsedTime(Started).TotalHours;
        int interruptions = Attempts.Count(attempt => attempt.Epoch != Lease.Epoch && attempt.Ended is null or "interrupted");
        TimeSpan best = SaveIntervals.Daly(stall, SaveIntervals.MeanBetweenInterruptions(hours, interruptions));
        return best > commit ? best : commit;
    }

    /// <param name="wanted">As the config says.</param>
    /// <param name="knownLoss">Where it was measured before.</param>
    private EvaluationResult? Evaluate(bool wanted, double? knownLoss = null)
    {
        if (!wanted || Data.HeldOut.Count == 0)
        {
            return null;
        }

        Phases.Enter(TrainingPhase.Evaluating);
        return new Evaluator(Trained.Model, Data.HeldOut, Tokenizer, Config.Evaluation.MaxNewTokens, trainer.LargestTokens).Evaluate(Observer, Stop, knownLoss);
    }

    /// <summary>Writes the state down and hands it over: the training waits for no store.</summary>
    private void Save()
    {
        long start = Stopwatch.GetTimestamp();
        Phases.Enter(TrainingPhase.Saving);
        Observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Saving, Step = trainer.CompletedSteps, TotalSteps = trainer.TotalSteps });
        StagingFolder? staging = null;
        try
        {
            staging = Folder.Stage();
            CheckpointFiles.Write(staging.Path, Config, Trained, state with { Losses = [.. losses], TotalSeconds = state.TotalSeconds + Stopwatch.GetElapsedTime(Started).TotalSeconds }, Folder.LogFile);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            staging?.Dispose();
            writer.Fail(trainer.CompletedSteps, exception);
            lastCheckpoint = Stopwatch.GetTimestamp();
            return;
        }

        (IReadOnlyList<int> needs, bool isNeeded) = Needs(trainer.CompletedSteps);
        writer.Enqueue(trainer.CompletedSteps, staging, needs, isNeeded);
        TimeSpan took = Stopwatch.GetElapsedTime(start);
        stall = took > stall ? took : stall;
        Pulse.Stalled(took);
        lastCheckpoint = Stopwatch.GetTimestamp();
        lastCheckpointStep = trainer.CompletedSteps;
    }

    /// <summary>The checkpoints that one of this step refers to, and whether later ones may refer to it: the best so far, and those that the run may have to go back to.</summary>
    private (IReadOnlyList<int> Needs, bool IsNeeded) Needs(int step)
    {
        var needs = new SortedSet<int>();
        if (history.Best is { } best)
        {
            needs.Add(best.Step);
        }

        if (Config.OnNonFinite == NonFiniteAction.Rollback)
        {
            needs.Add(AnchorBefore(LastApplied));
            needs.Add(AnchorBefore(step + 1));
        }

        bool isNeeded = needs.Remove(step);
        return ([.. needs], isNeeded);
    }

    /// <summary>The state as it is becomes a checkpoint that is safe, before the process ends or goes on to its outputs.</summary>
    private async Task SaveLastAsync()
    {
        if (Lease.Lost.IsCancellationRequested)
        {
            return;
        }

        if (lastCheckpointStep != trainer.CompletedSteps)
        {
            if (Control.Notice?.TimeLeft is { } left && !DeadlinePolicy.CanCommit(left, writer.CommitTime))
            {
                Observer.OnWarning(string.Create(CultureInfo.InvariantCulture,
                    $"{left.TotalSeconds:0} s are left{(writer.CommitTime is { } commit ? $" and a checkpoint takes {commit.TotalSeconds:0.0} s" : string.Empty)}: none is begun. {(writer.Committed is { } last ? $"The run goes on from step {last.Step}." : "The run goes on from where this process began.")}"));
                return;
            }

            Save();
        }

        Task safe = writer.FlushAsync();
        while (await Task.WhenAny(safe, Task.Delay(UploadNews, Time)).ConfigureAwait(false) != safe)
        {
            (long arrived, long total) = writer.Progress;
            Observer.OnProgress(new TrainingProgress
            {
                Phase = TrainingPhase.Saving,
                Step = trainer.CompletedSteps,
                TotalSteps = trainer.TotalSteps,
                Message = $"{arrived / 1_000_000} of {total / 1_000_000} MB of the checkpoint are safe",
                Fraction = total > 0 ? (double)arrived / total : null,
            });
        }

        await safe.ConfigureAwait(false);
        if (writer.Failure is { } failure && !Lease.Lost.IsCancellationRequested)
        {
            throw Lost(failure);
        }
    }

    /// <summary>The requests are done as soon as what was handed over is safe.</summary>
    private void Answer(RunRequest[] requests) => _ = Task.Run(async () =>
    {
        await writer.FlushAsync().ConfigureAwait(false);
        foreach (RunRequest request in requests.Where(request => request.Kind == RunRequestKind.Save))
        {
            try
            {
                if (writer.Failure is null)
                {
                    await Checkpoints.RemoveRequestAsync(request).ConfigureAwait(false);
                    continue;
                }
            }
            catch (IOException)
            {
                // As where nothing could be saved: the request stays, and is done once more.
            }

            await Task.Delay(BetweenTries).ConfigureAwait(false);
            Control.Forget(request);
        }
    });

    private static IOException Lost(Exception failure) => new($"The state of the run could not be saved: {failure.Message}", failure) { HResult = failure.HResult };

    private void RefuseOtherInputs(TrainerState saved)
    {
        if (saved.BaseHash != BaseHash)
        {
            throw new TrainingSetupException($"{Config.BaseModel} is not the base model that this run was started with (its files have another SHA-256). Give the original with --set base_model=FOLDER, or the revision that it was with --set revision_of_model=COMMIT.");
        }

        if (saved.DataHash != Data.Train.ContentHash)
        {
            throw new TrainingSetupException("The training data are not those that this run was started with: their tokens have another SHA-256. Give the original files with --set datasets.0.path=FILE.");
        }
    }

    /// <summary>
    /// The model that the config wants goes to the top of the run's folder; where there were evaluations during the training, the last and the best one both stay: the
    /// other goes to a folder of its own.
    /// </summary>
    private async Task WriteOutputsAsync()
    {
        int step = trainer.CompletedSteps;
        EvaluationResult? after;
        string weights;
        string? bestFolder = null;
        if (history.Best is not { } best)
        {
            after = Evaluate(Config.Evaluation.After);
            weights = Write(null);
        }
        else if (Config.Evaluation.LoadBest)
        {
            Write(RunFolder.LastName);
            if (!await TryTakeBestAsync(best).ConfigureAwait(false))
            {
                throw new IOException($"The checkpoint of step {best.Step}, which had the best held-out loss, is not there any more. Go on without it, with the last one: --set load_best_model_at_end=false --force.");
            }

            after = Evaluate(Config.Evaluation.After, best.Loss);
            weights = Write(null);
            bestFolder = Config.OutputDir;
        }
        else
        {
            after = Evaluate(Config.Evaluation.After, history.At(step)?.Loss);
            weights = Write(null);
            if (await TryTakeBestAsync(best).ConfigureAwait(false))
            {
                bestFolder = Path.GetDirectoryName(Write(RunFolder.BestName));
            }
            else
            {
                Observer.OnWarning($"The checkpoint of step {best.Step}, which had the best held-out loss, is not there any more: {RunFolder.BestName}/ is not written.");
            }
        }

        WriteSummary(weights, after, bestFolder);

        string Write(string? within)
        {
            Phases.Enter(TrainingPhase.Saving);
            return Folder.WriteModel(Shape, Trained, Data.Template, within);
        }
    }

    /// <summary>Puts the values of the best evaluation into the model; its checkpoint has them. Nothing is trained after that.</summary>
    private async Task<bool> TryTakeBestAsync(EvaluationPoint best)
    {
        if (best.Step == trainer.CompletedSteps)
        {
            return true;
        }

        using StagingFolder staging = Folder.Stage();
        if (!await Checkpoints.TryDownloadAsync(best.Step, staging.Path, Observer.OnWarning, Stop).ConfigureAwait(false))
        {
            return false;
        }

        CheckpointFiles.RestoreTensors(staging.Path, Trained);
        return true;
    }

    private void WriteSummary(string weights, EvaluationResult? after, string? bestFolder)
    {
        double total = state.TotalSeconds + Stopwatch.GetElapsedTime(Started).TotalSeconds;
        Phases.Enter(TrainingPhase.Done);
        Summary = new RunSummary
        {
            RunName = Config.RunName,
            Steps = trainer.CompletedSteps,
            Tokens = state.Tokens,
            SupervisedTokens = state.SupervisedTokens,
            TotalSeconds = total,
            TrainSeconds = state.TrainSeconds,
            PhaseSeconds = Phases.Seconds,
            PeakBytes = ProcessMemory.PeakBytes(),
            BaselineBytes = BaselineBytes,
            ArenaBytes = Trained.Model.Device.Arena.HighWaterBytes,
            PlannedArenaBytes = Plan.ArenaBytes,
            HostBytes = Trained.Model.Device.HostArena.HighWaterBytes,
            PlannedHostBytes = Plan.HostBytes,
            ByKind = Enum.GetValues<MemoryKind>().ToDictionary(kind => kind, Trained.Model.Device.Arena.HighWaterOf),
            LeftOut = state.LeftOut,
            FirstLoss = losses.Where(double.IsFinite).Cast<double?>().FirstOrDefault(),
            LastLoss = losses.Where(double.IsFinite).Cast<double?>().LastOrDefault(),
            Before = state.EvaluationBefore,
            After = after,
            Evaluations = history.Points,
            Best = history.Best is { } best && bestFolder is not null ? (best, bestFolder) : null,
            StoppedEarly = trainer.CompletedSteps < trainer.TotalSteps,
            AdapterPath = weights,
            AdapterSha256 = ContentHash.OfFile(weights),
            TrainableParameters = Trained.Model.Parameters.TrainableCount,
            Cost = Budget.Cost(Pulse.ProcessSeconds),
            Attempts = state.Attempts,
        };
        Folder.WriteSummary(Summary);
        Observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Done, Step = trainer.CompletedSteps, TotalSteps = trainer.CompletedSteps, Elapsed = Stopwatch.GetElapsedTime(Started) });
    }
}
