using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LoraTrainer.Engine.Numerics;

/// <content>
/// The functions of VectorMath.cs once more, word for word, on 256-bit vectors: what runs where 512-bit vectors are not native. A change
/// there is a change here; the test that compares instruction sets bit by bit fails otherwise.
/// </content>
internal static partial class VectorMath
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> ExpLanes(Vector256<float> x)
    {
        // Comparisons with NaN are false, so NaN passes both clamps. Beyond them the result is 0 or +inf anyway.
        x = Vector256.ConditionalSelect(Vector256.LessThan(x, Vector256.Create(-105f)), Vector256.Create(-105f), x);
        x = Vector256.ConditionalSelect(Vector256.GreaterThan(x, Vector256.Create(90f)), Vector256.Create(90f), x);
        Vector256<float> shifted = Vector256.FusedMultiplyAdd(x, Vector256.Create(1.44269504f), Vector256.Create(RoundingShift));
        Vector256<float> n = shifted - Vector256.Create(RoundingShift);
        Vector256<float> r = Vector256.FusedMultiplyAdd(n, Vector256.Create(-Ln2High), x);
        r = Vector256.FusedMultiplyAdd(n, Vector256.Create(-Ln2Low), r);

        Vector256<float> p = Vector256.FusedMultiplyAdd(Vector256.Create(1.9875691500e-4f), r, Vector256.Create(1.3981999507e-3f));
        p = Vector256.FusedMultiplyAdd(p, r, Vector256.Create(8.3334519073e-3f));
        p = Vector256.FusedMultiplyAdd(p, r, Vector256.Create(4.1665795894e-2f));
        p = Vector256.FusedMultiplyAdd(p, r, Vector256.Create(1.6666665459e-1f));
        p = Vector256.FusedMultiplyAdd(p, r, Vector256.Create(5.0000001201e-1f));
        p = Vector256.FusedMultiplyAdd(p, r * r, r) + Vector256<float>.One;

        Vector256<int> exponent = shifted.AsInt32() - Vector256.Create(BitConverter.SingleToInt32Bits(RoundingShift));
        Vector256<int> half = exponent >> 1;
        return p * PowerOfTwo(half) * PowerOfTwo(exponent - half);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> LogLanes(Vector256<float> x)
    {
        Vector256<float> tiny = Vector256.LessThan(x, Vector256.Create(1.17549435e-38f));
        Vector256<float> scaled = Vector256.ConditionalSelect(tiny, x * Vector256.Create(8388608f), x);

        // scaled = 2^e * m with sqrt(1/2) <= m < sqrt(2): subtracting the bits of sqrt(1/2) moves the border of the exponent field there.
        Vector256<int> offset = scaled.AsInt32() - Vector256.Create(0x3F3504F3);
        Vector256<int> e = offset >> 23;
        Vector256<float> f = (scaled.AsInt32() - (e << 23)).AsSingle() - Vector256<float>.One;
        Vector256<float> exponent = Vector256.ConvertToSingle(e) - (tiny & Vector256.Create(23f));

        Vector256<float> z = f * f;
        Vector256<float> p = Vector256.FusedMultiplyAdd(Vector256.Create(7.0376836292e-2f), f, Vector256.Create(-1.1514610310e-1f));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(1.1676998740e-1f));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(-1.2420140846e-1f));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(1.4249322787e-1f));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(-1.6668057665e-1f));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(2.0000714765e-1f));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(-2.4999993993e-1f));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(3.3333331174e-1f));
        Vector256<float> y = Vector256.FusedMultiplyAdd(exponent, Vector256.Create(Ln2Low), p * f * z);
        y = Vector256.FusedMultiplyAdd(z, Vector256.Create(-0.5f), y) + f;
        y = Vector256.FusedMultiplyAdd(exponent, Vector256.Create(Ln2High), y);

        y = Vector256.ConditionalSelect(Vector256.Equals(x, Vector256<float>.Zero), Vector256.Create(float.NegativeInfinity), y);
        y = Vector256.ConditionalSelect(Vector256.LessThan(x, Vector256<float>.Zero), Vector256.Create(float.NaN), y);
        // +inf and NaN: what the argument was.
        return Vector256.ConditionalSelect(Vector256.LessThan(x, Vector256.Create(float.PositiveInfinity)), y, x + x);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> TanhLanes(Vector256<float> x)
    {
        Vector256<float> sign = x & Vector256.Create(-0f);
        Vector256<float> a = x ^ sign;
        Vector256<float> large = Vector256<float>.One - (Vector256.Create(2f) / (ExpLanes(a + a) + Vector256<float>.One));

        Vector256<float> z = x * x;
        Vector256<float> p = Vector256.FusedMultiplyAdd(Vector256.Create(-5.70498872745e-3f), z, Vector256.Create(2.06390887954e-2f));
        p = Vector256.FusedMultiplyAdd(p, z, Vector256.Create(-5.37397155531e-2f));
        p = Vector256.FusedMultiplyAdd(p, z, Vector256.Create(1.33314422036e-1f));
        p = Vector256.FusedMultiplyAdd(p, z, Vector256.Create(-3.33332819422e-1f));
        Vector256<float> small = Vector256.FusedMultiplyAdd(p * z, a, a);
        return Vector256.ConditionalSelect(Vector256.LessThan(a, Vector256.Create(0.625f)), small, large) ^ sign;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> SigmoidLanes(Vector256<float> x)
    {
        Vector256<float> e = ExpLanes(x | Vector256.Create(-0f));
        Vector256<float> numerator = Vector256.ConditionalSelect(Vector256.LessThan(x, Vector256<float>.Zero), e, Vector256<float>.One);
        return numerator / (Vector256<float>.One + e);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> PowerOfTwo(Vector256<int> exponent) => ((exponent + Vector256.Create(127)) << 23).AsSingle();
}
