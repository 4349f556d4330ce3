using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests.Loop;

public class TrainerTests
{
    /// <summary>All rows in one step, each in a sequence of its own or several in one: the loss and the gradients are the same.</summary>
    [Fact]
    public void Step_PackedAndUnpacked_GivesTheSameLossAndGradients()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        (string, object?)[] common = [("lora_dropout", 0), ("num_epochs", 1), ("gradient_accumulation_steps", 1), ("micro_batch_size", 64)];
        using var single = new TinyTraining(folder.Path, [.. common, ("sample_packing", "false")]);
        using var packed = new TinyTraining(folder.Path, [.. common, ("sample_packing", "true")]);
        Assert.Equal((1, 1), (single.Trainer.TotalSteps, packed.Trainer.TotalSteps));
        Assert.True(packed.Data.Order.BinsOf(0).Count < single.Data.Order.BinsOf(0).Count, "nothing was packed");
        single.Scatter(1);
        packed.Scatter(1);
        StepResult expected = single.Trainer.Step(), actual = packed.Trainer.Step();
        Assert.Equal((expected.Tokens, expected.SupervisedTokens), (actual.Tokens, actual.SupervisedTokens));
        Assert.True(Math.Abs(actual.Loss - expected.Loss) <= 1e-6 * expected.Loss, $"loss {actual.Loss}, expected {expected.Loss}");
        float largest = single.Gradients.Max(Math.Abs), off = single.Gradients.Zip(packed.Gradients, (first, second) => Math.Abs(first - second)).Max();
        Assert.True(off <= 1e-5 * largest, $"gradients differ by up to {off}, the largest is {largest}");
    }

    [Theory]
    [InlineData(8, 1, 0, false)]
    [InlineData(1, 8, 0, false)]
    [InlineData(4, 2, 0.3, false)]
    [InlineData(8, 1, 0.3, false)]
    [InlineData(1, 8, 0.3, true)]
    [InlineData(3, 8, 0.3, false)]
    public void Step_CutIntoOtherMicroBatches_GivesTheSameLossAndGradients(int microBatchSize, int accumulation, double dropout, bool packed)
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        int batch = microBatchSize * accumulation;
        (string, object?)[] common = [("lora_dropout", dropout), ("sample_packing", packed ? "true" : "false"), ("num_epochs", 1)];
        using var whole = new TinyTraining(folder.Path, [.. common, ("micro_batch_size", batch), ("gradient_accumulation_steps", 1)]);
        using var cut = new TinyTraining(folder.Path, [.. common, ("micro_batch_size", microBatchSize), ("gradient_accumulation_steps", accumulation)]);
        Assert.Equal(whole.Trainer.TotalSteps, cut.Trainer.TotalSteps);
        int last = whole.Trainer.TotalSteps - 1;
        Assert.True(packed || whole.Data.Order.BinsOf(last).Count < batch, "the last window is not a partial one");

        foreach (int step in (int[])[0, last])
        {
            whole.Scatter(step);
            cut.Scatter(step);
            whole.Trainer.CompletedSteps = cut.Trainer.CompletedSteps = step;
            StepResult expected = whole.Trainer.Step();
            StepResult actual = cut.Trainer.Step();

            Assert.Equal((expected.Tokens, expected.SupervisedTokens), (actual.Tokens, actual.SupervisedTokens));
            Assert.True(Math.Abs(actual.Loss - expected.Loss) <= 1e-6 * expected.Loss, $"step {step}: loss {actual.Loss}, expected {expected.Loss}");
            TensorAssert.RelativeL2(whole.Gradients, cut.Gradients, 1e-6, $"gradients of step {step}");
        }
    }

    [Theory]
    [InlineData("lora")]
    [InlineData("noise")]
    [InlineData("packed")]
    [InlineData("qlora")]
    [InlineData("fp4")]
    [InlineData("eight_bit")]
    [InlineData("full")]
    public void Steps_TwiceAndOnOtherThreads_GiveTheSameBytes(string variant)
    {
        (string, object?)[] changes = variant switch
        {
            "noise" => [("neftune_noise_alpha", 5), ("sample_packing", "true")],
            "packed" => [("sample_packing", "true")],
            "qlora" => [("adapter", "qlora"), ("load_in_4bit", "true"), ("gradient_checkpointing", "true")],
            "fp4" => [("adapter", "qlora"), ("bnb_config_kwargs", "{bnb_4bit_quant_type: fp4}")],
            "eight_bit" => [("load_in_8bit", "true"), ("optimizer", "adamw_bnb_8bit"), ("lora_r", 32)],
            "full" => [("adapter", null), ("lora_r", null), ("lora_alpha", null), ("lora_dropout", null), ("lora_target_linear", null)],
            _ => [],
        };
        using TemporaryFolder folder = TinyTraining.Folder();
        float[]? expected = null;
        float[] start = [];
        foreach (int threads in (int[])[1, 1, 2, 3])
        {
            using var run = new TinyTraining(folder.Path, [.. changes, ("threads", threads)]);
            start = run.Values;
            for (int step = 0; step < 4; step++)
            {
                run.Trainer.Step();
            }

            expected ??= run.Values;
            TensorAssert.BitEqual(expected, run.Values, $"{variant}, {threads} threads");
        }

        Assert.NotEqual(start, expected);
    }

    [Fact]
    public void Step_WithNoise_IsTheSameInOtherMicroBatchesAndRecomputedAndWithoutItInEvaluation()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        (string, object?)[] noisy = [("neftune_noise_alpha", 15), ("lora_dropout", 0)];
        using var whole = new TinyTraining(folder.Path, [.. noisy, ("micro_batch_size", 8), ("gradient_accumulation_steps", 1)]);
        using var cut = new TinyTraining(folder.Path, [.. noisy, ("micro_batch_size", 1), ("gradient_accumulation_steps", 8), ("gradient_checkpointing", "true")]);
        using var still = new TinyTraining(folder.Path, [("lora_dropout", 0), ("micro_batch_size", 8), ("gradient_accumulation_steps", 1)]);
        foreach (TinyTraining run in (TinyTraining[])[whole, cut, still])
        {
            run.Scatter(3);
        }

        double Evaluated(TinyTraining run) =>
            new Evaluator(run.Trained.Model, run.Data.HeldOut, Tokenizer.Load(run.Config.BaseModel), maxNewTokens: 0, run.Trainer.LargestTokens).Evaluate(SilentObserver.Instance, TestContext.Current.CancellationToken).Loss;

        Assert.Equal(Evaluated(still), Evaluated(whole));
        StepResult expected = whole.Trainer.Step(), actual = cut.Trainer.Step(), without = still.Trainer.Step();
        Assert.True(Math.Abs(actual.Loss - expected.Loss) <= 1e-6 * expected.Loss, $"loss {actual.Loss}, expected {expected.Loss}");
        TensorAssert.RelativeL2(whole.Gradients, cut.Gradients, 1e-6, "gradients");
        Assert.True(Math.Abs(without.Loss - expected.Loss) > 1e-4, "the noise changes nothing");
    }

    [Fact]
    public void Step_Steady_AllocatesNearlyNothing()
    {
        using TemporaryFolder folder = TinyTraining.Folder(rows: 203);
        using var run = new TinyTraining(folder.Path, ("num_epochs", 1), ("threads", 2), ("neftune_noise_alpha", 5));
        for (int step = 0; step < 8; step++)
        {
            run.Trainer.Step();
        }

        const int steps = 10;
        long total = GC.GetTotalAllocatedBytes(precise: true);
        long thread = GC.GetAllocatedBytesForCurrentThread();
        for (int step = 0; step < steps; step++)
        {
            run.Trainer.Step();
        }

        long perStep = (GC.GetAllocatedBytesForCurrentThread() - thread) / steps;
        Assert.True(perStep < 4096, $"{perStep} bytes a step on the training thread");

        // Other tests run beside this one, so the total says something only when it is small.
        TestContext.Current.TestOutputHelper?.WriteLine($"{perStep} bytes a step on this thread, {(GC.GetTotalAllocatedBytes(precise: true) - total) / steps} in all");
    }

    [Fact]
    public void Step_NonFinite_NamesStepRowsAndLayerAndUpdatesNothing()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        using var run = new TinyTraining(folder.Path);
        Models.Layers.Parameter poisoned = run.Trained.Model.Parameters.Parameters[^1];
        run.Trained.Model.Device.Upload(poisoned.Value, BitConverter.GetBytes(float.NaN));
        float[] before = run.Values;

        NonFiniteException exception = Assert.Throws<NonFiniteException>(() => run.Trainer.Step());

        Assert.Matches(@"^Step 1: the loss is NaN, because model\.layers\.\d\.\S+, which is trained, is not finite itself\. Rows of the step: \S*train\.jsonl", exception.Message);
        TensorAssert.BitEqual(before, run.Values, "what is trained");
        Assert.Equal(0, run.Trainer.CompletedSteps);
    }

    [Theory]
    [MemberData(nameof(Seeds))]
    public async Task Run_RandomConfig_UsesItsPlanToTheByte(int seed)
    {
        var random = new Random(seed);
        T Pick<T>(params T[] values) => values[random.Next(values.Length)];
        int heads = Pick(2, 4);
        int headDim = Pick(8, 16);
        ModelConfig shape = TinyRun.Shape with
        {
            HiddenSize = heads * headDim,
            NumAttentionHeads = heads,
            NumKeyValueHeads = Pick(1, heads),
            HeadDim = headDim,
            IntermediateSize = Pick(48, 96, 130),
            NumHiddenLayers = random.Next(1, 4),
            TieWordEmbeddings = Pick(true, false),
            DType = Pick(Models.Formats.SafetensorsDType.BF16, Models.Formats.SafetensorsDType.F32),
        };
        using TemporaryFolder folder = TinyTraining.Folder(shape, random.Next(12, 40), Pick(20, 40));
        string adapter = Pick("lora", "lora", "qlora", "none");
        (string, object?)[] changes =
        [
            ("adapter", adapter == "none" ? null : adapter),
            ("load_in_4bit", adapter == "qlora" ? "true" : null),
            ("bnb_config_kwargs", adapter == "qlora" ? $"{{bnb_4bit_use_double_quant: {Pick("true", "false")}}}" : null),
            ("lora_r", adapter == "none" ? null : Pick(1, 4, 9)),
            ("lora_alpha", adapter == "none" ? null : 8),
            ("lora_dropout", adapter == "none" ? null : Pick(0, 0.1)),
            ("lora_target_linear", adapter == "none" ? null : "true"),
            ("gradient_checkpointing", Pick("true", "false")),
            ("sample_packing", Pick("true", "false")),
            ("micro_batch_size", random.Next(1, 4)),
            ("gradient_accumulation_steps", random.Next(1, 3)),
            ("num_epochs", 1),
            ("threads", random.Next(1, 4)),
            ("val_set_size", seed % 4 == 0 ? 3 : Pick(0, 3)),
            ("evaluate_before", seed % 4 == 0 ? "false" : Pick("true", "false")),
            ("evaluate_after", seed % 4 == 0 ? "false" : Pick("true", "false")),
            // Other tests of this process send it the signals that a run would heed.
            ("interruption", "{sources: none}"),
            ("eval_max_new_tokens", seed % 4 == 0 ? 200 : Pick(0, 4, 200)),
        ];
        string text = TinyRun.Config(folder.Path, changes);
        var run = new TrainingRun(ConfigurationLoader.LoadText(text, "tiny.yaml", []).Require(), SilentObserver.Instance, TimeProvider.System);

        Assert.Equal(RunEnding.Finished, await run.RunAsync(resume: false, force: false, evenIfStopped: false, TestContext.Current.CancellationToken));

        Assert.True(run.Summary!.PlannedArenaBytes == run.Summary.ArenaBytes, $"planned {run.Summary.PlannedArenaBytes} bytes, used {run.Summary.ArenaBytes}\n{text}");
        Assert.Equal(run.Summary.ArenaBytes, run.Summary.ByKind.Values.Sum());
    }

    public static TheoryData<int> Seeds => [.. Enumerable.Range(100, 20)];
}
