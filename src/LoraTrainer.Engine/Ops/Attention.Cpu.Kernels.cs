using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Numerics;

namespace LoraTrainer.Engine.Ops;

/// <content>The small matrix products of attention. Each element of a product is one chain of fused multiply-adds over k in order, so its bits depend neither on the tile that computed it nor on the instruction set.</content>
internal static unsafe partial class CpuAttention
{
    /// <summary>
    /// C (m, n) = A (m, k) B (k, n), or C += A B. A is read one element at a time, so it may lie in any order; B and C have contiguous rows.
    /// With 512-bit vectors the inner tile is 4 by 64, for few columns 16 by 16 (16 accumulators of 32 registers), else 4 by 16 (as halves: 8 of 16).
    /// </summary>
    /// <param name="c">(m, n), row stride <paramref name="cStride"/>; overwritten or added to.</param>
    /// <param name="cStride">Elements from one row of C to the next.</param>
    /// <param name="a">A[i, p] is a[i * aRow + p * aColumn].</param>
    /// <param name="aRow">Elements from A[i, p] to A[i+1, p].</param>
    /// <param name="aColumn">Elements from A[i, p] to A[i, p+1].</param>
    /// <param name="b">(k, n), row stride <paramref name="bStride"/>.</param>
    /// <param name="bStride">Elements from one row of B to the next.</param>
    /// <param name="m">Rows of C.</param>
    /// <param name="n">Columns of C.</param>
    /// <param name="k">Length of the chains.</param>
    /// <param name="accumulate">Whether the chains start from C instead of 0.</param>
    private static void Multiply(
        float* c, long cStride, float* a, long aRow, long aColumn, float* b, long bStride, int m, int n, int k, bool accumulate)
    {
        int column = 0;
        for (; Vector512.IsHardwareAccelerated && column <= n - 64; column += 64)
        {
            int row = 0;
            for (; row <= m - 4; row += 4)
            {
                Tile4x64(c + (row * cStride) + column, cStride, a + (row * aRow), aRow, aColumn, b + column, bStride, k, accumulate);
            }

            for (; row < m; row++)
            {
                Tile1x64(c + (row * cStride) + column, a + (row * aRow), aColumn, b + column, bStride, k, accumulate);
            }
        }

        for (; column <= n - 16; column += 16)
        {
            int row = 0;
            for (; Vector512.IsHardwareAccelerated && row <= m - 16; row += 16)
            {
                Tile16x16(c + (row * cStride) + column, cStride, a + (row * aRow), aRow, aColumn, b + column, bStride, k, accumulate);
            }

            for (; row <= m - 4; row += 4)
            {
                Tile4x16(c + (row * cStride) + column, cStride, a + (row * aRow), aRow, aColumn, b + column, bStride, k, accumulate);
            }

            for (; row < m; row++)
            {
                Tile1x16(c + (row * cStride) + column, a + (row * aRow), aColumn, b + column, bStride, k, accumulate);
            }
        }

        for (int row = 0; column < n && row < m; row++)
        {
            Tile1xTail(c + (row * cStride) + column, a + (row * aRow), aColumn, b + column, bStride, n - column, k, accumulate);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Tile4x64(float* c, long cStride, float* a, long aRow, long aColumn, float* b, long bStride, int k, bool accumulate)
    {
        Vector512<float> c00 = default, c01 = default, c02 = default, c03 = default;
        Vector512<float> c10 = default, c11 = default, c12 = default, c13 = default;
        Vector512<float> c20 = default, c21 = default, c22 = default, c23 = default;
        Vector512<float> c30 = default, c31 = default, c32 = default, c33 = default;
        float* c1 = c + cStride;
        float* c2 = c1 + cStride;
        float* c3 = c2 + cStride;
        if (accumulate)
        {
            c00 = Vector512.Load(c);
            c01 = Vector512.Load(c + 16);
            c02 = Vector512.Load(c + 32);
            c03 = Vector512.Load(c + 48);
            c10 = Vector512.Load(c1);
            c11 = Vector512.Load(c1 + 16);
            c12 = Vector512.Load(c1 + 32);
            c13 = Vector512.Load(c1 + 48);
            c20 = Vector512.Load(c2);
            c21 = Vector512.Load(c2 + 16);
            c22 = Vector512.Load(c2 + 32);
            c23 = Vector512.Load(c2 + 48);
            c30 = Vector512.Load(c3);
            c31 = Vector512.Load(c3 + 16);
            c32 = Vector512.Load(c3 + 32);
            c33 = Vector512.Load(c3 + 48);
        }

        long a2 = 2 * aRow;
        long a3 = 3 * aRow;
        for (int p = 0; p < k; p++)
        {
            Vector512<float> b0 = Vector512.Load(b);
            Vector512<float> b1 = Vector512.Load(b + 16);
            Vector512<float> b2 = Vector512.Load(b + 32);
            Vector512<float> b3 = Vector512.Load(b + 48);
            Vector512<float> x = Vector512.Create(*a);
            c00 = Vector512.FusedMultiplyAdd(x, b0, c00);
            c01 = Vector512.FusedMultiplyAdd(x, b1, c01);
            c02 = Vector512.FusedMultiplyAdd(x, b2, c02);
            c03 = Vector512.FusedMultiplyAdd(x, b3, c03);
            x = Vector512.Create(a[aRow]);
            c10 = Vector512.FusedMultiplyAdd(x, b0, c10);
            c11 = Vector512.FusedMultiplyAdd(x, b1, c11);
            c12 = Vector512.FusedMultiplyAdd(x, b2, c12);
            c13 = Vector512.FusedMultiplyAdd(x, b3, c13);
            x = Vector512.Create(a[a2]);
            c20 = Vector512.FusedMultiplyAdd(x, b0, c20);
            c21 = Vector512.FusedMultiplyAdd(x, b1, c21);
            c22 = Vector512.FusedMultiplyAdd(x, b2, c22);
            c23 = Vector512.FusedMultiplyAdd(x, b3, c23);
            x = Vector512.Create(a[a3]);
            c30 = Vector512.FusedMultiplyAdd(x, b0, c30);
            c31 = Vector512.FusedMultiplyAdd(x, b1, c31);
            c32 = Vector512.FusedMultiplyAdd(x, b2, c32);
            c33 = Vector512.FusedMultiplyAdd(x, b3, c33);
            a += aColumn;
            b += bStride;
        }

        c00.Store(c);
        c01.Store(c + 16);
        c02.Store(c + 32);
        c03.Store(c + 48);
        c10.Store(c1);
        c11.Store(c1 + 16);
        c12.Store(c1 + 32);
        c13.Store(c1 + 48);
        c20.Store(c2);
        c21.Store(c2 + 16);
        c22.Store(c2 + 32);
        c23.Store(c2 + 48);
        c30.Store(c3);
        c31.Store(c3 + 16);
        c32.Store(c3 + 32);
        c33.Store(c3 + 48);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Tile1x64(float* c, float* a, long aColumn, float* b, long bStride, int k, bool accumulate)
    {
        Vector512<float> c0 = default, c1 = default, c2 = default, c3 = default;
        if (accumulate)
        {
            c0 = Vector512.Load(c);
            c1 = Vector512.Load(c + 16);
            c2 = Vector512.Load(c + 32);
            c3 = Vector512.Load(c + 48);
        }

        for (int p = 0; p < k; p++)
        {
            Vector512<float> x = Vector512.Create(*a);
            c0 = Vector512.FusedMultiplyAdd(x, Vector512.Load(b), c0);
            c1 = Vector512.FusedMultiplyAdd(x, Vector512.Load(b + 16), c1);
            c2 = Vector512.FusedMultiplyAdd(x, Vector512.Load(b + 32), c2);
            c3 = Vector512.FusedMultiplyAdd(x, Vector512.Load(b + 48), c3);
            a += aColumn;
            b += bStride;
        }

        c0.Store(c);
        c1.Store(c + 16);
        c2.Store(c + 32);
        c3.Store(c + 48);
    }

    /// <summary>Few queries: their 16 chains hide each other's latency as those of a wide tile do.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Tile16x16(float* c, long cStride, float* a, long aRow, long aColumn, float* b, long bStride, int k, bool accumulate)
    {
        Vector512<float> c0 = default, c1 = default, c2 = default, c3 = default;
        Vector512<float> c4 = default, c5 = default, c6 = default, c7 = default;
        Vector512<float> c8 = default, c9 = default, c10 = default, c11 = default;
        Vector512<float> c12 = default, c13 = default, c14 = default, c15 = default;
        if (accumulate)
        {
            c0 = Vector512.Load(c);
            c1 = Vector512.Load(c + cStride);
            c2 = Vector512.Load(c + (2 * cStride));
            c3 = Vector512.Load(c + (3 * cStride));
            c4 = Vector512.Load(c + (4 * cStride));
            c5 = Vector512.Load(c + (5 * cStride));
            c6 = Vector512.Load(c + (6 * cStride));
            c7 = Vector512.Load(c + (7 * cStride));
            c8 = Vector512.Load(c + (8 * cStride));
            c9 = Vector512.Load(c + (9 * cStride));
            c10 = Vector512.Load(c + (10 * cStride));
            c11 = Vector512.Load(c + (11 * cStride));
            c12 = Vector512.Load(c + (12 * cStride));
            c13 = Vector512.Load(c + (13 * cStride));
            c14 = Vector512.Load(c + (14 * cStride));
            c15 = Vector512.Load(c + (15 * cStride));
        }

        float* a4 = a + (4 * aRow);
        float* a8 = a4 + (4 * aRow);
        float* a12 = a8 + (4 * aRow);
        long a2 = 2 * aRow;
        long a3 = 3 * aRow;
        for (int p = 0; p < k; p++)
        {
            Vector512<float> x = Vector512.Load(b);
            c0 = Vector512.FusedMultiplyAdd(Vector512.Create(*a), x, c0);
            c1 = Vector512.FusedMultiplyAdd(Vector512.Create(a[aRow]), x, c1);
            c2 = Vector512.FusedMultiplyAdd(Vector512.Create(a[a2]), x, c2);
            c3 = Vector512.FusedMultiplyAdd(Vector512.Create(a[a3]), x, c3);
            c4 = Vector512.FusedMultiplyAdd(Vector512.Create(*a4), x, c4);
            c5 = Vector512.FusedMultiplyAdd(Vector512.Create(a4[aRow]), x, c5);
            c6 = Vector512.FusedMultiplyAdd(Vector512.Create(a4[a2]), x, c6);
            c7 = Vector512.FusedMultiplyAdd(Vector512.Create(a4[a3]), x, c7);
            c8 = Vector512.FusedMultiplyAdd(Vector512.Create(*a8), x, c8);
            c9 = Vector512.FusedMultiplyAdd(Vector512.Create(a8[aRow]), x, c9);
            c10 = Vector512.FusedMultiplyAdd(Vector512.Create(a8[a2]), x, c10);
            c11 = Vector512.FusedMultiplyAdd(Vector512.Create(a8[a3]), x, c11);
            c12 = Vector512.FusedMultiplyAdd(Vector512.Create(*a12), x, c12);
            c13 = Vector512.FusedMultiplyAdd(Vector512.Create(a12[aRow]), x, c13);
            c14 = Vector512.FusedMultiplyAdd(Vector512.Create(a12[a2]), x, c14);
            c15 = Vector512.FusedMultiplyAdd(Vector512.Create(a12[a3]), x, c15);
            a += aColumn;
            a4 += aColumn;
            a8 += aColumn;
            a12 += aColumn;
            b += bStride;
        }

        c0.Store(c);
        c1.Store(c + cStride);
        c2.Store(c + (2 * cStride));
        c3.Store(c + (3 * cStride));
        c4.Store(c + (4 * cStride));
        c5.Store(c + (5 * cStride));
        c6.Store(c + (6 * cStride));
        c7.Store(c + (7 * cStride));
        c8.Store(c + (8 * cStride));
        c9.Store(c + (9 * cStride));
        c10.Store(c + (10 * cStride));
        c11.Store(c + (11 * cStride));
        c12.Store(c + (12 * cStride));
        c13.Store(c + (13 * cStride));
        c14.Store(c + (14 * cStride));
        c15.Store(c + (15 * cStride));
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Tile4x16(float* c, long cStride, float* a, long aRow, long aColumn, float* b, long bStride, int k, bool accumulate)
    {
        Vector512<float> c0 = default, c1 = default, c2 = default, c3 = default;
        if (accumulate)
        {
            c0 = Vector512.Load(c);
            c1 = Vector512.Load(c + cStride);
            c2 = Vector512.Load(c + (2 * cStride));
            c3 = Vector512.Load(c + (3 * cStride));
        }

        long a2 = 2 * aRow;
        long a3 = 3 * aRow;
        for (int p = 0; p < k; p++)
        {
            Vector512<float> x = Vector512.Load(b);
            c0 = Vector512.FusedMultiplyAdd(Vector512.Create(*a), x, c0);
            c1 = Vector512.FusedMultiplyAdd(Vector512.Create(a[aRow]), x, c1);
            c2 = Vector512.FusedMultiplyAdd(Vector512.Create(a[a2]), x, c2);
            c3 = Vector512.FusedMultiplyAdd(Vector512.Create(a[a3]), x, c3);
            a += aColumn;
            b += bStride;
        }

        c0.Store(c);
        c1.Store(c + cStride);
        c2.Store(c + (2 * cStride));
        c3.Store(c + (3 * cStride));
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Tile1x16(float* c, float* a, long aColumn, float* b, long bStride, int k, bool accumulate)
    {
        Vector512<float> sum = accumulate ? Vector512.Load(c) : default;
        for (int p = 0; p < k; p++)
        {
            sum = Vector512.FusedMultiplyAdd(Vector512.Create(*a), Vector512.Load(b), sum);
            a += aColumn;
            b += bStride;
        }

        sum.Store(c);
    }

    /// <summary>One row and the last n &lt; 16 columns. Head sizes that are no multiple of 16 are rare, so this is short instead of fast.</summary>
    private static void Tile1xTail(float* c, float* a, long aColumn, float* b, long bStride, int n, int k, bool accumulate)
    {
        Vector512<float> sum = accumulate ? VectorMath.LoadTail(new ReadOnlySpan<float>(c, n), 0f) : default;
        for (int p = 0; p < k; p++)
        {
            sum = Vector512.FusedMultiplyAdd(Vector512.Create(a[p * aColumn]), VectorMath.LoadTail(new ReadOnlySpan<float>(b + (p * bStride), n), 0f), sum);
        }

        VectorMath.StoreTail(sum, new Span<float>(c, n));
    }

    /// <summary>target[d, r] = source[r, d] for the rows given; the target's rows are <see cref="Block"/> long and its other columns stay as they are.</summary>
    private static void Transpose(float* target, float* source, long rowStride, int rows, int dh)
    {
        int r = 0;
        for (; r <= rows - 4; r += 4)
        {
            // Four rows from end to end: rows are often a multiple of 4096 bytes apart, and a first-level cache holds few of such lines.
            float* s0 = source + (r * rowStride);
            float* s1 = s0 + rowStride;
            float* s2 = s1 + rowStride;
            float* s3 = s2 + rowStride;
            float* t = target + r;
            for (int d = 0; d < dh; d++)
            {
                Vector128.Create(s0[d], s1[d], s2[d], s3[d]).Store(t);
                t += Block;
            }
        }

        for (; r < rows; r++)
        {
            for (int d = 0; d < dh; d++)
            {
                target[(d * Block) + r] = source[(r * rowStride) + d];
            }
        }
    }

    /// <summary>Copies rows next to each other: target is (rows, dh). A right factor is read once per four rows of the left one, and stays in the first-level cache only like this.</summary>
    private static void Pack(float* target, float* source, long rowStride, int rows, int dh)
    {
        for (int r = 0; r < rows; r++)
        {
            int d = 0;
            for (; d <= dh - VectorMath.Lanes; d += VectorMath.Lanes)
            {
                Vector512.Load(source + d).Store(target + d);
            }

            for (; d < dh; d++)
            {
                target[d] = source[d];
            }

            source += rowStride;
            target += dh;
        }
    }
}
