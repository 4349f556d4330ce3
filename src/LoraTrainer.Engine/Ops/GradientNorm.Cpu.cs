using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class GradientNorm
{
    private static void ComputeCpu(CpuDevice cpu, Tensor norm, Tensor partialSums, Tensor gradients)
    {
        var work = new SumWork(partialSums.F64, gradients.F32, gradients.ElementCount);
        cpu.Pool.Run((int)partialSums.ElementCount, ref work);
        double total = 0;
        foreach (double sum in new ReadOnlySpan<double>(partialSums.F64, (int)partialSums.ElementCount))
        {
            total += sum;
        }

        *norm.F64 = Math.Sqrt(total);
    }

    private readonly struct SumWork(double* partialSums, float* gradients, long count) : IParallelWork
    {
        public void Execute(int part, int worker)
        {
            long start = (long)part * BlockElements;
            partialSums[part] = VectorMath.SumOfSquaresDouble(new ReadOnlySpan<float>(gradients + start, (int)Math.Min(BlockElements, count - start)));
        }
    }
}
