using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>The largest passes of a run, tried before its first step: they leave no trace in it, and nothing that its passes need is had later.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class LargestPassTests
{
    private const int Steps = 3;

    private static readonly Dictionary<string, (string Key, object? Value)[]> Cases = new(StringComparer.Ordinal)
    {
        ["lora"] = [],
        ["all switches"] = [("gradient_checkpointing", "offload"), ("load_in_4bit", "true"), ("peft_use_dora", "true"), ("neftune_noise_alpha", 5), ("optimizer", "paged_adamw_32bit")],
        ["all parameters"] = [("adapter", null), ("lora_r", null), ("lora_alpha", null), ("lora_dropout", null), ("lora_target_linear", null), ("learning_rate", "1e-3")],
    };

    public static TheoryData<string> Names => [.. Cases.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void TryLargest_BeforeAndBetweenSteps_ChangesNoBit(string name)
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        using TinyTraining without = Open(folder.Path, Cases[name]), with = Open(folder.Path, Cases[name]);
        for (int step = 0; step < Steps; step++)
        {
            Try(with);
            Assert.Equal(Of(without.Trainer.Step()), Of(with.Trainer.Step()));
        }

        TensorAssert.BitEqual(without.Values, with.Values, "parameters");
        TensorAssert.BitEqual(without.Gradients, with.Gradients, "gradients");
    }

    /// <summary>As after a resume: a process that tries first takes the algorithms of the checkpoint, and has them still when it saves.</summary>
    [Fact]
    public void TryLargest_AfterTheChoicesOfACheckpoint_KeepsThem()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        using TinyTraining first = Open(folder.Path, []), second = Open(folder.Path, []);
        Try(first);
        byte[] tried = Choices(first);
        Finish(first);
        Assert.Null(second.Trained.Model.Device.ImportChoices(tried));
        Try(second);
        Assert.Equal(tried, Choices(second));
        Finish(second);
        Assert.Equal(Choices(first), Choices(second));

        // The products of the largest passes come in the run too: trying adds none of its own.
        using TinyTraining without = Open(folder.Path, []);
        Finish(without);
        foreach (TinyTraining run in (TinyTraining[])[first, without])
        {
            EvaluatorOf(run).Evaluate(SilentObserver.Instance, TestContext.Current.CancellationToken);
        }

        Assert.Equal(Choices(without), Choices(first));
    }

    [Fact]
    public void TryLargest_LoadsAllThatPassesNeed()
    {
        Assert.SkipWhen(CudaTestDevice.IsRealGpuRequired, "a real driver does not count");
        using TemporaryFolder folder = TinyTraining.Folder();
        using TinyTraining run = Open(folder.Path, [("load_in_4bit", "true")]);
        LargestMicroBatch batch = run.Trainer.TryLargest().Batch;
        Assert.Equal(run.Trainer.LargestTokens, batch.Tokens);
        Assert.Equal(run.Plan.ArenaBytes, run.Trained.Model.Device.Arena.HighWaterBytes);
        Assert.Equal(batch, LargestMicroBatch.Of(run.Config, run.Data));
        run.Trainer.Step();
        Try(run);
        long modules = CudaStandin.Count("live_modules");
        int products = Choices(run).Count(value => value == '\n');
        Finish(run);
        Assert.Equal(modules, CudaStandin.Count("live_modules"));
        Assert.True(Choices(run).Count(value => value == '\n') > products, "the other micro-batches have other shapes");
    }

    private static (double, double) Of(StepResult step) => (step.Loss, step.GradientNorm);

    private static void Try(TinyTraining run)
    {
        Assert.Equal(run.Trainer.LargestTokens, run.Trainer.TryLargest().Batch.Tokens);
        EvaluatorOf(run).TryLargest();
    }

    private static Evaluator EvaluatorOf(TinyTraining run) =>
        new(run.Trained.Model, run.Data.HeldOut, Tokenizer.Load(run.Config.BaseModel), run.Config.Evaluation.MaxNewTokens, run.Trainer.LargestTokens);

    private static void Finish(TinyTraining run)
    {
        while (run.Trainer.CompletedSteps < run.Trainer.TotalSteps)
        {
            run.Trainer.Step();
        }
    }

    private static byte[] Choices(TinyTraining run) => run.Trained.Model.Device.ExportChoices()!;

    private static TinyTraining Open(string folder, (string Key, object? Value)[] changes) => new(
        folder, DevicePlatform.Cuda, (_, memory) => CudaTestDevice.Open(CudaTestDevice.Modes[^1], memory), [("num_epochs", 1), .. changes]);
}
