using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Elementwise
{
    private static void AddCpu(CpuDevice cpu, Tensor output, Tensor first, Tensor second)
    {
        var work = new AddWork(output.F32, first.F32, second.F32, output.ElementCount, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private static void AddBiasCpu(CpuDevice cpu, Tensor rows, Tensor bias)
    {
        var work = new BiasWork(rows.F32, bias.F32, rows.Shape[0], (int)rows.Shape[1], cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private static void BiasGradientCpu(CpuDevice cpu, Tensor dBias, Tensor dOutput)
    {
        var work = new BiasGradientWork(dBias.F32, dOutput.F32, dOutput.Shape[0], (int)dOutput.Shape[1], cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private readonly struct AddWork(float* output, float* first, float* second, long count, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new((count + 15) / 16, threads, 1024);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            long last = Math.Min(end * 16, count);
            long i = start * 16;
            for (; i <= last - 16; i += 16)
            {
                Vector512.Store(Vector512.Load(first + i) + Vector512.Load(second + i), output + i);
            }

            for (; i < last; i++)
            {
                output[i] = first[i] + second[i];
            }
        }
    }

    private readonly struct BiasWork(float* rows, float* bias, long count, int width, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new(count, threads, 1 + 16384 / width);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long row = start; row < end; row++)
            {
                float* x = rows + row * width;
                for (int i = 0; i < width; i += 16)
                {
                    VectorMath.Store(VectorMath.Load(x + i, width - i) + VectorMath.Load(bias + i, width - i), x + i, width - i);
                }
            }
        }
    }

    private readonly struct BiasGradientWork(float* dBias, float* dOutput, long rows, int width, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new((width + 15) / 16, threads, 1);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            int first = (int)start * 16;
            int last = Math.Min((int)end * 16, width);
            for (long row = 0; row < rows; row++)
            {
                float* source = dOutput + row * width;
                for (int i = first; i < last; i += 16)
                {
                    VectorMath.Store(VectorMath.Load(dBias + i, last - i) + VectorMath.Load(source + i, last - i), dBias + i, last - i);
                }
            }
        }
    }
}
