using LoraTrainer.Engine.Devices;
using Xunit;

namespace LoraTrainer.Engine.Tests.Devices;

public sealed unsafe class WorkerPoolTests
{
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(16)]
    public void Run_ManyShortOperations_DoesEachPartOnce(int threads)
    {
        using var pool = new WorkerPool(threads);
        int[] done = new int[64];
        fixed (int* counters = done)
        {
            for (int operation = 0; operation < 20_000; operation++)
            {
                int parts = 1 + (operation * 7 % done.Length);
                var work = new Count { Counters = counters, FailingPart = -1 };
                pool.Run(parts, ref work);
                for (int part = 0; part < done.Length; part++)
                {
                    if (done[part] != (part < parts ? 1 : 0))
                    {
                        Assert.Fail($"operation {operation}: part {part} of {parts} was done {done[part]} times");
                    }
                }

                Array.Clear(done);
            }
        }
    }

    [Fact]
    public void Run_APartThrows_RethrowsAndStaysUsable()
    {
        using var pool = new WorkerPool(4);
        int[] done = new int[8];
        fixed (int* counters = done)
        {
            for (int time = 0; time < 100; time++)
            {
                var failing = new Count { Counters = counters, FailingPart = 3 };
                Assert.Equal("A part of a parallel operation failed: part 3", Assert.Throws<InvalidOperationException>(() => pool.Run(8, ref failing)).Message);
            }

            Array.Clear(done);
            var work = new Count { Counters = counters, FailingPart = -1 };
            pool.Run(8, ref work);
        }

        Assert.Equal(Enumerable.Repeat(1, 8), done);
    }

    private struct Count : IParallelWork
    {
        public int* Counters;
        public int FailingPart;

        public readonly void Execute(int part, int worker)
        {
            if (part == FailingPart)
            {
                throw new InvalidOperationException($"part {part}");
            }

            Interlocked.Increment(ref Counters[part]);
        }
    }
}
