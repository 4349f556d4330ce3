using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using LoraTrainer.Engine.Native;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Devices;

/// <summary>The processor: f32 arithmetic, one worker pool, memory from one block that becomes resident only where it is touched.</summary>
public sealed unsafe class CpuDevice : Device
{
    /// <summary>Large enough for any test and free of charge: untouched pages do not exist.</summary>
    private const long DefaultCapacityBytes = 1L << 32;

    /// <summary>So many bytes behind a tensor of the arena may be read, and not used: a word of codes is loaded from up to 3 bytes further on. A paged arena has none.</summary>
    private const int ReadableBehind = 64;

    private readonly WorkerPool pool;
    private readonly Arena arena;
    private readonly List<MappedFile> mappedFiles = [];
    private byte* memory;

    /// <param name="threadCount">Worker threads; 0 means one for each core this process may use.</param>
    /// <param name="capacityBytes">Size of the arena; a run passes what its plan says.</param>
    /// <param name="roundsToBF16">See <see cref="Device.ComputesInBF16"/>: activations stay f32 in memory, but every operation's result is rounded.</param>
    public CpuDevice(int threadCount = 0, long capacityBytes = DefaultCapacityBytes, bool roundsToBF16 = false)
    {
        ComputesInBF16 = roundsToBF16;
        ArgumentOutOfRangeException.ThrowIfNegative(threadCount);
        long size = Arena.RoundUp(Math.Max(capacityBytes, 1));
        memory = (byte*)NativeMemory.AlignedAlloc((nuint)(size + ReadableBehind), PageAdvice.HugePageBytes);
        if (memory is null)
        {
            throw new InsufficientMemoryException($"The system refuses {size:N0} bytes of memory.");
        }

        PageAdvice.PreferHugePages(memory, size);
        pool = new WorkerPool(threadCount == 0 ? Environment.ProcessorCount : threadCount);
        arena = new Arena(this, (nint)memory, size);
        HostArena = new Arena(this, 0, 0);
    }

    public override DevicePlatform Platform => DevicePlatform.Cpu;

    public override DType ActivationType => ActivationTypeOf(Platform);

    public override Arena Arena => arena;

    public override Arena HostArena { get; }

    public override int ThreadCount => pool.ThreadCount;

    public override string Description => $"CPU, {ThreadCount} thread{(ThreadCount == 1 ? string.Empty : "s")}, {InstructionSet}";

    /// <summary>The widest instruction set that the kernels use here.</summary>
    public static string InstructionSet =>
        Vector512.IsHardwareAccelerated && Avx512F.IsSupported ? "AVX-512" : Avx2.IsSupported && Fma.IsSupported ? "AVX2" : "no vector instructions";

    /// <summary>
    /// The yardstick for devices that compute in bf16: the same operations in f32, each result rounded to bf16 once. Its distance from the
    /// unrounded run is what the format itself costs.
    /// </summary>
    public override bool ComputesInBF16 { get; }

    internal WorkerPool Pool => pool;

    /// <summary>Called by operations on the activations they have just written; does nothing unless <see cref="ComputesInBF16"/>.</summary>
    internal void RoundActivations(params ReadOnlySpan<Tensor> activations)
    {
        if (!ComputesInBF16)
        {
            return;
        }

        foreach (Tensor tensor in activations)
        {
            for (long i = 0; !tensor.IsNone && i < tensor.ElementCount; i++)
            {
                tensor.F32[i] = BrainFloat.Round(tensor.F32[i]);
            }
        }
    }

    public override Arena PagedArena(string path, long bytes)
    {
        var file = new MappedFile(path, bytes);
        mappedFiles.Add(file);
        return new Arena(this, file.Address, bytes);
    }

    public override void Upload(Tensor destination, ReadOnlySpan<byte> source, long elementOffset = 0)
    {
        CheckTransfer(destination, source.Length, elementOffset);
        source.CopyTo(new Span<byte>((byte*)destination.Address + elementOffset * destination.DType.SizeBytes(), source.Length));
    }

    public override void Download(Tensor source, Span<byte> destination, long elementOffset = 0)
    {
        CheckTransfer(source, destination.Length, elementOffset);
        new ReadOnlySpan<byte>((byte*)source.Address + elementOffset * source.DType.SizeBytes(), destination.Length).CopyTo(destination);
    }

    public override void Zero(Tensor tensor) => NativeMemory.Clear((void*)tensor.Address, (nuint)tensor.SizeBytes);

    public override void Copy(Tensor destination, Tensor source)
    {
        if (destination.SizeBytes != source.SizeBytes || destination.DType != source.DType)
        {
            throw new ShapeMismatchException($"Copy: {source.DType} {source.Shape} does not fit {destination.DType} {destination.Shape}.");
        }

        NativeMemory.Copy((void*)source.Address, (void*)destination.Address, (nuint)source.SizeBytes);
    }

    protected override void Dispose(bool disposing)
    {
        if (memory is not null)
        {
            pool.Dispose();
            NativeMemory.AlignedFree(memory);
            memory = null;
            mappedFiles.ForEach(file => file.Dispose());
        }
    }
}
