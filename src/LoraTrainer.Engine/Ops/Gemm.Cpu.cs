using LoraTrainer.Engine.Devices;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// C(M, N) = [accumulate ? C : 0] + (alpha * op(A))(M, K) * op(B)(K, N), fp32 arithmetic.
/// Element (i, j) is one chain of fused multiply-adds over k = 0 .. K-1 that starts from 0, or from C. Work is split over M and N only, and a
/// block of k continues the chain through C, so the bits are the same for every instruction set, number of threads and choice of blocks.
/// <para>Blocks: up to 512 rows of alpha * op(A) are packed into shared panels of 8 rows, for as much of K as fits into 4 MiB. Then every part owns some
/// panels of 48 columns of C; for each 256 of k it packs (and dequantizes) one panel of op(B), which stays in the first-level cache while all
/// panels of A stream past it. A product with few columns (LoRA's rank) is made as C^T = op(B)^T op(A)^T, the same chains in fuller tiles.</para>
/// </summary>
internal static unsafe class CpuGemm
{
    private const int DepthBlock = 256;
    private const int MostRows = 512;
    private const int SharedFloats = 1 << 20;
    private const int RowPanelsPerPackingPart = 8;

    /// <summary>Up to this many columns the transposed product is faster.</summary>
    private const int FewColumns = 32;

    /// <summary>Parts a thread: enough that one slow thread does not hold up the others for long.</summary>
    private const int PartsPerThread = 12;

    /// <summary>Packing an element of A or B takes about as long as this many operations.</summary>
    private const double PackingFlops = 32;

    /// <summary>Products below this (about 10 microseconds) run on the calling thread: meeting the others would take as long.</summary>
    private const double LeastParallelFlops = 2_000_000;

    private const int PanelFloats = DepthBlock * GemmKernels.TileColumns;
    private const int ScratchFloats = DepthBlock * GemmKernels.TileRows;
    private const int TileFloats = GemmKernels.TileRows * GemmKernels.TileColumns;
    private const int WorkerFloats = PanelFloats + ScratchFloats + TileFloats;

    /// <summary>Bytes of workspace for <paramref name="threads"/> threads, for products of any shape.</summary>
    public static long WorkspaceBytes(int threads) => sizeof(float) * ((long)SharedFloats + (long)threads * WorkerFloats);

    /// <param name="pool">threads that share the work</param>
    /// <param name="workspace"><see cref="WorkspaceBytes"/> of the pool's threads, 64-byte aligned; overwritten</param>
    /// <param name="m">rows of op(A) and C</param>
    /// <param name="n">columns of op(B) and C</param>
    /// <param name="k">columns of op(A), rows of op(B)</param>
    /// <param name="a">op(A) is (M, K)</param>
    /// <param name="b">op(B) is (K, N)</param>
    /// <param name="c">(M, N); aliases neither A nor B</param>
    /// <param name="ldc">elements from one row of C to the next, at least N</param>
    /// <param name="alpha">every element of A is first rounded to fl32(alpha * a)</param>
    /// <param name="accumulate">the chains start from C rather than from 0</param>
    public static void Run(
        WorkerPool pool, byte* workspace, int m, int n, int k, in GemmOperand a, in GemmOperand b, float* c, int ldc,
        float alpha = 1, bool accumulate = false)
        => Run(GemmKernels.Best, pool, workspace, m, n, k, a, b, c, ldc, alpha, accumulate);

    /// <summary>As the other, with a chosen instruction set, which must be supported.</summary>
    internal static void Run(
        GemmKernel kernel, WorkerPool pool, byte* workspace, int m, int n, int k, in GemmOperand a, in GemmOperand b, float* c, int ldc,
        float alpha, bool accumulate)
    {
        if (m == 0 || n == 0)
        {
            return;
        }

        if (k == 0)
        {
            for (int i = 0; i < m && !accumulate; i++)
            {
                new Span<float>(c + (long)i * ldc, n).Clear();
            }

            return;
        }

        bool parallel = 2.0 * m * n * k + PackingFlops * k * ((double)m + n) >= LeastParallelFlops;
        var work = new GemmWork
        {
            Kernel = kernel,
            C = c,
            Alpha = alpha,
            Shared = (float*)workspace,
            Workers = (float*)workspace + SharedFloats,
        };
        if (n <= FewColumns && m > n)
        {
            work.A = b.Flip();
            work.B = a.Flip();
            work.AlphaOnB = true;
            (work.CRowStride, work.CColumnStride) = (1, ldc);
            (m, n) = (n, m);
        }
        else
        {
            work.A = a;
            work.B = b;
            (work.CRowStride, work.CColumnStride) = (ldc, 1);
        }

        work.N = n;

        // Equal blocks of rows, so that the last is not a sliver that pays for packing all of B.
        int rowBlocks = DivideUp(m, MostRows);
        int rowBlock = RoundUp(DivideUp(m, rowBlocks), GemmKernels.TileRows);
        int depthShared = Math.Max(DepthBlock, SharedFloats / rowBlock / DepthBlock * DepthBlock);
        for (int row = 0; row < m; row += rowBlock)
        {
            work.Row = row;
            work.RowCount = Math.Min(rowBlock, m - row);
            for (int depth = 0; depth < k; depth += depthShared)
            {
                work.Depth = depth;
                work.DepthCount = Math.Min(depthShared, k - depth);
                work.DepthStep = RoundUp(DivideUp(work.DepthCount, DivideUp(work.DepthCount, DepthBlock)), 8);
                work.Load = accumulate || depth > 0;
                RunBlock(pool, parallel, ref work);
            }
        }
    }

    private static void RunBlock(WorkerPool pool, bool parallel, ref GemmWork work)
    {
        work.RowPanels = DivideUp(work.RowCount, GemmKernels.TileRows);
        work.ColumnPanels = DivideUp(work.N, GemmKernels.TileColumns);
        int target = parallel && pool.ThreadCount > 1 ? pool.ThreadCount * PartsPerThread : 1;
        work.ColumnParts = Math.Min(work.ColumnPanels, target);
        // Few columns: split the rows as well. Each part then packs the same panels of B, which is little beside the rest.
        work.RowParts = work.ColumnParts >= target / 3 ? 1 : Math.Min(work.RowPanels, DivideUp(target / 3, work.ColumnParts));

        work.Packing = true;
        Run(pool, parallel, DivideUp(work.RowPanels, RowPanelsPerPackingPart), ref work);
        work.Packing = false;
        Run(pool, parallel, work.ColumnParts * work.RowParts, ref work);
    }

    private static void Run(WorkerPool pool, bool parallel, int parts, ref GemmWork work)
    {
        if (parallel)
        {
            pool.Run(parts, ref work);
            return;
        }

        for (int part = 0; part < parts; part++)
        {
            work.Execute(part, 0);
        }
    }

    private static int DivideUp(int value, int divisor) => (value + divisor - 1) / divisor;

    private static int RoundUp(int value, int multiple) => DivideUp(value, multiple) * multiple;

    /// <summary>One block of rows and of the summed dimension: first its panels of A are packed, then it is multiplied.</summary>
    private struct GemmWork : IParallelWork
    {
        public GemmKernel Kernel;
        public GemmOperand A, B;
        public float* C;
        public long CRowStride, CColumnStride;
        public int N;
        public float Alpha;

        /// <summary>Packed A: for each step of the summed dimension its row panels, (count, 8) each.</summary>
        public float* Shared;

        /// <summary>A panel of B, packing scratch and an edge tile for each worker.</summary>
        public float* Workers;

        public int Row, RowCount, Depth, DepthCount, DepthStep;
        public int RowPanels, ColumnPanels, RowParts, ColumnParts;
        public bool AlphaOnB, Load, Packing;

        public void Execute(int part, int worker)
        {
            float* own = Workers + (long)worker * WorkerFloats;
            if (Packing)
            {
                PackRows(part, own + PanelFloats);
            }
            else
            {
                Multiply(part % RowParts, part / RowParts, own);
            }
        }

        private readonly float* RowPanel(int panel, int offset, int count)
            => Shared + ((long)offset * RowPanels + (long)panel * count) * GemmKernels.TileRows;

        private readonly void PackRows(int part, float* scratch)
        {
            int first = part * RowPanelsPerPackingPart, end = Math.Min(RowPanels, first + RowPanelsPerPackingPart);
            for (int offset = 0; offset < DepthCount; offset += DepthStep)
            {
                int count = Math.Min(DepthStep, DepthCount - offset);
                for (int i = first; i < end; i++)
                {
                    float* panel = RowPanel(i, offset, count);
                    int row = i * GemmKernels.TileRows, rows = Math.Min(GemmKernels.TileRows, RowCount - row);
                    GemmPacking.Pack(A, !A.Transposed, Depth + offset, count, Row + row, rows, GemmKernels.TileRows, panel, scratch);
                    if (Alpha != 1 && !AlphaOnB)
                    {
                        GemmPacking.Scale(panel, count * GemmKernels.TileRows, Alpha);
                    }
                }
            }
        }

        private readonly void Multiply(int rowPart, int columnPart, float* own)
        {
            float* panel = own, scratch = own + PanelFloats, tile = scratch + ScratchFloats;
            int firstRow = Share(RowPanels, rowPart, RowParts), endRow = Share(RowPanels, rowPart + 1, RowParts);
            int firstColumn = Share(ColumnPanels, columnPart, ColumnParts), endColumn = Share(ColumnPanels, columnPart + 1, ColumnParts);
            for (int offset = 0; offset < DepthCount; offset += DepthStep)
            {
                int count = Math.Min(DepthStep, DepthCount - offset);
                bool load = Load || offset > 0;
                for (int j = firstColumn; j < endColumn; j++)
                {
                    int column = j * GemmKernels.TileColumns, columns = Math.Min(GemmKernels.TileColumns, N - column);
                    int width = RoundUp(columns, GemmKernels.ColumnGrain);
                    GemmPacking.Pack(B, B.Transposed, Depth + offset, count, column, columns, width, panel, scratch);
                    if (Alpha != 1 && AlphaOnB)
                    {
                        GemmPacking.Scale(panel, count * width, Alpha);
                    }

                    for (int i = firstRow; i < endRow; i++)
                    {
                        int row = i * GemmKernels.TileRows, rows = Math.Min(GemmKernels.TileRows, RowCount - row);
                        float* c = C + (Row + row) * CRowStride + column * CColumnStride;
                        float* aPanel = RowPanel(i, offset, count);
                        if (CColumnStride == 1 && columns == width && rows == GemmKernels.RowsTouched(rows))
                        {
                            GemmKernels.Tile(Kernel, rows, width, count, aPanel, GemmKernels.TileRows, panel, width, c, (nint)CRowStride, load);
                            continue;
                        }

                        if (load)
                        {
                            CopyIn(c, tile, width, rows, columns);
                        }

                        GemmKernels.Tile(Kernel, rows, width, count, aPanel, GemmKernels.TileRows, panel, width, tile, width, load);
                        CopyOut(tile, width, c, rows, columns);
                    }
                }
            }
        }

        /// <summary>Where share <paramref name="share"/> of <paramref name="shares"/> equal ones of 0..total-1 begins.</summary>
        private static int Share(int total, int share, int shares) => (int)((long)total * share / shares);

        private readonly void CopyIn(float* c, float* tile, int width, int rows, int columns)
        {
            for (int j = 0; j < columns; j++)
            {
                for (int i = 0; i < rows; i++)
                {
                    tile[i * width + j] = c[i * CRowStride + j * CColumnStride];
                }
            }
        }

        private readonly void CopyOut(float* tile, int width, float* c, int rows, int columns)
        {
            for (int j = 0; j < columns; j++)
            {
                for (int i = 0; i < rows; i++)
                {
                    c[i * CRowStride + j * CColumnStride] = tile[i * width + j];
                }
            }
        }
    }
}
