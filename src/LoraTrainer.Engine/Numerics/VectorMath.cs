using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace LoraTrainer.Engine.Numerics;

/// <summary>
/// Elementary functions and reductions in fp32 with the same bits on every machine. Every product that is added to something is an explicit
/// fused multiply-add, every other operation is one IEEE rounding, so a lane's result does not depend on the width of the hardware's vectors;
/// where there are none, the framework runs the same operations lane by lane (and a fused multiply-add in software is still fused).
/// Reductions run in 16 lanes: lane l takes elements l, l+16, l+32, ... in order, a last partial vector is filled with the neutral element,
/// and <see cref="SumLanes(Vector512{float})"/> folds the lanes in one fixed tree. NaN in gives NaN out (its payload is not specified).
/// Where 512-bit vectors are not native, a function is a call that does the two halves (VectorMath.Halves.cs): emulated operations are
/// methods to the compiler, and inlining a whole polynomial of them exceeds its budget, after which each operation is a call.
/// </summary>
internal static partial class VectorMath
{
    /// <summary>Lanes of a reduction, and floats in a <see cref="Vector512{T}"/>.</summary>
    public const int Lanes = 16;

    // 1.5 * 2^23: adding it to |v| < 2^22 leaves round-to-nearest-even(v) in the low bits of the sum.
    private const float RoundingShift = 12582912f;

    // ln 2 in two parts, the first with few enough bits that its product with any exponent is exact.
    private const float Ln2High = 0.693359375f;
    private const float Ln2Low = -2.12194440e-4f;

    /// <summary>
    /// e^x, about 1 ulp. x = n ln 2 + r with |r| &lt;= ln(2)/2, e^r by a polynomial, times 2^n in two exact steps (so that subnormal results
    /// round once). -inf gives 0, overflow gives +inf, NaN gives NaN.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Exp(Vector512<float> x) => Vector512.IsHardwareAccelerated ? ExpLanes(x) : ExpCall(x);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Vector512<float> ExpCall(Vector512<float> x) => Vector512.Create(ExpLanes(x.GetLower()), ExpLanes(x.GetUpper()));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> ExpLanes(Vector512<float> x)
    {
        // Comparisons with NaN are false, so NaN passes both clamps. Beyond them the result is 0 or +inf anyway.
        x = Vector512.ConditionalSelect(Vector512.LessThan(x, Vector512.Create(-105f)), Vector512.Create(-105f), x);
        x = Vector512.ConditionalSelect(Vector512.GreaterThan(x, Vector512.Create(90f)), Vector512.Create(90f), x);
        Vector512<float> shifted = Vector512.FusedMultiplyAdd(x, Vector512.Create(1.44269504f), Vector512.Create(RoundingShift));
        Vector512<float> n = shifted - Vector512.Create(RoundingShift);
        Vector512<float> r = Vector512.FusedMultiplyAdd(n, Vector512.Create(-Ln2High), x);
        r = Vector512.FusedMultiplyAdd(n, Vector512.Create(-Ln2Low), r);

        Vector512<float> p = Vector512.FusedMultiplyAdd(Vector512.Create(1.9875691500e-4f), r, Vector512.Create(1.3981999507e-3f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(8.3334519073e-3f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(4.1665795894e-2f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(1.6666665459e-1f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(5.0000001201e-1f));
        p = Vector512.FusedMultiplyAdd(p, r * r, r) + Vector512<float>.One;

        Vector512<int> exponent = shifted.AsInt32() - Vector512.Create(BitConverter.SingleToInt32Bits(RoundingShift));
        Vector512<int> half = exponent >> 1;
        return p * PowerOfTwo(half) * PowerOfTwo(exponent - half);
    }

    /// <summary>Natural logarithm, about 1 ulp. 0 gives -inf, negative gives NaN, +inf gives +inf; subnormal arguments are exact.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Log(Vector512<float> x) => Vector512.IsHardwareAccelerated ? LogLanes(x) : LogCall(x);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Vector512<float> LogCall(Vector512<float> x) => Vector512.Create(LogLanes(x.GetLower()), LogLanes(x.GetUpper()));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> LogLanes(Vector512<float> x)
    {
        Vector512<float> tiny = Vector512.LessThan(x, Vector512.Create(1.17549435e-38f));
        Vector512<float> scaled = Vector512.ConditionalSelect(tiny, x * Vector512.Create(8388608f), x);

        // scaled = 2^e * m with sqrt(1/2) <= m < sqrt(2): subtracting the bits of sqrt(1/2) moves the border of the exponent field there.
        Vector512<int> offset = scaled.AsInt32() - Vector512.Create(0x3F3504F3);
        Vector512<int> e = offset >> 23;
        Vector512<float> f = (scaled.AsInt32() - (e << 23)).AsSingle() - Vector512<float>.One;
        Vector512<float> exponent = Vector512.ConvertToSingle(e) - (tiny & Vector512.Create(23f));

        Vector512<float> z = f * f;
        Vector512<float> p = Vector512.FusedMultiplyAdd(Vector512.Create(7.0376836292e-2f), f, Vector512.Create(-1.1514610310e-1f));
        p = Vector512.FusedMultiplyAdd(p, f, Vector512.Create(1.1676998740e-1f));
        p = Vector512.FusedMultiplyAdd(p, f, Vector512.Create(-1.2420140846e-1f));
        p = Vector512.FusedMultiplyAdd(p, f, Vector512.Create(1.4249322787e-1f));
        p = Vector512.FusedMultiplyAdd(p, f, Vector512.Create(-1.6668057665e-1f));
        p = Vector512.FusedMultiplyAdd(p, f, Vector512.Create(2.0000714765e-1f));
        p = Vector512.FusedMultiplyAdd(p, f, Vector512.Create(-2.4999993993e-1f));
        p = Vector512.FusedMultiplyAdd(p, f, Vector512.Create(3.3333331174e-1f));
        Vector512<float> y = Vector512.FusedMultiplyAdd(exponent, Vector512.Create(Ln2Low), p * f * z);
        y = Vector512.FusedMultiplyAdd(z, Vector512.Create(-0.5f), y) + f;
        y = Vector512.FusedMultiplyAdd(exponent, Vector512.Create(Ln2High), y);

        y = Vector512.ConditionalSelect(Vector512.Equals(x, Vector512<float>.Zero), Vector512.Create(float.NegativeInfinity), y);
        y = Vector512.ConditionalSelect(Vector512.LessThan(x, Vector512<float>.Zero), Vector512.Create(float.NaN), y);
        // +inf and NaN: what the argument was.
        return Vector512.ConditionalSelect(Vector512.LessThan(x, Vector512.Create(float.PositiveInfinity)), y, x + x);
    }

    /// <summary>tanh x, about 1 ulp: an odd polynomial for |x| &lt; 0.625, else 1 - 2/(e^(2|x|) + 1) with the sign of x.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Tanh(Vector512<float> x) => Vector512.IsHardwareAccelerated ? TanhLanes(x) : TanhCall(x);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Vector512<float> TanhCall(Vector512<float> x) => Vector512.Create(TanhLanes(x.GetLower()), TanhLanes(x.GetUpper()));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> TanhLanes(Vector512<float> x)
    {
        Vector512<float> sign = x & Vector512.Create(-0f);
        Vector512<float> a = x ^ sign;
        Vector512<float> large = Vector512<float>.One - (Vector512.Create(2f) / (ExpLanes(a + a) + Vector512<float>.One));

        Vector512<float> z = x * x;
        Vector512<float> p = Vector512.FusedMultiplyAdd(Vector512.Create(-5.70498872745e-3f), z, Vector512.Create(2.06390887954e-2f));
        p = Vector512.FusedMultiplyAdd(p, z, Vector512.Create(-5.37397155531e-2f));
        p = Vector512.FusedMultiplyAdd(p, z, Vector512.Create(1.33314422036e-1f));
        p = Vector512.FusedMultiplyAdd(p, z, Vector512.Create(-3.33332819422e-1f));
        Vector512<float> small = Vector512.FusedMultiplyAdd(p * z, a, a);
        return Vector512.ConditionalSelect(Vector512.LessThan(a, Vector512.Create(0.625f)), small, large) ^ sign;
    }

    /// <summary>1/(1 + e^-x), from e^-|x| so that neither sign overflows.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Sigmoid(Vector512<float> x) => Vector512.IsHardwareAccelerated ? SigmoidLanes(x) : SigmoidCall(x);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Vector512<float> SigmoidCall(Vector512<float> x) => Vector512.Create(SigmoidLanes(x.GetLower()), SigmoidLanes(x.GetUpper()));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> SigmoidLanes(Vector512<float> x)
    {
        Vector512<float> e = ExpLanes(x | Vector512.Create(-0f));
        Vector512<float> numerator = Vector512.ConditionalSelect(Vector512.LessThan(x, Vector512<float>.Zero), e, Vector512<float>.One);
        return numerator / (Vector512<float>.One + e);
    }

    /// <summary>As <see cref="Exp(Vector512{float})"/>, bit for bit: it is one lane of it.</summary>
    public static float Exp(float x) => Exp(Vector512.Create(x)).ToScalar();

    /// <summary>As <see cref="Log(Vector512{float})"/>, bit for bit.</summary>
    public static float Log(float x) => Log(Vector512.Create(x)).ToScalar();

    /// <summary>As <see cref="Tanh(Vector512{float})"/>, bit for bit.</summary>
    public static float Tanh(float x) => Tanh(Vector512.Create(x)).ToScalar();

    /// <summary>As <see cref="Sigmoid(Vector512{float})"/>, bit for bit.</summary>
    public static float Sigmoid(float x) => Sigmoid(Vector512.Create(x)).ToScalar();

    /// <summary>Sum of the elements; 0 for none.</summary>
    public static float Sum(ReadOnlySpan<float> x)
    {
        Vector512<float> sum = Vector512<float>.Zero;
        ref float first = ref MemoryMarshal.GetReference(x);
        int i = 0;
        for (; i <= x.Length - Lanes; i += Lanes)
        {
            sum += Vector512.LoadUnsafe(ref first, (nuint)i);
        }

        return SumLanes(i < x.Length ? sum + LoadTail(x[i..], 0f) : sum);
    }

    /// <summary>Sum of the squares; 0 for none.</summary>
    public static float SumOfSquares(ReadOnlySpan<float> x) => Dot(x, x);

    /// <summary>Sum of x[i] * y[i]; 0 for none. The spans have equal lengths.</summary>
    public static float Dot(ReadOnlySpan<float> x, ReadOnlySpan<float> y)
    {
        if (x.Length != y.Length)
        {
            ThrowLengths(x.Length, y.Length);
        }

        Vector512<float> sum = Vector512<float>.Zero;
        ref float firstX = ref MemoryMarshal.GetReference(x);
        ref float firstY = ref MemoryMarshal.GetReference(y);
        int i = 0;
        for (; i <= x.Length - Lanes; i += Lanes)
        {
            sum = Vector512.FusedMultiplyAdd(Vector512.LoadUnsafe(ref firstX, (nuint)i), Vector512.LoadUnsafe(ref firstY, (nuint)i), sum);
        }

        return SumLanes(i < x.Length ? Vector512.FusedMultiplyAdd(LoadTail(x[i..], 0f), LoadTail(y[i..], 0f), sum) : sum);
    }

    /// <summary>Largest element; -inf for none. A NaN anywhere gives NaN.</summary>
    public static float Max(ReadOnlySpan<float> x)
    {
        Vector512<float> max = Vector512.Create(float.NegativeInfinity);
        ref float first = ref MemoryMarshal.GetReference(x);
        int i = 0;
        for (; i <= x.Length - Lanes; i += Lanes)
        {
            max = Max(max, Vector512.LoadUnsafe(ref first, (nuint)i));
        }

        return MaxLanes(i < x.Length ? Max(max, LoadTail(x[i..], float.NegativeInfinity)) : max);
    }

    /// <summary>Sum of the squares in double precision (each product is exact), for gradient norms; 0 for none.</summary>
    public static double SumOfSquaresDouble(ReadOnlySpan<float> x)
    {
        // Elements 0..7 and 8..15 of each sixteen: together the 16 lanes of the rule.
        Vector512<double> low = Vector512<double>.Zero;
        Vector512<double> high = Vector512<double>.Zero;
        ref float first = ref MemoryMarshal.GetReference(x);
        for (int i = 0; i < x.Length; i += Lanes)
        {
            Vector512<float> v = i <= x.Length - Lanes ? Vector512.LoadUnsafe(ref first, (nuint)i) : LoadTail(x[i..], 0f);
            (Vector512<double> a, Vector512<double> b) = Vector512.Widen(v);
            low = Vector512.FusedMultiplyAdd(a, a, low);
            high = Vector512.FusedMultiplyAdd(b, b, high);
        }

        Vector512<double> sum = low + high;
        Vector256<double> four = sum.GetLower() + sum.GetUpper();
        Vector128<double> two = four.GetLower() + four.GetUpper();
        return two.GetElement(0) + two.GetElement(1);
    }

    /// <summary>The larger of each pair of lanes; NaN in either wins; of two equal ones (+0 and -0 included) the first.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Max(Vector512<float> x, Vector512<float> y)
        // x != x is true for NaN only; x >= y is false when y is NaN.
        => Vector512.ConditionalSelect(Vector512.GreaterThanOrEqual(x, y) | ~Vector512.Equals(x, x), x, y);

    /// <summary>The one order in which 16 lanes are added: l + (l+8), then + (l+4), then + (l+2), then + (l+1).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float SumLanes(Vector512<float> x)
    {
        Vector256<float> eight = x.GetLower() + x.GetUpper();
        Vector128<float> four = eight.GetLower() + eight.GetUpper();
        Vector64<float> two = four.GetLower() + four.GetUpper();
        return two.GetElement(0) + two.GetElement(1);
    }

    /// <summary>As <see cref="SumLanes(Vector512{float})"/>, of four vectors at once.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> SumLanes(Vector512<float> x0, Vector512<float> x1, Vector512<float> x2, Vector512<float> x3)
    {
        if (!Sse.IsSupported)
        {
            return Vector128.Create(SumLanes(x0), SumLanes(x1), SumLanes(x2), SumLanes(x3));
        }

        Vector128<float> a = Four(x0), b = Four(x1), c = Four(x2), d = Four(x3);
        Vector128<float> ab = Sse.UnpackLow(a, b) + Sse.UnpackHigh(a, b), cd = Sse.UnpackLow(c, d) + Sse.UnpackHigh(c, d);
        return Sse.MoveLowToHigh(ab, cd) + Sse.MoveHighToLow(cd, ab);

        static Vector128<float> Four(Vector512<float> x)
        {
            Vector256<float> eight = x.GetLower() + x.GetUpper();
            return eight.GetLower() + eight.GetUpper();
        }
    }

    /// <summary>Largest of 16 lanes; NaN wins.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float MaxLanes(Vector512<float> x)
    {
        Vector512<float> max = Max(x, Vector512.Create(x.GetUpper(), x.GetUpper()));
        Vector128<float> low = max.GetLower().GetLower();
        Vector128<float> high = max.GetLower().GetUpper();
        float result = low.GetElement(0);
        for (int i = 1; i < 8; i++)
        {
            float v = i < 4 ? low.GetElement(i) : high.GetElement(i - 4);
            result = result >= v || float.IsNaN(result) ? result : v;
        }

        return result;
    }

    /// <summary>The first 1..16 elements of <paramref name="tail"/> in the low lanes, <paramref name="fill"/> in the others. Reads nothing past its end.</summary>
    public static Vector512<float> LoadTail(ReadOnlySpan<float> tail, float fill)
    {
        Vector512<float> lanes = Vector512.Create(fill);
        tail[..Math.Min(tail.Length, Lanes)].CopyTo(MemoryMarshal.CreateSpan(ref Unsafe.As<Vector512<float>, float>(ref lanes), Lanes));
        return lanes;
    }

    /// <summary>Writes the low lanes of <paramref name="value"/> to all (at most 16) elements of <paramref name="tail"/>, and nothing past its end.</summary>
    public static void StoreTail(Vector512<float> value, Span<float> tail)
        => MemoryMarshal.CreateReadOnlySpan(ref Unsafe.As<Vector512<float>, float>(ref value), tail.Length).CopyTo(tail);

    /// <summary>16 lanes from <paramref name="source"/>, or its <paramref name="count"/> elements and <paramref name="fill"/> where there are fewer. Reads nothing past them.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Vector512<float> Load(float* source, long count, float fill = 0)
        => count >= Lanes ? Vector512.Load(source) : LoadTail(new ReadOnlySpan<float>(source, (int)count), fill);

    /// <summary>16 lanes to <paramref name="destination"/>, or its <paramref name="count"/> elements where there are fewer. Writes nothing past them.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe void Store(Vector512<float> value, float* destination, long count)
    {
        if (count >= Lanes)
        {
            Vector512.Store(value, destination);
        }
        else
        {
            StoreTail(value, new Span<float>(destination, (int)count));
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> PowerOfTwo(Vector512<int> exponent) => ((exponent + Vector512.Create(127)) << 23).AsSingle();

    private static void ThrowLengths(int x, int y) => throw new ArgumentException($"the vectors of a dot product have {x} and {y} elements; they must be equal");
}
