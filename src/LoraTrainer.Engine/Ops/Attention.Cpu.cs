using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;

namespace LoraTrainer.Engine.Ops;

/// <summary>Sizes and memory layout of an attention call. Rows (tokens) may be further apart than they are long, so q, k and v may be columns of one buffer.</summary>
/// <param name="H">Query heads.</param>
/// <param name="Hkv">Key/value heads; divides H. Query head h uses key/value head h / (H/Hkv).</param>
/// <param name="Dh">Head size.</param>
/// <param name="QStride">Elements from one row of q (and of its gradient) to the next; at least H * Dh.</param>
/// <param name="KvStride">The same for k, v and their gradients; at least Hkv * Dh.</param>
/// <param name="OutputStride">The same for the output and its gradient; at least H * Dh.</param>
internal readonly record struct AttentionShape(int H, int Hkv, int Dh, long QStride, long KvStride, long OutputStride);

/// <summary>What is computed between q k^T and the softmax.</summary>
/// <param name="Scale">Factor of the inner products, usually 1/sqrt(Dh).</param>
/// <param name="SlidingWindow">W: key j is visible to query i iff i-W &lt; j &lt;= i, W keys including itself; 0 for all keys up to i.</param>
/// <param name="LogitSoftcap">c: scaled products s become c tanh(s/c) before masking; 0 for none.</param>
internal readonly record struct AttentionOptions(float Scale, int SlidingWindow = 0, float LogitSoftcap = 0);

/// <summary>
/// Causal attention over a packed stream of N tokens, document by document, in memory linear in N:
/// S = softcap(scale q k^T) where visible, P = softmax(S), O = P v. Per row the forward pass keeps lse = log sum_j exp(S_j), from which the
/// backward pass recomputes P. Work is cut into blocks of 64 rows that start at each document's first token, whatever the number of threads
/// and the instruction set, and each number is one chain of operations in block order: a document's results do not depend on what it is packed with.
/// </summary>
internal static unsafe partial class CpuAttention
{
    /// <summary>Queries per block, and keys per block. A tile of S and one operand at Dh = 64 fit a core's first-level cache.</summary>
    private const int Block = 64;

    /// <summary>Rows of a left factor that one pass over the right one serves.</summary>
    private const int RowsPerTile = 4;

    private const int Alignment = 64;

    /// <summary>One block of rows of one document. All numbers are rows of the stream.</summary>
    private struct RowBlock
    {
        public int Start, DocumentStart, DocumentEnd;

        public readonly int Rows => Math.Min(Block, DocumentEnd - Start);
    }

    /// <summary>Everything a part of the work needs to know.</summary>
    private struct Problem
    {
        public float* Output, Lse, Q, K, V;
        public float* DQ, DK, DV, DOutput;
        public AttentionShape Shape;
        public AttentionOptions Options;
        public int Tokens;
        public RowBlock* Blocks;
        public int BlockCount;

        /// <summary>(blocks, Hkv): how far the backward pass of a key block has come; see <see cref="BackwardWork"/>.</summary>
        public int* Progress;

        /// <summary>(H, N): sum_c dO_c O_c.</summary>
        public float* Delta;
        public byte* Scratch;
        public long ScratchBytes;

        public readonly int Group => Shape.H / Shape.Hkv;

        /// <summary>The window, or more than any distance.</summary>
        public readonly int Window => Options.SlidingWindow > 0 ? Options.SlidingWindow : int.MaxValue;

        /// <summary>The first block (counted from the document's first) with keys visible to a query at <paramref name="position"/> in its document.</summary>
        public readonly int FirstVisibleBlock(int position) => (int)(Math.Max(0, position - (long)Window + 1) / Block);
    }

    /// <summary>Bytes that <see cref="Forward"/> needs for at most so many threads, tokens and documents.</summary>
    public static long ForwardWorkspaceBytes(int threads, int tokens, int documents, int dh)
        => Alignment + TableBytes(tokens, documents) + (threads * ForwardScratchBytes(dh));

    /// <summary>Bytes that <see cref="Backward"/> needs for at most so many threads, tokens and documents.</summary>
    public static long BackwardWorkspaceBytes(int threads, int tokens, int documents, int h, int hkv, int dh)
        => Alignment + TableBytes(tokens, documents) + ProgressBytes(tokens, documents, hkv) + DeltaBytes(tokens, h) + (threads * BackwardScratchBytes(dh));

    /// <summary>Bytes that <see cref="ForwardDecode"/> needs.</summary>
    public static long DecodeWorkspaceBytes(int threads, int dh) => Alignment + (threads * ForwardScratchBytes(dh));

    /// <summary>
    /// O = softmax(S) v, document by document. A row with no visible key (a masked-out document cannot make one) would give 0 and lse = +inf.
    /// </summary>
    /// <param name="pool">Threads.</param>
    /// <param name="workspace"><see cref="ForwardWorkspaceBytes"/> bytes.</param>
    /// <param name="output">(N, H*Dh); overwritten. May not alias an input.</param>
    /// <param name="lse">(H, N); overwritten.</param>
    /// <param name="q">(N, H*Dh)</param>
    /// <param name="k">(N, Hkv*Dh)</param>
    /// <param name="v">(N, Hkv*Dh)</param>
    /// <param name="documentOffsets">(documents + 1): the first row of each document, then N; not decreasing, starting with 0.</param>
    /// <param name="shape">Sizes and row strides.</param>
    /// <param name="options">Scale, window, softcap.</param>
    public static void Forward(
        WorkerPool pool, byte* workspace, float* output, float* lse, float* q, float* k, float* v,
        ReadOnlySpan<int> documentOffsets, in AttentionShape shape, in AttentionOptions options)
    {
        var problem = new Problem { Output = output, Lse = lse, Q = q, K = k, V = v, Shape = shape, Options = options, Tokens = documentOffsets[^1] };
        byte* free = ListBlocks(ref problem, Align(workspace), documentOffsets);
        problem.Scratch = free;
        problem.ScratchBytes = ForwardScratchBytes(shape.Dh);
        var work = new ForwardWork { Problem = problem };
        pool.Run(problem.BlockCount * shape.H, ref work);
    }

    /// <summary>
    /// The last <paramref name="queries"/> of <paramref name="keys"/> tokens of one document attend to all of it: generation with a cache of
    /// keys and values. Each output row has the bits that <see cref="Forward"/> gives it for the whole document.
    /// </summary>
    /// <param name="pool">Threads; at most Hkv (or, for many queries, H) of them find work.</param>
    /// <param name="workspace"><see cref="DecodeWorkspaceBytes"/> bytes.</param>
    /// <param name="output">(queries, H*Dh); overwritten.</param>
    /// <param name="q">(queries, H*Dh)</param>
    /// <param name="k">(keys, Hkv*Dh)</param>
    /// <param name="v">(keys, Hkv*Dh)</param>
    /// <param name="queries">New tokens, 1..keys.</param>
    /// <param name="keys">Tokens so far, the new ones included.</param>
    /// <param name="shape">Sizes and row strides.</param>
    /// <param name="options">Scale, window, softcap.</param>
    public static void ForwardDecode(
        WorkerPool pool, byte* workspace, float* output, float* q, float* k, float* v,
        int queries, int keys, in AttentionShape shape, in AttentionOptions options)
    {
        var problem = new Problem { Output = output, Q = q, K = k, V = v, Shape = shape, Options = options, Scratch = Align(workspace), ScratchBytes = ForwardScratchBytes(shape.Dh) };
        // Few queries: all heads that share keys and values go through them together, so that these are read from memory once.
        bool together = queries * problem.Group <= Block;
        var work = new DecodeWork { Problem = problem, Queries = queries, Keys = keys, Together = together };
        pool.Run(together ? shape.Hkv : shape.H * ((queries + Block - 1) / Block), ref work);
    }

    /// <summary>
    /// All three gradients OVERWRITE. With D_i = sum_c dO_ic O_ic, P_ij = exp(S_ij - lse_i), dP_ij = sum_c dO_ic v_jc:
    /// dS_ij = P_ij (dP_ij - D_i), times 1 - (S_ij/c)^2 with a softcap c; then dv_j = sum_i P_ij dO_i, dk_j = scale sum_i dS_ij q_i,
    /// dq_i = scale sum_j dS_ij k_j; dk and dv sum over the query heads of a group too.
    /// </summary>
    /// <param name="pool">Threads.</param>
    /// <param name="workspace"><see cref="BackwardWorkspaceBytes"/> bytes.</param>
    /// <param name="dq">As q; overwritten.</param>
    /// <param name="dk">As k; overwritten.</param>
    /// <param name="dv">As v; overwritten.</param>
    /// <param name="dOutput">As output.</param>
    /// <param name="output">(N, H*Dh), from <see cref="Forward"/>.</param>
    /// <param name="lse">(H, N), from <see cref="Forward"/>.</param>
    /// <param name="q">(N, H*Dh)</param>
    /// <param name="k">(N, Hkv*Dh)</param>
    /// <param name="v">(N, Hkv*Dh)</param>
    /// <param name="documentOffsets">As in <see cref="Forward"/>.</param>
    /// <param name="shape">Sizes and row strides.</param>
    /// <param name="options">Scale, window, softcap.</param>
    public static void Backward(
        WorkerPool pool, byte* workspace, float* dq, float* dk, float* dv, float* dOutput, float* output, float* lse, float* q, float* k, float* v,
        ReadOnlySpan<int> documentOffsets, in AttentionShape shape, in AttentionOptions options)
    {
        var problem = new Problem
        {
            DQ = dq, DK = dk, DV = dv, DOutput = dOutput, Output = output, Lse = lse, Q = q, K = k, V = v,
            Shape = shape, Options = options, Tokens = documentOffsets[^1],
        };
        byte* free = ListBlocks(ref problem, Align(workspace), documentOffsets);
        problem.Progress = (int*)free;
        new Span<int>(problem.Progress, problem.BlockCount * shape.Hkv).Clear();
        free += ProgressBytes(problem.Tokens, documentOffsets.Length - 1, shape.Hkv);
        problem.Delta = (float*)free;
        free += DeltaBytes(problem.Tokens, shape.H);
        problem.Scratch = free;
        problem.ScratchBytes = BackwardScratchBytes(shape.Dh);

        var delta = new DeltaWork { Problem = problem };
        pool.Run(problem.BlockCount, ref delta);
        var work = new BackwardWork { Problem = problem };
        pool.Run(problem.BlockCount * shape.Hkv, ref work);
    }

    /// <summary>A part is a block of queries and a head.</summary>
    private struct ForwardWork : IParallelWork
    {
        public Problem Problem;

        public void Execute(int part, int worker)
        {
            // Last blocks first: in a causal pass they are the longest, and short ones at the end even out the threads.
            RowBlock block = Problem.Blocks[Problem.BlockCount - 1 - (part / Problem.Shape.H)];
            var lanes = new QueryLanes
            {
                FirstHead = part % Problem.Shape.H,
                Heads = 1,
                FirstRow = block.Start,
                RowsPerHead = block.Rows,
                KeyStart = block.DocumentStart,
                FirstPosition = block.Start - block.DocumentStart,
            };
            ForwardBlock(ref Problem, in lanes, (float*)(Problem.Scratch + (worker * Problem.ScratchBytes)));
        }
    }

    /// <summary>A part is a key/value head with all queries of its group, or a head and a block of queries.</summary>
    private struct DecodeWork : IParallelWork
    {
        public Problem Problem;
        public int Queries, Keys;
        public bool Together;

        public void Execute(int part, int worker)
        {
            int firstRow = Together ? 0 : part / Problem.Shape.H * Block;
            var lanes = new QueryLanes
            {
                FirstHead = Together ? part * Problem.Group : part % Problem.Shape.H,
                Heads = Together ? Problem.Group : 1,
                FirstRow = firstRow,
                RowsPerHead = Math.Min(Block, Queries - firstRow),
                KeyStart = 0,
                FirstPosition = Keys - Queries + firstRow,
            };
            ForwardBlock(ref Problem, in lanes, (float*)(Problem.Scratch + (worker * Problem.ScratchBytes)));
        }
    }

    /// <summary>A part is a block of rows: D for all heads.</summary>
    private struct DeltaWork : IParallelWork
    {
        public Problem Problem;

        public readonly void Execute(int part, int worker)
        {
            RowBlock block = Problem.Blocks[part];
            AttentionShape shape = Problem.Shape;
            for (int row = block.Start; row < block.Start + block.Rows; row++)
            {
                for (int head = 0; head < shape.H; head++)
                {
                    long at = (row * shape.OutputStride) + (head * shape.Dh);
                    Problem.Delta[((long)head * Problem.Tokens) + row] = VectorMath.Dot(new(Problem.DOutput + at, shape.Dh), new(Problem.Output + at, shape.Dh));
                }
            }
        }
    }

    /// <summary>
    /// A part is a block of keys and a key/value head. It goes through the blocks of queries that see it, upwards, sums dk and dv, and adds to dq.
    /// dq must receive its key blocks in one order, so before it touches a query block a part waits until the part of the key block before
    /// it has left that query block. The parts form a wave: each starts one query block later than its predecessor and rarely waits. A part
    /// waits only for one with a lower number, and the pool starts parts in the order of their numbers: there is always one that can run.
    /// </summary>
    private struct BackwardWork : IParallelWork
    {
        public Problem Problem;

        public void Execute(int part, int worker)
        {
            int hkv = Problem.Shape.Hkv;
            int keyBlock = part / hkv;
            RowBlock keys = Problem.Blocks[keyBlock];
            int number = (keys.Start - keys.DocumentStart) / Block;
            int last = (keys.DocumentEnd - keys.DocumentStart - 1) / Block;
            float* scratch = (float*)(Problem.Scratch + (worker * Problem.ScratchBytes));
            var tile = new BackwardTile(ref Problem, keys, part % hkv, scratch);
            for (int i = number; i <= last; i++)
            {
                RowBlock queries = Problem.Blocks[keyBlock + i - number];
                int firstVisible = Problem.FirstVisibleBlock(i * Block);
                if (firstVisible > number)
                {
                    break; // out of the window, and so are all later ones
                }

                if (firstVisible < number)
                {
                    SpinWait spinner = default;
                    while (Volatile.Read(ref Problem.Progress[part - hkv]) <= i)
                    {
                        spinner.SpinOnce(sleep1Threshold: -1);
                    }
                }

                tile.Add(ref Problem, queries, firstForKeys: i == number, firstForQueries: firstVisible == number);
                Volatile.Write(ref Problem.Progress[part], i + 1);
            }
        }
    }

    /// <summary>
    /// The queries of one tile, at most <see cref="Block"/>, one per vector lane: lane r is row FirstRow + r % RowsPerHead of head
    /// FirstHead + r / RowsPerHead. All heads use the same key/value head.
    /// </summary>
    private struct QueryLanes
    {
        public int FirstHead, Heads, FirstRow, RowsPerHead;

        /// <summary>Row of k and v at which the document starts.</summary>
        public int KeyStart;

        /// <summary>Place of FirstRow in its document.</summary>
        public int FirstPosition;
    }

    /// <summary>
    /// Attention of one tile of queries, with running maximum m and sum l. Tiles of S are kept transposed, (keys, queries): queries lie along
    /// the vectors, so that softmax needs no sums across lanes, keys and values are used as they lie, and only q is transposed, once.
    /// </summary>
    private static void ForwardBlock(ref Problem problem, in QueryLanes lanes, float* scratch)
    {
        AttentionShape shape = problem.Shape;
        int dh = shape.Dh;
        int rows = lanes.Heads * lanes.RowsPerHead;
        int width = RoundUpToLanes(rows);
        float* qt = scratch;
        float* s = qt + (dh * Block);
        float* o = s + (Block * Block);
        float* packedV = o + (Block * dh);
        float* max = packedV + (Block * dh);
        float* sum = max + Block;
        float* alpha = sum + Block;
        int* positions = (int*)(alpha + Block);
        for (int r = 0; r < Block; r++)
        {
            max[r] = float.NegativeInfinity;
            sum[r] = 0;
            positions[r] = lanes.FirstPosition + (Math.Min(r, rows - 1) % lanes.RowsPerHead);
        }

        // Lanes without a query compute on whatever is in the workspace; nothing reads them.
        for (int head = 0; head < lanes.Heads; head++)
        {
            float* source = problem.Q + (lanes.FirstRow * shape.QStride) + ((lanes.FirstHead + head) * dh);
            Transpose(qt + (head * lanes.RowsPerHead), source, shape.QStride, lanes.RowsPerHead, dh);
        }

        int kvHead = lanes.FirstHead / problem.Group;
        float* k = problem.K + (lanes.KeyStart * shape.KvStride) + (kvHead * dh);
        float* v = problem.V + (lanes.KeyStart * shape.KvStride) + (kvHead * dh);
        int firstKey = problem.FirstVisibleBlock(lanes.FirstPosition) * Block;
        int lastPosition = lanes.FirstPosition + lanes.RowsPerHead - 1;
        for (int key = firstKey; key <= lastPosition; key += Block)
        {
            int keys = Math.Min(Block, lastPosition + 1 - key);
            Multiply(s, Block, k + (key * shape.KvStride), shape.KvStride, 1, qt, Block, keys, width, dh, accumulate: false);
            bool masked = key + keys - 1 > lanes.FirstPosition || key <= (long)lastPosition - problem.Window;
            for (int lane = 0; lane < width; lane += VectorMath.Lanes)
            {
                OnlineSoftmax(in problem, s + lane, max + lane, sum + lane, alpha + lane, masked ? positions + lane : null, key, keys);
            }

            bool first = key == firstKey;
            for (int r = 0; r < rows && !first; r++)
            {
                if (alpha[r] != 1)
                {
                    Scale(o + (r * dh), alpha[r], dh);
                }
            }

            // Packing pays where the values are read more than once.
            bool packs = rows > RowsPerTile;
            if (packs)
            {
                Pack(packedV, v + (key * shape.KvStride), shape.KvStride, keys, dh);
            }

            Multiply(o, dh, s, 1, Block, packs ? packedV : v + (key * shape.KvStride), packs ? dh : shape.KvStride, rows, dh, keys, accumulate: !first);
        }

        for (int r = 0; r < rows; r++)
        {
            int head = lanes.FirstHead + (r / lanes.RowsPerHead);
            int row = lanes.FirstRow + (r % lanes.RowsPerHead);
            float* target = problem.Output + (row * shape.OutputStride) + (head * dh);
            Divide(target, o + (r * dh), sum[r], dh);
            if (problem.Lse != null)
            {
                problem.Lse[((long)head * problem.Tokens) + row] = sum[r] == 0 ? float.PositiveInfinity : max[r] + VectorMath.Log(sum[r]);
            }
        }
    }

    /// <summary>
    /// For 16 queries and a block of keys: s becomes exp(softcap(scale s) - m') with the new maxima m', alpha = exp(m - m') is what earlier sums
    /// are to be multiplied by, and sum = sum * alpha + the new terms. A query that has seen no visible key yet keeps m' = -inf and sum 0.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)] // one loop nest is as much as the register allocator handles well
    private static void OnlineSoftmax(in Problem problem, float* s, float* max, float* sum, float* alpha, int* positions, int key, int keys)
    {
        AttentionOptions options = problem.Options;
        Vector512<float> oldMax = Vector512.Load(max);
        Vector512<float> newMax = oldMax;
        int window = problem.Window;
        for (int j = 0; j < keys; j++)
        {
            Vector512<float> x = Score(options, Vector512.Load(s + (j * Block)));
            if (positions != null)
            {
                Vector512<int> position = Vector512.Load(positions);
                x = Vector512.ConditionalSelect(Visible(window, Vector512.Create(key + j), position), x, Vector512.Create(float.NegativeInfinity));
            }

            x.Store(s + (j * Block));
            newMax = VectorMath.Max(newMax, x);
        }

        // Where nothing is visible yet, -inf - 0 = -inf and all terms are exp(-inf) = 0; -inf - -inf would be NaN.
        Vector512<float> shift = Vector512.ConditionalSelect(Vector512.Equals(newMax, Vector512.Create(float.NegativeInfinity)), Vector512<float>.Zero, newMax);
        Vector512<float> newSum = Vector512<float>.Zero;
        for (int j = 0; j < keys; j++)
        {
            Vector512<float> p = VectorMath.Exp(Vector512.Load(s + (j * Block)) - shift);
            p.Store(s + (j * Block));
            newSum += p;
        }

        Vector512<float> factor = VectorMath.Exp(oldMax - shift);
        Vector512.FusedMultiplyAdd(Vector512.Load(sum), factor, newSum).Store(sum);
        factor.Store(alpha);
        newMax.Store(max);
    }

    /// <summary>The gradients of one block of keys, summed over blocks of queries. Tiles of S are (queries, keys) here: k and v are transposed, once per part.</summary>
    private readonly ref struct BackwardTile
    {
        private readonly RowBlock keys;
        private readonly int kvHead, keyRows, width;
        private readonly float* kt, vt, p, ds, packedK, packedQ, packedDOutput;

        public BackwardTile(ref Problem problem, RowBlock keys, int kvHead, float* scratch)
        {
            int dh = problem.Shape.Dh;
            this.keys = keys;
            this.kvHead = kvHead;
            keyRows = keys.Rows;
            width = RoundUpToLanes(keyRows);
            kt = scratch;
            vt = kt + (dh * Block);
            p = vt + (dh * Block);
            ds = p + (Block * Block);
            packedK = ds + (Block * Block);
            packedQ = packedK + (Block * dh);
            packedDOutput = packedQ + (Block * dh);
            // Lanes without a key compute on whatever is in the workspace; nothing reads them.
            long at = KeyOffset(in problem);
            Transpose(kt, problem.K + at, problem.Shape.KvStride, keyRows, dh);
            Transpose(vt, problem.V + at, problem.Shape.KvStride, keyRows, dh);
            Pack(packedK, problem.K + at, problem.Shape.KvStride, keyRows, dh);
        }

        /// <summary>Adds what one block of queries contributes; the first contribution overwrites.</summary>
        public void Add(ref Problem problem, RowBlock queries, bool firstForKeys, bool firstForQueries)
        {
            AttentionShape shape = problem.Shape;
            int dh = shape.Dh;
            int rows = queries.Rows;
            long keyOffset = KeyOffset(in problem);
            for (int member = 0; member < problem.Group; member++)
            {
                int head = (kvHead * problem.Group) + member;
                long queryOffset = (queries.Start * shape.QStride) + (head * dh);
                Pack(packedQ, problem.Q + queryOffset, shape.QStride, rows, dh);
                Pack(packedDOutput, problem.DOutput + (queries.Start * shape.OutputStride) + (head * dh), shape.OutputStride, rows, dh);
                Multiply(p, Block, packedQ, dh, 1, kt, Block, rows, width, dh, accumulate: false);
                Multiply(ds, Block, packedDOutput, dh, 1, vt, Block, rows, width, dh, accumulate: false);
                SoftmaxBackward(ref problem, queries, head);

                bool accumulate = !firstForKeys || member > 0;
                Multiply(problem.DV + keyOffset, shape.KvStride, p, 1, Block, packedDOutput, dh, keyRows, dh, rows, accumulate);
                Multiply(problem.DK + keyOffset, shape.KvStride, ds, 1, Block, packedQ, dh, keyRows, dh, rows, accumulate);
                Multiply(problem.DQ + queryOffset, shape.QStride, ds, Block, 1, packedK, dh, rows, dh, keyRows, !firstForQueries);
            }
        }

        /// <summary>p: from q k^T to P; ds: from dP to scale * dS.</summary>
        private void SoftmaxBackward(ref Problem problem, RowBlock queries, int head)
        {
            float* lse = problem.Lse + ((long)head * problem.Tokens);
            float* delta = problem.Delta + ((long)head * problem.Tokens);
            AttentionOptions options = problem.Options;
            int window = problem.Window;
            Vector512<float> scale = Vector512.Create(options.Scale);
            Vector512<float> inverseCap = Vector512.Create(options.LogitSoftcap > 0 ? 1 / options.LogitSoftcap : 0);
            for (int row = queries.Start; row < queries.Start + queries.Rows; row++)
            {
                bool masked = keys.Start + keyRows - 1 > row || keys.Start <= (long)row - window;
                long at = (row - queries.Start) * Block;
                for (int lane = 0; lane < width; lane += VectorMath.Lanes)
                {
                    Vector512<float> s = Score(options, Vector512.Load(p + at + lane));
                    Vector512<float> weight = VectorMath.Exp(s - Vector512.Create(lse[row]));
                    Vector512<float> gradient = weight * (Vector512.Load(ds + at + lane) - Vector512.Create(delta[row]));
                    if (options.LogitSoftcap > 0)
                    {
                        Vector512<float> tanh = s * inverseCap;
                        gradient *= Vector512.FusedMultiplyAdd(-tanh, tanh, Vector512<float>.One);
                    }

                    gradient *= scale;
                    if (masked)
                    {
                        Vector512<float> visible = Visible(window, Vector512.Create(keys.Start + lane) + Vector512<int>.Indices, Vector512.Create(row));
                        weight &= visible;
                        gradient &= visible;
                    }

                    weight.Store(p + at + lane);
                    gradient.Store(ds + at + lane);
                }
            }
        }

        private long KeyOffset(in Problem problem) => (keys.Start * problem.Shape.KvStride) + (kvHead * problem.Shape.Dh);
    }

    /// <summary>softcap(scale * product)</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Score(AttentionOptions options, Vector512<float> product)
    {
        Vector512<float> s = product * Vector512.Create(options.Scale);
        float cap = options.LogitSoftcap;
        return cap > 0 ? Vector512.Create(cap) * VectorMath.Tanh(s * Vector512.Create(1 / cap)) : s;
    }

    /// <summary>All bits set in the lanes where key j is visible to query i: i-W &lt; j &lt;= i.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Visible(int window, Vector512<int> j, Vector512<int> i)
        => (Vector512.LessThanOrEqual(j, i) & Vector512.GreaterThan(j, i - Vector512.Create(window))).AsSingle();

    private static void Scale(float* x, float factor, int count)
    {
        int i = 0;
        for (; i <= count - VectorMath.Lanes; i += VectorMath.Lanes)
        {
            (Vector512.Load(x + i) * Vector512.Create(factor)).Store(x + i);
        }

        for (; i < count; i++)
        {
            x[i] *= factor;
        }
    }

    /// <summary>target = x / divisor; 0 for a divisor of 0.</summary>
    private static void Divide(float* target, float* x, float divisor, int count)
    {
        if (divisor == 0)
        {
            new Span<float>(target, count).Clear();
            return;
        }

        int i = 0;
        for (; i <= count - VectorMath.Lanes; i += VectorMath.Lanes)
        {
            (Vector512.Load(x + i) / Vector512.Create(divisor)).Store(target + i);
        }

        for (; i < count; i++)
        {
            target[i] = x[i] / divisor;
        }
    }

    /// <summary>Writes the table of blocks to <paramref name="free"/> and returns what follows it.</summary>
    private static byte* ListBlocks(ref Problem problem, byte* free, ReadOnlySpan<int> documentOffsets)
    {
        problem.Blocks = (RowBlock*)free;
        for (int document = 0; document + 1 < documentOffsets.Length; document++)
        {
            for (int start = documentOffsets[document]; start < documentOffsets[document + 1]; start += Block)
            {
                problem.Blocks[problem.BlockCount++] = new RowBlock { Start = start, DocumentStart = documentOffsets[document], DocumentEnd = documentOffsets[document + 1] };
            }
        }

        return free + TableBytes(problem.Tokens, documentOffsets.Length - 1);
    }

    private static byte* Align(byte* pointer) => (byte*)(((nuint)pointer + Alignment - 1) / Alignment * Alignment);

    private static long Align(long bytes) => (bytes + Alignment - 1) / Alignment * Alignment;

    private static int RoundUpToLanes(int count) => (count + VectorMath.Lanes - 1) / VectorMath.Lanes * VectorMath.Lanes;

    /// <summary>Each document has at most one partial block.</summary>
    private static long BlockCountLimit(int tokens, int documents) => (tokens / Block) + (long)documents;

    private static long TableBytes(int tokens, int documents) => Align(BlockCountLimit(tokens, documents) * sizeof(RowBlock));

    private static long ProgressBytes(int tokens, int documents, int hkv) => Align(BlockCountLimit(tokens, documents) * hkv * sizeof(int));

    private static long DeltaBytes(int tokens, int h) => Align((long)tokens * h * sizeof(float));

    /// <summary>Per thread: q transposed, S, O, v; maximum, sum, factor and position of each query.</summary>
    private static long ForwardScratchBytes(int dh) => Align(sizeof(float) * Block * ((3L * dh) + Block + 4));

    /// <summary>Per thread: k and v transposed, P, dS; k, q, dO.</summary>
    private static long BackwardScratchBytes(int dh) => Align(sizeof(float) * Block * ((5L * dh) + (2 * Block)));
}
