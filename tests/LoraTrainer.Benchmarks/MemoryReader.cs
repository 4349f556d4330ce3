using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Native;

namespace LoraTrainer.Benchmarks;

/// <summary>Reads a block of memory with several threads, as fast as the machine can.</summary>
internal sealed unsafe class MemoryReader : IDisposable
{
    private const int Unroll = 4;

    /// <summary>Larger than any cache, so that each call reads what has not been read for long.</summary>
    private const long BlockBytes = 1L << 31;

    private readonly byte* block;
    private long first;
    private readonly long bytesPerThread;
    private readonly Thread[] threads;
    private readonly Barrier barrier;
    private volatile bool isDone;

    public MemoryReader(long bytes, int threadCount)
    {
        bytesPerThread = bytes / threadCount / (Unroll * 64) * (Unroll * 64);
        block = (byte*)NativeMemory.AlignedAlloc((nuint)BlockBytes, PageAdvice.HugePageBytes);
        PageAdvice.PreferHugePages(block, BlockBytes);
        NativeMemory.Fill(block, (nuint)BlockBytes, 1);
        barrier = new Barrier(threadCount);
        threads = [.. Enumerable.Range(1, threadCount - 1).Select(index => new Thread(() => Serve(index)) { IsBackground = true })];
        foreach (Thread thread in threads)
        {
            thread.Start();
        }
    }

    public void Read()
    {
        first = first + 2 * bytesPerThread * (threads.Length + 1) <= BlockBytes ? first + bytesPerThread * (threads.Length + 1) : 0;
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
        byte* end = block + first + (index + 1) * bytesPerThread;
        for (byte* p = block + first + index * bytesPerThread; p < end; p += Unroll * 64)
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
