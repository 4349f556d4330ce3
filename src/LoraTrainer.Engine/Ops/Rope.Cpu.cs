using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Rope
{
    private static void BuildTablesCpu(CpuDevice cpu, Tensor cosine, Tensor sine, Tensor positions, ReadOnlySpan<float> inverseFrequencies, float attentionScaling)
    {
        fixed (float* frequencies = inverseFrequencies)
        {
            var work = new TableWork(cosine.F32, sine.F32, positions.I32, frequencies, positions.ElementCount, inverseFrequencies.Length, attentionScaling, cpu.ThreadCount);
            cpu.Pool.Run(work.Split.Parts, ref work);
        }
    }

    private static void TurnCpu(CpuDevice cpu, Tensor heads, int headDim, Tensor cosine, Tensor sine, float direction)
    {
        var work = new TurnWork(heads.F32, cosine.F32, sine.F32, heads.Shape[0], (int)heads.Shape[1], headDim, (int)cosine.Shape[1], direction, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private readonly struct TableWork(float* cosine, float* sine, int* positions, float* frequencies, long rows, int half, float scaling, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new(rows, threads, 16);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long row = start; row < end; row++)
            {
                for (int i = 0; i < half; i++)
                {
                    float angle = frequencies[i] * positions[row];
                    cosine[row * half + i] = (float)DeterministicMath.Cos(angle) * scaling;
                    sine[row * half + i] = (float)DeterministicMath.Sin(angle) * scaling;
                }
            }
        }
    }

    private readonly struct TurnWork(float* heads, float* cosine, float* sine, long rows, int width, int headDim, int half, float direction, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new(rows, threads, 1 + 4096 / width);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            Vector512<float> sign = Vector512.Create(direction);
            for (long row = start; row < end; row++)
            {
                float* c = cosine + row * half;
                float* s = sine + row * half;
                for (int head = 0; head < width; head += headDim)
                {
                    float* first = heads + row * width + head;
                    float* second = first + half;
                    int i = 0;
                    for (; i <= half - 16; i += 16)
                    {
                        Vector512<float> a = Vector512.Load(first + i);
                        Vector512<float> b = Vector512.Load(second + i);
                        Vector512<float> cos = Vector512.Load(c + i);
                        Vector512<float> sin = Vector512.Load(s + i) * sign;
                        Vector512.Store(a * cos - b * sin, first + i);
                        Vector512.Store(b * cos + a * sin, second + i);
                    }

                    for (; i < half; i++)
                    {
                        float a = first[i], b = second[i], sin = s[i] * direction;
                        first[i] = a * c[i] - b * sin;
                        second[i] = b * c[i] + a * sin;
                    }
                }
            }
        }
    }
}
