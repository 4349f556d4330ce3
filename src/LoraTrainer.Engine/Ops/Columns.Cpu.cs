using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Columns
{
    private static void MoveCpu(CpuDevice cpu, Tensor whole, Tensor chosen, long first, bool gather)
    {
        var work = new MoveWork(whole.F32 + first, whole.Shape[1], chosen.F32, chosen.Shape[0], (int)chosen.Shape[1], gather, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private readonly struct MoveWork(float* whole, long stride, float* chosen, long count, int width, bool gather, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new(count, threads, 1 + 16384 / width);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long row = start; row < end; row++)
            {
                var piece = new Span<float>(whole + row * stride, width);
                var own = new Span<float>(chosen + row * width, width);
                if (gather)
                {
                    piece.CopyTo(own);
                }
                else
                {
                    own.CopyTo(piece);
                }
            }
        }
    }
}
