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

    /// <summary>
    /// Page-locked memory of the host that a GPU reads and writes by itself, slower than its own: for what is used seldom or in small parts. As large as the
    /// plan says; on the CPU, whose <see cref="Arena"/> is the host's memory already, it has no room.
    /// </summary>
    public abstract Arena HostArena { get; }

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
    /// A second arena, of zeros, for what is used once a step, so that its memory can be had in between: on the CPU it lies behind a file, on a GPU it is managed
    /// memory, which the driver moves to the host where the card has no room. It lives as long as the device; a file that is there is overwritten.
    /// </summary>
    /// <param name="path">Of the file, in a folder that is there; a GPU makes none.</param>
    /// <param name="bytes">Of the arena; more than 0.</param>
    /// <exception cref="IOException">The file cannot be made, or the disk has no room for it.</exception>
    /// <exception cref="InsufficientMemoryException">The GPU has less memory free: what is paged has to be on the card as a whole when it is used.</exception>
    public abstract Arena PagedArena(string path, long bytes);

    /// <summary>Begins to bring an arena of <see cref="PagedArena"/> to where it is used; the work that is asked for next need not find it piece by piece.</summary>
    public virtual void Prefetch(Arena paged)
    {
    }

    /// <summary>Copies host bytes into the tensor from its element <paramref name="elementOffset"/> on.</summary>
    public abstract void Upload(Tensor destination, ReadOnlySpan<byte> source, long elementOffset = 0);

    /// <summary>
    /// As <see cref="Upload"/>, beside the work that is asked for after it: what was asked for before is done when the copy begins. The source may be changed when this returns; the
    /// destination may not be used before <see cref="AwaitUploads"/>.
    /// </summary>
    public virtual void StartUpload(Tensor destination, ReadOnlySpan<byte> source) => Upload(destination, source);

    /// <summary>Work that is asked for from now on begins when all copies of <see cref="StartUpload"/> are done. The caller does not wait.</summary>
    public virtual void AwaitUploads()
    {
    }

    /// <summary>Copies the tensor's bytes from its element <paramref name="elementOffset"/> on to the host; waits until all work before it is done.</summary>
    public abstract void Download(Tensor source, Span<byte> destination, long elementOffset = 0);

    /// <summary>Sets every byte to zero.</summary>
    public abstract void Zero(Tensor tensor);

    /// <summary>Copies between two tensors of this device with equal size and type.</summary>
    public abstract void Copy(Tensor destination, Tensor source);

    /// <summary>
    /// As <see cref="Copy"/>, beside the work that is asked for after it: what was asked for before is done when the copy begins. Neither tensor's memory may be written
    /// to, and the destination not be read, before <see cref="AwaitCopies"/>.
    /// </summary>
    public virtual void StartCopy(Tensor destination, Tensor source) => Copy(destination, source);

    /// <summary>Work that is asked for from now on begins when all copies of <see cref="StartCopy"/> are done. The caller does not wait.</summary>
    public virtual void AwaitCopies()
    {
    }

    /// <summary>True where work can be recorded and launched again as a whole (<see cref="StartRecording"/>).</summary>
    public virtual bool RecordsWork => false;

    /// <summary>
    /// Work that is asked for from now on, up to <see cref="FinishRecording"/>, is recorded instead of done. It may be operations and copies within the device; each kind of it
    /// must have been done once before, and the memory that it uses must be the same whenever it is launched. Nothing is uploaded, downloaded or waited for in between.
    /// </summary>
    public virtual void StartRecording() => throw new NotSupportedException($"{Description} records no work.");

    /// <summary>Ends what <see cref="StartRecording"/> began.</summary>
    /// <param name="title">Names the work in messages.</param>
    public virtual RecordedWork FinishRecording(string title) => throw new NotSupportedException($"{Description} records no work.");

    /// <summary>Forgets what was recorded so far, where something has failed.</summary>
    public virtual void AbandonRecording()
    {
    }

    /// <summary>Asks for all of the recorded work.</summary>
    /// <param name="work">Of this device.</param>
    /// <param name="step">Names the occasion in messages.</param>
    public virtual void Launch(RecordedWork work, long step) => throw new NotSupportedException($"{Description} records no work.");

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
