using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Rows
{
    private static void MoveCpu(CpuDevice cpu, Tensor whole, Tensor chosen, Tensor rows, bool gather)
    {
        var work = new MoveWork(whole.F32, chosen.F32, rows.I32, rows.ElementCount, (int)whole.Shape[1], gather, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private readonly struct MoveWork(float* whole, float* chosen, int* rows, long count, int width, bool gather, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new(count, threads, 1 + 16384 / width);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long i = start; i < end; i++)
            {
                var row = new Span<float>(whole + (long)rows[i] * width, width);
                var block = new Span<float>(chosen + i * width, width);
                if (gather)
                {
                    row.CopyTo(block);
                }
                else
                {
                    block.CopyTo(row);
                }
            }
        }
    }
}
