using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Embedding
{
    private static void ForwardCpu(CpuDevice cpu, Tensor output, Tensor tokens, Tensor table, float scale)
    {
        bool half = table.DType == DType.BF16;
        var work = new ForwardWork(output.F32, tokens.I32, half ? null : table.F32, half ? table.BF16 : null, tokens.ElementCount, (int)table.Shape[1], scale, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private static void BackwardCpu(CpuDevice cpu, Tensor dTable, Tensor dOutput, Tensor tokens, int paddingToken, float scale)
    {
        var work = new BackwardWork(dTable.F32, dOutput.F32, tokens.I32, tokens.ElementCount, (int)dTable.Shape[1], paddingToken, scale, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private readonly struct ForwardWork(float* output, int* tokens, float* table, ushort* halfTable, long rows, int width, float scale, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new(rows, threads, 16);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long row = start; row < end; row++)
            {
                long source = (long)tokens[row] * width;
                if (table != null)
                {
                    new ReadOnlySpan<float>(table + source, width).CopyTo(new Span<float>(output + row * width, width));
                }
                else
                {
                    ElementConversions.FromBF16(halfTable + source, output + row * width, width);
                }

                for (int i = 0; scale != 1 && i < width; i++)
                {
                    output[row * width + i] *= scale;
                }
            }
        }
    }

    private readonly struct BackwardWork(float* dTable, float* dOutput, int* tokens, long rows, int width, int paddingToken, float scale, int threads) : IParallelWork
    {
        // Columns are split, tokens run in their order: a token that occurs twice is added in one fixed order.
        public readonly RowSplit Split = new((width + 15) / 16, threads, 1);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            int first = (int)start * 16;
            int last = Math.Min((int)end * 16, width);
            for (long row = 0; row < rows; row++)
            {
                if (tokens[row] == paddingToken)
                {
                    continue;
                }

                float* target = dTable + (long)tokens[row] * width;
                float* source = dOutput + row * width;
                for (int i = first; i < last; i += 16)
                {
                    VectorMath.Store(VectorMath.Load(target + i, last - i) + VectorMath.Load(source + i, last - i) * Vector512.Create(scale), target + i, last - i);
                }
            }
        }
    }
}
