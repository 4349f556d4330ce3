using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Engine.Tests.Devices.CudaTestKernels;

namespace LoraTrainer.Engine.Tests.Devices;

/// <summary>Launches, compiled kernels and faults of the CUDA device, on the stand-in driver.</summary>
[Collection(CudaStandin.Collection)]
[Trait("Category", "Emulator")]
public sealed unsafe class CudaLaunchTests
{
    [Fact]
    public void Launch_EveryKindOfArgument_Arrives()
    {
        using CudaDevice device = Open();
        Tensor output = device.AllocateZeroed(MemoryKind.Activations, DType.I64, new Shape(10));
        var every = new Every { A = 1L << 40, B = 0.5, C = -9, D = 1.25f };
        device.Launch(Echo, (1, 1, 1), 32, 0, output, -7, 4_000_000_000u, -(1L << 33), 1UL << 50, 0.75f, 1e-300, KernelArgument.Struct(&every));

        Assert.Equal([-7, 4_000_000_000, -(1L << 33), 1L << 50, 0.75, 1e-300, 1L << 40, 0.5, -9, 1.25], Read<double>(device, output));
    }

    [Theory]
    [InlineData(StandinOrder.Forward, false)]
    [InlineData(StandinOrder.Reverse, true)]
    public void Launch_GridOfBlocks_CoversEveryElement(StandinOrder order, bool lazy)
    {
        using CudaDevice device = Open();
        CudaStandin.Configure(order, lazy: lazy);
        Tensor numbers = Floats(device, 1000);
        device.Launch(Scale, (8, 1, 1), 128, 0, numbers, numbers, 1000, 2f, 1f);

        Assert.Equal([.. Enumerable.Range(0, 1000).Select(i => 2f * i + 1)], Read<float>(device, numbers));
    }

    [Fact]
    public void Launch_EmptyGrid_LaunchesNothing()
    {
        using CudaDevice device = Open();
        Tensor numbers = Floats(device, 4);
        device.Launch(Scale, (0, 1, 1), 64, 0, numbers, numbers, 0, 2f, 1f);
        device.Launch(Scale, (1, 0, 1), 64, 0, numbers, numbers, 0, 2f, 1f);
        device.Launch(Scale, (1, 1, 0), 64, 0, numbers, numbers, 0, 2f, 1f);

        Assert.Equal(0, CudaStandin.Count("scale"));
    }

    [Fact]
    public void Launch_WrongArguments_NameTheParameter()
    {
        using CudaDevice device = Open();
        Tensor numbers = Floats(device, 4);

        AssertMessage("scale takes 5 arguments, got 4: scale(output (Pointer), input (Pointer), count (Int32), a (Float32), b (Float32)).", () => device.Launch(Scale, (1, 1, 1), 64, 0, numbers, numbers, 4, 2f));
        AssertMessage("scale: argument 3 is a (Float32), got Int32 of 4 bytes.", () => device.Launch(Scale, (1, 1, 1), 64, 0, numbers, numbers, 4, 2, 1f));
        AssertMessage("scale: argument 2 is count (Int32), got Int64 of 8 bytes.", () => device.Launch(Scale, (1, 1, 1), 64, 0, numbers, numbers, 4L, 2f, 1f));
        AssertMessage("scale: argument 0 is output (Pointer), got UInt64 of 8 bytes.", () => device.Launch(Scale, (1, 1, 1), 64, 0, 4UL, numbers, 4, 2f, 1f));
        AssertMessage("scale: argument 2 is count (Int32), got UInt32 of 4 bytes.", () => device.Launch(Scale, (0, 1, 1), 64, 0, numbers, numbers, 4u, 2f, 1f));
        AssertMessage("echo: argument 7 is g (Struct, 24 bytes), got Struct of 8 bytes.", () =>
        {
            long small = 0;
            device.Launch(Echo, (1, 1, 1), 32, 0, numbers, -7, 4u, -1L, 1UL, 0.75f, 1.0, KernelArgument.Struct(&small));
        });
        Assert.Equal((0, 0), (CudaStandin.Count("scale"), CudaStandin.Count("echo")));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(33)]
    [InlineData(1056)]
    public void Launch_WrongBlock_Throws(int block)
    {
        using CudaDevice device = Open();
        Tensor numbers = Floats(device, 4);

        AssertMessage("scale: a block has a multiple of 32 threads, at most 1024", () => device.Launch(Scale, (1, 1, 1), (uint)block, 0, numbers, numbers, 4, 2f, 1f));
    }

    [Fact]
    public void Launch_GridTooLarge_Throws()
    {
        using CudaDevice device = Open();
        Tensor numbers = Floats(device, 4);

        AssertMessage("scale: a grid has at most 2147483647 x 65535 x 65535 blocks", () => device.Launch(Scale, (1, 65536, 1), 32, 0, numbers, numbers, 4, 2f, 1f));
    }

    [Theory]
    [InlineData(1000)]
    [InlineData(49152)]
    [InlineData(100_000)]
    public void Launch_SharedMemory_IsThereInAnySize(int bytes)
    {
        using CudaDevice device = Open();
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.U8, new Shape(bytes));
        byte[] source = [.. Enumerable.Range(0, bytes).Select(i => (byte)(i * 7 >> 3))];
        device.Upload(tensor, source);
        device.Launch(Reverse, (1, 1, 1), 64, (uint)bytes, tensor, bytes);
        device.Launch(Reverse, (1, 1, 1), 64, (uint)bytes, tensor, bytes);
        device.Launch(Reverse, (1, 1, 1), 64, (uint)bytes, tensor, bytes);
        Array.Reverse(source);

        Assert.Equal(source, Read<byte>(device, tensor));
    }

    [Fact]
    public void Launch_MoreSharedMemoryThanTheCardHas_SaysHowMuch()
    {
        using CudaDevice device = Open();
        Tensor numbers = Floats(device, 4);

        Assert.Matches(
            "^reverse needs 400,000 bytes of shared memory a block beside its own [0-9]+; .* has [0-9,]+\\.$",
            Assert.Throws<NotSupportedException>(() => device.Launch(Reverse, (1, 1, 1), 64, 400_000, numbers, 4)).Message);
    }

    [Fact]
    public void Launch_Variants_AreCompiledOnceEach()
    {
        using CudaDevice device = Open();
        Tensor output = device.AllocateZeroed(MemoryKind.Activations, DType.I32, new Shape(1));
        var seen = new List<int>();
        foreach (int size in (int[])[64, 100, 112, 64])
        {
            device.Launch(Variant.With(size), (1, 1, 1), 32, 0, output);
            seen.Add(Read<int>(device, output)[0]);
        }

        Assert.Equal([64, 112, 112, 64], seen);
        Assert.Equal(2, device.Modules.Compilations);
        AssertMessage("variant is compiled for a value of LT_TEST_SIZE, and none was chosen.", () => device.Launch(Variant, (1, 1, 1), 32, 0, output));
    }

    [Fact]
    public void Launch_SourceDoesNotCompile_SaysWhere()
    {
        using CudaDevice device = Open(Options() with { Sources = With(("test.cu", "#include \"test.cuh\"\nextern \"C\" __global__ void scale(float* output) {\n    output[0] = missing;\n}\n")) });
        KernelCompilationException error = Assert.Throws<KernelCompilationException>(() => device.Launch(Scale, (1, 1, 1), 32, 0, (nint)0, (nint)0, 0, 0f, 0f));

        Assert.StartsWith("The kernels in test.cu do not compile (NVRTC_ERROR_COMPILATION, NVRTC 13.0, --gpu-architecture=sm_", error.Message, StringComparison.Ordinal);
        Assert.Contains("test.cu:3:", error.Message, StringComparison.Ordinal);
        Assert.Contains("missing", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Launch_SourceHasNoSuchKernel_SaysSo()
    {
        using CudaDevice device = Open();
        var missing = new CudaKernel("test.cu", "not_there");

        CudaException error = Assert.Throws<CudaException>(() => device.Launch(missing, (1, 1, 1), 32, 0));
        Assert.Equal(("CUDA_ERROR_NOT_FOUND", "cuModuleGetFunction"), (error.StatusName, error.Call));
        Assert.EndsWith("test.cu should have the kernel not_there.", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Launch_DeclarationAndSourceDiffer_SaysWhere()
    {
        using CudaDevice device = Open();
        var shorter = new CudaKernel("test.cu", "reverse", KernelParameter.Pointer("bytes"));
        var wider = new CudaKernel("test.cu", "reverse", KernelParameter.Pointer("bytes"), KernelParameter.Int64("count"));

        Assert.Equal("reverse is declared with 1 parameters and has 2 in test.cu.", Assert.Throws<InvalidOperationException>(() => device.Launch(shorter, (1, 1, 1), 32, 0, (nint)0)).Message);
        Assert.Equal("reverse: parameter count (Int64) has 4 bytes in test.cu.", Assert.Throws<InvalidOperationException>(() => device.Launch(wider, (1, 1, 1), 32, 0, (nint)0, 0L)).Message);
    }

    [Fact]
    public void Compile_Warnings_AreNotices()
    {
        var notices = new List<string>();
        using CudaDevice device = Open(Options() with { Sources = With(("test.cu", Source.Replace("int i = blockIdx.x", "int unused_number; int i = blockIdx.x", StringComparison.Ordinal))) });
        device.Notice = notices.Add;
        Tensor numbers = Floats(device, 4);
        device.Launch(Scale, (1, 1, 1), 32, 0, numbers, numbers, 4, 2f, 1f);

        Assert.StartsWith("NVRTC about test.cu: ", Assert.Single(notices), StringComparison.Ordinal);
        Assert.Contains("unused_number", notices[0], StringComparison.Ordinal);
    }

    [Fact]
    public void Cache_SecondDevice_CompilesNothing()
    {
        using var folder = new TemporaryFolder();
        Assert.Equal(1, CompilationsWith(folder.Path));
        Assert.Equal(0, CompilationsWith(folder.Path));
        Assert.Equal(1, CompilationsWith(folder.Path, With(("test.cu", Source + "\n// changed\n"))));
        Assert.Equal(1, CompilationsWith(folder.Path, With(("test.cuh", Header + "\n// changed\n"))));
        Assert.Equal(1, CompilationsWith(null));
    }

    [Fact]
    public void Cache_TornOrForeignFile_IsCompiledAgainAndReplaced()
    {
        using var folder = new TemporaryFolder();
        CompilationsWith(folder.Path);
        string file = Assert.Single(Directory.GetFiles(folder.Path));
        byte[] good = File.ReadAllBytes(file);
        foreach (byte[] bad in (byte[][])[[], "something else"u8.ToArray(), good[..^1], [.. good[..^1], 1]])
        {
            File.WriteAllBytes(file, bad);
            Assert.Equal(1, CompilationsWith(folder.Path));
            Assert.Equal(0, CompilationsWith(folder.Path));
        }
    }

    [Fact]
    public void Cache_WholeEntryThatTheDriverRefuses_IsCompiledAgain()
    {
        using var folder = new TemporaryFolder();
        CompilationsWith(folder.Path);
        byte[] key = Convert.FromHexString(Path.GetFileNameWithoutExtension(Directory.GetFiles(folder.Path)[0]));
        new KernelCache(folder.Path).TryWrite(key, "an image for another driver\0"u8);

        Assert.Equal(1, CompilationsWith(folder.Path));
        Assert.Equal(0, CompilationsWith(folder.Path));
    }

    [Fact]
    public void Fault_IsReportedAtOrBeforeACallAndNamesWhatWasLaunchedLast()
    {
        CudaDevice device = Open();
        CudaStandin.Configure(lazy: true);
        Tensor numbers = Floats(device, 4), address = BadAddress(device);
        device.Launch(WriteTo, (1, 1, 1), 32, 0, address);
        device.Launch(Scale, (1, 1, 1), 32, 0, numbers, numbers, 4, 2f, 1f);
        CudaException error = Assert.Throws<CudaException>(() => device.Synchronize());

        Assert.Equal(("CUDA_ERROR_ILLEGAL_ADDRESS", "cuStreamSynchronize"), (error.StatusName, error.Call));
        Assert.StartsWith("The GPU reported CUDA_ERROR_ILLEGAL_ADDRESS (", error.Message, StringComparison.Ordinal);
        Assert.EndsWith("at or before cuStreamSynchronize. Launched last: scale. With LT_CUDA_SYNC=1 in the environment each launch is waited for, and the message names the one at fault.", error.Message, StringComparison.Ordinal);
        device.Dispose();
        AssertUsable();
    }

    [Fact]
    public void Fault_EveryLaunchIsWaitedFor_NamesTheKernelAtFault()
    {
        CudaDevice device = Open(Options() with { SynchronizeLaunches = true });
        CudaStandin.Configure(lazy: true);
        Tensor numbers = Floats(device, 4), address = BadAddress(device);
        device.Launch(Scale, (1, 1, 1), 32, 0, numbers, numbers, 4, 2f, 1f);
        CudaException error = Assert.Throws<CudaException>(() => device.Launch(WriteTo, (3, 1, 1), 64, 16, address));

        Assert.Equal(("CUDA_ERROR_ILLEGAL_ADDRESS", "write_to"), (error.StatusName, error.Call));
        Assert.StartsWith("The kernel write_to of test.cu failed with CUDA_ERROR_ILLEGAL_ADDRESS (", error.Message, StringComparison.Ordinal);
        Assert.EndsWith("Launched with a grid of 3 x 1 x 1 blocks of 64 threads and 16 bytes of shared memory.", error.Message, StringComparison.Ordinal);
        device.Dispose();
        AssertUsable();
    }

    [Fact]
    public void Fault_BeforeAnything_ComesUpEverywhere()
    {
        CudaDevice device = Open();
        CudaStandin.Configure(lazy: true);
        Tensor numbers = Floats(device, 4), address = BadAddress(device);
        device.Launch(Scale, (1, 1, 1), 32, 0, numbers, numbers, 4, 2f, 1f);
        device.Launch(WriteTo, (1, 1, 1), 32, 0, address);
        Assert.Throws<CudaException>(() => device.Download(numbers, new byte[16]));

        foreach (Action next in (Action[])[() => device.Upload(numbers, new byte[16]), () => device.Zero(numbers), () => device.Copy(numbers, numbers), () => device.Launch(Scale, (1, 1, 1), 32, 0, numbers, numbers, 4, 2f, 1f)])
        {
            Assert.Contains("write_to", Assert.Throws<CudaException>(next).Message, StringComparison.Ordinal);
        }

        device.Dispose();
        AssertUsable();
    }

    [Fact]
    public void SteadyState_AllocatesNoManagedMemory()
    {
        using CudaDevice device = Open();
        Tensor numbers = Floats(device, 1000), copy = Floats(device, 1000), workspace = device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(1 << 20));
        byte[] bytes = new byte[4000];
        Step();
        Step();
        long before = GC.GetAllocatedBytesForCurrentThread();
        Step();

        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);

        void Step()
        {
            device.Upload(numbers, bytes);
            device.Zero(copy);
            device.Copy(copy, numbers);
            device.Launch(Scale, (8, 1, 1), 128, 0, numbers, numbers, 1000, 2f, 1f);
            device.Launch(Variant.With(64), (1, 1, 1), 32, 0, copy);
            device.Launch(Reverse, (1, 1, 1), 64, 60_000, copy, 100);
            device.Multiply(new GemmCall { M = 8, N = 8, K = 8, A = numbers.Address, LeadingA = 8, B = numbers.Address + 1024, LeadingB = 8, C = copy.Address, LeadingC = 8, OutputType = DType.F32, Workspace = workspace.Address, WorkspaceBytes = workspace.SizeBytes });
            device.Download(numbers, bytes);
        }
    }

    private static int CompilationsWith(string? folder, KernelSources? sources = null)
    {
        using CudaDevice device = Open(Options() with { CacheFolder = folder, Sources = sources ?? Sources });
        Tensor numbers = Floats(device, 4);
        device.Launch(Scale, (1, 1, 1), 32, 0, numbers, numbers, 4, 2f, 1f);
        device.Launch(Reverse, (1, 1, 1), 32, 64, numbers, 16);
        return device.Modules.Compilations;
    }

    private static Tensor BadAddress(CudaDevice device)
    {
        Tensor address = device.Arena.Allocate(MemoryKind.Activations, DType.I64, new Shape(1));
        device.Upload(address, MemoryMarshal.AsBytes<long>([64]));
        return address;
    }

    /// <summary>A fault is of the device that was closed; the next one starts clean.</summary>
    private static void AssertUsable()
    {
        using CudaDevice device = Open();
        Tensor numbers = Floats(device, 4);
        device.Launch(Scale, (1, 1, 1), 32, 0, numbers, numbers, 4, 2f, 1f);

        Assert.Equal([1, 3, 5, 7], Read<float>(device, numbers));
    }

    private static void AssertMessage(string expected, Action action) => Assert.StartsWith(expected, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);

    private static Tensor Floats(CudaDevice device, int count)
    {
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(count));
        device.Upload(tensor, MemoryMarshal.AsBytes<float>([.. Enumerable.Range(0, count).Select(i => (float)i)]));
        return tensor;
    }

    private static T[] Read<T>(CudaDevice device, Tensor tensor)
        where T : unmanaged
    {
        T[] values = new T[tensor.SizeBytes / sizeof(T)];
        device.Download(tensor, MemoryMarshal.AsBytes(values.AsSpan()));
        return values;
    }
}
