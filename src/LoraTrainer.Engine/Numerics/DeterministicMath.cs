namespace LoraTrainer.Engine.Numerics;

/// <summary>
/// Elementary functions in double precision with the same bits on every machine (the platform's differ between C libraries): argument
/// reduction and polynomials from IEEE operations and explicit fused multiply-adds only. Errors stay below 1 ulp, 2 ulp for
/// <see cref="Pow"/>. For tables and schedules: correct, not fast.
/// </summary>
public static partial class DeterministicMath
{
    // ln 2: the first part has 32 significant bits, so that its product with an exponent is exact.
    private const double Ln2High = 6.93147180369123816490e-01;
    private const double Ln2Low = 1.90821492927058770002e-10;

    // pi/2 in three doubles.
    private const double HalfPiFirst = 1.5707963267948966;
    private const double HalfPiSecond = 6.123233995736766e-17;
    private const double HalfPiThird = -1.4973849048591698e-33;

    private const double TwoTo52 = 4503599627370496.0;

    /// <summary>e^x. x = n ln 2 + r, |r| &lt;= ln(2)/2; e^r = 1 + 2r/(R - r) with an even polynomial R.</summary>
    public static double Exp(double x) => Exp(x, 0);

    /// <summary>Natural logarithm; 0 gives -inf, negative gives NaN.</summary>
    public static double Log(double x)
    {
        if (!(x > 0) || double.IsPositiveInfinity(x))
        {
            return x == 0 ? double.NegativeInfinity : x < 0 ? double.NaN : x;
        }

        (double high, double low) = LogParts(x);
        return high + low;
    }

    /// <summary>x^y for x &gt;= 0 (a negative x gives NaN, whatever y): e^(y log x) with the logarithm to about 66 bits.</summary>
    public static double Pow(double x, double y)
    {
        if (y == 0 || x == 1)
        {
            return 1;
        }

        if (double.IsNaN(x) || double.IsNaN(y) || x < 0)
        {
            return double.NaN;
        }

        if (x == 0 || double.IsInfinity(x) || double.IsInfinity(y))
        {
            // Zero or infinite: which of the two depends on the signs of log x and y only.
            return x > 1 == y > 0 ? double.PositiveInfinity : 0;
        }

        (double high, double low) = LogParts(x);
        double product = y * high;
        return double.IsFinite(product) && Math.Abs(product) < 800
            ? Exp(product, Math.FusedMultiplyAdd(y, low, Math.FusedMultiplyAdd(y, high, -product)))
            : product > 0 ? double.PositiveInfinity : 0;
    }

    /// <summary>sin x for |x| up to 1e7 (beyond that NaN: the reduction would lose accuracy).</summary>
    public static double Sin(double x)
    {
        (double r, double tail, int quadrant) = ReduceByHalfPi(x);
        return (quadrant & 3) switch
        {
            0 => SinKernel(r, tail),
            1 => CosKernel(r, tail),
            2 => -SinKernel(r, tail),
            _ => -CosKernel(r, tail),
        };
    }

    /// <summary>cos x for |x| up to 1e7 (beyond that NaN: the reduction would lose accuracy).</summary>
    public static double Cos(double x)
    {
        (double r, double tail, int quadrant) = ReduceByHalfPi(x);
        return (quadrant & 3) switch
        {
            0 => CosKernel(r, tail),
            1 => -SinKernel(r, tail),
            2 => -CosKernel(r, tail),
            _ => SinKernel(r, tail),
        };
    }

    /// <summary>e^(x + correction), where |correction| is at most about an ulp of x.</summary>
    private static double Exp(double x, double correction)
    {
        if (double.IsNaN(x))
        {
            return x;
        }

        if (x > 710 || x < -746)
        {
            return x > 0 ? double.PositiveInfinity : 0;
        }

        double n = Math.Round(x * 1.44269504088896338700);
        double high = Math.FusedMultiplyAdd(-n, Ln2High, x);
        double low = Math.FusedMultiplyAdd(n, Ln2Low, -correction);
        double r = high - low;
        double z = r * r;
        double p = Math.FusedMultiplyAdd(4.13813679705723846039e-08, z, -1.65339022054652515390e-06);
        p = Math.FusedMultiplyAdd(p, z, 6.61375632143793436117e-05);
        p = Math.FusedMultiplyAdd(p, z, -2.77777777770155933842e-03);
        p = Math.FusedMultiplyAdd(p, z, 1.66666666666666019037e-01);
        double c = Math.FusedMultiplyAdd(-p, z, r);
        double y = 1 - (low - (r * c / (2 - c)) - high);

        // 2^n in two exact halves, so that a subnormal result is rounded once.
        int exponent = (int)n;
        int half = exponent >> 1;
        return y * PowerOfTwo(half) * PowerOfTwo(exponent - half);
    }

    /// <summary>
    /// log x as an unevaluated sum. x = 2^k m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m-1)/(m+1) &lt; 0.172. The quotient, its
    /// square and the cubic term carry a second double; the rest of the series is small enough for one.
    /// </summary>
    private static (double High, double Low) LogParts(double x)
    {
        int k = 0;
        if (x < 2.2250738585072014e-308)
        {
            x *= 18014398509481984.0; // 2^54
            k = -54;
        }

        long bits = BitConverter.DoubleToInt64Bits(x);
        int e = (int)((bits - 0x3FE6A09E667F3BCDL) >> 52);
        double m = BitConverter.Int64BitsToDouble(bits - ((long)e << 52));
        k += e;

        double f = m - 1;
        double d = m + 1;
        double dLow = m - (d - 1);
        double s = f / d;
        double sLow = (Math.FusedMultiplyAdd(-s, d, f) - (s * dLow)) / d;
        double z = s * s;
        double zLow = Math.FusedMultiplyAdd(2 * s, sLow, Math.FusedMultiplyAdd(s, s, -z));

        // 2/5 + 2/7 z + ... + 2/29 z^12
        double p = 2.0 / 29;
        for (int odd = 27; odd >= 5; odd -= 2)
        {
            p = Math.FusedMultiplyAdd(p, z, 2.0 / odd);
        }

        // q = z (2/3 + z p)
        const double TwoThirds = 2.0 / 3;
        const double TwoThirdsLow = 3.700743415417188e-17;
        double q = z * TwoThirds;
        double qLow = Math.FusedMultiplyAdd(z, TwoThirds, -q) + Math.FusedMultiplyAdd(zLow, TwoThirds, z * TwoThirdsLow);
        (q, double carry) = FastTwoSum(q, z * z * p);
        qLow += carry;

        // log m = 2s + s q
        double t = s * q;
        double tLow = Math.FusedMultiplyAdd(s, q, -t) + Math.FusedMultiplyAdd(s, qLow, sLow * q);
        (double high, double low) = FastTwoSum(2 * s, t);
        low += tLow + (2 * sLow);

        (high, carry) = k == 0 ? (high, 0) : FastTwoSum(k * Ln2High, high);
        low += Math.FusedMultiplyAdd(k, Ln2Low, carry);
        return FastTwoSum(high, low);
    }

    /// <summary>a + b and its rounding error; needs |a| &gt;= |b| or a = 0.</summary>
    private static (double Sum, double Error) FastTwoSum(double a, double b)
    {
        double sum = a + b;
        return (sum, b - (sum - a));
    }

    /// <summary>x = quadrant * pi/2 + r + tail with |r| about at most pi/4.</summary>
    private static (double R, double Tail, int Quadrant) ReduceByHalfPi(double x)
    {
        if (!(Math.Abs(x) <= 1e7))
        {
            return (double.NaN, 0, 0);
        }

        // x - n*first is exact: its last bit is worth 2^-52 and it is below 1. Later parts need their rounding errors, because what is left can
        // be tiny when x is close to a multiple of pi/2.
        double n = Math.Round(x * 0.63661977236758134308);
        double a = Math.FusedMultiplyAdd(-n, HalfPiFirst, x);
        double b = -n * HalfPiSecond;
        double bError = Math.FusedMultiplyAdd(-n, HalfPiSecond, -b);
        double r = a + b;
        double t = r - a;
        double tail = (a - (r - t)) + (b - t) + Math.FusedMultiplyAdd(-n, HalfPiThird, bError);
        return (r, tail, (int)n);
    }

    private static double SinKernel(double x, double tail)
    {
        double z = x * x;
        double p = Math.FusedMultiplyAdd(1.58969099521155010221e-10, z, -2.50507602534068634195e-08);
        p = Math.FusedMultiplyAdd(p, z, 2.75573137070700676789e-06);
        p = Math.FusedMultiplyAdd(p, z, -1.98412698298579493134e-04);
        p = Math.FusedMultiplyAdd(p, z, 8.33333333332248946124e-03);
        double cube = z * x;
        // x + tail + x^3 (-1/6 + z p), the tail's own effect on the cube being -z tail / 2
        double low = Math.FusedMultiplyAdd(z, Math.FusedMultiplyAdd(-0.5, tail, cube * p), tail);
        return x + Math.FusedMultiplyAdd(cube, -1.66666666666666324348e-01, low);
    }

    private static double CosKernel(double x, double tail)
    {
        double z = x * x;
        double p = Math.FusedMultiplyAdd(-1.13596475577881948265e-11, z, 2.08757232129817482790e-09);
        p = Math.FusedMultiplyAdd(p, z, -2.75573143513906633035e-07);
        p = Math.FusedMultiplyAdd(p, z, 2.48015872894767294178e-05);
        p = Math.FusedMultiplyAdd(p, z, -1.38888888888741095749e-03);
        p = Math.FusedMultiplyAdd(p, z, 4.16666666666666019037e-02);
        double half = 0.5 * z;
        double w = 1 - half;
        return w + ((1 - w - half) + Math.FusedMultiplyAdd(z, z * p, -x * tail));
    }

    private static double PowerOfTwo(int exponent) => BitConverter.Int64BitsToDouble((long)(exponent + 1023) << 52);
}
