using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class RmsNorm
{
    private static void ForwardCpu(CpuDevice cpu, Tensor output, Tensor rstd, Tensor input, Tensor weight, float eps)
    {
        var work = new ForwardWork(output.F32, rstd.F32, input.F32, weight.F32, input.Shape[0], (int)input.Shape[1], eps, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private static void BackwardCpu(CpuDevice cpu, Tensor dInput, Tensor dOutput, Tensor input, Tensor weight, Tensor rstd, GradientMode mode)
    {
        var work = new BackwardWork(dInput.F32, dOutput.F32, input.F32, weight.F32, rstd.F32, input.Shape[0], (int)input.Shape[1], mode, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private static void WeightGradientCpu(CpuDevice cpu, Tensor dWeight, Tensor dOutput, Tensor input, Tensor rstd)
    {
        var work = new WeightGradientWork(dWeight.F32, dOutput.F32, input.F32, rstd.F32, input.Shape[0], (int)input.Shape[1], cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private static void OffsetCpu(Tensor gain, Tensor weight, float offset)
    {
        for (long i = 0; i < gain.ElementCount; i++)
        {
            gain.F32[i] = weight.F32[i] + offset;
        }
    }

    private readonly struct ForwardWork(float* output, float* rstd, float* input, float* weight, long rows, int width, float eps, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new(rows, threads, 1 + 4096 / width);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long row = start; row < end; row++)
            {
                float* x = input + row * width;
                float* y = output + row * width;
                float meanSquare = VectorMath.SumOfSquares(new ReadOnlySpan<float>(x, width)) / width;
                float r = 1 / MathF.Sqrt(meanSquare + eps);
                rstd[row] = r;
                Vector512<float> scale = Vector512.Create(r);
                int i = 0;
                for (; i <= width - 16; i += 16)
                {
                    Vector512.Store(Vector512.Load(x + i) * scale * Vector512.Load(weight + i), y + i);
                }

                for (; i < width; i++)
                {
                    y[i] = x[i] * r * weight[i];
                }
            }
        }
    }

    private readonly struct BackwardWork(float* dInput, float* dOutput, float* input, float* weight, float* rstd, long rows, int width, GradientMode mode, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new(rows, threads, 1 + 4096 / width);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long row = start; row < end; row++)
            {
                float* dx = dInput + row * width;
                float* dy = dOutput + row * width;
                float* x = input + row * width;
                float r = rstd[row];
                float mean = MeanOfProducts(dy, x, r) / width;
                for (int i = 0; i < width; i += 16)
                {
                    int count = Math.Min(16, width - i);
                    Vector512<float> xh = VectorMath.Load(x + i, count) * Vector512.Create(r);
                    Vector512<float> m = VectorMath.Load(dy + i, count) * VectorMath.Load(weight + i, count);
                    Vector512<float> gradient = Vector512.Create(r) * (m - xh * Vector512.Create(mean));
                    if (mode == GradientMode.Accumulate)
                    {
                        gradient += VectorMath.Load(dx + i, count);
                    }

                    VectorMath.Store(gradient, dx + i, count);
                }
            }
        }

        /// <summary>sum of m*xh with m = dy*w, xh = x*rstd, in the fixed order of all reductions.</summary>
        private float MeanOfProducts(float* dy, float* x, float r)
        {
            Vector512<float> sum = Vector512<float>.Zero;
            for (int i = 0; i < width; i += 16)
            {
                int count = Math.Min(16, width - i);
                Vector512<float> m = VectorMath.Load(dy + i, count) * VectorMath.Load(weight + i, count);
                sum = Vector512.FusedMultiplyAdd(m, VectorMath.Load(x + i, count) * Vector512.Create(r), sum);
            }

            return VectorMath.SumLanes(sum);
        }
    }

    private readonly struct WeightGradientWork(float* dWeight, float* dOutput, float* input, float* rstd, long rows, int width, int threads) : IParallelWork
    {
        // Columns are split, rows run in their order: one chain of additions for each weight.
        public readonly RowSplit Split = new((width + 15) / 16, threads, 2);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            int first = (int)start * 16;
            int last = Math.Min((int)end * 16, width);
            for (long row = 0; row < rows; row++)
            {
                float* dy = dOutput + row * width;
                float* x = input + row * width;
                Vector512<float> r = Vector512.Create(rstd[row]);
                for (int i = first; i < last; i += 16)
                {
                    int lanes = last - i;
                    Vector512<float> product = VectorMath.Load(dy + i, lanes) * (VectorMath.Load(x + i, lanes) * r);
                    VectorMath.Store(VectorMath.Load(dWeight + i, lanes) + product, dWeight + i, lanes);
                }
            }
        }
    }
}
