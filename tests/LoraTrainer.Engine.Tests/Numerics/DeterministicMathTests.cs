using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Numerics;
using Xunit;

namespace LoraTrainer.Engine.Tests.Numerics;

/// <summary>Against the platform's functions, whose own errors are below 1 ulp: ours may differ from them by at most 2.</summary>
public sealed class DeterministicMathTests
{
    private const int Points = 50_000;

    [Fact]
    public void Exp_AtManyPoints_AgreesWithThePlatform()
    {
        Compare(DeterministicMath.Exp, Math.Exp, -745, 709.7, 1);
        Compare(DeterministicMath.Exp, Math.Exp, -1, 1, 1);
        Compare(DeterministicMath.Exp, Math.Exp, -1e-9, 1e-9, 1);
        Assert.Equal(double.PositiveInfinity, DeterministicMath.Exp(710));
        Assert.Equal(0, DeterministicMath.Exp(double.NegativeInfinity));
        Assert.True(double.IsNaN(DeterministicMath.Exp(double.NaN)));
    }

    [Fact]
    public void Log_AtManyPoints_AgreesWithThePlatform()
    {
        Compare(DeterministicMath.Log, Math.Log, 1e-3, 2, 1);
        Compare(DeterministicMath.Log, Math.Log, 0.999999, 1.000001, 1);
        Compare(DeterministicMath.Log, Math.Log, 1, 1e9, 1);
        Compare(DeterministicMath.Log, Math.Log, 1e-310, 1e-300, 1);
        Assert.Equal(double.NegativeInfinity, DeterministicMath.Log(0));
        Assert.Equal(double.PositiveInfinity, DeterministicMath.Log(double.PositiveInfinity));
        Assert.True(double.IsNaN(DeterministicMath.Log(-1)));
        Assert.True(double.IsNaN(DeterministicMath.Log(double.NaN)));
    }

    [Theory]
    [InlineData(10000)]
    [InlineData(500000)]
    [InlineData(0.9)]
    [InlineData(0.999)]
    [InlineData(1.0000001)]
    [InlineData(0.5)]
    public void Pow_AtManyPoints_AgreesWithThePlatform(double x)
    {
        double limit = 700 / Math.Abs(Math.Log(x));
        Compare(y => DeterministicMath.Pow(x, y), y => Math.Pow(x, y), -limit, limit, 2);
        Compare(y => DeterministicMath.Pow(x, y), y => Math.Pow(x, y), -1, 1, 2);
        Compare(b => DeterministicMath.Pow(b, 0.25 * x), b => Math.Pow(b, 0.25 * x), 0, 1, 2);
    }

    [Fact]
    public void Pow_AtTheEdges_GivesTheLimits()
    {
        Assert.Equal(1, DeterministicMath.Pow(0, 0));
        Assert.Equal(0, DeterministicMath.Pow(0, 2));
        Assert.Equal(double.PositiveInfinity, DeterministicMath.Pow(0, -2));
        Assert.Equal(1, DeterministicMath.Pow(1, double.PositiveInfinity));
        Assert.Equal(double.PositiveInfinity, DeterministicMath.Pow(10, 400));
        Assert.Equal(0, DeterministicMath.Pow(10, -400));
        Assert.Equal(0, DeterministicMath.Pow(0.5, double.PositiveInfinity));
        Assert.Equal(1024, DeterministicMath.Pow(2, 10));
        Assert.True(double.IsNaN(DeterministicMath.Pow(-1, 2)));
        Assert.True(double.IsNaN(DeterministicMath.Pow(double.NaN, 2)));
    }

    [Theory]
    [InlineData(-1, 1)]
    [InlineData(-1e-8, 1e-8)]
    [InlineData(-100, 100)]
    [InlineData(0, 1e5)]
    [InlineData(-1e7, 1e7)]
    public void SinCos_AtManyPoints_AgreeWithThePlatform(double low, double high)
    {
        Compare(DeterministicMath.Sin, Math.Sin, low, high, 1);
        Compare(DeterministicMath.Cos, Math.Cos, low, high, 1);
    }

    [Fact]
    public void SinCos_NextToMultiplesOfHalfPi_KeepTheirRelativeAccuracy()
    {
        for (int n = 0; n < 6_000_000; n += 997)
        {
            double x = n * (Math.PI / 2);
            Near(Math.Sin(x), DeterministicMath.Sin(x), 1, x);
            Near(Math.Cos(x), DeterministicMath.Cos(x), 1, x);
        }

        Assert.True(double.IsNaN(DeterministicMath.Sin(1.1e7)));
        Assert.True(double.IsNaN(DeterministicMath.Cos(double.PositiveInfinity)));
    }

    private static void Compare(Func<double, double> ours, Func<double, double> platform, double low, double high, double ulps)
    {
        for (int i = 0; i < Points; i++)
        {
            double x = low + ((high - low) * i / Points);
            Near(platform(x), ours(x), ulps, x);
        }
    }

    private static void Near(double expected, double actual, double ulps, double x)
    {
        double ulp = double.IsInfinity(expected) ? 0 : Math.BitIncrement(Math.Abs(expected)) - Math.Abs(expected);
        Assert.True(actual == expected || Math.Abs(actual - expected) <= ulps * ulp, $"at {x:R}: {actual:R}, the platform says {expected:R}");
    }

    [Fact]
    public void Vectors_AtTheBordersAndBetween_EqualTheScalarFunctions()
    {
        // What Box-Muller asks for: logarithms of (u + 1) / 2^32, angles 2 pi v / 2^32.
        uint[] words = [0, 1, 2, 0x3FFFFFFF, 0x40000000, 0x5A827998, 0x5A827999, 0x5A82799A, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xB504F332, 0xB504F333, 0xB504F334, 0xC0000000, 0xE0000000, 0xFFFFFFFE, 0xFFFFFFFF,
            .. Enumerable.Range(0, 20_002).Select(i => (uint)i * 214_733u)];
        for (int i = 0; i + 4 <= words.Length; i += 4)
        {
            double[] fractions = [.. words.AsSpan(i, 4).ToArray().Select(word => (word + 1.0) / 4294967296.0)];
            double[] angles = [.. words.AsSpan(i, 4).ToArray().Select(word => word * (2.0 * Math.PI / 4294967296.0))];
            Vector256<double> log = DeterministicMath.Log(Vector256.Create(fractions));
            (Vector256<double> sin, Vector256<double> cos) = DeterministicMath.SinCos(Vector256.Create(angles));
            for (int lane = 0; lane < 4; lane++)
            {
                SameBits(DeterministicMath.Log(fractions[lane]), log[lane]);
                SameBits(DeterministicMath.Sin(angles[lane]), sin[lane]);
                SameBits(DeterministicMath.Cos(angles[lane]), cos[lane]);
            }
        }

        static void SameBits(double expected, double actual) => Assert.Equal(BitConverter.DoubleToInt64Bits(expected), BitConverter.DoubleToInt64Bits(actual));
    }
}
