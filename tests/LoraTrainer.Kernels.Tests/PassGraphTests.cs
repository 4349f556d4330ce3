using System.Text;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>Passes that are launched as CUDA graphs end with the bits of passes that are not, and each graph is proven before its results are used.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class PassGraphTests(ITestOutputHelper output)
{
    private static readonly ModelConfig Untied = TinyRun.Shape with { TieWordEmbeddings = false, NumHiddenLayers = 3 };

    private static readonly Dictionary<string, (string Key, object? Value)[]> Cases = new(StringComparer.Ordinal)
    {
        ["lora with dropout"] = [],
        ["one micro-batch a step"] = [("gradient_accumulation_steps", 1)],
        ["qlora, paged, recomputed"] = [("load_in_4bit", "true"), ("optimizer", "paged_adamw_32bit"), ("gradient_checkpointing", "true")],
        ["all on the host"] = [("load_in_4bit", "true"), ("optimizer", "paged_adamw_32bit"), ("gradient_checkpointing", "offload"), ("embeddings", "host"), ("lm_head", "int8")],
        ["dora with noise"] = [("peft_use_dora", "true"), ("neftune_noise_alpha", 5)],
        ["full"] = [("adapter", null), ("lora_r", null), ("lora_alpha", null), ("lora_dropout", null), ("lora_target_linear", null), ("learning_rate", "1e-3"), ("optimizer", "adamw_8bit")],
    };

    public static TheoryData<string, string> CasesInModes => new(Cases.Keys.SelectMany(name => (name == "all on the host" ? CudaTestDevice.StreamModes : CudaTestDevice.Modes[^1..]).Select(mode => (name, mode))));

    [Theory]
    [MemberData(nameof(CasesInModes))]
    public void Run_WithGraphs_EndsWithTheBitsOfOneWithout(string name, string mode)
    {
        // Rows of some lengths, each of which comes often enough.
        bool isSlow = name is "dora with noise" or "full";
        int lengths = isSlow ? 1 : 3;
        using TemporaryFolder folder = Folder(lengths);
        using TinyTraining without = Open(folder.Path, mode, Cases[name]), with = Open(folder.Path, mode, [.. Cases[name], ("cuda_graphs", "true")]);
        for (int step = 0; step < (isSlow ? 3 : 9); step++)
        {
            StepResult expected = without.Trainer.Step(), actual = with.Trainer.Step();
            Assert.Equal((expected.Loss, expected.GradientNorm), (actual.Loss, actual.GradientNorm));
        }

        AssertSame(without, with);
        PassGraphs graphs = with.Trainer.Graphs!;
        output.WriteLine($"{graphs.Passes} passes, {graphs.Recordings} recorded, {graphs.Proofs} proven, {graphs.Launches} launched");
        Assert.Null(without.Trainer.Graphs);
        Assert.InRange(graphs.Recordings, 1, lengths);
        Assert.InRange(graphs.Proofs, 1, graphs.Recordings);
        Assert.True(graphs.Launches > graphs.Proofs, $"{graphs.Launches} of {graphs.Passes} passes were launched as graphs");
        Assert.Equal(without.Plan.Memory, with.Plan.Memory);
    }

    [Fact]
    public void Verify_ProvesEveryPassThatWasRecorded()
    {
        using TemporaryFolder folder = Folder(2);
        string mode = CudaTestDevice.Modes[^1];
        using TinyTraining without = Open(folder.Path, mode, []), with = Open(folder.Path, mode, [("cuda_graphs", "verify")]);
        for (int step = 0; step < 6; step++)
        {
            Assert.Equal(without.Trainer.Step().Loss, with.Trainer.Step().Loss);
        }

        AssertSame(without, with);
        PassGraphs graphs = with.Trainer.Graphs!;

        // The first two passes of each shape are made as always.
        Assert.Equal((2, graphs.Passes - 4, graphs.Passes - 4), (graphs.Recordings, graphs.Launches, graphs.Proofs));
    }

    /// <summary>More shapes than there may be graphs: the ones that were used longest ago go, and come again.</summary>
    [Fact]
    public void Run_WithManyShapes_KeepsSoManyGraphsAndNoMore()
    {
        const int shapes = PassGraphs.Capacity + 3;
        using TemporaryFolder folder = Folder(shapes);
        string mode = CudaTestDevice.Modes[0];

        // Only what a step begins with is recorded, so one micro-batch a step is enough.
        (string Key, object? Value)[] changes = [("num_epochs", 8), ("gradient_accumulation_steps", 1)];
        using TinyTraining without = Open(folder.Path, mode, changes), with = Open(folder.Path, mode, [.. changes, ("cuda_graphs", "true")]);
        for (int step = 0; step < 48; step++)
        {
            Assert.Equal(without.Trainer.Step().Loss, with.Trainer.Step().Loss);
            Assert.True(CudaTestDevice.IsRealGpuRequired || CudaStandin.Count("live_graphs") <= PassGraphs.Capacity);
        }

        AssertSame(without, with);
        Assert.True(with.Trainer.Graphs!.Recordings > shapes, $"{with.Trainer.Graphs.Recordings} graphs were recorded");
        Assert.True(with.Trainer.Graphs.Launches > 0);
    }

    [Fact]
    public void Resume_InTheMiddle_EndsWithTheSameBits()
    {
        using TemporaryFolder folder = Folder(2);
        string mode = CudaTestDevice.Modes[^1];
        (string Key, object? Value)[] changes = [("cuda_graphs", "true"), ("optimizer", "paged_adamw_32bit")];
        using TinyTraining whole = Open(folder.Path, mode, changes);
        Advance(whole, 5);
        string checkpoint = folder.File("checkpoint");
        Directory.CreateDirectory(checkpoint);
        var state = new TrainerState { Step = 5, TotalSteps = whole.Trainer.TotalSteps, Updates = 5, RunId = "r", ConfigHash = "c", BaseHash = "b", DataHash = "d", Losses = [] };
        CheckpointFiles.Write(checkpoint, whole.Config, whole.Trained, state, folder.File("no-log"));
        Advance(whole, 4);

        using TinyTraining resumed = Open(folder.Path, mode, changes);
        CheckpointFiles.Restore(checkpoint, resumed.Trained, notice => Assert.Fail(notice));
        resumed.Trainer.CompletedSteps = resumed.Trainer.CompletedUpdates = 5;
        Advance(resumed, 4);
        Assert.True(resumed.Trainer.Graphs!.Launches > 0);
        AssertSame(whole, resumed);
    }

    private static void Advance(TinyTraining run, int steps)
    {
        for (int step = 0; step < steps; step++)
        {
            run.Trainer.Step();
        }
    }

    private static void AssertSame(TinyTraining expected, TinyTraining actual)
    {
        TensorAssert.BitEqual(expected.Values, actual.Values, "parameters");
        foreach (((string name, Tensor wanted), (string _, Tensor got)) in expected.Trained.Optimizer.Tensors().Zip(actual.Trained.Optimizer.Tensors()))
        {
            Assert.True(wanted.DownloadBytes().AsSpan().SequenceEqual(got.DownloadBytes()), name);
        }
    }

    /// <summary>Rows of so many lengths, one as often as the other.</summary>
    private static TemporaryFolder Folder(int lengths)
    {
        TemporaryFolder folder = TinyTraining.Folder(Untied);
        var text = new StringBuilder();
        for (int i = 0; i < 42; i++)
        {
            text.Append("{\"instruction\":\"").Append('a', i % 7 + 1).Append('b', 7 - (i % 7)).Append("\",\"input\":\"\",\"output\":\"").Append((char)('c' + i % 20), 2 + (i % lengths)).Append("\"}\n");
        }

        File.WriteAllText(folder.File("train.jsonl"), text.ToString());
        return folder;
    }

    private static TinyTraining Open(string folder, string mode, (string Key, object? Value)[] changes) => new(
        folder, DevicePlatform.Cuda, (_, memory) => CudaTestDevice.Open(mode, memory),
        [("val_set_size", null), ("evaluate_before", "false"), ("evaluate_after", "false"), ("micro_batch_size", 1), ("gradient_accumulation_steps", 3), ("warmup_steps", 0), ("num_epochs", 3), .. changes]);
}
