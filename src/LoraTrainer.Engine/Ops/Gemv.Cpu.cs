using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Gemv
{
    /// <summary>Rows of a matrix whose chains go on side by side, so that they hide each other's latency.</summary>
    private const int GroupRows = 4;

    private const int Lanes = VectorMath.Lanes;
    private const int ChunkBytes = Lanes * sizeof(uint);

    /// <summary>Codes in a word.</summary>
    private const int FourBitElements = 8;

    /// <summary>Elements of a chunk of the densest kind, four bits each: as far as x is filled up with zeros.</summary>
    private const int MostChunkElements = Lanes * FourBitElements;

    /// <summary>Below this (some microseconds) the calling thread does all.</summary>
    private const long LeastParallelElements = 200_000;

    /// <summary>A smaller part would be over before what comes next has arrived from memory.</summary>
    private const long LeastPartElements = 160_000;

    /// <summary>An output layer takes milliseconds, and no thread should be done with it long before another.</summary>
    private const int MostPartsPerThread = 16;

    /// <summary>
    /// So far ahead of the chains memory is asked for what they need: the lines of a group's rows one after another as they lie there, not as
    /// the chains meet them, which memory answers faster.
    /// </summary>
    private const int PrefetchBytes = 6144;

    /// <summary>x in the order of each matrix's chunks, and what each thread needs.</summary>
    private static long WorkspaceFloats(int width, int threads, ReadOnlySpan<WeightMatrix> weights) => MostMatrices * (long)PaddedWidth(width) + threads * WorkerFloats(width, weights);

    private static int PaddedWidth(int width) => (width + MostChunkElements - 1) / MostChunkElements * MostChunkElements;

    /// <summary>For each thread: scales of a group of rows, or such a group where it cannot be read where it is.</summary>
    private static long WorkerFloats(int width, ReadOnlySpan<WeightMatrix> weights)
    {
        long most = 0;
        foreach (WeightMatrix weight in weights)
        {
            long needed = IsCopied(weight) ? GroupRows * (long)PaddedWidth(width) : weight is FourBitMatrix { IsDoubleQuantized: true } ? 3 * ScaleFloats(width) : 0;
            most = Math.Max(most, needed);
        }

        return most;
    }

    /// <summary>Rows cannot be multiplied where they are: they begin in the middle of a block, whose codes are made f32 then, or of half a chunk.</summary>
    private static bool IsCopied(WeightMatrix weight) => weight switch
    {
        FourBitMatrix => weight.In % BlockwiseFourBit.Blocksize != 0,
        Int8Matrix => weight.In % (ChunkBytes / 2) != 0,
        DenseMatrix { Values.DType: DType.BF16 } => weight.In * sizeof(ushort) % (ChunkBytes / 2) != 0,
        _ => weight.In * sizeof(float) % (ChunkBytes / 2) != 0,
    };

    /// <summary>The scales of a group of rows of codes, and as far as vectors go on behind them.</summary>
    private static long ScaleFloats(int width) => (GroupRows * (long)(width / BlockwiseFourBit.Blocksize) + 2 * Lanes - 1) / Lanes * Lanes;

    private static void ForwardCpu(CpuDevice cpu, Tensor workspace, ReadOnlySpan<Tensor> outputs, Tensor input, ReadOnlySpan<WeightMatrix> weights, GradientMode mode, float alpha)
    {
        int width = (int)input.Shape[1];
        float* free = workspace.F32;
        var work = new Work
        {
            Columns = width,
            Accumulate = mode == GradientMode.Accumulate,
            Workers = free + MostMatrices * (long)PaddedWidth(width),
            WorkerFloats = WorkerFloats(width, weights),
        };
        int groups = 0;
        for (int i = 0; i < weights.Length; i++)
        {
            var matrix = new Matrix
            {
                Stored = Linear.Operand(weights[i], transposed: false),
                IsCopied = IsCopied(weights[i]),
                X = free,
                Y = outputs[i].F32,
                Rows = weights[i].Out,
                FirstGroup = groups,
            };
            if (i > 0 && work[i - 1].Kind == matrix.Kind)
            {
                matrix.X = work[i - 1].X;
            }
            else
            {
                Arrange(matrix.Kind, input.F32, alpha, width, matrix.X);
                free += PaddedWidth(width);
            }

            work[i] = matrix;
            groups += (weights[i].Out + GroupRows - 1) / GroupRows;
        }

        work.Count = weights.Length;
        long elements = (long)groups * GroupRows * width;
        bool isParallel = cpu.ThreadCount > 1 && elements >= LeastParallelElements;
        work.Split = new RowSplit(groups, isParallel ? cpu.ThreadCount : 1, Math.Max(1, LeastPartElements / Math.Max(1, GroupRows * width)), MostPartsPerThread);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    /// <summary>alpha * x in the order in which the chunks of stored words meet it, filled up with zeros: slot s of a chunk is the s-th element of each of its words.</summary>
    private static void Arrange(GemmElement element, float* x, float alpha, int width, float* arranged)
    {
        int perWord = element switch { GemmElement.FourBit => FourBitElements, GemmElement.BF16 => BF16Word.Elements, GemmElement.Int8 => Int8Word.Elements, _ => F32Word.Elements };

        // The even element of a byte of two codes has the high nibble.
        int swap = element == GemmElement.FourBit ? 1 : 0;
        int whole = width / (Lanes * perWord) * (Lanes * perWord);
        for (int chunk = 0; chunk < whole; chunk += Lanes * perWord)
        {
            for (int slot = 0; slot < perWord; slot++, arranged += Lanes)
            {
                float* from = x + chunk + (slot ^ swap);
                for (int lane = 0; lane < Lanes; lane++)
                {
                    arranged[lane] = alpha * from[lane * perWord];
                }
            }
        }

        if (whole < width)
        {
            // Where half a chunk of codes is left, two rows share one: x stands in both halves.
            int laneMask = element == GemmElement.FourBit && width - whole == BlockwiseFourBit.Blocksize ? Lanes / 2 - 1 : Lanes - 1;
            for (int slot = 0; slot < perWord; slot++)
            {
                for (int lane = 0; lane < Lanes; lane++)
                {
                    int i = whole + (lane & laneMask) * perWord + (slot ^ swap);
                    *arranged++ = i < width ? alpha * x[i] : 0;
                }
            }
        }
    }

    private struct Matrix
    {
        public GemmOperand Stored;

        /// <summary>See <see cref="Gemv.IsCopied"/>.</summary>
        public bool IsCopied;

        /// <summary>Codes are made f32 while they are copied.</summary>
        public readonly bool IsExpanded => IsCopied && Stored.Element == GemmElement.FourBit;

        /// <summary>How rows are read.</summary>
        public readonly GemmElement Kind => IsExpanded ? GemmElement.F32 : Stored.Element;

        /// <summary>The row, in the order of the chunks.</summary>
        public float* X;

        public float* Y;
        public int Rows, FirstGroup;
    }

    private partial struct Work : IParallelWork
    {
        public Matrix First, Second, Third;
        public int Count, Columns;
        public bool Accumulate;
        public RowSplit Split;

        /// <summary>Scratch memory of all threads.</summary>
        public float* Workers;

        /// <summary>Of each thread.</summary>
        public long WorkerFloats;

        [UnscopedRef]
        public ref Matrix this[int matrix]
        {
            get
            {
                switch (matrix)
                {
                    case 0:
                        return ref First;
                    case 1:
                        return ref Second;
                    default:
                        return ref Third;
                }
            }
        }

        public void Execute(int part, int worker)
        {
            (long first, long end) = Split.Of(part);
            float* scratch = Workers + worker * WorkerFloats;
            for (int i = 0; i < Count; i++)
            {
                ref Matrix matrix = ref this[i];
                int last = i + 1 < Count ? this[i + 1].FirstGroup : int.MaxValue;
                int row = (int)Math.Max(0, first - matrix.FirstGroup) * GroupRows;
                int endRow = (int)Math.Min(matrix.Rows, (Math.Min(end, last) - matrix.FirstGroup) * GroupRows);
                if (row >= endRow)
                {
                    continue;
                }

                switch (matrix.Kind)
                {
                    case GemmElement.FourBit:
                        MultiplyFourBit(matrix, row, endRow, scratch);
                        break;
                    case GemmElement.BF16:
                        Multiply<BF16Word>(matrix, row, endRow, scratch);
                        break;
                    case GemmElement.Int8:
                        Multiply<Int8Word>(matrix, row, endRow, scratch);
                        break;
                    default:
                        Multiply<F32Word>(matrix, row, endRow, scratch);
                        break;
                }
            }
        }

        /// <summary>The sums of some rows, four at a time; where fewer are left, the last is done in place of the missing ones.</summary>
        private readonly void Multiply<TWord>(in Matrix matrix, int row, int endRow, float* scratch)
            where TWord : struct, IWord
        {
            nint stride = (nint)Columns * (sizeof(uint) / TWord.Elements);
            nint step = matrix.IsCopied ? (stride + ChunkBytes - 1) / ChunkBytes * ChunkBytes : stride;
            for (; row < endRow; row += GroupRows)
            {
                int rows = Math.Min(GroupRows, endRow - row);
                byte* first = matrix.IsCopied ? CopiedRows(matrix, row, rows, step, scratch) : (byte*)matrix.Stored.StoredAt(row);
                Vector128<float> sums = Sums<TWord>(first, Math.Min(1, rows - 1) * step, Math.Min(2, rows - 1) * step, (rows - 1) * step, matrix.X, step);
                Store(TWord.Scaled(sums, matrix.Stored, row, rows), matrix.Y + row, rows);
            }
        }

        private readonly void Store(Vector128<float> sums, float* y, int rows)
        {
            if (rows == GroupRows)
            {
                (Accumulate ? Vector128.Load(y) + sums : sums).Store(y);
                return;
            }

            for (int i = 0; i < rows; i++)
            {
                y[i] = Accumulate ? y[i] + sums[i] : sums[i];
            }
        }

        /// <summary>Rows as f32, or as they are but filled up with zeros.</summary>
        private readonly byte* CopiedRows(in Matrix matrix, int row, int rows, nint step, float* scratch)
        {
            for (int i = 0; i < rows; i++)
            {
                var target = new Span<byte>((byte*)scratch + i * step, (int)step);
                if (matrix.IsExpanded)
                {
                    target.Clear();
                    matrix.Stored.Load(row + i, 0, Columns, (float*)((byte*)scratch + i * step));
                    continue;
                }

                int bytes = Columns * (matrix.Stored.Element switch { GemmElement.F32 => sizeof(float), GemmElement.BF16 => sizeof(ushort), _ => sizeof(byte) });
                new ReadOnlySpan<byte>(matrix.Stored.StoredAt(row + i), bytes).CopyTo(target);
                target[bytes..].Clear();
            }

            return (byte*)scratch;
        }
    }

    /// <summary>The sums of four rows of which three lie so many bytes behind the first. A method of its own without calls, or the compiler would keep the sums in memory.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static Vector128<float> Sums<TWord>(byte* row, nint to1, nint to2, nint to3, float* x, nint bytes)
        where TWord : struct, IWord
    {
        Vector512<float> sum0 = default, sum1 = default, sum2 = default, sum3 = default;
        byte* ahead = row + PrefetchBytes;
        for (byte* end = row + bytes / ChunkBytes * ChunkBytes; row < end; row += ChunkBytes, x += Lanes * TWord.Elements, ahead += GroupRows * ChunkBytes)
        {
            Prefetch.Line(ahead);
            Prefetch.Line(ahead + ChunkBytes);
            Prefetch.Line(ahead + 2 * ChunkBytes);
            Prefetch.Line(ahead + 3 * ChunkBytes);
            TWord.MultiplyAdd(
                Vector512.Load(row).AsUInt32(), Vector512.Load(row + to1).AsUInt32(), Vector512.Load(row + to2).AsUInt32(), Vector512.Load(row + to3).AsUInt32(), x,
                ref sum0, ref sum1, ref sum2, ref sum3);
        }

        if (bytes % ChunkBytes != 0)
        {
            Prefetch.Line(ahead);
            Prefetch.Line(ahead + ChunkBytes);
            TWord.MultiplyAdd(
                Vector512.Create(Vector256.Load(row), default).AsUInt32(), Vector512.Create(Vector256.Load(row + to1), default).AsUInt32(),
                Vector512.Create(Vector256.Load(row + to2), default).AsUInt32(), Vector512.Create(Vector256.Load(row + to3), default).AsUInt32(), x,
                ref sum0, ref sum1, ref sum2, ref sum3);
        }

        return VectorMath.SumLanes(sum0, sum1, sum2, sum3);
    }

    /// <summary>How 16 words of a stored row become elements.</summary>
    private interface IWord
    {
        /// <summary>Of a word.</summary>
        static abstract int Elements { get; }

        /// <summary>Continues the chains of four rows with a chunk of each.</summary>
        static abstract void MultiplyAdd(
            Vector512<uint> word0, Vector512<uint> word1, Vector512<uint> word2, Vector512<uint> word3, float* x, ref Vector512<float> sum0, ref Vector512<float> sum1, ref Vector512<float> sum2, ref Vector512<float> sum3);

        /// <summary>The sums times the factors of the rows, where rows have factors.</summary>
        static virtual Vector128<float> Scaled(Vector128<float> sums, in GemmOperand matrix, int row, int rows) => sums;
    }

    private readonly struct BF16Word : IWord
    {
        public static int Elements => 2;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static void MultiplyAdd(
            Vector512<uint> word0, Vector512<uint> word1, Vector512<uint> word2, Vector512<uint> word3, float* x,
            ref Vector512<float> sum0, ref Vector512<float> sum1, ref Vector512<float> sum2, ref Vector512<float> sum3)
        {
            Vector512<float> even = Vector512.Load(x), odd = Vector512.Load(x + Lanes);
            sum0 = Odd(word0, odd, Even(word0, even, sum0));
            sum1 = Odd(word1, odd, Even(word1, even, sum1));
            sum2 = Odd(word2, odd, Even(word2, even, sum2));
            sum3 = Odd(word3, odd, Even(word3, even, sum3));
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static Vector512<float> Even(Vector512<uint> word, Vector512<float> x, Vector512<float> sum) => Vector512.FusedMultiplyAdd((word << 16).AsSingle(), x, sum);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static Vector512<float> Odd(Vector512<uint> word, Vector512<float> x, Vector512<float> sum) => Vector512.FusedMultiplyAdd((word & Vector512.Create(0xFFFF0000u)).AsSingle(), x, sum);
    }

    private readonly struct Int8Word : IWord
    {
        public static int Elements => 4;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static void MultiplyAdd(
            Vector512<uint> word0, Vector512<uint> word1, Vector512<uint> word2, Vector512<uint> word3, float* x,
            ref Vector512<float> sum0, ref Vector512<float> sum1, ref Vector512<float> sum2, ref Vector512<float> sum3)
        {
            Slot(24, word0, word1, word2, word3, x, ref sum0, ref sum1, ref sum2, ref sum3);
            Slot(16, word0, word1, word2, word3, x + Lanes, ref sum0, ref sum1, ref sum2, ref sum3);
            Slot(8, word0, word1, word2, word3, x + 2 * Lanes, ref sum0, ref sum1, ref sum2, ref sum3);
            Slot(0, word0, word1, word2, word3, x + 3 * Lanes, ref sum0, ref sum1, ref sum2, ref sum3);
        }

        public static Vector128<float> Scaled(Vector128<float> sums, in GemmOperand matrix, int row, int rows)
        {
            float* scales = matrix.RowScales + row;
            return sums * Vector128.Create(scales[0], scales[Math.Min(1, rows - 1)], scales[Math.Min(2, rows - 1)], scales[rows - 1]);
        }

        /// <summary>The bytes at one place of each word.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Slot(
            [ConstantExpected] byte shift, Vector512<uint> word0, Vector512<uint> word1, Vector512<uint> word2, Vector512<uint> word3, float* x,
            ref Vector512<float> sum0, ref Vector512<float> sum1, ref Vector512<float> sum2, ref Vector512<float> sum3)
        {
            Vector512<float> factor = Vector512.Load(x);
            sum0 = Vector512.FusedMultiplyAdd(Vector512.ConvertToSingle((word0 << shift).AsInt32() >> 24), factor, sum0);
            sum1 = Vector512.FusedMultiplyAdd(Vector512.ConvertToSingle((word1 << shift).AsInt32() >> 24), factor, sum1);
            sum2 = Vector512.FusedMultiplyAdd(Vector512.ConvertToSingle((word2 << shift).AsInt32() >> 24), factor, sum2);
            sum3 = Vector512.FusedMultiplyAdd(Vector512.ConvertToSingle((word3 << shift).AsInt32() >> 24), factor, sum3);
        }
    }

    private readonly struct F32Word : IWord
    {
        public static int Elements => 1;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static void MultiplyAdd(
            Vector512<uint> word0, Vector512<uint> word1, Vector512<uint> word2, Vector512<uint> word3, float* x,
            ref Vector512<float> sum0, ref Vector512<float> sum1, ref Vector512<float> sum2, ref Vector512<float> sum3)
        {
            Vector512<float> factor = Vector512.Load(x);
            sum0 = Vector512.FusedMultiplyAdd(word0.AsSingle(), factor, sum0);
            sum1 = Vector512.FusedMultiplyAdd(word1.AsSingle(), factor, sum1);
            sum2 = Vector512.FusedMultiplyAdd(word2.AsSingle(), factor, sum2);
            sum3 = Vector512.FusedMultiplyAdd(word3.AsSingle(), factor, sum3);
        }
    }
}
