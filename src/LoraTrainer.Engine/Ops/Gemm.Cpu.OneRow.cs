using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// The product of one row with the transpose of a stored matrix, y = x W^T: what generating text consists of. Each element of W is used once, so nothing is
/// packed: 64 rows of W lie in the lanes of four vectors, and eight 32-bit words of each row are transposed at a time while they are still as stored. Each
/// element of y is the same chain as in <see cref="CpuGemm"/>, so the bits are those of a product with more rows.
/// </summary>
internal static unsafe class OneRowProduct
{
    private const int Lanes = 16;
    private const int WordsPerChunk = 8;
    private const int GroupRows = 4 * Lanes;

    /// <summary>Below this (some microseconds) the calling thread does all.</summary>
    private const long LeastParallelElements = 200_000;

    private const int CacheLine = 64;

    /// <summary>Fewer of them in a row would be over before what comes next has arrived from memory.</summary>
    private const int LeastGroupsPerPart = 4;

    /// <summary>Whether it can do this product.</summary>
    /// <param name="kernel">Instruction set.</param>
    /// <param name="m">Rows of op(A).</param>
    /// <param name="n">Columns of op(B).</param>
    /// <param name="k">Length of the sums.</param>
    /// <param name="a">x</param>
    /// <param name="b">W, to be taken transposed</param>
    public static bool Fits(GemmKernel kernel, int m, int n, int k, in GemmOperand a, in GemmOperand b) =>
        kernel == GemmKernel.Avx512 && m == 1 && n % Lanes == 0 && b.Transposed && !a.Transposed && a.Element == GemmElement.F32 && k % ElementsPerChunk(b.Element) == 0
        && b.LeadingDimension % (b.Element == GemmElement.F32 ? 1 : ElementsPerChunk(b.Element)) == 0
        && (b.Element != GemmElement.FourBit || b.Blocks.Blocksize == BlockwiseFourBit.Blocksize);

    /// <param name="pool">Threads that share the work.</param>
    /// <param name="scaled">(K) workspace, used where alpha is not 1.</param>
    /// <param name="n">Rows of W.</param>
    /// <param name="k">Columns of W.</param>
    /// <param name="a">x</param>
    /// <param name="b">W</param>
    /// <param name="c">(N) y</param>
    /// <param name="alpha">Every element of x is first rounded to fl32(alpha * x).</param>
    /// <param name="accumulate">The chains start from y rather than from 0.</param>
    public static void Run(WorkerPool pool, float* scaled, int n, int k, in GemmOperand a, in GemmOperand b, float* c, float alpha, bool accumulate)
    {
        float* x = a.F32At(0, 0);
        if (alpha != 1)
        {
            for (int i = 0; i < k; i++)
            {
                scaled[i] = alpha * x[i];
            }

            x = scaled;
        }

        switch (b.Element)
        {
            case GemmElement.FourBit:
                Run<FourBitWord>(pool, n, k, b, x, c, accumulate);
                break;
            case GemmElement.BF16:
                Run<BF16Word>(pool, n, k, b, x, c, accumulate);
                break;
            case GemmElement.Int8:
                Run<Int8Word>(pool, n, k, b, x, c, accumulate);
                break;
            default:
                Run<F32Word>(pool, n, k, b, x, c, accumulate);
                break;
        }
    }

    private static int ElementsPerChunk(GemmElement element) => WordsPerChunk * element switch { GemmElement.FourBit => FourBitWord.Elements, GemmElement.BF16 => BF16Word.Elements, GemmElement.Int8 => Int8Word.Elements, _ => F32Word.Elements };

    private static void Run<TWord>(WorkerPool pool, int n, int k, in GemmOperand b, float* x, float* c, bool accumulate)
        where TWord : struct, IWord
    {
        bool isParallel = pool.ThreadCount > 1 && (long)n * k >= LeastParallelElements;
        var work = new Work<TWord> { Matrix = b, X = x, Y = c, Rows = n, Columns = k, Accumulate = accumulate, Split = new RowSplit((n + GroupRows - 1) / GroupRows, isParallel ? pool.ThreadCount : 1, LeastGroupsPerPart) };
        if (isParallel)
        {
            pool.Run(work.Split.Parts, ref work);
            return;
        }

        for (int part = 0; part < work.Split.Parts; part++)
        {
            work.Execute(part, 0);
        }
    }

    private struct Work<TWord> : IParallelWork
        where TWord : struct, IWord
    {
        public GemmOperand Matrix;
        public float* X;
        public float* Y;
        public int Rows, Columns;
        public bool Accumulate;
        public RowSplit Split;

        public readonly void Execute(int part, int worker)
        {
            (long first, long end) = Split.Of(part);
            for (long group = first; group < end; group++)
            {
                int row = (int)group * GroupRows;
                Multiply(row, Math.Min(GroupRows, Rows - row));
            }
        }

        /// <summary>The chains of 16, 32, 48 or 64 rows. Four at a time hide each other's latency.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private readonly void Multiply(int row, int rows)
        {
            float* words = stackalloc float[WordsPerChunk * GroupRows];
            float* scales = stackalloc float[GroupRows];
            float* y = Y + row;
            Vector512<float> sum0 = default, sum1 = default, sum2 = default, sum3 = default;
            if (Accumulate)
            {
                sum0 = Vector512.Load(y);
                sum1 = rows > Lanes ? Vector512.Load(y + Lanes) : default;
                sum2 = rows > 2 * Lanes ? Vector512.Load(y + 2 * Lanes) : default;
                sum3 = rows > 3 * Lanes ? Vector512.Load(y + 3 * Lanes) : default;
            }

            Vector512<float> table = TWord.Table(Matrix);
            nint strideWords = (nint)(Matrix.LeadingDimension / TWord.Elements);
            float* source = (float*)Matrix.StoredAt(row);
            byte* ahead = (byte*)(source + rows * strideWords);
            float* x = X;
            for (int column = 0; column < Columns; column += WordsPerChunk * TWord.Elements)
            {
                for (int lane = 0; lane < rows; lane += WordsPerChunk)
                {
                    GemmPacking.TransposeBlock(source + lane * strideWords, strideWords, words + lane, GroupRows);
                }

                // The rows after these are asked for in the meantime, in the order in which they lie in memory.
                for (byte* end = ahead + rows * WordsPerChunk * sizeof(float); ahead < end; ahead += CacheLine)
                {
                    Sse.Prefetch1(ahead);
                }

                TWord.Scales(Matrix, row, rows, column, scales);
                Vector512<float> scale0 = Vector512.Load(scales), scale1 = Vector512.Load(scales + Lanes), scale2 = Vector512.Load(scales + 2 * Lanes), scale3 = Vector512.Load(scales + 3 * Lanes);
                uint* word = (uint*)words;
                if (rows == GroupRows)
                {
                    for (uint* end = word + WordsPerChunk * GroupRows; word < end; word += GroupRows, x += TWord.Elements)
                    {
                        sum0 = TWord.MultiplyAdd(Word(word), table, scale0, x, sum0);
                        sum1 = TWord.MultiplyAdd(Word(word + Lanes), table, scale1, x, sum1);
                        sum2 = TWord.MultiplyAdd(Word(word + 2 * Lanes), table, scale2, x, sum2);
                        sum3 = TWord.MultiplyAdd(Word(word + 3 * Lanes), table, scale3, x, sum3);
                    }
                }
                else
                {
                    for (uint* end = word + WordsPerChunk * GroupRows; word < end; word += GroupRows, x += TWord.Elements)
                    {
                        sum0 = TWord.MultiplyAdd(Word(word), table, scale0, x, sum0);
                        sum1 = rows > Lanes ? TWord.MultiplyAdd(Word(word + Lanes), table, scale1, x, sum1) : sum1;
                        sum2 = rows > 2 * Lanes ? TWord.MultiplyAdd(Word(word + 2 * Lanes), table, scale2, x, sum2) : sum2;
                    }
                }

                source += WordsPerChunk;
            }

            sum0.Store(y);
            if (rows > Lanes)
            {
                sum1.Store(y + Lanes);
            }

            if (rows > 2 * Lanes)
            {
                sum2.Store(y + 2 * Lanes);
            }

            if (rows > 3 * Lanes)
            {
                sum3.Store(y + 3 * Lanes);
            }
        }

        /// <summary>By halves, as they were written: a load that spans two stores has to wait for both to reach the cache.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static Vector512<uint> Word(uint* source) => Vector512.Create(Vector256.Load(source), Vector256.Load(source + 8));
    }

    /// <summary>How a 32-bit word of a stored row becomes elements, in 16 rows at once.</summary>
    private interface IWord
    {
        static abstract int Elements { get; }

        /// <summary>What the codes stand for, where there are codes.</summary>
        static abstract Vector512<float> Table(in GemmOperand matrix);

        /// <summary>The factors of the rows' next chunk, where there are factors.</summary>
        static abstract void Scales(in GemmOperand matrix, int row, int rows, int column, float* scales);

        /// <summary>Continues the chains with the word's elements, in their order.</summary>
        static abstract Vector512<float> MultiplyAdd(Vector512<uint> word, Vector512<float> table, Vector512<float> scale, float* x, Vector512<float> sum);
    }

    private readonly struct FourBitWord : IWord
    {
        public static int Elements => 8;

        public static Vector512<float> Table(in GemmOperand matrix) => Vector512.Load(matrix.Blocks.Code);

        public static void Scales(in GemmOperand matrix, int row, int rows, int column, float* scales)
        {
            // A chunk is one block of 64.
            long block = ((long)row * matrix.LeadingDimension + column) / BlockwiseFourBit.Blocksize;
            matrix.Blocks.Absmaxes(block, matrix.LeadingDimension / BlockwiseFourBit.Blocksize, rows, scales);
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Vector512<float> MultiplyAdd(Vector512<uint> word, Vector512<float> table, Vector512<float> scale, float* x, Vector512<float> sum)
        {
            // The even element of a byte has its high nibble; a permutation looks at the low four bits of an index only.
            sum = Vector512.FusedMultiplyAdd(Avx512F.PermuteVar16x32(table, (word >>> 4).AsInt32()) * scale, Vector512.Create(x[0]), sum);
            sum = Vector512.FusedMultiplyAdd(Avx512F.PermuteVar16x32(table, word.AsInt32()) * scale, Vector512.Create(x[1]), sum);
            sum = Vector512.FusedMultiplyAdd(Avx512F.PermuteVar16x32(table, (word >>> 12).AsInt32()) * scale, Vector512.Create(x[2]), sum);
            sum = Vector512.FusedMultiplyAdd(Avx512F.PermuteVar16x32(table, (word >>> 8).AsInt32()) * scale, Vector512.Create(x[3]), sum);
            sum = Vector512.FusedMultiplyAdd(Avx512F.PermuteVar16x32(table, (word >>> 20).AsInt32()) * scale, Vector512.Create(x[4]), sum);
            sum = Vector512.FusedMultiplyAdd(Avx512F.PermuteVar16x32(table, (word >>> 16).AsInt32()) * scale, Vector512.Create(x[5]), sum);
            sum = Vector512.FusedMultiplyAdd(Avx512F.PermuteVar16x32(table, (word >>> 28).AsInt32()) * scale, Vector512.Create(x[6]), sum);
            return Vector512.FusedMultiplyAdd(Avx512F.PermuteVar16x32(table, (word >>> 24).AsInt32()) * scale, Vector512.Create(x[7]), sum);
        }
    }

    private readonly struct BF16Word : IWord
    {
        public static int Elements => 2;

        public static Vector512<float> Table(in GemmOperand matrix) => default;

        public static void Scales(in GemmOperand matrix, int row, int rows, int column, float* scales)
        {
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Vector512<float> MultiplyAdd(Vector512<uint> word, Vector512<float> table, Vector512<float> scale, float* x, Vector512<float> sum)
        {
            sum = Vector512.FusedMultiplyAdd((word << 16).AsSingle(), Vector512.Create(x[0]), sum);
            return Vector512.FusedMultiplyAdd((word & Vector512.Create(0xFFFF0000u)).AsSingle(), Vector512.Create(x[1]), sum);
        }
    }

    private readonly struct Int8Word : IWord
    {
        public static int Elements => 4;

        public static Vector512<float> Table(in GemmOperand matrix) => default;

        public static void Scales(in GemmOperand matrix, int row, int rows, int column, float* scales) =>
            new ReadOnlySpan<float>(matrix.RowScales + row, rows).CopyTo(new Span<float>(scales, rows));

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Vector512<float> MultiplyAdd(Vector512<uint> word, Vector512<float> table, Vector512<float> scale, float* x, Vector512<float> sum)
        {
            Vector512<int> codes = word.AsInt32();
            sum = Vector512.FusedMultiplyAdd(Vector512.ConvertToSingle(codes << 24 >> 24) * scale, Vector512.Create(x[0]), sum);
            sum = Vector512.FusedMultiplyAdd(Vector512.ConvertToSingle(codes << 16 >> 24) * scale, Vector512.Create(x[1]), sum);
            sum = Vector512.FusedMultiplyAdd(Vector512.ConvertToSingle(codes << 8 >> 24) * scale, Vector512.Create(x[2]), sum);
            return Vector512.FusedMultiplyAdd(Vector512.ConvertToSingle(codes >> 24) * scale, Vector512.Create(x[3]), sum);
        }
    }

    private readonly struct F32Word : IWord
    {
        public static int Elements => 1;

        public static Vector512<float> Table(in GemmOperand matrix) => default;

        public static void Scales(in GemmOperand matrix, int row, int rows, int column, float* scales)
        {
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Vector512<float> MultiplyAdd(Vector512<uint> word, Vector512<float> table, Vector512<float> scale, float* x, Vector512<float> sum) =>
            Vector512.FusedMultiplyAdd(word.AsSingle(), Vector512.Create(x[0]), sum);
    }
}
