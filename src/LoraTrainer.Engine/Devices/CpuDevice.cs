using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using LoraTrainer.Engine.Native;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Devices;

/// <summary>The processor: f32 arithmetic, one worker pool, memory from one block that becomes resident only where it is touched.</summary>
public sealed unsafe class CpuDevice : Device
{
    /// <summary>Large enough for any test and free of charge: untouched pages do not exist.</summary>
    private const long DefaultCapacityBytes = 1L << 32;

    private const int HugePageBytes = 2 << 20;

    private readonly WorkerPool pool;
    private readonly Arena arena;
    private byte* memory;

    /// <param name="threadCount">Worker threads; 0 means one for each core this process may use.</param>
    /// <param name="capacityBytes">Size of the arena; a run passes what its plan says.</param>
    public CpuDevice(int threadCount = 0, long capacityBytes = DefaultCapacityBytes)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(threadCount);
        long size = Arena.RoundUp(Math.Max(capacityBytes, 1));
        memory = (byte*)NativeMemory.AlignedAlloc((nuint)size, HugePageBytes);
        if (memory is null)
        {
            throw new InsufficientMemoryException($"The system refuses {size:N0} bytes of memory.");
        }

        PageAdvice.PreferHugePages(memory, size);
        pool = new WorkerPool(threadCount == 0 ? Environment.ProcessorCount : threadCount);
        arena = new Arena(this, (nint)memory, size);
    }

    public override DevicePlatform Platform => DevicePlatform.Cpu;

    public override DType ActivationType => ActivationTypeOf(Platform);

    public override Arena Arena => arena;

    public override int ThreadCount => pool.ThreadCount;

    public override string Description => $"CPU, {ThreadCount} thread{(ThreadCount == 1 ? string.Empty : "s")}, {InstructionSet}";

    /// <summary>The widest instruction set that the kernels use here.</summary>
    public static string InstructionSet =>
        Vector512.IsHardwareAccelerated && Avx512F.IsSupported ? "AVX-512" : Avx2.IsSupported && Fma.IsSupported ? "AVX2" : "no vector instructions";

    internal WorkerPool Pool => pool;

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
        }
    }
}
