using System.Globalization;
using LoraTrainer.Engine.Native.Cuda;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Devices;

/// <summary>Memory beside the card's own: page-locked memory of the host, which kernels read over the bus, and managed memory; and copies that go on beside the work.</summary>
public sealed unsafe partial class CudaDevice
{
    private readonly List<nint> managed = [];

    // Uploads beside the work are small: a micro-batch has 16 bytes a token.
    private const int UploadShare = 4;
    private const int ReadbackBytes = 256;

    private readonly CudaStagingRing uploads;
    private nint hostMemory;
    private nint readback;
    private nint copyStream;
    private nint workDone;
    private nint copiesDone;
    private bool copiesAreUnderWay;
    private nint uploadStream;
    private nint uploadsMayBegin;
    private nint uploadsDone;

    public override Arena HostArena => hostArena;

    public override Arena PagedArena(string path, long bytes)
    {
        RefuseWhileRecording("An allocation");
        MakeCurrent();
        long size = Arena.RoundUp(bytes);
        RequireFree(size);
        CudaStatus status = CudaDriver.cuMemAllocManaged(out nint address, (nuint)size, CudaDriver.AttachGlobal);
        if (status != CudaStatus.Success)
        {
            CudaCheck.Throw(status, nameof(CudaDriver.cuMemAllocManaged), null, string.Create(
                CultureInfo.InvariantCulture, $"Asked for: {size:N0} bytes that the driver may page. Some virtual GPUs have no such memory; an optimizer that is not paged does without."));
        }

        managed.Add(address);
        ThrowIfFailed(CudaDriver.cuMemsetD8Async(address, 0, (nuint)size, stream));
        return new Arena(this, address, size);
    }

    /// <summary>Cards whose driver moves pages one by one, when they are touched, are asked to move them beforehand; others move all of them at each launch.</summary>
    public override void Prefetch(Arena paged)
    {
        RefuseWhileRecording("Prefetching");
        MakeCurrent();
        if (movesPages && paged.UsedBytes > 0)
        {
            ThrowIfFailed(CudaDriver.cuMemPrefetchAsync(paged.Start, (nuint)paged.UsedBytes, ordinal, stream));
        }
    }

    public override void StartCopy(Tensor destination, Tensor source)
    {
        CheckCopy(destination, source);
        if (source.SizeBytes == 0)
        {
            return;
        }

        MakeCurrent();
        if (copyStream == 0)
        {
            ThrowIfFailed(CudaDriver.cuStreamCreate(out copyStream, CudaDriver.StreamNonBlocking));
            ThrowIfFailed(CudaDriver.cuEventCreate(out workDone, CudaDriver.EventWithoutTiming));
            ThrowIfFailed(CudaDriver.cuEventCreate(out copiesDone, CudaDriver.EventWithoutTiming));
        }

        ThrowIfFailed(CudaDriver.cuEventRecord(workDone, stream));
        ThrowIfFailed(CudaDriver.cuStreamWaitEvent(copyStream, workDone, 0));
        CopyOn(copyStream, destination, source);
        copiesAreUnderWay = true;
    }

    public override void AwaitCopies()
    {
        if (copiesAreUnderWay)
        {
            MakeCurrent();
            ThrowIfFailed(CudaDriver.cuEventRecord(copiesDone, copyStream));
            ThrowIfFailed(CudaDriver.cuStreamWaitEvent(stream, copiesDone, 0));
            copiesAreUnderWay = false;
        }
    }

    public override void StartUpload(Tensor destination, ReadOnlySpan<byte> source)
    {
        CheckOwn(destination);
        CheckTransfer(destination, source.Length, elementOffset: 0);
        RefuseWhileRecording("An upload");
        if (IsOnHost(destination))
        {
            throw new NotSupportedException("What is on the host is not uploaded beside the work.");
        }

        lock (transfers)
        {
            MakeCurrent();
            ThrowIfFailed(CudaDriver.cuEventRecord(uploadsMayBegin, stream));
            ThrowIfFailed(CudaDriver.cuStreamWaitEvent(uploadStream, uploadsMayBegin, 0));
            ThrowIfFailed(uploads.Upload(destination.Address, source), "an upload");
        }
    }

    public override void AwaitUploads()
    {
        MakeCurrent();
        ThrowIfFailed(CudaDriver.cuEventRecord(uploadsDone, uploadStream));
        ThrowIfFailed(CudaDriver.cuStreamWaitEvent(stream, uploadsDone, 0));
    }

    private bool IsOnHost(Tensor tensor) => tensor.Address >= hostMemory && tensor.Address < hostMemory + (nint)hostArena.CapacityBytes;

    /// <summary>Queues a copy between two places of this device, in its own memory or the host's.</summary>
    private void CopyOn(nint queue, Tensor destination, Tensor source)
    {
        nuint bytes = (nuint)source.SizeBytes;
        if (IsOnHost(destination) && IsOnHost(source))
        {
            throw new NotSupportedException("A copy from the host to the host has no use on a GPU.");
        }

        if (IsOnHost(destination))
        {
            ThrowIfFailed(CudaDriver.cuMemcpyDtoHAsync((void*)destination.Address, source.Address, bytes, queue));
        }
        else if (IsOnHost(source))
        {
            ThrowIfFailed(CudaDriver.cuMemcpyHtoDAsync(destination.Address, (void*)source.Address, bytes, queue));
        }
        else
        {
            ThrowIfFailed(CudaDriver.cuMemcpyDtoDAsync(destination.Address, source.Address, bytes, queue));
        }
    }

    /// <summary>The host's bytes of a tensor there, when no work that was asked for uses them any more.</summary>
    private Span<byte> HostBytes(Tensor tensor, int count, long elementOffset)
    {
        AwaitCopies();
        Synchronize();
        return new Span<byte>((byte*)tensor.Address + elementOffset * tensor.DType.SizeBytes(), count);
    }

    /// <summary>Page-locked memory of the host.</summary>
    /// <param name="size">Bytes.</param>
    /// <param name="flags">0, or that kernels read it too.</param>
    internal static nint AllocateHostMemory(long size, uint flags)
    {
        CudaStatus status = CudaDriver.cuMemHostAlloc(out nint address, (nuint)size, flags);
        if (status == CudaStatus.OutOfMemory)
        {
            throw new HostMemoryException(string.Create(CultureInfo.InvariantCulture,
                $"The run needs {size:N0} bytes of the host's memory, page-locked for the GPU, and the driver does not get them: the machine, its container or the user's limit (ulimit -l) has less."));
        }

        CudaCheck.ThrowIfFailed(status, nameof(CudaDriver.cuMemHostAlloc));
        return address;
    }

    /// <summary>Refuses managed memory that would not fit: the driver would move pages to and fro in each update, for longer than the step takes.</summary>
    private void RequireFree(long pagedBytes)
    {
        CudaCheck.ThrowIfFailed(CudaDriver.cuMemGetInfo(out nuint free, out nuint total));
        if (pagedBytes > (long)free)
        {
            throw new InsufficientMemoryException(string.Create(CultureInfo.InvariantCulture,
                $"The plan pages {pagedBytes:N0} bytes beside the {arena?.CapacityBytes ?? 0:N0} that it keeps on {Info.Name}, and {(long)free:N0} of {(long)total:N0} are free for them: they have to be on the card as a whole when they are used."));
        }
    }

    private void ReleaseBeside()
    {
        foreach (nint address in managed)
        {
            _ = CudaDriver.cuMemFree(address);
        }

        managed.Clear();
        if (hostMemory != 0)
        {
            _ = CudaDriver.cuMemFreeHost(hostMemory);
            hostMemory = 0;
        }

        if (readback != 0)
        {
            _ = CudaDriver.cuMemFreeHost(readback);
            readback = 0;
        }

        foreach (nint cudaEvent in (nint[])[workDone, copiesDone, uploadsMayBegin, uploadsDone])
        {
            if (cudaEvent != 0)
            {
                _ = CudaDriver.cuEventDestroy(cudaEvent);
            }
        }

        foreach (nint beside in (nint[])[copyStream, uploadStream])
        {
            if (beside != 0)
            {
                _ = CudaDriver.cuStreamDestroy(beside);
            }
        }

        (workDone, copiesDone, copyStream) = (0, 0, 0);
        (uploadsMayBegin, uploadsDone, uploadStream) = (0, 0, 0);
    }

    /// <summary>The host has too little memory that can be locked.</summary>
    private sealed class HostMemoryException(string message) : Exception(message);
}
