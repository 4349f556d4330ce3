using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace LoraTrainer.Engine.Ops;

/// <summary>The instruction set that multiplies. The bits of a product do not depend on it.</summary>
internal enum GemmKernel
{
    Portable,
    Avx2,
    Avx512,
}

/// <summary>
/// The innermost loops of <see cref="CpuGemm"/>: C(8, width) = [load ? C : 0] + A(8, k) * B(k, width), width 16, 32 or 48. A is read as a[p * aStep + i],
/// B as b[p * bStep + j]. Element (i, j) is one chain of fused multiply-adds over p = 0 .. k-1.
/// </summary>
internal static unsafe class GemmKernels
{
    /// <summary>Rows of a tile.</summary>
    public const int TileRows = 8;

    /// <summary>Most columns of a tile: 24 accumulators, 3 vectors of B and one broadcast of A leave 4 of the 32 registers free.</summary>
    public const int TileColumns = 48;

    /// <summary>Columns of a tile are a multiple of this.</summary>
    public const int ColumnGrain = 16;

    public static readonly GemmKernel Best = Avx512F.IsSupported ? GemmKernel.Avx512
        : Avx2.IsSupported && Fma.IsSupported ? GemmKernel.Avx2
        : GemmKernel.Portable;

    /// <summary>Rows that <see cref="Tile"/> reads and writes when <paramref name="rows"/> of them matter: 1, 4 or 8.</summary>
    public static int RowsTouched(int rows) => rows > 4 ? 8 : rows > 1 ? 4 : 1;

    /// <param name="kernel">instruction set</param>
    /// <param name="rows">1..8 that matter; <see cref="RowsTouched"/> of A and C are read and written</param>
    /// <param name="width">16, 32 or 48</param>
    /// <param name="k">length of the chains</param>
    /// <param name="a">element (i, p) at a[p * aStep + i]</param>
    /// <param name="aStep">elements</param>
    /// <param name="b">element (p, j) at b[p * bStep + j]</param>
    /// <param name="bStep">elements</param>
    /// <param name="c">(rows, width), row stride ldc</param>
    /// <param name="ldc">elements</param>
    /// <param name="load">continue the chains from C rather than from 0</param>
    public static void Tile(GemmKernel kernel, int rows, int width, int k, float* a, nint aStep, float* b, nint bStep, float* c, nint ldc, bool load)
    {
        switch (kernel, width)
        {
            case (GemmKernel.Avx512, 48):
                AllRows<Row48>(rows, k, a, aStep, b, bStep, c, ldc, load);
                break;
            case (GemmKernel.Avx512, 32):
                AllRows<Row32>(rows, k, a, aStep, b, bStep, c, ldc, load);
                break;
            case (GemmKernel.Avx512, _):
                AllRows<Row16>(rows, k, a, aStep, b, bStep, c, ldc, load);
                break;
            case (GemmKernel.Avx2, 48):
                RowsByFour<Row24>(rows, 24, width, k, a, aStep, b, bStep, c, ldc, load);
                break;
            case (GemmKernel.Avx2, _):
                RowsByFour<Row2x8>(rows, 16, width, k, a, aStep, b, bStep, c, ldc, load);
                break;
            default:
                RowsByFour<Row2x4>(rows, 8, width, k, a, aStep, b, bStep, c, ldc, load);
                break;
        }
    }

    private static void AllRows<TRow>(int rows, int k, float* a, nint aStep, float* b, nint bStep, float* c, nint ldc, bool load)
        where TRow : unmanaged, ITileRow<TRow>
    {
        if (rows > 4)
        {
            EightRows<TRow>(k, a, aStep, b, bStep, c, ldc, load);
        }
        else if (rows > 1)
        {
            FourRows<TRow>(k, a, aStep, b, bStep, c, ldc, load);
        }
        else
        {
            OneRow<TRow>(k, a, aStep, b, bStep, c, load);
        }
    }

    /// <summary>For sixteen registers: a tile of eight rows as pieces of four rows by <paramref name="pieceWidth"/> columns.</summary>
    private static void RowsByFour<TRow>(
        int rows, int pieceWidth, int width, int k, float* a, nint aStep, float* b, nint bStep, float* c, nint ldc, bool load)
        where TRow : unmanaged, ITileRow<TRow>
    {
        for (int j = 0; j < width; j += pieceWidth)
        {
            if (rows == 1)
            {
                OneRow<TRow>(k, a, aStep, b + j, bStep, c + j, load);
                continue;
            }

            for (int i = 0; i < rows; i += 4)
            {
                FourRows<TRow>(k, a + i, aStep, b + j, bStep, c + i * ldc + j, ldc, load);
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void EightRows<TRow>(int k, float* a, nint aStep, float* b, nint bStep, float* c, nint ldc, bool load)
        where TRow : unmanaged, ITileRow<TRow>
    {
        TRow c0 = default, c1 = default, c2 = default, c3 = default, c4 = default, c5 = default, c6 = default, c7 = default;
        if (load)
        {
            c0 = TRow.Load(c);
            c1 = TRow.Load(c + ldc);
            c2 = TRow.Load(c + 2 * ldc);
            c3 = TRow.Load(c + 3 * ldc);
            c4 = TRow.Load(c + 4 * ldc);
            c5 = TRow.Load(c + 5 * ldc);
            c6 = TRow.Load(c + 6 * ldc);
            c7 = TRow.Load(c + 7 * ldc);
        }

        for (int p = 0; p < k; p++)
        {
            TRow row = TRow.Load(b);
            c0 = TRow.MultiplyAdd(a, row, c0);
            c1 = TRow.MultiplyAdd(a + 1, row, c1);
            c2 = TRow.MultiplyAdd(a + 2, row, c2);
            c3 = TRow.MultiplyAdd(a + 3, row, c3);
            c4 = TRow.MultiplyAdd(a + 4, row, c4);
            c5 = TRow.MultiplyAdd(a + 5, row, c5);
            c6 = TRow.MultiplyAdd(a + 6, row, c6);
            c7 = TRow.MultiplyAdd(a + 7, row, c7);
            a += aStep;
            b += bStep;
        }

        c0.Store(c);
        c1.Store(c + ldc);
        c2.Store(c + 2 * ldc);
        c3.Store(c + 3 * ldc);
        c4.Store(c + 4 * ldc);
        c5.Store(c + 5 * ldc);
        c6.Store(c + 6 * ldc);
        c7.Store(c + 7 * ldc);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void FourRows<TRow>(int k, float* a, nint aStep, float* b, nint bStep, float* c, nint ldc, bool load)
        where TRow : unmanaged, ITileRow<TRow>
    {
        TRow c0 = default, c1 = default, c2 = default, c3 = default;
        if (load)
        {
            c0 = TRow.Load(c);
            c1 = TRow.Load(c + ldc);
            c2 = TRow.Load(c + 2 * ldc);
            c3 = TRow.Load(c + 3 * ldc);
        }

        for (int p = 0; p < k; p++)
        {
            TRow row = TRow.Load(b);
            c0 = TRow.MultiplyAdd(a, row, c0);
            c1 = TRow.MultiplyAdd(a + 1, row, c1);
            c2 = TRow.MultiplyAdd(a + 2, row, c2);
            c3 = TRow.MultiplyAdd(a + 3, row, c3);
            a += aStep;
            b += bStep;
        }

        c0.Store(c);
        c1.Store(c + ldc);
        c2.Store(c + 2 * ldc);
        c3.Store(c + 3 * ldc);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void OneRow<TRow>(int k, float* a, nint aStep, float* b, nint bStep, float* c, bool load)
        where TRow : unmanaged, ITileRow<TRow>
    {
        TRow c0 = load ? TRow.Load(c) : default;
        for (int p = 0; p < k; p++)
        {
            c0 = TRow.MultiplyAdd(a, TRow.Load(b), c0);
            a += aStep;
            b += bStep;
        }

        c0.Store(c);
    }

    /// <summary>One row of a tile in registers.</summary>
    private interface ITileRow<TSelf>
        where TSelf : unmanaged, ITileRow<TSelf>
    {
        static abstract TSelf Load(float* source);

        /// <summary>fl32(*a * b + c) element by element, one rounding. By address, so that the broadcast is one load.</summary>
        static abstract TSelf MultiplyAdd(float* a, TSelf b, TSelf c);

        void Store(float* destination);
    }

    private readonly struct Row48(Vector512<float> x, Vector512<float> y, Vector512<float> z) : ITileRow<Row48>
    {
        private readonly Vector512<float> x = x, y = y, z = z;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row48 Load(float* source) => new(Vector512.Load(source), Vector512.Load(source + 16), Vector512.Load(source + 32));

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row48 MultiplyAdd(float* a, Row48 b, Row48 c)
        {
            Vector512<float> v = Vector512.Create(*a);
            return new(Avx512F.FusedMultiplyAdd(b.x, v, c.x), Avx512F.FusedMultiplyAdd(b.y, v, c.y), Avx512F.FusedMultiplyAdd(b.z, v, c.z));
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Store(float* destination)
        {
            x.Store(destination);
            y.Store(destination + 16);
            z.Store(destination + 32);
        }
    }

    private readonly struct Row32(Vector512<float> x, Vector512<float> y) : ITileRow<Row32>
    {
        private readonly Vector512<float> x = x, y = y;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row32 Load(float* source) => new(Vector512.Load(source), Vector512.Load(source + 16));

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row32 MultiplyAdd(float* a, Row32 b, Row32 c)
        {
            Vector512<float> v = Vector512.Create(*a);
            return new(Avx512F.FusedMultiplyAdd(b.x, v, c.x), Avx512F.FusedMultiplyAdd(b.y, v, c.y));
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Store(float* destination)
        {
            x.Store(destination);
            y.Store(destination + 16);
        }
    }

    private readonly struct Row16(Vector512<float> x) : ITileRow<Row16>
    {
        private readonly Vector512<float> x = x;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row16 Load(float* source) => new(Vector512.Load(source));

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row16 MultiplyAdd(float* a, Row16 b, Row16 c) => new(Avx512F.FusedMultiplyAdd(Vector512.Create(*a), b.x, c.x));

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Store(float* destination) => x.Store(destination);
    }

    private readonly struct Row24(Vector256<float> x, Vector256<float> y, Vector256<float> z) : ITileRow<Row24>
    {
        private readonly Vector256<float> x = x, y = y, z = z;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row24 Load(float* source) => new(Vector256.Load(source), Vector256.Load(source + 8), Vector256.Load(source + 16));

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row24 MultiplyAdd(float* a, Row24 b, Row24 c)
        {
            Vector256<float> v = Avx.BroadcastScalarToVector256(a);
            return new(Fma.MultiplyAdd(b.x, v, c.x), Fma.MultiplyAdd(b.y, v, c.y), Fma.MultiplyAdd(b.z, v, c.z));
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Store(float* destination)
        {
            x.Store(destination);
            y.Store(destination + 8);
            z.Store(destination + 16);
        }
    }

    private readonly struct Row2x8(Vector256<float> x, Vector256<float> y) : ITileRow<Row2x8>
    {
        private readonly Vector256<float> x = x, y = y;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row2x8 Load(float* source) => new(Vector256.Load(source), Vector256.Load(source + 8));

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row2x8 MultiplyAdd(float* a, Row2x8 b, Row2x8 c)
        {
            Vector256<float> v = Avx.BroadcastScalarToVector256(a);
            return new(Fma.MultiplyAdd(b.x, v, c.x), Fma.MultiplyAdd(b.y, v, c.y));
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Store(float* destination)
        {
            x.Store(destination);
            y.Store(destination + 8);
        }
    }

    /// <summary>Any machine: the runtime's fused operation, in hardware where there is one.</summary>
    private readonly struct Row2x4(Vector128<float> x, Vector128<float> y) : ITileRow<Row2x4>
    {
        private readonly Vector128<float> x = x, y = y;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row2x4 Load(float* source) => new(Vector128.Load(source), Vector128.Load(source + 4));

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Row2x4 MultiplyAdd(float* a, Row2x4 b, Row2x4 c)
        {
            Vector128<float> v = Vector128.Create(*a);
            return new(Vector128.FusedMultiplyAdd(b.x, v, c.x), Vector128.FusedMultiplyAdd(b.y, v, c.y));
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Store(float* destination)
        {
            x.Store(destination);
            y.Store(destination + 4);
        }
    }
}
