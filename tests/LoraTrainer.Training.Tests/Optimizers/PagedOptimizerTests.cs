using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Planning;
using Xunit;

namespace LoraTrainer.Training.Tests.Optimizers;

/// <summary>Paged moments: they are in the file, the arena is smaller by them, and no number differs.</summary>
public sealed class PagedOptimizerTests
{
    [Theory]
    [InlineData("paged_adamw_32bit", "adamw_torch")]
    [InlineData("paged_adamw", "adamw_torch")]
    [InlineData("paged_adamw_8bit", "adamw_8bit")]
    public void Training_WithPagedMoments_GivesTheSameBytesFromTheFile(string paged, string resident)
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        Directory.CreateDirectory(folder.File("out"));
        string file = folder.File("out/.paged-moments");

        // What a process that was killed left behind is not taken for moments.
        File.WriteAllBytes(file, [.. Enumerable.Repeat((byte)0x3F, 100_000)]);
        using (var expected = new TinyTraining(folder.Path, ("optimizer", resident), ("lora_r", 32)))
        using (var actual = new TinyTraining(folder.Path, ("optimizer", paged), ("lora_r", 32)))
        {
            for (int step = 0; step < 3; step++)
            {
                expected.Trainer.Step();
                actual.Trainer.Step();
            }

            TensorAssert.BitEqual(expected.Values, actual.Values, "parameters");
            long moments = expected.Trained.Model.Device.Arena.HighWaterOf(MemoryKind.Moments);
            Assert.Equal(0, actual.Trained.Model.Device.Arena.HighWaterOf(MemoryKind.Moments));
            byte[] bytes = ReadShared(file);
            Assert.Equal(moments, bytes.LongLength);
            foreach (((string name, Tensor own), (string _, Tensor same)) in actual.Trained.Optimizer.Tensors().Zip(expected.Trained.Optimizer.Tensors()))
            {
                byte[] values = Bytes(own);
                Assert.True(values.AsSpan().SequenceEqual(Bytes(same)), name);
                Assert.True(values.AsSpan().IndexOfAnyExcept((byte)0) >= 0, $"{name} is zero");
                Assert.True(bytes.AsSpan().IndexOf(values) >= 0, $"{name} is not in the file");
            }
        }

        Assert.False(File.Exists(file));
    }

    [Fact]
    public void Plan_OfPagedMoments_NamesTheFileInsteadOfTheMemory()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        (MemoryPlan resident, MemoryPlan paged) = (Plan(folder, "adamw_torch"), Plan(folder, "paged_adamw_32bit"));
        Assert.Equal(0, resident.PagedBytes);
        Assert.Equal(resident.ByKind[MemoryKind.Moments], paged.PagedBytes);
        Assert.Equal(resident.ArenaBytes - paged.PagedBytes, paged.ArenaBytes);
    }

    [Fact]
    public void Open_FolderIsMissing_IsAnErrorAndLeavesNothing()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        Assert.Throws<DirectoryNotFoundException>(() => new TinyTraining(folder.Path, ("optimizer", "paged_adamw")));
        Assert.False(Directory.Exists(folder.File("out")));
    }

    private static MemoryPlan Plan(TemporaryFolder folder, string optimizer)
    {
        TrainingConfig config = ConfigurationLoader.LoadText(TinyRun.Config(folder.Path, ("optimizer", optimizer)), "tiny.yaml", []).Require();
        return MemoryPlan.Measure(config, ModelConfig.Parse(config.BaseModel), null, new DeviceSelection(Engine.Devices.DevicePlatform.Cpu, 1, null), new PlannedPasses(64, [], 64));
    }

    private static byte[] ReadShared(string path)
    {
        using var stream = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite);
        byte[] bytes = new byte[stream.Length];
        stream.ReadExactly(bytes);
        return bytes;
    }

    private static byte[] Bytes(Tensor tensor)
    {
        byte[] bytes = new byte[tensor.SizeBytes];
        tensor.Device.Download(tensor, bytes);
        return bytes;
    }
}
