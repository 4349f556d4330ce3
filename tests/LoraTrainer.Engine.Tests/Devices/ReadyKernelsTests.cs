using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Engine.Tests.Devices.CudaTestKernels;

namespace LoraTrainer.Engine.Tests.Devices;

/// <summary>Kernels that a release carries: whom they are for, and that only whole ones of the program's own sources are used.</summary>
[Collection(CudaStandin.Collection)]
[Trait("Category", "Emulator")]
public sealed class ReadyKernelsTests
{
    [Fact]
    public void Device_TakesThem_AndCompilesNothing()
    {
        using TemporaryFolder folder = Written();
        Assert.Equal(0, Compilations(folder.Path, Sources));
    }

    [Fact]
    public void Device_EntryIsDamagedOrOfOtherSources_CompilesInstead()
    {
        using TemporaryFolder folder = Written();
        Assert.Equal(1, Compilations(folder.Path, With(("more.cuh", "// another header\n"))));
        foreach (string entry in Directory.EnumerateFiles(folder.Path, "*.kernels"))
        {
            byte[] bytes = File.ReadAllBytes(entry);
            bytes[bytes.Length / 2] ^= 1;
            File.WriteAllBytes(entry, bytes);
        }

        Assert.Equal(1, Compilations(folder.Path, Sources));
    }

    /// <summary>Machine code of the card's generation, else portable text of one before it.</summary>
    [Theory]
    [InlineData(75, null)]
    [InlineData(80, "sm_80")]
    [InlineData(87, "sm_86")]
    [InlineData(89, "sm_89")]
    [InlineData(90, "sm_90a")]
    [InlineData(103, "sm_100")]
    [InlineData(110, "compute_100")]
    [InlineData(121, "sm_120")]
    [InlineData(130, "compute_120")]
    public void Target_IsWhatTheCardRuns(int card, string? architecture) => Assert.Equal(architecture, Index("lora-trainer kernels 1\n13.2\n80 86 89 90 100 120\n")!.TargetFor(card)?.Architecture);

    /// <summary>Without the ones of Blackwell there is no text that a later card could be given.</summary>
    [Fact]
    public void Target_LaterGenerationWithoutText_IsNone() => Assert.Null(Index("lora-trainer kernels 1\n12.8\n80 90\n")!.TargetFor(100));

    [Theory]
    [InlineData("")]
    [InlineData("lora-trainer kernels 2\n13.2\n80\n")]
    [InlineData("lora-trainer kernels 1\n13.2\n")]
    [InlineData("lora-trainer kernels 1\nnew\n80\n")]
    [InlineData("lora-trainer kernels 1\n13.2\n90 80\n")]
    [InlineData("lora-trainer kernels 1\n13.2\n80 x\n")]
    [InlineData("lora-trainer kernels 1\n13.2\n80\nmore\n")]
    public void Index_Torn_IsAsIfThereWereNone(string text) => Assert.Null(Index(text));

    [Fact]
    public void Folder_Missing_IsNone()
    {
        Assert.Null(ReadyKernels.In("/nowhere/at/all"));
        Assert.Null(ReadyKernels.In(null));
    }

    private static ReadyKernels? Index(string text)
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("index"), text);
        return ReadyKernels.In(folder.Path);
    }

    private static TemporaryFolder Written()
    {
        CudaStandin.Require();
        var folder = new TemporaryFolder();
        Assert.True(Nvrtc.TryCreate(CudaLibraries.Find(CudaLibrary.Compiler), out Nvrtc? nvrtc, out string reason), reason);
        Assert.Equal(1, ReadyKernels.Write(folder.Path, nvrtc, Sources, [80], [Scale]));
        return folder;
    }

    private static int Compilations(string folder, KernelSources sources)
    {
        using CudaDevice device = Open(Options() with { ReadyFolder = folder, Sources = sources });
        Tensor numbers = device.AllocateZeroed(MemoryKind.Activations, DType.F32, new Shape(64));
        device.Launch(Scale, (1, 1, 1), 64, 0, numbers, numbers, 64, 2f, 1f);
        float[] read = new float[64];
        device.Download(numbers, System.Runtime.InteropServices.MemoryMarshal.AsBytes(read.AsSpan()));
        Assert.All(read, value => Assert.Equal(1, value));
        return device.Modules.Compilations;
    }
}
