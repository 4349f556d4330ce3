using LoraTrainer.Engine.Native.Cuda;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Devices;

/// <summary>
/// Page-locked host memory through which uploads go: the caller's bytes are copied into it, so that the caller may change them at once, and the GPU
/// fetches them when the stream comes to it. The memory is a ring of segments; an upload waits only where every segment still has copies under way.
/// Small uploads share a segment. The device's context must be current in every call; the caller sees to it that there is one call at a time.
/// </summary>
internal sealed unsafe class CudaStagingRing : IDisposable
{
    private readonly nint stream;
    private readonly int segmentBytes;
    private readonly nint[] events;
    private readonly bool[] underWay;
    private nint memory;
    private int current;
    private int used;

    /// <param name="stream">The stream that the copies are queued on.</param>
    /// <param name="segmentBytes">Size of a segment; a multiple of <see cref="Arena.AlignmentBytes"/>.</param>
    /// <param name="segmentCount">At least 2.</param>
    public CudaStagingRing(nint stream, int segmentBytes, int segmentCount)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(segmentCount, 2);
        ArgumentOutOfRangeException.ThrowIfNotEqual(segmentBytes % Arena.AlignmentBytes, 0);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(segmentBytes);
        this.stream = stream;
        this.segmentBytes = segmentBytes;
        events = new nint[segmentCount];
        underWay = new bool[segmentCount];
        try
        {
            memory = CudaDevice.AllocateHostMemory((long)segmentBytes * segmentCount, 0);
            for (int i = 0; i < segmentCount; i++)
            {
                CudaCheck.ThrowIfFailed(CudaDriver.cuEventCreate(out events[i], CudaDriver.EventWithoutTiming));
            }
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>How often an upload had to wait for the GPU.</summary>
    public long Waits { get; private set; }

    /// <summary>Queues a copy; the source may be changed when this returns.</summary>
    /// <returns>Success, or the status of the driver's call that failed.</returns>
    public CudaStatus Upload(nint destination, ReadOnlySpan<byte> source)
    {
        while (!source.IsEmpty)
        {
            if (used == segmentBytes)
            {
                CudaStatus moved = NextSegment();
                if (moved != CudaStatus.Success)
                {
                    return moved;
                }
            }

            int length = Math.Min(segmentBytes - used, source.Length);
            byte* place = (byte*)memory + (long)current * segmentBytes + used;
            source[..length].CopyTo(new Span<byte>(place, length));
            CudaStatus status = CudaDriver.cuMemcpyHtoDAsync(destination, place, (nuint)length, stream);
            if (status != CudaStatus.Success)
            {
                return status;
            }

            destination += length;
            source = source[length..];
            used = (int)Arena.RoundUp(used + length);
        }

        return CudaStatus.Success;
    }

    /// <summary>The stream must have been waited for.</summary>
    public void Dispose()
    {
        foreach (nint cudaEvent in events)
        {
            if (cudaEvent != 0)
            {
                _ = CudaDriver.cuEventDestroy(cudaEvent);
            }
        }

        Array.Clear(events);
        if (memory != 0)
        {
            _ = CudaDriver.cuMemFreeHost(memory);
            memory = 0;
        }
    }

    private CudaStatus NextSegment()
    {
        // The event stands for every copy out of this segment: all were queued before it.
        CudaStatus status = CudaDriver.cuEventRecord(events[current], stream);
        if (status != CudaStatus.Success)
        {
            return status;
        }

        underWay[current] = true;
        current = (current + 1) % events.Length;
        used = 0;
        if (!underWay[current])
        {
            return CudaStatus.Success;
        }

        underWay[current] = false;
        status = CudaDriver.cuEventQuery(events[current]);
        if (status != CudaStatus.NotReady)
        {
            return status;
        }

        Waits++;
        return CudaDriver.cuEventSynchronize(events[current]);
    }
}
