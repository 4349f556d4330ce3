using LoraTrainer.Engine.Devices;

namespace LoraTrainer.Engine.Tensors;

/// <summary>What memory is used for; the plan and the run report by these.</summary>
public enum MemoryKind
{
    /// <summary>Frozen weights of the base model, quantized or not.</summary>
    Weights,

    /// <summary>Everything that is trained.</summary>
    Parameters,

    /// <summary>Gradients of what is trained.</summary>
    Gradients,

    /// <summary>Optimizer moments.</summary>
    Moments,

    /// <summary>What a step keeps between forward and backward, and its batch.</summary>
    Activations,

    /// <summary>What one operation needs while it runs.</summary>
    Workspace,

    /// <summary>Keys and values of generated text.</summary>
    KeyValueCache,
}

/// <summary>
/// One block of a device's memory, handed out as a stack: what lives for the whole run lies at the bottom, a step's activations are pushed
/// above it and popped again. The peak is known in advance (the same code runs on a <see cref="MeasureDevice"/>), and addresses repeat every step.
/// Allocating costs an addition; nothing is ever returned to the system before the arena itself is.
/// </summary>
public sealed class Arena
{
    /// <summary>Every tensor starts at a multiple of this many bytes, and its last block is padded to it.</summary>
    public const int AlignmentBytes = 256;

    private static readonly int KindCount = Enum.GetValues<MemoryKind>().Length;

    private readonly Device device;
    private readonly nint start;
    private readonly long[] usedByKind = new long[KindCount];
    private readonly long[] peakByKind = new long[KindCount];

    internal Arena(Device device, nint start, long capacityBytes)
    {
        this.device = device;
        this.start = start;
        CapacityBytes = capacityBytes;
    }

    public long CapacityBytes { get; }

    internal nint Start => start;

    public long UsedBytes { get; private set; }

    /// <summary>The largest <see cref="UsedBytes"/> so far.</summary>
    public long HighWaterBytes { get; private set; }

    /// <summary>Bytes of <paramref name="kind"/> at the moment of the high-water mark; these sum to <see cref="HighWaterBytes"/>.</summary>
    public long HighWaterOf(MemoryKind kind) => peakByKind[(int)kind];

    /// <summary>A tensor of undefined content on top of the stack.</summary>
    /// <exception cref="ArenaExhaustedException">The arena is smaller than what is asked of it.</exception>
    public Tensor Allocate(MemoryKind kind, DType dtype, Shape shape)
    {
        long bytes = BytesOf(dtype, shape.ElementCount);
        if (bytes > CapacityBytes - UsedBytes)
        {
            ThrowExhausted(kind, bytes);
        }

        var tensor = new Tensor(device, start + (nint)UsedBytes, shape, dtype);
        UsedBytes += bytes;
        usedByKind[(int)kind] += bytes;
        if (UsedBytes > HighWaterBytes)
        {
            HighWaterBytes = UsedBytes;
            usedByKind.CopyTo(peakByKind, 0);
        }

        return tensor;
    }

    /// <summary>What a tensor of so many elements takes of an arena.</summary>
    public static long BytesOf(DType dtype, long elements) => RoundUp(checked(elements * dtype.SizeBytes()));

    /// <summary>Opens a frame: disposing it gives back everything allocated since. Frames nest.</summary>
    public ArenaFrame Frame() => new(this);

    /// <summary>Gives everything back, whoever allocated it; the high-water mark stays.</summary>
    public void Clear() => Release(default);

    internal static long RoundUp(long bytes) => (bytes + AlignmentBytes - 1) & -AlignmentBytes;

    internal FrameMark Mark()
    {
        var mark = new FrameMark { Used = UsedBytes };
        usedByKind.CopyTo(mark.ByKind);
        return mark;
    }

    internal void Release(in FrameMark mark)
    {
        UsedBytes = mark.Used;
        ((ReadOnlySpan<long>)mark.ByKind)[..KindCount].CopyTo(usedByKind);
    }

    private void ThrowExhausted(MemoryKind kind, long bytes) => throw new ArenaExhaustedException(
        $"The memory plan does not cover this step: {bytes:N0} bytes of {kind} were asked for, {CapacityBytes - UsedBytes:N0} of {CapacityBytes:N0} are left. The plan and the run disagree, which is a defect of the program.");

    internal struct FrameMark
    {
        public long Used;
        public KindCounters ByKind;
    }

    [System.Runtime.CompilerServices.InlineArray(8)]
    internal struct KindCounters
    {
        private long first;
    }
}

/// <summary>A part of an <see cref="Arena"/>'s stack; disposing it pops everything allocated since it was opened.</summary>
public readonly ref struct ArenaFrame
{
    private readonly Arena arena;
    private readonly Arena.FrameMark mark;

    internal ArenaFrame(Arena arena)
    {
        this.arena = arena;
        mark = arena.Mark();
    }

    public void Dispose() => arena.Release(mark);
}

/// <summary>A step needed more memory than its plan says.</summary>
public sealed class ArenaExhaustedException(string message) : InvalidOperationException(message);
