using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Runtime.CompilerServices;
using LoraTrainer.Engine.Native.Cuda;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Devices;

/// <summary>
/// An NVIDIA GPU: bf16 activations, kernels compiled on the spot, matrix products by cuBLASLt. All work goes through one stream, so it happens in
/// the order in which it was asked for, but for copies that are started beside it. <see cref="Download"/> and <see cref="Synchronize"/> wait for it, and
/// <see cref="Upload"/> where the staging ring is full or the destination is on the host. May be used from any thread, by one at a time.
/// </summary>
public sealed unsafe partial class CudaDevice : Device
{
    // The device owns all of these, and they have to go in a certain order; handles with finalizers of their own would not keep it.
    private readonly Lock transfers = new();
    private readonly bool synchronizeLaunches;
    private readonly int ordinal;
    private readonly CudaStagingRing staging;
    private readonly CudaModules modules;
    private readonly CudaGemm gemm;
    private readonly Arena arena;
    private readonly Arena hostArena;
    private readonly bool movesPages;
    private nint context;
    private nint stream;
    private nint memory;
    private string? lastLaunch;

    /// <exception cref="CudaException">A call of the driver failed.</exception>
    /// <exception cref="InsufficientMemoryException">The card has less memory than is asked for.</exception>
    /// <exception cref="HostMemoryException">The host has.</exception>
    private CudaDevice(int ordinal, CudaDeviceInfo info, Nvrtc? nvrtc, DeviceMemory planned, CudaDeviceOptions options)
    {
        this.ordinal = ordinal;
        Info = info;
        synchronizeLaunches = options.SynchronizeLaunches;
        long size = Arena.RoundUp(Math.Max(planned.ArenaBytes, 1));
        CudaCheck.ThrowIfFailed(CudaDriver.cuDevicePrimaryCtxRetain(out context, ordinal));
        try
        {
            MakeCurrent();
            CudaCheck.ThrowIfFailed(CudaDriver.cuStreamCreate(out stream, CudaDriver.StreamNonBlocking));
            memory = AllocateMemory(info, size);
            staging = new CudaStagingRing(stream, options.StagingSegmentBytes, options.StagingSegmentCount);
            modules = new CudaModules(nvrtc, ReadyKernels.In(options.ReadyFolder), options.Sources, new KernelCache(options.CacheFolder), info, text => Notice?.Invoke(text));
            gemm = new CudaGemm(stream, info.Name);
            arena = new Arena(this, memory, size);
            long hostBytes = Arena.RoundUp(planned.HostBytes);
            hostMemory = hostBytes > 0 ? AllocateHostMemory(hostBytes, CudaDriver.HostMapped) : 0;
            hostArena = new Arena(this, hostMemory, hostBytes);
            readback = AllocateHostMemory(ReadbackBytes, 0);
            CudaCheck.ThrowIfFailed(CudaDriver.cuStreamCreate(out uploadStream, CudaDriver.StreamNonBlocking));
            CudaCheck.ThrowIfFailed(CudaDriver.cuEventCreate(out uploadsMayBegin, CudaDriver.EventWithoutTiming));
            CudaCheck.ThrowIfFailed(CudaDriver.cuEventCreate(out uploadsDone, CudaDriver.EventWithoutTiming));
            uploads = new CudaStagingRing(uploadStream, (int)Arena.RoundUp(options.StagingSegmentBytes / UploadShare), options.StagingSegmentCount);
            CudaCheck.ThrowIfFailed(CudaDriver.cuDeviceGetAttribute(out int concurrent, CudaDriver.AttributeConcurrentManagedAccess, ordinal));
            movesPages = concurrent != 0 && CudaLibraries.Exports(CudaLibrary.Driver, nameof(CudaDriver.cuMemPrefetchAsync));
            RequireFree(planned.PagedBytes);
        }
        catch
        {
            Release();
            throw;
        }
    }

    /// <summary>Receives what the user should see but need not act on: warnings about kernels. Set before the first operation.</summary>
    public Action<string>? Notice { get; set; }

    public CudaDeviceInfo Info { get; }

    public override DevicePlatform Platform => DevicePlatform.Cuda;

    public override DType ActivationType => ActivationTypeOf(Platform);

    public override Arena Arena => arena;

    public override int ThreadCount => 1;

    public override string Description => string.Create(CultureInfo.InvariantCulture,
        $"{Info.Name}, {Info.TotalMemoryBytes / (double)(1 << 30):0.0} GiB, compute capability {Info.ComputeCapability}, driver for CUDA {Info.DriverVersion}");

    /// <summary>Compiled kernels of this device.</summary>
    internal CudaModules Modules => modules;

    internal CudaStagingRing Staging => staging;

    /// <summary>The algorithms that matrix products use here; a checkpoint keeps them.</summary>
    internal GemmAlgorithms GemmAlgorithms => gemm.Algorithms;

    public override void Upload(Tensor destination, ReadOnlySpan<byte> source, long elementOffset = 0)
    {
        CheckOwn(destination);
        CheckTransfer(destination, source.Length, elementOffset);
        RefuseWhileRecording("An upload");
        if (IsOnHost(destination))
        {
            source.CopyTo(HostBytes(destination, source.Length, elementOffset));
            return;
        }

        lock (transfers)
        {
            MakeCurrent();
            ThrowIfFailed(staging.Upload(destination.Address + (nint)(elementOffset * destination.DType.SizeBytes()), source), "an upload");
        }
    }

    public override void Download(Tensor source, Span<byte> destination, long elementOffset = 0)
    {
        CheckOwn(source);
        CheckTransfer(source, destination.Length, elementOffset);
        RefuseWhileRecording("A download");
        if (destination.IsEmpty)
        {
            return;
        }

        if (IsOnHost(source))
        {
            HostBytes(source, destination.Length, elementOffset).CopyTo(destination);
            return;
        }

        lock (transfers)
        {
            MakeCurrent();
            nint from = source.Address + (nint)(elementOffset * source.DType.SizeBytes());

            // A copy to memory that is not page-locked is waited for by the driver itself; a few numbers, as the report of a step, are waited for once.
            bool isShort = destination.Length <= ReadbackBytes;
            fixed (byte* start = destination)
            {
                ThrowIfFailed(CudaDriver.cuMemcpyDtoHAsync(isShort ? (void*)readback : start, from, (nuint)destination.Length, stream));
                ThrowIfFailed(CudaDriver.cuStreamSynchronize(stream));
            }

            lastRecorded = null;
            if (isShort)
            {
                new ReadOnlySpan<byte>((void*)readback, destination.Length).CopyTo(destination);
            }
        }
    }

    public override void Zero(Tensor tensor)
    {
        CheckOwn(tensor);
        if (IsOnHost(tensor))
        {
            throw new NotSupportedException("Memory of the host is not set to zero on a GPU: nothing there is read before it is written.");
        }

        if (tensor.SizeBytes > 0)
        {
            MakeCurrent();
            ThrowIfFailed(CudaDriver.cuMemsetD8Async(tensor.Address, 0, (nuint)tensor.SizeBytes, stream));
        }
    }

    public override void Copy(Tensor destination, Tensor source)
    {
        CheckCopy(destination, source);
        if (source.SizeBytes > 0)
        {
            MakeCurrent();
            CopyOn(stream, destination, source);
        }
    }

    public override byte[] ExportChoices() => gemm.Algorithms.Export();

    public override string? ImportChoices(ReadOnlySpan<byte> exported) => gemm.Algorithms.TryImport(exported, out string? reason) ? null : reason;

    /// <summary>Waits until all work that was asked for is done.</summary>
    internal void Synchronize()
    {
        RefuseWhileRecording("A wait");
        MakeCurrent();
        ThrowIfFailed(CudaDriver.cuStreamSynchronize(stream));
        lastRecorded = null;
    }

    protected override void Dispose(bool disposing) => Release();

    private static nint AllocateMemory(CudaDeviceInfo info, long size)
    {
        CudaStatus status = CudaDriver.cuMemAlloc(out nint address, (nuint)size);
        if (status == CudaStatus.OutOfMemory)
        {
            string free = CudaDriver.cuMemGetInfo(out nuint freeBytes, out _) == CudaStatus.Success
                ? string.Create(CultureInfo.InvariantCulture, $"{freeBytes:N0} of {info.TotalMemoryBytes:N0} are free")
                : string.Create(CultureInfo.InvariantCulture, $"it has {info.TotalMemoryBytes:N0}");
            throw new InsufficientMemoryException(string.Create(CultureInfo.InvariantCulture,
                $"The plan needs {size:N0} bytes on {info.Name} and {free}; other programs on this GPU take what they hold."));
        }

        if (status != CudaStatus.Success)
        {
            CudaCheck.Throw(status, nameof(CudaDriver.cuMemAlloc), null, string.Create(CultureInfo.InvariantCulture, $"Asked for: {size:N0} bytes."));
        }

        return address;
    }

    /// <summary>Contexts are current per thread, so each call that reaches the driver begins with this.</summary>
    private void MakeCurrent()
    {
        ObjectDisposedException.ThrowIf(context == 0, this);
        CudaCheck.ThrowIfFailed(CudaDriver.cuCtxSetCurrent(context));
    }

    private void CheckCopy(Tensor destination, Tensor source)
    {
        CheckOwn(destination);
        CheckOwn(source);
        if (destination.SizeBytes != source.SizeBytes || destination.DType != source.DType)
        {
            throw new ShapeMismatchException($"Copy: {source.DType} {source.Shape} does not fit {destination.DType} {destination.Shape}.");
        }
    }

    private void CheckOwn(Tensor tensor)
    {
        if (!ReferenceEquals(tensor.Device, this))
        {
            ThrowForeign(tensor);
        }
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ThrowForeign(Tensor tensor) => throw new ShapeMismatchException($"A tensor of {tensor.Device.Description} was given to {Description}.");

    private void ThrowIfFailed(CudaStatus status, [CallerArgumentExpression(nameof(status))] string call = "")
    {
        if (status != CudaStatus.Success)
        {
            CudaCheck.Throw(status, CudaCheck.Function(call), LastLaunch, null);
        }
    }

    /// <summary>Gives everything back, what depends on something before that. Errors have no one to go to here: the work they belong to was lost before.</summary>
    private void Release()
    {
        if (context == 0)
        {
            return;
        }

        _ = CudaDriver.cuCtxSetCurrent(context);
        if (stream != 0)
        {
            _ = CudaDriver.cuStreamSynchronize(stream);
        }

        foreach (nint beside in (nint[])[copyStream, uploadStream])
        {
            if (beside != 0)
            {
                _ = CudaDriver.cuStreamSynchronize(beside);
            }
        }

        ReleaseRecorded();

        // Null where the constructor did not get that far.
        gemm?.Dispose();
        modules?.Dispose();
        staging?.Dispose();
        uploads?.Dispose();
        ReleaseBeside();
        if (memory != 0)
        {
            _ = CudaDriver.cuMemFree(memory);
            memory = 0;
        }

        if (stream != 0)
        {
            _ = CudaDriver.cuStreamDestroy(stream);
            stream = 0;
        }

        _ = CudaDriver.cuCtxSetCurrent(0);
        _ = CudaDriver.cuDevicePrimaryCtxRelease(ordinal);
        context = 0;
    }
}
