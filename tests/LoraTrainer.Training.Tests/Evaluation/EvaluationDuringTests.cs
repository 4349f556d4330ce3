using System.Text.Json;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Storage;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests.Evaluation;

/// <summary>Whole runs that are evaluated on the way: what is measured, which model is kept where, when they end, and that an interruption changes none of it.</summary>
public class EvaluationDuringTests
{
    private const string Adapter = "adapter_model.safetensors";

    /// <summary>A rate that rises until the model is spoilt, so that the last one is not the best.</summary>
    private static readonly (string, object?)[] GettingWorse = [("learning_rate", "0.9"), ("lora_alpha", 64), ("lr_scheduler", "constant_with_warmup"), ("warmup_steps", 15)];

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    [Fact]
    public async Task Losses_AreThoseOfTheModelOnItsRowsByTokens()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        (TrainingConfig config, RunSummary summary) = await RunAsync(folder, ("eval_steps", 5), ("learning_rate", "3e-2"));

        Assert.Equal([5, 10, 15], summary.Evaluations.Select(point => point.Step));
        Assert.Equal(summary.Evaluations.MinBy(point => point.Loss), summary.Best!.Value.Point);

        // The logged losses are those of the checkpoints' adapters, row by row, weighted by the tokens that count.
        using var reference = new TinyTraining(folder.Path, ("learning_rate", "3e-2"));
        foreach (EvaluationPoint point in new[] { summary.Evaluations[^1], summary.Best.Value.Point })
        {
            string adapter = point == summary.Evaluations[^1] ? config.OutputDir : Path.Combine(config.OutputDir, "best");
            using Models.Adapters.PeftAdapterFolder saved = Models.Adapters.PeftAdapterFolder.Open(adapter);
            reference.Trained.Adapters!.Load(saved);
            double sum = 0;
            int tokens = 0;
            foreach (HeldOutRow row in reference.Data.HeldOut)
            {
                int scored = row.IsSupervised[1..].Count(counts => counts);
                sum += scored * new Evaluator(reference.Trained.Model, [row], Tokenizer.Load(config.BaseModel), maxNewTokens: 0, row.Tokens.Length).Evaluate(SilentObserver.Instance, Cancellation).Loss;
                tokens += scored;
            }

            Assert.Equal(sum / tokens, point.Loss, 1e-6);
        }

        using JsonDocument written = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(config.OutputDir, "summary.json")));
        JsonElement evaluation = written.RootElement.GetProperty("evaluation");
        Assert.Equal(3, evaluation.GetProperty("during").GetArrayLength());
        Assert.Equal(summary.Best.Value.Point.Loss, evaluation.GetProperty("best").GetProperty("loss").GetDouble());
        Assert.Equal(Path.Combine(config.OutputDir, "best"), evaluation.GetProperty("best").GetProperty("path").GetString());
        Assert.False(evaluation.GetProperty("stopped_early").GetBoolean());
        Assert.Equal(summary.Evaluations.Select(point => (point.Step, point.Loss)), Logged(config));
        Assert.Equal(summary.Evaluations[^1].Loss, summary.After!.Value.Loss);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task BestAndLast_AreBothKept(bool loadBest)
    {
        using TemporaryFolder folder = TinyTraining.Folder();

        (TrainingConfig config, RunSummary summary) = await RunAsync(folder, [.. GettingWorse, ("eval_steps", 1), ("load_best_model_at_end", loadBest ? "true" : "false"), ("checkpoint", "{every_steps: 1, keep: 1}")]);

        EvaluationPoint best = summary.Best!.Value.Point;
        Assert.InRange(best.Step, 1, 14);
        Dictionary<int, string> checkpoints = Directory.EnumerateDirectories(Path.Combine(config.OutputDir, "checkpoints", "tiny"), "step-*").ToDictionary(path => int.Parse(Path.GetFileName(path).Split('-')[1]));
        Assert.Equal([best.Step, 15], checkpoints.Keys.Order());

        string top = Hash(config.OutputDir), other = Hash(Path.Combine(config.OutputDir, loadBest ? "last" : "best"));
        Assert.Equal(Hash(checkpoints[loadBest ? best.Step : 15]), top);
        Assert.Equal(Hash(checkpoints[loadBest ? 15 : best.Step]), other);
        Assert.NotEqual(top, other);
        Assert.Equal(loadBest ? config.OutputDir : Path.Combine(config.OutputDir, "best"), summary.Best.Value.Folder);
        Assert.False(Directory.Exists(Path.Combine(config.OutputDir, loadBest ? "best" : "last")));
        Assert.True(File.Exists(Path.Combine(config.OutputDir, loadBest ? "last" : "best", "tokenizer.json")));
        Assert.Equal(loadBest ? best.Loss : summary.Evaluations[^1].Loss, summary.After!.Value.Loss);
    }

    [Fact]
    public async Task Plateau_EndsTheRunInGoodOrder()
    {
        using TemporaryFolder folder = TinyTraining.Folder();

        // No loss is better by so much, so the third evaluation is the second one without improvement.
        (TrainingConfig config, RunSummary summary) = await RunAsync(folder, ("eval_steps", 2), ("early_stopping_patience", 2), ("early_stopping_threshold", 1000));

        Assert.Equal((6, 3, true), (summary.Steps, summary.Evaluations.Count, summary.StoppedEarly));
        Assert.True(summary.ArenaBytes <= summary.PlannedArenaBytes);
        RunStatus status = await RunStatus.ReadAsync(config.OutputDir, TimeProvider.System, _ => { }, Cancellation);
        Assert.Equal((RunState.Finished, 6, 6), (status.State, status.Step, status.TotalSteps));

        // Whoever resumes it finds nothing to do.
        File.Delete(Path.Combine(config.OutputDir, Adapter));
        var again = new TrainingRun(config, SilentObserver.Instance, TimeProvider.System);
        Assert.Equal(RunEnding.Finished, await again.RunAsync(resume: true, force: false, evenIfStopped: false, Cancellation));
        Assert.Equal((6, summary.AdapterSha256), (again.Summary!.Steps, again.Summary.AdapterSha256));
    }

    [Theory]
    [InlineData("best", 6, 8, 9)]
    [InlineData("best", 11, 2, 17)]
    [InlineData("plateau", 5, 8, 3)]
    [InlineData("full", 9, 5, 12)]
    public async Task Interrupted_AnywhereAndResumed_IsTheSameRun(string variant, params int[] moments)
    {
        (string, object?)[] changes = variant switch
        {
            "plateau" => [.. GettingWorse, ("eval_steps", 1), ("early_stopping_patience", 2)],
            "full" => [("adapter", null), ("lora_r", null), ("lora_alpha", null), ("lora_dropout", null), ("lora_target_linear", null), ("eval_steps", 3), ("load_best_model_at_end", "true"), ("learning_rate", "0.3"), ("lr_scheduler", "constant_with_warmup"), ("warmup_steps", 15)],
            _ => [.. GettingWorse, ("eval_steps", 2), ("checkpoint", "{every_steps: 4, keep: 1}")],
        };
        using TemporaryFolder folder = TinyTraining.Folder();
        (TrainingConfig whole, RunSummary expected) = await RunAsync(folder, [.. changes, ("output_dir", folder.File("whole"))]);
        Assert.True(expected.Best!.Value.Point.Step < expected.Steps, "the best model is the last one: it proves little");
        Assert.Equal(variant == "plateau", expected.StoppedEarly);

        TrainingConfig config = Config(folder, [.. changes, ("output_dir", folder.File("cut"))]);
        for (int i = 0; i < moments.Length; i++)
        {
            using var stop = new CancellationTokenSource();
            var cut = new TrainingRun(config, new Interrupter(stop, moments[i]), TimeProvider.System);
            Assert.Equal(RunEnding.Interrupted, await cut.RunAsync(resume: i > 0, force: false, evenIfStopped: false, stop.Token));
        }

        var run = new TrainingRun(config, SilentObserver.Instance, TimeProvider.System);
        Assert.Equal(RunEnding.Finished, await run.RunAsync(resume: true, force: false, evenIfStopped: false, Cancellation));
        Assert.Equal(expected.Evaluations, run.Summary!.Evaluations);
        Assert.Equal(expected.AdapterSha256, run.Summary.AdapterSha256);
        Assert.Empty(await RunComparison.DifferencesAsync(whole, config, _ => { }));
    }

    [Fact]
    public async Task Retention_KeepsWhatTheKeptOnesNeed()
    {
        using var folder = new TemporaryFolder();
        Directory.CreateDirectory(folder.File("files"));
        File.WriteAllText(folder.File("files/x"), "x");
        var store = new CheckpointStore(new FolderStore(folder.File("root")), "run", 1, TimeProvider.System);
        Checkpoint two = await store.SaveAsync(2, folder.File("files"), cancellation: Cancellation), three = await store.SaveAsync(3, folder.File("files"), [2], cancellation: Cancellation);
        await store.SaveAsync(4, folder.File("files"), [2], cancellation: Cancellation);
        Checkpoint five = await store.SaveAsync(5, folder.File("files"), [3], cancellation: Cancellation);
        await store.ApplyRetentionAsync(2, five, Cancellation);

        // 5 and 4 are the newest; 5 needs 3 and 4 needs 2.
        Assert.Equal([5, 4, 3, 2], (await store.ListAsync(_ => { }, Cancellation)).Select(item => item.Step));
        await store.ApplyRetentionAsync(1, five, Cancellation);
        Assert.Equal([5, 3], (await store.ListAsync(_ => { }, Cancellation)).Select(item => item.Step));
        Assert.Equal([3], (await store.FindNewestIntactAsync(_ => { }, Cancellation))!.Needs);

        Directory.CreateDirectory(folder.File("copy"));
        Assert.True(await store.TryDownloadAsync(3, folder.File("copy"), _ => { }, Cancellation));
        var told = new List<string>();
        File.AppendAllText(folder.File($"root/run/{three.Name}/x"), "y");
        Assert.False(await store.TryDownloadAsync(3, folder.File("copy"), told.Add, Cancellation));
        Assert.Contains("x is not what its manifest says", Assert.Single(told), StringComparison.Ordinal);
        Assert.NotEqual(two.Name, three.Name);
    }

    [Fact]
    public async Task Writer_SavesNothingThatNeedsWhatIsNotSafe()
    {
        using var folder = new TemporaryFolder();
        var faulty = new Checkpoints.FaultyStore(new FolderStore(folder.File("root")));
        var told = new List<string>();
        var writer = new CheckpointWriter(new CheckpointStore(faulty, "run", 1, TimeProvider.System), keep: 9, told.Add, (_, _) => { });
        faulty.Cut();
        writer.Enqueue(1, Staged("1"), [], isNeeded: true);
        await writer.FlushAsync();
        writer.Enqueue(2, Staged("2"), [1], isNeeded: false);
        await writer.FlushAsync();
        Assert.Null(writer.Committed);
        Assert.NotNull(writer.Failure);

        // The first is tried again before the third, and the second, which was not safe, is not.
        faulty.Mend();
        writer.Enqueue(3, Staged("3"), [1], isNeeded: false);
        await writer.FlushAsync();
        Assert.Equal([3, 1], await StepsAsync());
        Assert.Equal(3, writer.Committed!.Step);
        Assert.Null(writer.Failure);

        // One that nobody needs any more is not tried again.
        faulty.Cut();
        writer.Enqueue(4, Staged("4"), [1], isNeeded: true);
        await writer.FlushAsync();
        faulty.Mend();
        writer.Enqueue(5, Staged("5"), [], isNeeded: true);
        await writer.FlushAsync();
        Assert.Equal([5, 3, 1], await StepsAsync());
        Assert.Equal(["root"], Directory.EnumerateFileSystemEntries(folder.Path).Select(path => Path.GetFileName(path)));

        StagingFolder Staged(string name)
        {
            var staged = new StagingFolder(folder.File(name));
            File.WriteAllText(Path.Combine(staged.Path, "x"), name);
            return staged;
        }

        async Task<IEnumerable<int>> StepsAsync() =>
            (await new CheckpointStore(new FolderStore(folder.File("root")), "run", 1, TimeProvider.System).ListAsync(_ => { }, Cancellation)).Select(item => item.Step);
    }

    private static TrainingConfig Config(TemporaryFolder folder, params (string, object?)[] changes) =>
        ConfigurationLoader.LoadText(TinyRun.Config(folder.Path, [("interruption", "{sources: none}"), ("eval_max_new_tokens", 0), ("evaluate_before", "false"), .. changes]), "tiny.yaml", []).Require();

    private static async Task<(TrainingConfig Config, RunSummary Summary)> RunAsync(TemporaryFolder folder, params (string, object?)[] changes)
    {
        TrainingConfig config = Config(folder, changes);
        var run = new TrainingRun(config, SilentObserver.Instance, TimeProvider.System);
        Assert.Equal(RunEnding.Finished, await run.RunAsync(resume: false, force: false, evenIfStopped: false, Cancellation));
        return (config, run.Summary!);
    }

    private static string Hash(string folder) => ContentHash.OfFile(Path.Combine(folder, Adapter));

    private static IEnumerable<(int Step, double Loss)> Logged(TrainingConfig config) => File.ReadLines(Path.Combine(config.OutputDir, "log.jsonl"))
        .Select(line => JsonDocument.Parse(line).RootElement)
        .Where(line => line.TryGetProperty("eval_loss", out _))
        .Select(line => (line.GetProperty("step").GetInt32(), line.GetProperty("eval_loss").GetDouble()));

    /// <summary>Asks for a stop when it was told of the progress so many times: while loading, in a step, in an evaluation, in a save.</summary>
    private sealed class Interrupter(CancellationTokenSource stop, int after) : ITrainingObserver
    {
        private int told;

        public void OnProgress(in TrainingProgress progress)
        {
            if (progress.Phase is TrainingPhase.Training or TrainingPhase.Evaluating or TrainingPhase.Saving && ++told == after)
            {
                stop.Cancel();
            }
        }

        public void OnNotice(string sentence)
        {
        }

        public void OnWarning(string sentence)
        {
        }

        public void OnEvaluation(EvaluationPoint point, bool isBest)
        {
        }

        public void OnSample(string prompt, string expected, string generated)
        {
        }
    }
}
