using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// Copies parts of operands into panels: element (p, j) of a panel lies at panel[p * width + j], p along the summed dimension, j along the
/// rows of C (for A) or its columns (for B). Quantized elements become fp32 on the way. Columns past the matrix are zero.
/// </summary>
internal static unsafe class GemmPacking
{
    private const int Lanes = 8;

    /// <param name="operand">A or B</param>
    /// <param name="depthAlongRows">true when the summed dimension runs along the stored rows</param>
    /// <param name="depth">first index of the summed dimension</param>
    /// <param name="depthCount">number of them</param>
    /// <param name="outer">first index of the other dimension</param>
    /// <param name="outerCount">number of them, at most <paramref name="width"/></param>
    /// <param name="width">a multiple of 8</param>
    /// <param name="panel">(depthCount, width), overwritten; 32-byte aligned</param>
    /// <param name="scratch">(8, depthCount), overwritten</param>
    public static void Pack(
        in GemmOperand operand, bool depthAlongRows, long depth, int depthCount, long outer, int outerCount, int width, float* panel, float* scratch)
    {
        if (depthAlongRows)
        {
            for (int j = 0; j < width; j += Lanes)
            {
                PackEightRows(operand, depth, depthCount, outer + j, Math.Clamp(outerCount - j, 0, Lanes), width, panel + j, scratch);
            }
        }
        else
        {
            PackColumns(operand, depth, depthCount, outer, outerCount, width, panel);
        }
    }

    /// <summary>panel[i] = fl32(alpha * panel[i]).</summary>
    public static void Scale(float* panel, int count, float alpha)
    {
        Vector256<float> factor = Vector256.Create(alpha);
        for (int i = 0; i < count; i += Lanes)
        {
            (Vector256.Load(panel + i) * factor).Store(panel + i);
        }
    }

    /// <summary>Stored rows outer .. outer+rows-1 become lanes 0 .. 7 of the panel; lanes from <paramref name="rows"/> on become zero.</summary>
    private static void PackEightRows(
        in GemmOperand operand, long depth, int depthCount, long outer, int rows, int width, float* panel, float* scratch)
    {
        if (rows == Lanes && operand.Element == GemmElement.F32)
        {
            Transpose(operand.F32At(outer, depth), operand.LeadingDimension, depthCount, width, panel);
            return;
        }

        for (int i = 0; i < rows; i++)
        {
            operand.Load(outer + i, depth, depthCount, scratch + i * depthCount);
        }

        Unsafe.InitBlockUnaligned(scratch + rows * depthCount, 0, (uint)((Lanes - rows) * depthCount * sizeof(float)));
        Transpose(scratch, depthCount, depthCount, width, panel);
    }

    /// <summary>panel[p * width + i] = source[i * stride + p] for eight i.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Transpose(float* source, long stride, int depthCount, int width, float* panel)
    {
        int p = 0;
        if (Avx.IsSupported)
        {
            for (; p <= depthCount - Lanes; p += Lanes)
            {
                TransposeBlock(source + p, (nint)stride, panel + (nint)p * width, width);
            }
        }

        for (; p < depthCount; p++)
        {
            for (int i = 0; i < Lanes; i++)
            {
                panel[(nint)p * width + i] = source[i * stride + p];
            }
        }
    }

    /// <summary>d[p * width + i] = s[i * stride + p] for eight i and eight p.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void TransposeBlock(float* s, nint stride, float* d, nint width)
    {
        // Rows i and i+4 share a register, so that only in-lane shuffles remain.
        Vector256<float> r0 = Pair(s, s + 4 * stride), r1 = Pair(s + stride, s + 5 * stride);
        Vector256<float> r2 = Pair(s + 2 * stride, s + 6 * stride), r3 = Pair(s + 3 * stride, s + 7 * stride);
        StoreFour(r0, r1, r2, r3, d, width);
        s += 4;
        d += 4 * width;
        r0 = Pair(s, s + 4 * stride);
        r1 = Pair(s + stride, s + 5 * stride);
        r2 = Pair(s + 2 * stride, s + 6 * stride);
        r3 = Pair(s + 3 * stride, s + 7 * stride);
        StoreFour(r0, r1, r2, r3, d, width);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> Pair(float* low, float* high) => Vector256.Create(Vector128.Load(low), Vector128.Load(high));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void StoreFour(Vector256<float> r0, Vector256<float> r1, Vector256<float> r2, Vector256<float> r3, float* d, nint width)
    {
        Vector256<double> t0 = Avx.UnpackLow(r0, r1).AsDouble(), t1 = Avx.UnpackHigh(r0, r1).AsDouble();
        Vector256<double> t2 = Avx.UnpackLow(r2, r3).AsDouble(), t3 = Avx.UnpackHigh(r2, r3).AsDouble();
        Avx.UnpackLow(t0, t2).AsSingle().Store(d);
        Avx.UnpackHigh(t0, t2).AsSingle().Store(d + width);
        Avx.UnpackLow(t1, t3).AsSingle().Store(d + 2 * width);
        Avx.UnpackHigh(t1, t3).AsSingle().Store(d + 3 * width);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void PackColumns(in GemmOperand operand, long depth, int depthCount, long outer, int outerCount, int width, float* panel)
    {
        bool plain = operand.Element == GemmElement.F32 && outerCount == width;
        for (int p = 0; p < depthCount; p++, panel += width)
        {
            if (plain)
            {
                float* source = operand.F32At(depth + p, outer);
                for (int j = 0; j < width; j += Lanes)
                {
                    Vector256.Load(source + j).Store(panel + j);
                }

                continue;
            }

            operand.Load(depth + p, outer, outerCount, panel);
            new Span<float>(panel + outerCount, width - outerCount).Clear();
        }
    }
}
