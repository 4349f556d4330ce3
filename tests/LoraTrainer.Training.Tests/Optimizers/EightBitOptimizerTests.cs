using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Optimizers;
using Xunit;

namespace LoraTrainer.Training.Tests.Optimizers;

/// <summary>Which moments are kept in eight bits, what they take, and that they come back from a checkpoint as they were.</summary>
public sealed class EightBitOptimizerTests
{
    private static readonly (string, object?)[] EightBit = [("optimizer", "adamw_bnb_8bit"), ("lora_r", 32)];

    [Fact]
    public void Moments_OfLargeTensors_AreCodesAndOfSmallOnesAndEmbeddingsF32()
    {
        using var device = new MeasureDevice(threadCount: 2);
        ParameterStore parameters = Declare(device);
        var state = new OptimizerState(device, parameters, new OptimizerOptions { Kind = OptimizerKind.AdamW8Bit });
        Assert.Equal(
            [
                "exp_avg.large U8 (64, 65)", "exp_avg_absmax.large F32 (17)", "exp_avg.small F32 (4095)", "exp_avg.edge U8 (4096)", "exp_avg_absmax.edge F32 (16)",
                "exp_avg.model.embed_tokens.weight F32 (100, 64)",
                "exp_avg_sq.large U8 (64, 65)", "exp_avg_sq_absmax.large F32 (17)", "exp_avg_sq.small F32 (4095)", "exp_avg_sq.edge U8 (4096)", "exp_avg_sq_absmax.edge F32 (16)",
                "exp_avg_sq.model.embed_tokens.weight F32 (100, 64)",
            ],
            state.Tensors().Select(tensor => $"{tensor.Name} {tensor.Values.DType} {tensor.Values.Shape}"));

        // Each tensor begins at a multiple of 256 elements, each buffer at one of 256 bytes.
        const long codes = 4352 + 4096, wide = (4096 + 6400) * sizeof(float), scales = 256;
        Assert.Equal(2 * (codes + wide + scales), device.Arena.HighWaterOf(MemoryKind.Moments));
        Assert.DoesNotContain(new OptimizerState(device, parameters, new OptimizerOptions()).Tensors(), tensor => tensor.Values.DType != DType.F32);
    }

    [Fact]
    public void Step_SmallAndLargeTensors_MoveAndPaddingStaysZero()
    {
        using var device = new CpuDevice(2, 1 << 24);
        ParameterStore parameters = Declare(device);
        var state = new OptimizerState(device, parameters, new OptimizerOptions { Kind = OptimizerKind.AdamW8Bit, WeightDecay = 0.1 });
        float[] gradients = new float[parameters.BufferCount];
        foreach (ParameterSegment segment in parameters.Segments)
        {
            for (long i = 0; i < segment.Count; i++)
            {
                gradients[segment.Offset + i] = (i % 7 - 3) * 0.01f;
            }
        }

        StepReport report = StepReport.Allocate(device);
        device.Upload(parameters.Gradients, System.Runtime.InteropServices.MemoryMarshal.AsBytes<float>(gradients));
        for (int step = 1; step <= 3; step++)
        {
            state.Step(step, 1e-2, report.Values);
        }

        float[] values = parameters.Values.Download();
        for (int i = 0; i < values.Length; i++)
        {
            // Constant gradients: each step moves by the rate against their sign.
            Assert.True(gradients[i] == 0 ? values[i] == 0 : Math.Abs(values[i] + 0.03f * Math.Sign(gradients[i])) < 2e-3f, $"element {i} with the gradient {gradients[i]} is {values[i]}");
        }
    }

    [Theory]
    [InlineData("lora")]
    [InlineData("full")]
    public void Training_WithEightBitMoments_StaysNearThe32BitRun(string variant)
    {
        (string, object?)[] changes = variant == "full"
            ? [("adapter", null), ("lora_r", null), ("lora_alpha", null), ("lora_dropout", null), ("lora_target_linear", null), ("learning_rate", "1e-3")]
            : [("lora_r", 32)];
        using TemporaryFolder folder = TinyTraining.Folder();
        using var wide = new TinyTraining(folder.Path, changes);
        using var narrow = new TinyTraining(folder.Path, [.. changes, ("optimizer", "adamw_8bit")]);
        Assert.Contains(narrow.Trained.Optimizer.Tensors(), tensor => tensor.Values.DType == DType.U8);
        Assert.Contains(narrow.Trained.Optimizer.Tensors(), tensor => tensor.Values.DType == DType.F32 && !tensor.Name.Contains("_absmax.", StringComparison.Ordinal));
        double first = 0, last = 0, difference = 0;
        for (int step = 0; step < wide.Trainer.TotalSteps; step++)
        {
            double loss = wide.Trainer.Step().Loss;
            difference = Math.Max(difference, Math.Abs(loss - narrow.Trainer.Step().Loss));
            first = step == 0 ? loss : first;
            last = loss;
        }

        Assert.True(difference > 0 && difference < 0.25 * (first - last), $"losses went from {first} to {last} and differ by up to {difference}");
    }

    [Theory]
    [InlineData("lora")]
    [InlineData("full")]
    public void Checkpoint_WrittenAndRestored_GoesOnWithTheSameBits(string variant)
    {
        (string, object?)[] changes = variant == "full"
            ? [("adapter", null), ("lora_r", null), ("lora_alpha", null), ("lora_dropout", null), ("lora_target_linear", null), ("learning_rate", "1e-3"), ("optimizer", "adamw_8bit")]
            : EightBit;
        using TemporaryFolder folder = TinyTraining.Folder();
        using var whole = new TinyTraining(folder.Path, changes);
        whole.Trainer.Step();
        whole.Trainer.Step();
        string checkpoint = Write(folder, changes, whole);
        whole.Trainer.Step();
        whole.Trainer.Step();

        using var resumed = new TinyTraining(folder.Path, changes);
        CheckpointFiles.Restore(checkpoint, resumed.Trained, notice => Assert.Fail(notice));
        resumed.Trainer.CompletedSteps = resumed.Trainer.CompletedUpdates = 2;
        resumed.Trainer.Step();
        resumed.Trainer.Step();
        TensorAssert.BitEqual(whole.Values, resumed.Values, "parameters");
        foreach (((string name, Tensor expected), (string _, Tensor actual)) in whole.Trained.Optimizer.Tensors().Zip(resumed.Trained.Optimizer.Tensors()))
        {
            Assert.True(Bytes(expected).AsSpan().SequenceEqual(Bytes(actual)), name);
        }
    }

    [Fact]
    public void Restore_FromAnotherOptimizer_SaysWhatWasExpected()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        using var wide = new TinyTraining(folder.Path, ("lora_r", 32));
        string checkpoint = Write(folder, [("lora_r", 32)], wide);
        using var narrow = new TinyTraining(folder.Path, EightBit);
        CheckpointFormatException exception = Assert.Throws<CheckpointFormatException>(() => CheckpointFiles.Restore(checkpoint, narrow.Trained, _ => { }));
        Assert.Contains("expected the tensor 'exp_avg.", exception.Message, StringComparison.Ordinal);
        Assert.Contains("as U8 (", exception.Message, StringComparison.Ordinal);
        Assert.EndsWith("The checkpoint belongs to another model, adapter or optimizer.", exception.Message, StringComparison.Ordinal);
    }

    private static ParameterStore Declare(Device device)
    {
        var parameters = new ParameterStore();
        parameters.Declare("large", new Shape(64, 65));
        parameters.Declare("small", new Shape(4095));
        parameters.Declare("edge", new Shape(4096));
        parameters.Declare("model.embed_tokens.weight", new Shape(100, 64), decays: false);
        parameters.Allocate(device);
        return parameters;
    }

    private static string Write(TemporaryFolder folder, (string, object?)[] changes, TinyTraining run)
    {
        string checkpoint = folder.File("checkpoint");
        Directory.CreateDirectory(checkpoint);
        TrainingConfig config = ConfigurationLoader.LoadText(TinyRun.Config(folder.Path, changes), "tiny.yaml", []).Require();
        var state = new TrainerState { Step = run.Trainer.CompletedSteps, TotalSteps = run.Trainer.TotalSteps, Updates = run.Trainer.CompletedUpdates, RunId = "r", ConfigHash = "c", BaseHash = "b", DataHash = "d", Losses = [] };
        CheckpointFiles.Write(checkpoint, config, run.Trained, state, folder.File("no-log"));
        return checkpoint;
    }

    private static byte[] Bytes(Tensor tensor)
    {
        byte[] bytes = new byte[tensor.SizeBytes];
        tensor.Device.Download(tensor, bytes);
        return bytes;
    }
}
