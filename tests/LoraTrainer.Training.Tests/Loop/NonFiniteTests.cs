using System.Runtime.InteropServices;
using System.Text.Json;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests.Loop;

/// <summary>Runs whose numbers really stop being finite: where it is said to begin, and how a run goes on without.</summary>
public class NonFiniteTests
{
    /// <summary>The letter whose embedding becomes infinite in <see cref="OneBadLetter"/>.</summary>
    private const char Bad = 'q';

    private static readonly ModelConfig Untied = TinyRun.Shape with { TieWordEmbeddings = false, DType = SafetensorsDType.F32 };

    /// <summary>A model that multiplies its embeddings by 8.</summary>
    private static readonly ModelConfig Scaling = ModelConfig.Parse("config.json", """
        {"model_type": "gemma2", "vocab_size": 258, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 256, "tie_word_embeddings": false, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": null, "dtype": "float32"}
        """u8.ToArray());

    /// <summary>A rate that spoils the model in its first step and is harmless from the fourth on.</summary>
    private static readonly (string, object?)[] SpoiltAtTheStart =
    [
        ("on_nonfinite", "rollback"), ("checkpoint", "{every_steps: 1, keep: 1}"), ("loraplus_lr_ratio", "1e21"), ("learning_rate", 1), ("warmup_steps", 0), ("lr_scheduler", "polynomial"), ("lr_scheduler_kwargs", "{power: 200, lr_end: 0}"),
        ("weight_decay", 0), ("val_set_size", 0),
    ];

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    [Fact]
    public void Step_NonFinite_NamesTheRowAndWhereItBegan()
    {
        using TemporaryFolder folder = OneBadLetter(out int line);
        using var run = new TinyTraining(folder.Path, ("val_set_size", 0));
        int step = 0;
        NonFiniteException? thrown = null;
        for (; thrown is null && step < run.Trainer.TotalSteps; step++)
        {
            try
            {
                run.Trainer.Step();
            }
            catch (NonFiniteException exception)
            {
                thrown = exception;
            }
        }

        float[] before = run.Values;
        Assert.Throws<NonFiniteException>(() => run.Trainer.Step());
        TensorAssert.BitEqual(before, run.Values, "what is trained");
        Assert.NotNull(thrown);
        RowSource source = run.Data.Train.Source(line - 1);
        Assert.Equal(line, source.Line);
        Assert.StartsWith($"Step {step}: the loss is NaN, first in the embeddings, in {source}. Rows of the step: train.jsonl:", thrown.Message, StringComparison.Ordinal);
        Assert.Contains("The step was not applied. A lower learning_rate", thrown.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("model.layers.1.mlp.down_proj", "first in the output of model.layers.1, in")]
    [InlineData("model.layers.0.self_attn.o_proj", "first in the output of model.layers.0, in")]
    [InlineData("lm_head", "first in the output of lm_head, in")]
    public void Step_NonFinite_NamesTheLayer(string module, string place)
    {
        using TemporaryFolder folder = TinyTraining.Folder(Untied);
        foreach (bool recompute in (bool[])[false, true])
        {
            using var run = new TinyTraining(folder.Path, ("gradient_checkpointing", recompute ? "true" : "false"), ("val_set_size", 0));
            WeightMatrix weight = run.Trained.Model.Linears.SingleOrDefault(linear => linear.Name == module)?.Weight ?? run.Trained.Model.Head;
            run.Trained.Model.Device.Upload(((DenseMatrix)weight).Values.Slice(5, new Shape(1)), BitConverter.GetBytes(float.PositiveInfinity));
            Assert.Contains(place, Assert.Throws<NonFiniteException>(() => run.Trainer.Step()).Finding, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void Step_FiniteLossWithInfiniteGradient_NamesTheTensorThatIsComputedFirst()
    {
        using TemporaryFolder folder = TinyTraining.Folder();

        using var run = new TinyTraining(folder.Path, ("lora_alpha", "1e6"), ("val_set_size", 0));

        // With A zero the adapter adds nothing, and the loss is that of the base; what flows back to A through B is beyond f32.
        Fill("model.layers.1.mlp.down_proj.lora_A.weight", 0);
        Fill("model.layers.1.mlp.down_proj.lora_B.weight", 1e38f);
        Assert.Matches(@"^Step 1: the gradient norm is (NaN|Infinity|∞), first in the gradient of model\.layers\.1\.mlp\.down_proj\.lora_A\.weight\. Rows of the step: ", Assert.Throws<NonFiniteException>(() => run.Trainer.Step()).Message);

        void Fill(string name, float value)
        {
            Tensor values = run.Trained.Model.Parameters.Parameters.Single(parameter => parameter.Name == name).Value;
            float[] all = new float[values.ElementCount];
            Array.Fill(all, value);
            run.Trained.Model.Device.Upload(values, MemoryMarshal.AsBytes(all.AsSpan()));
        }
    }

    [Fact]
    public async Task Stop_IsTheDefault_AndLeavesTheCheckpointsAlone()
    {
        using TemporaryFolder folder = OneBadLetter(out _);
        TrainingConfig config = Config(folder, ("checkpoint", "{every_steps: 1, keep: 1}"));
        var run = new TrainingRun(config, SilentObserver.Instance, TimeProvider.System);
        NonFiniteException exception = await Assert.ThrowsAsync<NonFiniteException>(() => run.RunAsync(resume: false, force: false, evenIfStopped: false, Cancellation));

        RunStatus status = await RunStatus.ReadAsync(config.OutputDir, TimeProvider.System, _ => { }, Cancellation);
        Assert.StartsWith($"Step {status.SafeCheckpoint!.Step + 1}: the loss is NaN", exception.Message, StringComparison.Ordinal);
        Assert.False(File.Exists(Path.Combine(config.OutputDir, "summary.json")));
    }

    [Fact]
    public async Task Rollback_LeavesOutTheRowsOfTheStepAndNothingElse()
    {
        using TemporaryFolder folder = OneBadLetter(out _);
        TrainingConfig config = Config(folder, ("on_nonfinite", "rollback"), ("checkpoint", "{every_steps: 4, keep: 1}"));
        var observer = new Listener();
        var run = new TrainingRun(config, observer, TimeProvider.System);
        Assert.Equal(RunEnding.Finished, await run.RunAsync(resume: false, force: false, evenIfStopped: false, Cancellation));

        // The same by hand: where the step has the letter the count goes on and the values do not.
        using var byHand = new TinyTraining(folder.Path, ("val_set_size", 0));
        var expected = new List<LeftOutSteps>();
        while (byHand.Trainer.CompletedSteps < byHand.Trainer.TotalSteps)
        {
            int step = byHand.Trainer.CompletedSteps;
            bool isBad = byHand.Data.Order.BinsOf(step).SelectMany(bin => bin).Any(row => byHand.Data.Train.Tokens(row).Contains(Bad));
            if (isBad)
            {
                expected.Add(new LeftOutSteps(step + 1, step + 1, step));
                byHand.Trainer.CompletedSteps++;
            }
            else
            {
                byHand.Trainer.Step();
            }
        }

        byHand.Trained.Adapters!.Save(folder.File("by-hand"));
        Assert.InRange(expected.Count, 2, 3);
        Assert.Equal(expected, run.Summary!.LeftOut);
        Assert.Equal(File.ReadAllBytes(folder.File("by-hand/adapter_model.safetensors")), File.ReadAllBytes(Path.Combine(config.OutputDir, "adapter_model.safetensors")));
        Assert.Equal(byHand.Trainer.TotalSteps, run.Summary.Steps);
        Assert.Equal(expected.Count, observer.Warnings.Count(warning => warning.Contains("Its rows are left out; the next step is", StringComparison.Ordinal) && warning.Contains("first in the embeddings", StringComparison.Ordinal)));
        Assert.True(double.IsFinite(run.Summary.LastLoss!.Value));
        using JsonDocument written = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(config.OutputDir, "summary.json")));
        Assert.Equal(expected.Select(steps => steps.Last), written.RootElement.GetProperty("left_out").EnumerateArray().Select(steps => steps.GetProperty("last").GetInt32()));
    }

    [Fact]
    public async Task Rollback_OfASpoiltModel_GoesBackToTheCheckpointBeforeIt()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        TrainingConfig config = Config(folder, SpoiltAtTheStart);
        var observer = new Listener();
        var run = new TrainingRun(config, observer, TimeProvider.System);
        Assert.Equal(RunEnding.Finished, await run.RunAsync(resume: false, force: false, evenIfStopped: false, Cancellation));

        // The first step spoils what is trained, the second shows it, the third proves it.
        Assert.Equal([new LeftOutSteps(2, 2, 1), new LeftOutSteps(1, 3, 0)], run.Summary!.LeftOut);
        Assert.Contains(observer.Warnings, warning => warning.Contains("The run goes back to step 0 and leaves out all rows since; the next step is 4 (2 of at most 3 times).", StringComparison.Ordinal));

        // From then on it is the run that has never seen those three steps.
        using var byHand = new TinyTraining(folder.Path, SpoiltAtTheStart);
        byHand.Trainer.CompletedSteps = 3;
        while (byHand.Trainer.CompletedSteps < byHand.Trainer.TotalSteps)
        {
            byHand.Trainer.Step();
        }

        byHand.Trained.Adapters!.Save(folder.File("by-hand"));
        Assert.Equal(File.ReadAllBytes(folder.File("by-hand/adapter_model.safetensors")), File.ReadAllBytes(Path.Combine(config.OutputDir, "adapter_model.safetensors")));
    }

    [Fact]
    public async Task Rollback_ThatDoesNotHelp_GivesUp()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        TrainingConfig config = Config(folder, [.. SpoiltAtTheStart, ("lr_scheduler", "constant"), ("lr_scheduler_kwargs", null)]);
        var run = new TrainingRun(config, SilentObserver.Instance, TimeProvider.System);
        NonFiniteException exception = await Assert.ThrowsAsync<NonFiniteException>(() => run.RunAsync(resume: false, force: false, evenIfStopped: false, Cancellation));
        Assert.Contains("on_nonfinite: rollback has left out steps 3 times in this run and gives up (max_rollbacks).", exception.Message, StringComparison.Ordinal);

        // A base that overflows with every row is no matter of rows.
        TinyRun.WriteBase(folder.File("base"), shape: Scaling, change: (name, values) => MakeInfinite(name, values, Enumerable.Range(0, 256)));
        config = Config(folder, [.. SpoiltAtTheStart, ("output_dir", folder.File("out2"))]);
        exception = await Assert.ThrowsAsync<NonFiniteException>(() => new TrainingRun(config, SilentObserver.Instance, TimeProvider.System).RunAsync(resume: false, force: false, evenIfStopped: false, Cancellation));
        Assert.StartsWith("Step 2: the loss is NaN, first in the embeddings, in ", exception.Message, StringComparison.Ordinal);
        Assert.Contains("there is no earlier state to go back to", exception.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("rows", 3, 2, 8)]
    [InlineData("spoilt", 2, 1, 3)]
    [InlineData("spoilt", 3, 2, 4)]
    public async Task Rollback_InterruptedAndResumed_IsTheSameRun(string variant, params int[] moments)
    {
        bool isSpoilt = variant == "spoilt";
        using TemporaryFolder folder = isSpoilt ? TinyTraining.Folder() : OneBadLetter(out _);
        (string, object?)[] changes = isSpoilt ? SpoiltAtTheStart : [("on_nonfinite", "rollback"), ("checkpoint", "{every_steps: 4, keep: 1}")];
        TrainingConfig whole = Config(folder, [.. changes, ("output_dir", folder.File("whole"))]), config = Config(folder, [.. changes, ("output_dir", folder.File("cut"))]);
        var expected = new TrainingRun(whole, SilentObserver.Instance, TimeProvider.System);
        Assert.Equal(RunEnding.Finished, await expected.RunAsync(resume: false, force: false, evenIfStopped: false, Cancellation));
        for (int i = 0; i < moments.Length; i++)
        {
            using var stop = new CancellationTokenSource();
            var cut = new TrainingRun(config, new Listener { Stop = stop, After = moments[i] }, TimeProvider.System);
            Assert.Equal(RunEnding.Interrupted, await cut.RunAsync(resume: i > 0, force: false, evenIfStopped: false, stop.Token));
        }

        var run = new TrainingRun(config, SilentObserver.Instance, TimeProvider.System);
        Assert.Equal(RunEnding.Finished, await run.RunAsync(resume: true, force: false, evenIfStopped: false, Cancellation));
        Assert.Equal(expected.Summary!.LeftOut, run.Summary!.LeftOut);
        Assert.Equal(expected.Summary.AdapterSha256, run.Summary.AdapterSha256);
        Assert.Empty(await RunComparison.DifferencesAsync(whole, config, _ => { }));
    }

    [Theory]
    [InlineData("on_nonfinite: rollback\ncheckpoint: {every_minutes: 5}", "on_nonfinite", "needs checkpoints by steps to go back to. Add, for example, checkpoint: {every_steps: 100}.")]
    [InlineData("max_rollbacks: 5", "max_rollbacks", "means nothing without on_nonfinite: rollback.")]
    [InlineData("on_nonfinite: rollback\nmax_rollbacks: 0\ncheckpoint: {every_steps: 5}", "max_rollbacks", "max_rollbacks must be 1 or more, got 0 (tiny.yaml:")]
    public void Contradiction_IsToldInOneSentence(string lines, string key, string message)
    {
        ConfigurationIssue error = Assert.Single(ConfigurationLoader.LoadText(TinyRun.Config("", ("checkpoint", null)) + lines + "\n", "tiny.yaml", []).Errors);
        Assert.Equal(key, error.Key);
        Assert.Contains(message, error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Resume_WithOtherPlacesToGoBackTo_NeedsForce()
    {
        TrainingConfig Of(string action, int steps) => ConfigurationLoader.LoadText(TinyRun.Config("", ("on_nonfinite", action), ("checkpoint", $"{{every_steps: {steps}}}")), "tiny.yaml", []).Require();
        Assert.Equal([ResumeEffect.NeedsForce], TrainingConfig.CompareForResume(Of("rollback", 2), Of("rollback", 3)).Select(difference => difference.Effect));
        Assert.All(TrainingConfig.CompareForResume(Of("stop", 2), Of("rollback", 3)), difference => Assert.Equal(ResumeEffect.Allowed, difference.Effect));
    }

    /// <summary>A base to which one letter is infinite, and data with that letter in one row.</summary>
    private static TemporaryFolder OneBadLetter(out int line)
    {
        TemporaryFolder folder = TinyTraining.Folder();
        TinyRun.WriteBase(folder.File("base"), shape: Scaling, change: (name, values) => MakeInfinite(name, values, [Bad]));
        string[] rows = File.ReadAllLines(folder.File("train.jsonl"));
        const int chosen = 17;
        for (int i = 0; i < rows.Length; i++)
        {
            // Only the values: the names of the fields have no such letter.
            rows[i] = rows[i].Replace(Bad, 'a');
        }

        rows[chosen] = rows[chosen].Replace("\"output\":\"", $"\"output\":\"{Bad}", StringComparison.Ordinal);
        File.WriteAllLines(folder.File("train.jsonl"), rows);
        line = chosen + 1;
        return folder;
    }

    /// <summary>Values that are finite, as a base's must be, and are not once they are multiplied by 8.</summary>
    private static void MakeInfinite(string name, float[] values, IEnumerable<int> tokens)
    {
        foreach (int token in name == "model.embed_tokens.weight" ? tokens : [])
        {
            values[token * Scaling.HiddenSize] = 3e38f;
        }
    }

    private static TrainingConfig Config(TemporaryFolder folder, params (string, object?)[] changes) =>
        ConfigurationLoader.LoadText(TinyRun.Config(folder.Path, [("interruption", "{sources: none}"), ("val_set_size", 0), .. changes]), "tiny.yaml", []).Require();

    /// <summary>Keeps what it is told, and may ask for a stop after some steps.</summary>
    private sealed class Listener : ITrainingObserver
    {
        private int steps;

        public List<string> Warnings { get; } = [];

        public CancellationTokenSource? Stop { get; init; }

        public int After { get; init; }

        public void OnProgress(in TrainingProgress progress)
        {
            if (progress.Phase == TrainingPhase.Training && ++steps == After)
            {
                Stop?.Cancel();
            }
        }

        public void OnNotice(string sentence)
        {
        }

        public void OnWarning(string sentence)
        {
            lock (Warnings)
            {
                Warnings.Add(sentence);
            }
        }

        public void OnEvaluation(EvaluationPoint point, bool isBest)
        {
        }

        public void OnSample(string prompt, string expected, string generated)
        {
        }
    }
}
