using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Devices;

/// <summary>
/// A device whose memory does not exist and whose kernels do nothing: the same model code runs on it, its arena's high-water mark is the memory
/// plan to the byte, and it keeps account of the work that each contract declares.
/// </summary>
public sealed class MeasureDevice : Device
{
    // Any address that is not zero and leaves room above it; nothing is ever read or written there.
    private const nint ImaginaryStart = 1 << 20;

    private readonly Arena arena;
    private readonly Dictionary<(WorkKind Kind, double Flops, double Bytes), long> work = [];

    /// <param name="threadCount">Worker threads of the device that is planned for.</param>
    /// <param name="platform">The platform of the device that is planned for; activations have its type.</param>
    public MeasureDevice(int threadCount, DevicePlatform platform = DevicePlatform.Cpu)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(threadCount, 1);
        ThreadCount = threadCount;
        Platform = platform;
        arena = new Arena(this, ImaginaryStart, long.MaxValue / 4);
        HostArena = new Arena(this, ImaginaryStart, platform == DevicePlatform.Cpu ? 0 : long.MaxValue / 4);
    }

    public override DevicePlatform Platform { get; }

    public override DType ActivationType => ActivationTypeOf(Platform);

    public override Arena Arena => arena;

    public override Arena HostArena { get; }

    public override int ThreadCount { get; }

    public override string Description => "a plan (nothing is computed)";

    /// <summary>Everything that ran since the last <see cref="ResetWork"/>, equal operations together.</summary>
    public IReadOnlyList<DeviceWork> Work => [.. work.Select(item => new DeviceWork(item.Key.Kind, item.Key.Flops, item.Key.Bytes, item.Value))];

    /// <summary>Floating-point operations of <see cref="Work"/>.</summary>
    public double Flops => work.Sum(item => item.Key.Flops * item.Value);

    /// <summary>Bytes of all arenas of <see cref="PagedArena"/>; they are not in <see cref="Arena"/>.</summary>
    public long PagedBytes { get; private set; }

    /// <summary>All memory that was used, at its highest.</summary>
    public DeviceMemory Memory => new(Arena.HighWaterBytes, HostArena.HighWaterBytes, PagedBytes);

    public void ResetWork() => work.Clear();

    public override Arena PagedArena(string path, long bytes)
    {
        PagedBytes += bytes;
        return new Arena(this, ImaginaryStart, bytes);
    }

    public override void Upload(Tensor destination, ReadOnlySpan<byte> source, long elementOffset = 0) => CheckTransfer(destination, source.Length, elementOffset);

    public override void Download(Tensor source, Span<byte> destination, long elementOffset = 0)
    {
        CheckTransfer(source, destination.Length, elementOffset);
        destination.Clear();
    }

    public override void Zero(Tensor tensor) => Count(0, tensor);

    public override void Copy(Tensor destination, Tensor source) => Count(0, destination, source);

    /// <summary>Takes no time: it goes on beside the work.</summary>
    public override void StartCopy(Tensor destination, Tensor source)
    {
    }

    /// <summary>One operation that is neither product nor attention: what it computes, and the tensors that it reads and writes, each time it does.</summary>
    internal void Count(double flops, params ReadOnlySpan<Tensor> tensors) => Count(WorkKind.Memory, flops, tensors);

    /// <summary>One operation with the tensors that it reads and writes.</summary>
    internal void Count(WorkKind kind, double flops, params ReadOnlySpan<Tensor> tensors)
    {
        double bytes = 0;
        foreach (Tensor tensor in tensors)
        {
            bytes += tensor.IsNone ? 0 : tensor.SizeBytes;
        }

        Count(kind, flops, bytes);
    }

    /// <summary>One operation.</summary>
    internal void Count(WorkKind kind, double flops, double bytes)
    {
        (WorkKind, double, double) key = (kind, flops, bytes);
        work[key] = work.GetValueOrDefault(key) + 1;
    }

    protected override void Dispose(bool disposing)
    {
    }
}
