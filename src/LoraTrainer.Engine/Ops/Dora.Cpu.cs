using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Dora
{
    private static void NormsCpu(CpuDevice cpu, Tensor norms, WeightMatrix weight, Tensor a, Tensor b, float scaling)
    {
        var work = new NormsWork(
            norms.F32, Linear.Operand(weight, transposed: false), weight.Out, weight.In, a.IsNone ? null : a.F32, a.IsNone ? null : b.F32, a.IsNone ? 0 : (int)a.Shape[0], scaling, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private static void ScaleCpu(CpuDevice cpu, Tensor output, Tensor input, Tensor magnitude, Tensor norms, float shift, GradientMode mode)
    {
        var work = new ScaleWork(
            output.F32, input.F32, magnitude.F32, norms.F32, shift, mode == GradientMode.Accumulate, output.Shape[0], (int)output.Shape[1], cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private static void MagnitudeGradientCpu(CpuDevice cpu, Tensor dMagnitude, Tensor dOutput, Tensor product, Tensor norms)
    {
        var work = new MagnitudeGradientWork(dMagnitude.F32, dOutput.F32, product.F32, norms.F32, dOutput.Shape[0], (int)dOutput.Shape[1], cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    /// <summary>m/n, and 1 where n is 0.</summary>
    private static Vector512<float> Ratio(Vector512<float> magnitude, Vector512<float> norm) =>
        Vector512.ConditionalSelect(Vector512.Equals(norm, Vector512<float>.Zero), Vector512<float>.One, magnitude / norm);

    private readonly struct NormsWork(float* norms, GemmOperand weight, int rows, int columns, float* a, float* b, int rank, float scaling, int threads) : IParallelWork
    {
        // Eight vectors: the sums of one piece stay in registers while the rows of A pass by.
        private const int PieceElements = 8 * VectorMath.Lanes;

        public readonly RowSplit Split = new(rows, threads, 1 + 65536 / (columns * (1 + rank)));

        public void Execute(int part, int worker)
        {
            float* piece = stackalloc float[PieceElements];
            (long start, long end) = Split.Of(part);
            for (long row = start; row < end; row++)
            {
                Vector512<float> squares = Vector512<float>.Zero;
                for (int first = 0; first < columns; first += PieceElements)
                {
                    int count = Math.Min(PieceElements, columns - first);
                    weight.Load(row, first, count, piece);
                    if (rank > 0)
                    {
                        AddProduct(piece, b + row * rank, a + first, count);
                    }

                    for (int i = 0; i < count; i += VectorMath.Lanes)
                    {
                        Vector512<float> v = VectorMath.Load(piece + i, count - i);
                        squares = Vector512.FusedMultiplyAdd(v, v, squares);
                    }
                }

                norms[row] = MathF.Sqrt(VectorMath.SumLanes(squares));
            }
        }

        /// <summary>piece += s * (row of B) A, where the sum over the ranks is made first, in their order.</summary>
        private void AddProduct(float* piece, float* bRow, float* aColumns, int count)
        {
            if (count < PieceElements)
            {
                for (int i = 0; i < count; i += VectorMath.Lanes)
                {
                    Vector512<float> tail = Vector512<float>.Zero;
                    for (int k = 0; k < rank; k++)
                    {
                        tail = Vector512.FusedMultiplyAdd(Vector512.Create(bRow[k]), VectorMath.Load(aColumns + (long)k * columns + i, count - i), tail);
                    }

                    VectorMath.Store(Vector512.FusedMultiplyAdd(tail, Vector512.Create(scaling), VectorMath.Load(piece + i, count - i)), piece + i, count - i);
                }

                return;
            }

            Vector512<float> s0 = default, s1 = default, s2 = default, s3 = default, s4 = default, s5 = default, s6 = default, s7 = default;
            for (int k = 0; k < rank; k++)
            {
                float* source = aColumns + (long)k * columns;
                Vector512<float> factor = Vector512.Create(bRow[k]);
                s0 = Vector512.FusedMultiplyAdd(factor, Vector512.Load(source), s0);
                s1 = Vector512.FusedMultiplyAdd(factor, Vector512.Load(source + 16), s1);
                s2 = Vector512.FusedMultiplyAdd(factor, Vector512.Load(source + 32), s2);
                s3 = Vector512.FusedMultiplyAdd(factor, Vector512.Load(source + 48), s3);
                s4 = Vector512.FusedMultiplyAdd(factor, Vector512.Load(source + 64), s4);
                s5 = Vector512.FusedMultiplyAdd(factor, Vector512.Load(source + 80), s5);
                s6 = Vector512.FusedMultiplyAdd(factor, Vector512.Load(source + 96), s6);
                s7 = Vector512.FusedMultiplyAdd(factor, Vector512.Load(source + 112), s7);
            }

            Add(piece, s0);
            Add(piece + 16, s1);
            Add(piece + 32, s2);
            Add(piece + 48, s3);
            Add(piece + 64, s4);
            Add(piece + 80, s5);
            Add(piece + 96, s6);
            Add(piece + 112, s7);
        }

        private void Add(float* place, Vector512<float> sum) =>
            Vector512.Store(Vector512.FusedMultiplyAdd(sum, Vector512.Create(scaling), Vector512.Load(place)), place);
    }

    private readonly struct ScaleWork(
        float* output, float* input, float* magnitude, float* norms, float shift, bool accumulate, long rows, int width, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new(rows, threads, 1 + 16384 / width);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long row = start; row < end; row++)
            {
                float* y = output + row * width;
                float* x = input + row * width;
                for (int i = 0; i < width; i += VectorMath.Lanes)
                {
                    // The quotient is made again in every row: it hides behind the memory.
                    int left = width - i;
                    Vector512<float> factor = Ratio(VectorMath.Load(magnitude + i, left), VectorMath.Load(norms + i, left)) + Vector512.Create(shift);
                    Vector512<float> value = VectorMath.Load(x + i, left);
                    VectorMath.Store(accumulate ? Vector512.FusedMultiplyAdd(factor, value, VectorMath.Load(y + i, left)) : factor * value, y + i, left);
                }
            }
        }
    }

    private readonly struct MagnitudeGradientWork(float* dMagnitude, float* dOutput, float* product, float* norms, long rows, int width, int threads) : IParallelWork
    {
        private const int PanelColumns = 512;

        public readonly RowSplit Split = new((width + VectorMath.Lanes - 1) / VectorMath.Lanes, threads, 1);

        public void Execute(int part, int worker)
        {
            float* sums = stackalloc float[PanelColumns];
            (long start, long end) = Split.Of(part);
            int last = Math.Min((int)end * VectorMath.Lanes, width);
            for (int first = (int)start * VectorMath.Lanes; first < last; first += PanelColumns)
            {
                int columns = Math.Min(PanelColumns, last - first);
                new Span<float>(sums, columns).Clear();
                for (long row = 0; row < rows; row++)
                {
                    float* g = dOutput + row * width + first;
                    float* z = product + row * width + first;
                    for (int i = 0; i < columns; i += VectorMath.Lanes)
                    {
                        int left = columns - i;
                        VectorMath.Store(Vector512.FusedMultiplyAdd(VectorMath.Load(g + i, left), VectorMath.Load(z + i, left), VectorMath.Load(sums + i, left)), sums + i, left);
                    }
                }

                for (int i = 0; i < columns; i += VectorMath.Lanes)
                {
                    int left = columns - i;
                    Vector512<float> norm = VectorMath.Load(norms + first + i, left);
                    Vector512<float> quotient = Vector512.ConditionalSelect(Vector512.Equals(norm, Vector512<float>.Zero), Vector512<float>.Zero, VectorMath.Load(sums + i, left) / norm);
                    VectorMath.Store(VectorMath.Load(dMagnitude + first + i, left) + quotient, dMagnitude + first + i, left);
                }
            }
        }
    }
}
