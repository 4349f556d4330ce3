using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>
/// What saves memory of the GPU changes no number: a tiny run with the switch and one without end with the same bits. And it saves what its plan says, to the byte.
/// </summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class MemorySwitchTests
{
    private const int Steps = 3;

    private static readonly (string Key, object? Value)[] Recomputed = [("gradient_checkpointing", "true")], Offloaded = [("gradient_checkpointing", "offload")];

    // Output layer and embedding are two matrices, and there are blocks enough that inputs take turns.
    private static readonly ModelConfig Untied = TinyRun.Shape with { TieWordEmbeddings = false, NumHiddenLayers = 4 };

    private static readonly Dictionary<string, ((string Key, object? Value)[] Without, (string Key, object? Value)[] With)> Cases = new(StringComparer.Ordinal)
    {
        ["embeddings on the host"] = ([], [("embeddings", "host")]),
        ["inputs on the host"] = (Recomputed, Offloaded),
        ["paged"] = ([("optimizer", "adamw_torch")], [("optimizer", "paged_adamw_32bit")]),
        ["paged 8 bits"] = ([("optimizer", "adamw_8bit"), ("lora_r", 32)], [("optimizer", "paged_adamw_8bit"), ("lora_r", 32)]),
        ["all"] = ([.. Recomputed, ("lm_head", "int8"), ("load_in_4bit", "true")], [.. Offloaded, ("lm_head", "int8"), ("load_in_4bit", "true"), ("embeddings", "host"), ("optimizer", "paged_adamw_32bit")]),
    };

    public static TheoryData<string, string> NamesInModes => new(Cases.Keys.SelectMany(name => CudaTestDevice.Modes.Select(mode => (name, mode))));

    [Theory]
    [MemberData(nameof(NamesInModes))]
    public void Run_WithAndWithout_EndsWithTheSameBits(string name, string mode)
    {
        using TemporaryFolder folder = TinyTraining.Folder(Untied);
        using TinyTraining without = Open(folder.Path, mode, Cases[name].Without), with = Open(folder.Path, mode, Cases[name].With);
        for (int step = 0; step < Steps; step++)
        {
            Assert.Equal(without.Trainer.Step().Loss, with.Trainer.Step().Loss);
        }

        TensorAssert.BitEqual(without.Values, with.Values, "parameters");
        Assert.True(with.Plan.Memory.DeviceBytes <= without.Plan.Memory.DeviceBytes, $"{without.Plan.Memory} without, {with.Plan.Memory} with");
        Assert.NotEqual(without.Plan.Memory, with.Plan.Memory);

        // The plan is for the largest micro-batch of the run, which these steps may not have had; the rest of them have.
        while (with.Trainer.CompletedSteps < with.Trainer.TotalSteps)
        {
            with.Trainer.Step();
        }

        Device device = with.Trained.Model.Device;
        Assert.Equal((with.Plan.ArenaBytes, with.Plan.HostBytes), (device.Arena.HighWaterBytes, device.HostArena.HighWaterBytes));
        Assert.Equal((with.Plan.ArenaBytes, with.Plan.HostBytes), (device.Arena.CapacityBytes, device.HostArena.CapacityBytes));
    }

    [Theory]
    [InlineData("paged_adamw_32bit", 0)]
    [InlineData("paged_adamw_8bit", 32)]
    public void PagedMoments_AreManagedAndBroughtBeforeEachUpdate(string optimizer, int rank)
    {
        Assert.SkipWhen(CudaTestDevice.IsRealGpuRequired, "a real driver does not count");
        using TemporaryFolder folder = TinyTraining.Folder(Untied);
        CudaStandin.Require();
        CudaStandin.Reset();
        using TinyTraining run = Open(folder.Path, CudaTestDevice.Modes[0], rank == 0 ? [("optimizer", optimizer)] : [("optimizer", optimizer), ("lora_r", rank)]);
        Assert.Equal(1, CudaStandin.Count("managed_allocations"));
        run.Trainer.Step();
        run.Trainer.Step();

        Assert.Equal((2, 2 * run.Plan.PagedBytes), (CudaStandin.Count("prefetches"), CudaStandin.Count("prefetched_bytes")));
        Assert.Equal(0, run.Plan.ByKind[MemoryKind.Moments]);
        Assert.Equal(run.Plan.Memory.DeviceBytes, CudaStandin.Count("allocated_bytes"));
        Assert.False(Directory.Exists(folder.File("out")), "a GPU makes no file");
    }

    /// <summary>Two on the device and one being written, instead of one for each block and its output.</summary>
    [Fact]
    public void InputsOnTheHost_AreThoseOfAllBlocksButTheLast()
    {
        using TemporaryFolder folder = TinyTraining.Folder(Untied);
        using TinyTraining without = Open(folder.Path, CudaTestDevice.Modes[0], Recomputed), with = Open(folder.Path, CudaTestDevice.Modes[0], Offloaded);
        long input = Arena.BytesOf(DType.BF16, (long)with.Trainer.LargestTokens * Untied.HiddenSize);

        Assert.Equal((Untied.NumHiddenLayers - 1) * input, with.Plan.HostBytes);
        Assert.InRange(without.Plan.ArenaBytes - with.Plan.ArenaBytes, (Untied.NumHiddenLayers - 2) * input, (Untied.NumHiddenLayers - 1) * input);
    }

    private static TinyTraining Open(string folder, string mode, (string Key, object? Value)[] changes) => new(
        folder, DevicePlatform.Cuda, (_, memory) => CudaTestDevice.Open(mode, memory),
        [("val_set_size", null), ("evaluate_before", "false"), ("evaluate_after", "false"), ("gradient_accumulation_steps", 2), ("warmup_steps", 0), ("num_epochs", 1), .. changes]);
}
