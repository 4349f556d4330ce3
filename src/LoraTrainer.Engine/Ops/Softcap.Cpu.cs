using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Softcap
{
    private static void ForwardCpu(CpuDevice cpu, Tensor values, float cap)
    {
        var work = new ForwardWork(values.F32, values.ElementCount, cap, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private static void BackwardCpu(CpuDevice cpu, Tensor dValues, Tensor values, float cap)
    {
        var work = new BackwardWork(dValues.F32, values.F32, values.ElementCount, cap, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private readonly struct ForwardWork(float* values, long count, float cap, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new((count + 15) / 16, threads, 256);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long i = start * 16; i < end * 16; i += 16)
            {
                Vector512<float> x = VectorMath.Load(values + i, count - i);
                VectorMath.Store(Vector512.Create(cap) * VectorMath.Tanh(x * Vector512.Create(1 / cap)), values + i, count - i);
            }
        }
    }

    private readonly struct BackwardWork(float* dValues, float* values, long count, float cap, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new((count + 15) / 16, threads, 512);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long i = start * 16; i < end * 16; i += 16)
            {
                long lanes = count - i;
                Vector512<float> t = VectorMath.Load(values + i, lanes) * Vector512.Create(1 / cap);
                VectorMath.Store(VectorMath.Load(dValues + i, lanes) * Vector512.FusedMultiplyAdd(-t, t, Vector512<float>.One), dValues + i, lanes);
            }
        }
    }
}
