using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native;
using LoraTrainer.Engine.Numerics;

namespace LoraTrainer.Engine.Ops;

/// <content>
/// One query over all keys: a token that is generated. Keys and values are read once, as they lie, by all threads. They are cut into at most
/// <see cref="MostPieces"/> pieces of whole blocks, by their number alone; each has a maximum, a sum and an output of its own, and these are put together in
/// order. So the bits depend on neither threads nor instruction set, but they are not those of many queries.
/// </content>
internal static unsafe partial class CpuAttention
{
    private const int MostPieces = 32;

    /// <summary>Keys whose products with a query go on side by side.</summary>
    private const int KeysAtOnce = 4;

    /// <summary>Bytes that <see cref="ForwardOne"/> needs.</summary>
    public static long OneQueryWorkspaceBytes(int threads, int h, int dh) => Alignment + sizeof(float) * ((long)MostPieces * h * PartialFloats(dh) + (long)threads * Block);

    /// <summary>The last of <paramref name="keys"/> tokens of one document attends to all of it.</summary>
    /// <param name="pool">Threads.</param>
    /// <param name="workspace"><see cref="OneQueryWorkspaceBytes"/> bytes.</param>
    /// <param name="output">(H*Dh); overwritten.</param>
    /// <param name="q">(H*Dh)</param>
    /// <param name="k">(keys, Hkv*Dh)</param>
    /// <param name="v">(keys, Hkv*Dh)</param>
    /// <param name="keys">Tokens so far, the new one included.</param>
    /// <param name="shape">Sizes and row strides.</param>
    /// <param name="options">Scale, window, softcap.</param>
    public static void ForwardOne(WorkerPool pool, byte* workspace, float* output, float* q, float* k, float* v, int keys, in AttentionShape shape, in AttentionOptions options)
    {
        int first = options.SlidingWindow > 0 ? Math.Max(0, keys - options.SlidingWindow) : 0;
        int blocks = (keys - first + Block - 1) / Block;
        int blocksPerPiece = (blocks + MostPieces - 1) / MostPieces;
        int pieces = (blocks + blocksPerPiece - 1) / blocksPerPiece;
        float* partials = (float*)Align(workspace);
        var work = new OneQueryWork
        {
            Q = q, K = k, V = v, Shape = shape, Options = options, FirstKey = first, Keys = keys, KeysPerPiece = blocksPerPiece * Block,
            Split = new RowSplit((long)pieces * shape.Hkv, pool.ThreadCount, 1), Partials = partials, Scratch = partials + (long)MostPieces * shape.H * PartialFloats(shape.Dh),
        };
        pool.Run(work.Split.Parts, ref work);
        for (int head = 0; head < shape.H; head++)
        {
            Merge(output + (long)head * shape.Dh, partials + (long)head * PartialFloats(shape.Dh), (long)shape.H * PartialFloats(shape.Dh), pieces, shape.Dh);
        }
    }

    /// <summary>Of one head in one piece: the output so far, not yet divided; then the maximum and the sum.</summary>
    private static int PartialFloats(int dh) => RoundUpToLanes(dh) + VectorMath.Lanes;

    private struct OneQueryWork : IParallelWork
    {
        public float* Q, K, V;
        public AttentionShape Shape;
        public AttentionOptions Options;
        public int FirstKey, Keys, KeysPerPiece;

        /// <summary>Of all key heads of the first piece, then of the next.</summary>
        public RowSplit Split;

        /// <summary>(pieces, H) of <see cref="PartialFloats"/>.</summary>
        public float* Partials;

        /// <summary>(threads, Block)</summary>
        public float* Scratch;

        public readonly void Execute(int part, int worker)
        {
            (long first, long end) = Split.Of(part);
            for (long item = first; item < end; item++)
            {
                AttendTo((int)(item / Shape.Hkv), (int)(item % Shape.Hkv), Scratch + (long)worker * Block);
            }
        }

        /// <summary>The queries of one key head over the keys of one piece.</summary>
        private readonly void AttendTo(int piece, int keyHead, float* p)
        {
            int dh = Shape.Dh, group = Shape.H / Shape.Hkv, firstHead = keyHead * group;
            float* partials = Partials + ((long)piece * Shape.H + firstHead) * PartialFloats(dh);
            for (int query = 0; query < group; query++)
            {
                float* partial = partials + (long)query * PartialFloats(dh);
                new Span<float>(partial, RoundUpToLanes(dh)).Clear();
                partial[RoundUpToLanes(dh)] = float.NegativeInfinity;
                partial[RoundUpToLanes(dh) + 1] = 0;
            }

            int start = FirstKey + piece * KeysPerPiece, end = Math.Min(Keys, start + KeysPerPiece);
            for (int key = start; key < end; key += Block)
            {
                int count = Math.Min(Block, end - key);
                long at = key * Shape.KvStride + (long)keyHead * dh;
                AskFor(K + at, V + at, Shape.KvStride, count, dh);
                for (int query = 0; query < group; query++)
                {
                    float* partial = partials + (long)query * PartialFloats(dh);
                    Products(p, Q + (long)(firstHead + query) * dh, K + at, Shape.KvStride, count, dh);
                    float factor = Exponentials(p, count, Options, ref partial[RoundUpToLanes(dh)], ref partial[RoundUpToLanes(dh) + 1]);
                    if (factor != 1)
                    {
                        Scale(partial, factor, dh);
                    }

                    AddValues(partial, p, V + at, Shape.KvStride, count, dh);
                }
            }
        }
    }

    /// <summary>All lines at once: memory then answers many of them together, and the keys' products begin while those of the values are on their way.</summary>
    private static void AskFor(float* k, float* v, long stride, int count, int dh)
    {
        AskFor(k, stride, count, dh);
        AskFor(v, stride, count, dh);
    }

    private static void AskFor(float* rows, long stride, int count, int dh)
    {
        for (int j = 0; j < count; j++, rows += stride)
        {
            for (int c = 0; c < dh; c += VectorMath.Lanes)
            {
                Prefetch.LineOfBlock(rows + c);
            }
        }
    }

    /// <summary>p[j] = q . k[j], each a sum of 16 lanes.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Products(float* p, float* q, float* k, long stride, int count, int dh)
    {
        for (int j = 0; j < count; j += KeysAtOnce)
        {
            float* key0 = k + j * stride, key1 = k + Math.Min(j + 1, count - 1) * stride, key2 = k + Math.Min(j + 2, count - 1) * stride, key3 = k + Math.Min(j + 3, count - 1) * stride;
            FourProducts(q, key0, key1, key2, key3, dh).Store(p + j);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<float> FourProducts(float* q, float* key0, float* key1, float* key2, float* key3, int dh)
    {
        Vector512<float> sum0 = default, sum1 = default, sum2 = default, sum3 = default;
        int c = 0;
        for (; c <= dh - VectorMath.Lanes; c += VectorMath.Lanes)
        {
            Vector512<float> x = Vector512.Load(q + c);
            sum0 = Vector512.FusedMultiplyAdd(Vector512.Load(key0 + c), x, sum0);
            sum1 = Vector512.FusedMultiplyAdd(Vector512.Load(key1 + c), x, sum1);
            sum2 = Vector512.FusedMultiplyAdd(Vector512.Load(key2 + c), x, sum2);
            sum3 = Vector512.FusedMultiplyAdd(Vector512.Load(key3 + c), x, sum3);
        }

        return c < dh ? WithTail(sum0, sum1, sum2, sum3, q + c, key0 + c, key1 + c, key2 + c, key3 + c, dh - c) : VectorMath.SumLanes(sum0, sum1, sum2, sum3);
    }

    /// <summary>The sums with the last elements, where a head is not whole vectors. A method of its own: beside its calls the compiler would keep the sums in memory for every head.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Vector128<float> WithTail(
        Vector512<float> sum0, Vector512<float> sum1, Vector512<float> sum2, Vector512<float> sum3, float* q, float* key0, float* key1, float* key2, float* key3, int count)
    {
        Vector512<float> x = VectorMath.Load(q, count);
        return VectorMath.SumLanes(
            Vector512.FusedMultiplyAdd(VectorMath.Load(key0, count), x, sum0), Vector512.FusedMultiplyAdd(VectorMath.Load(key1, count), x, sum1),
            Vector512.FusedMultiplyAdd(VectorMath.Load(key2, count), x, sum2), Vector512.FusedMultiplyAdd(VectorMath.Load(key3, count), x, sum3));
    }

    /// <summary>p becomes exp(softcap(scale p) - m') with the new maximum m'; the sum goes on from sum * exp(m - m').</summary>
    /// <returns>exp(m - m'), by which earlier terms are to be multiplied.</returns>
    private static float Exponentials(float* p, int count, in AttentionOptions options, ref float max, ref float sum)
    {
        Vector512<float> highest = Vector512.Create(max);
        for (int j = 0; j < count; j += VectorMath.Lanes)
        {
            Vector512<float> score = Score(options, Vector512.Load(p + j));
            if (count - j < VectorMath.Lanes)
            {
                Vector512<float> isKey = Vector512.LessThan(Vector512<int>.Indices, Vector512.Create(count - j)).AsSingle();
                score = Vector512.ConditionalSelect(isKey, score, Vector512.Create(float.NegativeInfinity));
            }

            score.Store(p + j);
            highest = VectorMath.Max(highest, score);
        }

        float newMax = VectorMath.MaxLanes(highest);

        // Where every score is -inf, -inf - 0 = -inf and all terms are 0; -inf - -inf would be NaN.
        float shift = newMax == float.NegativeInfinity ? 0 : newMax;
        Vector512<float> terms = default;
        for (int j = 0; j < count; j += VectorMath.Lanes)
        {
            Vector512<float> term = VectorMath.Exp(Vector512.Load(p + j) - Vector512.Create(shift));
            term.Store(p + j);
            terms += term;
        }

        float factor = max == newMax ? 1 : VectorMath.Exp(Vector512.Create(max - shift)).ToScalar();
        sum = MathF.FusedMultiplyAdd(sum, factor, VectorMath.SumLanes(terms));
        max = newMax;
        return factor;
    }

    /// <summary>output += sum_j p[j] v[j], a chain for each element.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddValues(float* output, float* p, float* v, long stride, int count, int dh)
    {
        int c = 0;
        for (; c <= dh - 4 * VectorMath.Lanes; c += 4 * VectorMath.Lanes)
        {
            Vector512<float> sum0 = Vector512.Load(output + c), sum1 = Vector512.Load(output + c + 16), sum2 = Vector512.Load(output + c + 32), sum3 = Vector512.Load(output + c + 48);
            float* value = v + c;
            for (int j = 0; j < count; j++, value += stride)
            {
                Vector512<float> weight = Vector512.Create(p[j]);
                sum0 = Vector512.FusedMultiplyAdd(weight, Vector512.Load(value), sum0);
                sum1 = Vector512.FusedMultiplyAdd(weight, Vector512.Load(value + 16), sum1);
                sum2 = Vector512.FusedMultiplyAdd(weight, Vector512.Load(value + 32), sum2);
                sum3 = Vector512.FusedMultiplyAdd(weight, Vector512.Load(value + 48), sum3);
            }

            sum0.Store(output + c);
            sum1.Store(output + c + 16);
            sum2.Store(output + c + 32);
            sum3.Store(output + c + 48);
        }

        for (; c < dh; c += VectorMath.Lanes)
        {
            Vector512<float> sum = Vector512.Load(output + c);
            for (int j = 0; j < count; j++)
            {
                sum = Vector512.FusedMultiplyAdd(Vector512.Create(p[j]), VectorMath.Load(v + j * stride + c, dh - c), sum);
            }

            sum.Store(output + c);
        }
    }

    /// <summary>A head's output from those of its pieces.</summary>
    private static void Merge(float* output, float* partial, long partialStride, int pieces, int dh)
    {
        int statistics = RoundUpToLanes(dh);
        float* factors = stackalloc float[MostPieces];
        new Span<float>(factors, MostPieces).Fill(float.NegativeInfinity);
        for (int piece = 0; piece < pieces; piece++)
        {
            factors[piece] = partial[piece * partialStride + statistics];
        }

        float max = VectorMath.Max(new ReadOnlySpan<float>(factors, MostPieces)), shift = max == float.NegativeInfinity ? 0 : max, sum = 0;
        for (int piece = 0; piece < MostPieces; piece += VectorMath.Lanes)
        {
            VectorMath.Exp(Vector512.Load(factors + piece) - Vector512.Create(shift)).Store(factors + piece);
        }

        for (int piece = 0; piece < pieces; piece++)
        {
            sum = MathF.FusedMultiplyAdd(partial[piece * partialStride + statistics + 1], factors[piece], sum);
        }

        for (int c = 0; c < dh; c += VectorMath.Lanes)
        {
            Vector512<float> whole = Vector512.Load(partial + c) * Vector512.Create(factors[0]);
            for (int piece = 1; piece < pieces; piece++)
            {
                whole += Vector512.Load(partial + piece * partialStride + c) * Vector512.Create(factors[piece]);
            }

            whole.Store(partial + c);
        }

        Divide(output, partial, sum, dh);
    }
}
