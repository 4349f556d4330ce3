using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class GradientNorm
{
    private static double ComputeCpu(CpuDevice cpu, Tensor partialSums, Tensor gradients)
    {
        var work = new SumWork((double*)partialSums.Address, gradients.F32, gradients.ElementCount);
        cpu.Pool.Run((int)partialSums.ElementCount, ref work);
        double total = 0;
        foreach (double sum in new ReadOnlySpan<double>((double*)partialSums.Address, (int)partialSums.ElementCount))
        {
            total += sum;
        }

        return Math.Sqrt(total);
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
