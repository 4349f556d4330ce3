using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace LoraTrainer.Benchmarks;

/// <summary>Reads a block of memory with several threads, as fast as the machine can.</summary>
internal sealed unsafe class MemoryReader : IDisposable
{
    private const int Unroll = 4;

    private readonly byte* block;
    private readonly long bytesPerThread;
    private readonly Thread[] threads;
    private readonly Barrier barrier;
    private volatile bool isDone;

    public MemoryReader(long bytes, int threadCount)
    {
        bytesPerThread = bytes / threadCount / (Unroll * 64) * (Unroll * 64);
        block = (byte*)NativeMemory.AlignedAlloc((nuint)(bytesPerThread * threadCount), 64);
        new Span<byte>(block, (int)(bytesPerThread * threadCount)).Fill(1);
        barrier = new Barrier(threadCount);
        threads = [.. Enumerable.Range(1, threadCount - 1).Select(index => new Thread(() => Serve(index)) { IsBackground = true })];
        foreach (Thread thread in threads)
        {
            thread.Start();
        }
    }

    public void Read()
    {
        barrier.SignalAndWait();
        Sum(0);
        barrier.SignalAndWait();
    }

    public void Dispose()
    {
        isDone = true;
        barrier.SignalAndWait();
        foreach (Thread thread in threads)
        {
            thread.Join();
        }

        barrier.Dispose();
        NativeMemory.AlignedFree(block);
    }

    private void Serve(int index)
    {
        while (true)
        {
            barrier.SignalAndWait();
            if (isDone)
            {
                return;
            }

            Sum(index);
            barrier.SignalAndWait();
        }
    }

    private void Sum(int index)
    {
        Vector512<int> a = default, b = default, c = default, d = default;
        byte* end = block + (index + 1) * bytesPerThread;
        for (byte* p = block + index * bytesPerThread; p < end; p += Unroll * 64)
        {
            a += Vector512.Load((int*)p);
            b += Vector512.Load((int*)(p + 64));
            c += Vector512.Load((int*)(p + 128));
            d += Vector512.Load((int*)(p + 192));
        }

        // What nobody looks at would not be read.
        GC.KeepAlive(Vector512.Sum(a + b + c + d));
    }
}
