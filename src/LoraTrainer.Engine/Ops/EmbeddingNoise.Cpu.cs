using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class EmbeddingNoise
{
    private static void AddCpu(CpuDevice cpu, Tensor embedded, ReadOnlyMemory<int> offsets, float alpha, DropoutKey key)
    {
        var random = new CounterRandom(key.Seed, key.Stream, key.Step);
        fixed (int* documents = offsets.Span)
        {
            var work = new AddWork(embedded.F32, documents, embedded.Shape[0], (int)embedded.Shape[1], alpha, random, key.FirstRow, cpu.ThreadCount);
            cpu.Pool.Run(work.Split.Parts, ref work);
        }
    }

    private readonly struct AddWork(float* embedded, int* documents, long rows, int width, float alpha, CounterRandom random, long firstRow, int threads) : IParallelWork
    {
        // Random numbers that are made at once.
        private const int Chunk = 256;

        public readonly RowSplit Split = new(rows, threads, 8);

        [SkipLocalsInit]
        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            float* uniform = stackalloc float[Chunk];
            int document = 0;
            for (long row = start; row < end; row++)
            {
                while (documents[document + 1] <= row)
                {
                    document++;
                }

                var magnitude = Vector512.Create(MagnitudeOf(alpha, documents[document + 1] - documents[document], width));
                for (int first = 0; first < width; first += Chunk)
                {
                    int count = Math.Min(Chunk, width - first);
                    random.FillUniform(new Span<float>(uniform, count), (ulong)((firstRow + row) * width + first));
                    float* target = embedded + row * width + first;
                    for (int i = 0; i < count; i += VectorMath.Lanes)
                    {
                        Vector512<float> u = VectorMath.Load(uniform + i, count - i);
                        VectorMath.Store(VectorMath.Load(target + i, count - i) + (u + u - Vector512<float>.One) * magnitude, target + i, count - i);
                    }
                }
            }
        }
    }
}
