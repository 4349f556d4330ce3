using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Devices;

/// <summary>Whose kernels run an operation, and in which types.</summary>
public enum DevicePlatform
{
    /// <summary>The processor: activations in <see cref="DType.F32"/>.</summary>
    Cpu,

    /// <summary>An NVIDIA GPU: activations in <see cref="DType.BF16"/>, statistics and everything that is trained in <see cref="DType.F32"/>.</summary>
    Cuda,
}

/// <summary>
/// Where tensors live and operations run. Operations are static contracts in <c>Ops/</c> that check their arguments once, take their workspace
/// from the arena and hand over to the kernel of the device; a device itself only owns memory and moves it.
/// </summary>
public abstract class Device : IDisposable
{
    /// <summary>Whose kernels run; a device that only measures names the one it measures for.</summary>
    public abstract DevicePlatform Platform { get; }

    /// <summary>Element type of the activations that flow between layers here.</summary>
    public abstract DType ActivationType { get; }

    /// <summary>True where matrices are multiplied in bf16: frozen dense matrices are kept so, and trained ones have a copy that is.</summary>
    public virtual bool ComputesInBF16 => ActivationType == DType.BF16;

    /// <summary>All of this device's memory that operations use.</summary>
    public abstract Arena Arena { get; }

    /// <summary>Worker threads that operations split their work over (1 on a device with its own scheduler). Workspace depends on it, results never do.</summary>
    public abstract int ThreadCount { get; }

    /// <summary>One line for people: what this device is.</summary>
    public abstract string Description { get; }

    /// <summary>Allocates on the arena and fills with zeros.</summary>
    public Tensor AllocateZeroed(MemoryKind kind, DType dtype, Shape shape)
    {
        Tensor tensor = Arena.Allocate(kind, dtype, shape);
        Zero(tensor);
        return tensor;
    }

    /// <summary>
    /// A second arena, of zeros, whose memory lies behind a file: for what is used once a step, so that the system can have its memory in between. Arena and file
    /// live as long as the device; a file that is there is overwritten.
    /// </summary>
    /// <param name="path">In a folder that is there.</param>
    /// <param name="bytes">Of the arena; more than 0.</param>
    /// <exception cref="NotSupportedException">The device's memory cannot lie behind a file.</exception>
    /// <exception cref="IOException">The file cannot be made, or the disk has no room for it.</exception>
    public virtual Arena MapArena(string path, long bytes) => throw new NotSupportedException($"{Description} has no memory that lies behind a file.");

    /// <summary>Copies host bytes into the tensor from its element <paramref name="elementOffset"/> on.</summary>
    public abstract void Upload(Tensor destination, ReadOnlySpan<byte> source, long elementOffset = 0);

    /// <summary>Copies the tensor's bytes from its element <paramref name="elementOffset"/> on to the host; waits until all work before it is done.</summary>
    public abstract void Download(Tensor source, Span<byte> destination, long elementOffset = 0);

    /// <summary>Sets every byte to zero.</summary>
    public abstract void Zero(Tensor tensor);

    /// <summary>Copies between two tensors of this device with equal size and type.</summary>
    public abstract void Copy(Tensor destination, Tensor source);

    /// <summary>
    /// What this device chose while it ran and what decides the last bits of results, for a checkpoint to keep: on a GPU the algorithm of each
    /// matrix product. Null where nothing is chosen.
    /// </summary>
    public virtual byte[]? ExportChoices() => null;

    /// <summary>Takes over what <see cref="ExportChoices"/> gave another process, before the first operation.</summary>
    /// <param name="exported">From a checkpoint.</param>
    /// <returns>Why it does not apply here, as a clause; null where it was taken over.</returns>
    /// <exception cref="FormatException">The bytes are not what a device exports.</exception>
    public virtual string? ImportChoices(ReadOnlySpan<byte> exported) => "the run was on another kind of device, whose sums end with other last bits";

    public void Dispose()
    {
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    protected abstract void Dispose(bool disposing);

    /// <summary>What <see cref="ActivationType"/> is on a platform.</summary>
    private protected static DType ActivationTypeOf(DevicePlatform platform) => platform == DevicePlatform.Cuda ? DType.BF16 : DType.F32;

    private protected static void CheckTransfer(Tensor tensor, long byteCount, long elementOffset)
    {
        if (elementOffset < 0 || elementOffset * tensor.DType.SizeBytes() + byteCount > tensor.SizeBytes)
        {
            throw new ShapeMismatchException($"A transfer of {byteCount} bytes at element {elementOffset} does not fit into a tensor of {tensor.SizeBytes} bytes.");
        }
    }
}
