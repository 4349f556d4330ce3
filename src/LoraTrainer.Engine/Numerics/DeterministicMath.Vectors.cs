using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LoraTrainer.Engine.Numerics;

/// <summary>The functions that bulk random numbers need, four arguments at a time. Every lane does what the scalar function does, in the same order: the bits are equal.</summary>
public static partial class DeterministicMath
{
    /// <summary><see cref="Log(double)"/> of normal, finite, positive numbers.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static Vector256<double> Log(Vector256<double> x)
    {
        Vector256<long> bits = x.AsInt64();
        Vector256<long> e = Vector256.ShiftRightArithmetic(bits - Vector256.Create(0x3FE6A09E667F3BCDL), 52);
        Vector256<double> m = (bits - (e << 52)).AsDouble();
        Vector256<double> k = SmallToDouble(e);
        Vector256<double> one = Vector256<double>.One;

        Vector256<double> f = m - one;
        Vector256<double> d = m + one;
        Vector256<double> dLow = m - (d - one);
        Vector256<double> s = f / d;
        Vector256<double> sLow = (Vector256.FusedMultiplyAdd(-s, d, f) - (s * dLow)) / d;
        Vector256<double> z = s * s;
        Vector256<double> zLow = Vector256.FusedMultiplyAdd(s + s, sLow, Vector256.FusedMultiplyAdd(s, s, -z));

        Vector256<double> p = Vector256.Create(2.0 / 29);
        for (int odd = 27; odd >= 5; odd -= 2)
        {
            p = Vector256.FusedMultiplyAdd(p, z, Vector256.Create(2.0 / odd));
        }

        Vector256<double> twoThirds = Vector256.Create(2.0 / 3);
        Vector256<double> q = z * twoThirds;
        Vector256<double> qLow = Vector256.FusedMultiplyAdd(z, twoThirds, -q) + Vector256.FusedMultiplyAdd(zLow, twoThirds, z * Vector256.Create(3.700743415417188e-17));
        (q, Vector256<double> carry) = FastTwoSum(q, z * z * p);
        qLow += carry;

        Vector256<double> t = s * q;
        Vector256<double> tLow = Vector256.FusedMultiplyAdd(s, q, -t) + Vector256.FusedMultiplyAdd(s, qLow, sLow * q);
        (Vector256<double> high, Vector256<double> low) = FastTwoSum(s + s, t);
        low += tLow + (sLow + sLow);

        // Where the exponent is 0 this leaves the sum as it is.
        (high, carry) = FastTwoSum(k * Vector256.Create(Ln2High), high);
        low += Vector256.FusedMultiplyAdd(k, Vector256.Create(Ln2Low), carry);
        (high, low) = FastTwoSum(high, low);
        return high + low;
    }

    /// <summary><see cref="Sin(double)"/> and <see cref="Cos(double)"/> of numbers from 0 to 2 pi.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static (Vector256<double> Sin, Vector256<double> Cos) SinCos(Vector256<double> x)
    {
        Vector256<double> n = Vector256.Round(x * Vector256.Create(0.63661977236758134308));
        Vector256<double> a = Vector256.FusedMultiplyAdd(-n, Vector256.Create(HalfPiFirst), x);
        Vector256<double> second = Vector256.Create(HalfPiSecond);
        Vector256<double> b = -n * second;
        Vector256<double> bError = Vector256.FusedMultiplyAdd(-n, second, -b);
        Vector256<double> r = a + b;
        Vector256<double> t = r - a;
        Vector256<double> tail = (a - (r - t)) + (b - t) + Vector256.FusedMultiplyAdd(-n, Vector256.Create(HalfPiThird), bError);
        Vector256<double> sin = SinKernel(r, tail);
        Vector256<double> cos = CosKernel(r, tail);

        // n + 2^52 has n in its lowest bits.
        Vector256<long> quadrant = (n + Vector256.Create(TwoTo52)).AsInt64();
        Vector256<double> isOdd = (Vector256<long>.Zero - (quadrant & Vector256<long>.One)).AsDouble();
        Vector256<long> sinSign = (quadrant & Vector256.Create(2L)) << 62;
        Vector256<long> cosSign = ((quadrant + Vector256<long>.One) & Vector256.Create(2L)) << 62;
        return ((Vector256.ConditionalSelect(isOdd, cos, sin).AsInt64() ^ sinSign).AsDouble(), (Vector256.ConditionalSelect(isOdd, sin, cos).AsInt64() ^ cosSign).AsDouble());
    }

    /// <summary>Whole numbers below 2^51 in absolute value: added to the bits of 1.5 * 2^52 they stand in its last places.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static Vector256<double> SmallToDouble(Vector256<long> x)
    {
        Vector256<double> offset = Vector256.Create(1.5 * TwoTo52);
        return (x + offset.AsInt64()).AsDouble() - offset;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static (Vector256<double> Sum, Vector256<double> Error) FastTwoSum(Vector256<double> a, Vector256<double> b)
    {
        Vector256<double> sum = a + b;
        return (sum, b - (sum - a));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<double> SinKernel(Vector256<double> x, Vector256<double> tail)
    {
        Vector256<double> z = x * x;
        Vector256<double> p = Vector256.FusedMultiplyAdd(Vector256.Create(1.58969099521155010221e-10), z, Vector256.Create(-2.50507602534068634195e-08));
        p = Vector256.FusedMultiplyAdd(p, z, Vector256.Create(2.75573137070700676789e-06));
        p = Vector256.FusedMultiplyAdd(p, z, Vector256.Create(-1.98412698298579493134e-04));
        p = Vector256.FusedMultiplyAdd(p, z, Vector256.Create(8.33333333332248946124e-03));
        Vector256<double> cube = z * x;
        Vector256<double> low = Vector256.FusedMultiplyAdd(z, Vector256.FusedMultiplyAdd(Vector256.Create(-0.5), tail, cube * p), tail);
        return x + Vector256.FusedMultiplyAdd(cube, Vector256.Create(-1.66666666666666324348e-01), low);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<double> CosKernel(Vector256<double> x, Vector256<double> tail)
    {
        Vector256<double> z = x * x;
        Vector256<double> p = Vector256.FusedMultiplyAdd(Vector256.Create(-1.13596475577881948265e-11), z, Vector256.Create(2.08757232129817482790e-09));
        p = Vector256.FusedMultiplyAdd(p, z, Vector256.Create(-2.75573143513906633035e-07));
        p = Vector256.FusedMultiplyAdd(p, z, Vector256.Create(2.48015872894767294178e-05));
        p = Vector256.FusedMultiplyAdd(p, z, Vector256.Create(-1.38888888888741095749e-03));
        p = Vector256.FusedMultiplyAdd(p, z, Vector256.Create(4.16666666666666019037e-02));
        Vector256<double> half = Vector256.Create(0.5) * z;
        Vector256<double> w = Vector256<double>.One - half;
        return w + ((Vector256<double>.One - w - half) + Vector256.FusedMultiplyAdd(z, z * p, -x * tail));
    }
}
