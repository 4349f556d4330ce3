using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Cast
{
    private static void ToBF16Cpu(CpuDevice cpu, Tensor output, Tensor input)
    {
        var work = new ToBF16Work(output.BF16, input.F32, input.ElementCount, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private readonly struct ToBF16Work(ushort* output, float* input, long count, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new(count, threads, 1 << 14);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long i = start; i < end; i++)
            {
                output[i] = BrainFloat.FromSingle(input[i]);
            }
        }
    }
}
