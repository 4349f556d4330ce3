using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Devices;

/// <summary>
/// A device whose memory does not exist and whose kernels do nothing: the same model code runs on it, its arena's high-water mark is the memory
/// plan to the byte, and it adds up the floating-point operations that each contract declares.
/// </summary>
public sealed class MeasureDevice : Device
{
    // Any address that is not zero and leaves room above it; nothing is ever read or written there.
    private const nint ImaginaryStart = 1 << 20;

    private readonly Arena arena;

    /// <param name="threadCount">Worker threads of the device that is planned for.</param>
    /// <param name="platform">The platform of the device that is planned for; activations have its type.</param>
    public MeasureDevice(int threadCount, DevicePlatform platform = DevicePlatform.Cpu)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(threadCount, 1);
        ThreadCount = threadCount;
        Platform = platform;
        arena = new Arena(this, ImaginaryStart, long.MaxValue / 4);
    }

    public override DevicePlatform Platform { get; }

    public override DType ActivationType => ActivationTypeOf(Platform);

    public override Arena Arena => arena;

    public override int ThreadCount { get; }

    public override string Description => "a plan (nothing is computed)";

    /// <summary>Floating-point operations of everything that ran since the last <see cref="ResetFlops"/>; a multiplication with an addition counts as two.</summary>
    public double Flops { get; private set; }

    /// <summary>Bytes of all arenas that lie behind files; they are not in <see cref="Arena"/>.</summary>
    public long MappedBytes { get; private set; }

    public void ResetFlops() => Flops = 0;

    public override Arena MapArena(string path, long bytes)
    {
        MappedBytes += bytes;
        return new Arena(this, ImaginaryStart, bytes);
    }

    public override void Upload(Tensor destination, ReadOnlySpan<byte> source, long elementOffset = 0) => CheckTransfer(destination, source.Length, elementOffset);

    public override void Download(Tensor source, Span<byte> destination, long elementOffset = 0)
    {
        CheckTransfer(source, destination.Length, elementOffset);
        destination.Clear();
    }

    public override void Zero(Tensor tensor)
    {
    }

    public override void Copy(Tensor destination, Tensor source)
    {
    }

    internal void Count(double flops) => Flops += flops;

    protected override void Dispose(bool disposing)
    {
    }
}
