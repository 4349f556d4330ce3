using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class LinearCrossEntropy
{
    private static void SoftmaxCrossEntropyCpu(CpuDevice cpu, Tensor losses, Tensor logits, Tensor targets, Tensor rows, float gradientScale, bool withGradient)
    {
        var work = new SoftmaxWork(losses.F32, logits.F32, targets.I32, rows.I32, rows.ElementCount, (int)logits.Shape[1], gradientScale, withGradient, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private readonly struct SoftmaxWork(float* losses, float* logits, int* targets, int* rows, long count, int vocabulary, float gradientScale, bool withGradient, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new(count, threads, 1 + 8192 / vocabulary);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long i = start; i < end; i++)
            {
                float* z = logits + i * vocabulary;
                int row = rows[i];
                int target = targets[row];
                float maximum = VectorMath.Max(new ReadOnlySpan<float>(z, vocabulary));
                float targetLogit = z[target];
                float sum = Exponentials(z, maximum);
                losses[row] = maximum + VectorMath.Log(sum) - targetLogit;
                if (withGradient)
                {
                    ScaleBy(z, gradientScale / sum);
                    z[target] -= gradientScale;
                }
            }
        }

        /// <summary>Replaces z by exp(z - maximum) where the gradient needs it, and returns the sum in the fixed order.</summary>
        private float Exponentials(float* z, float maximum)
        {
            Vector512<float> shift = Vector512.Create(maximum);
            Vector512<float> sum = Vector512<float>.Zero;
            int i = 0;
            for (; i <= vocabulary - 16; i += 16)
            {
                Vector512<float> e = VectorMath.Exp(Vector512.Load(z + i) - shift);
                sum += e;
                if (withGradient)
                {
                    Vector512.Store(e, z + i);
                }
            }

            if (i < vocabulary)
            {
                var tail = new Span<float>(z + i, vocabulary - i);
                Vector512<float> e = VectorMath.Exp(VectorMath.LoadTail(tail, float.NegativeInfinity) - shift);
                sum += e;
                if (withGradient)
                {
                    VectorMath.StoreTail(e, tail);
                }
            }

            return VectorMath.SumLanes(sum);
        }

        private void ScaleBy(float* z, float factor)
        {
            Vector512<float> scale = Vector512.Create(factor);
            int i = 0;
            for (; i <= vocabulary - 16; i += 16)
            {
                Vector512.Store(Vector512.Load(z + i) * scale, z + i);
            }

            for (; i < vocabulary; i++)
            {
                z[i] *= factor;
            }
        }
    }
}
