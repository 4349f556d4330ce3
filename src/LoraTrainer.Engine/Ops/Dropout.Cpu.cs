using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Dropout
{
    private static void ApplyCpu(CpuDevice cpu, Tensor output, Tensor input, float probability, DropoutKey key)
    {
        var random = new CounterRandom(key.Seed, key.Stream, key.Step);
        long firstElement = key.FirstRow * input.Shape[1];
        var work = new ApplyWork(output.F32, input.F32, input.ElementCount, firstElement, 1 - probability, random, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private readonly struct ApplyWork(float* output, float* input, long count, long firstElement, float keepProbability, CounterRandom random, int threads) : IParallelWork
    {
        private const int BlockElements = 1024;

        public readonly RowSplit Split = new((count + BlockElements - 1) / BlockElements, threads, 4);

        public void Execute(int part, int worker)
        {
            (long startBlock, long endBlock) = Split.Of(part);
            long start = startBlock * BlockElements;
            long end = Math.Min(count, endBlock * BlockElements);
            random.Dropout(output + start, input + start, end - start, (ulong)(firstElement + start), keepProbability);
        }
    }
}
