using System.Runtime.CompilerServices;

namespace LoraTrainer.Engine.Devices;

/// <summary>Work that a <see cref="WorkerPool"/> splits into numbered parts. Implemented by unmanaged structs, so that running it allocates nothing.</summary>
internal interface IParallelWork
{
    /// <summary>Does part <paramref name="part"/> on worker <paramref name="worker"/> (0 is the calling thread). What a part computes must not depend on the worker.</summary>
    void Execute(int part, int worker);
}

/// <summary>
/// A fixed set of threads that run the parts of one operation at a time. Which worker takes which part is left to the moment, so results may
/// depend on the part number only: then they are the same whatever the number of threads. An operation is done when its parts are done: a
/// worker that the system has not let run takes none and is not waited for, or one busy neighbour on the machine would hold up every
/// operation for a time slice. Waiting workers spin for about half a millisecond (an operation usually follows the last at once) and then sleep.
/// Running work allocates no managed memory.
/// </summary>
internal sealed unsafe class WorkerPool : IDisposable
{
    /// <summary>Looks of a waiting worker before it sleeps, some 40 ns apart.</summary>
    private const int SpinRounds = 16_000;

    /// <summary>Looks of the calling thread at the last parts before it lets others run: parts end within microseconds of each other, and to come back takes one.</summary>
    private const int CallerSpinRounds = 200;

    private readonly Thread[] threads;
    private readonly Lock runLock = new();
    private readonly object gate = new();
    private volatile int generation;
    private volatile bool stopping;
    private int sleepers;

    // Upper half: the operation; lower half: its next part. A part is taken by raising this from a value that was read before partCount, work and
    // execute were; as the operation cannot end before that part is done, a raise that succeeds proves that those three belong to it.
    private long nextTicket;
    private int completedParts;
    private int partCount;
    private delegate*<void*, int, int, void> execute;
    private void* work;
    private Exception? failure;

    /// <param name="threadCount">Number of threads that work, the caller's included; at least 1.</param>
    public WorkerPool(int threadCount)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(threadCount, 1);
        threads = new Thread[threadCount - 1];
        for (int i = 0; i < threads.Length; i++)
        {
            int worker = i + 1;
            threads[i] = new Thread(() => WorkerLoop(worker), 1 << 20) { IsBackground = true, Name = $"lora-trainer worker {worker}" };
            threads[i].Start();
        }
    }

    /// <summary>Threads that work, the caller's included.</summary>
    public int ThreadCount => threads.Length + 1;

    /// <summary>Runs all parts 0..<paramref name="parts"/>-1 and returns when the last one is done. An exception in a part is rethrown here.</summary>
    public void Run<TWork>(int parts, ref TWork item)
        where TWork : unmanaged, IParallelWork
    {
        if (parts <= 0)
        {
            return;
        }

        if (parts == 1 || threads.Length == 0)
        {
            for (int part = 0; part < parts; part++)
            {
                item.Execute(part, 0);
            }

            return;
        }

        lock (runLock)
        {
            fixed (TWork* pinned = &item)
            {
                // No part to take while the operation is described: a worker that still holds the last ticket of the one before must fail to raise it.
                Interlocked.Exchange(ref nextTicket, int.MaxValue);
                work = pinned;
                execute = &Call<TWork>;
                partCount = parts;
                failure = null;
                completedParts = 0;
                Volatile.Write(ref nextTicket, (long)(generation + 1) << 32);
                Announce();
                TakeParts(0);
                for (int i = 0; i < CallerSpinRounds && Volatile.Read(ref completedParts) != parts; i++)
                {
                    Thread.SpinWait(1);
                }

                SpinWait spinner = default;
                while (Volatile.Read(ref completedParts) != parts)
                {
                    spinner.SpinOnce(sleep1Threshold: -1);
                }

                work = null;
            }

            if (failure is { } caught)
            {
                throw new InvalidOperationException("A part of a parallel operation failed: " + caught.Message, caught);
            }
        }
    }

    public void Dispose()
    {
        stopping = true;
        Announce();
        foreach (Thread thread in threads)
        {
            thread.Join();
        }
    }

    private static void Call<TWork>(void* work, int part, int worker)
        where TWork : unmanaged, IParallelWork
        => Unsafe.AsRef<TWork>(work).Execute(part, worker);

    private void WorkerLoop(int worker)
    {
        int seen = 0;
        while (true)
        {
            for (int i = 0; i < SpinRounds && generation == seen && !stopping; i++)
            {
                Thread.SpinWait(1);
            }

            if (generation == seen && !stopping)
            {
                Sleep(seen);
            }

            if (stopping)
            {
                return;
            }

            seen = generation;
            TakeParts(worker);
        }
    }

    private void Sleep(int seen)
    {
        lock (gate)
        {
            while (generation == seen && !stopping)
            {
                sleepers++;
                Monitor.Wait(gate);
                sleepers--;
            }
        }
    }

    private void Announce()
    {
        // Under the lock, or a worker between its look at the generation and its sleep would miss the change.
        lock (gate)
        {
            generation++;
            if (sleepers > 0)
            {
                Monitor.PulseAll(gate);
            }
        }
    }

    private void TakeParts(int worker)
    {
        while (true)
        {
            long ticket = Volatile.Read(ref nextTicket);
            int part = (int)ticket;
            int count = Volatile.Read(ref partCount);
            void* item = work;
            delegate*<void*, int, int, void> call = execute;
            if (part >= count)
            {
                return;
            }

            if (Interlocked.CompareExchange(ref nextTicket, ticket + 1, ticket) == ticket)
            {
                Execute(call, item, part, worker);
            }
        }
    }

    private void Execute(delegate*<void*, int, int, void> call, void* item, int part, int worker)
    {
        try
        {
            // After a failure the rest is only counted.
            if (Volatile.Read(ref failure) is null)
            {
                call(item, part, worker);
            }
        }
        catch (Exception exception)
        {
            // Not swallowed: Run rethrows it on the calling thread once all parts are counted.
            Interlocked.CompareExchange(ref failure, exception, null);
        }
        finally
        {
            Interlocked.Increment(ref completedParts);
        }
    }
}
