using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Numerics;
using Xunit;

namespace LoraTrainer.Engine.Tests.Numerics;

public sealed class VectorMathTests
{

    [Fact]
    public void Exp_OverItsRange_IsWithinAnUlp()
        => CheckAccuracy(VectorMath.Exp, VectorMath.Exp, Math.Exp, -103.9, 89, 1);

    [Fact]
    public void Log_OverItsRange_IsWithinAnUlp()
    {
        CheckAccuracy(VectorMath.Log, VectorMath.Log, Math.Log, 0.4, 3, 1.5);
        CheckAccuracy(VectorMath.Log, VectorMath.Log, Math.Log, 1e-3, 1e4, 1.5);
        CheckAccuracy(VectorMath.Log, VectorMath.Log, Math.Log, 1e-45, 1e-37, 1.5);
        CheckAccuracy(VectorMath.Log, VectorMath.Log, Math.Log, 1e30, 3e38, 1.5);
    }

    [Fact]
    public void Tanh_OverItsRange_IsWithinTwoUlps()
    {
        CheckAccuracy(VectorMath.Tanh, VectorMath.Tanh, Math.Tanh, -12, 12, 2);
        CheckAccuracy(VectorMath.Tanh, VectorMath.Tanh, Math.Tanh, -1e-3, 1e-3, 2);
    }

    [Fact]
    public void Sigmoid_OverItsRange_IsWithinThreeUlps()
        => CheckAccuracy(VectorMath.Sigmoid, VectorMath.Sigmoid, v => 1 / (1 + Math.Exp(-v)), -100, 100, 3);

    [Fact]
    public void Functions_AtTheEdges_GiveTheLimits()
    {
        Assert.Equal(0f, VectorMath.Exp(float.NegativeInfinity));
        Assert.Equal(0f, VectorMath.Exp(-1000f));
        Assert.Equal(1f, VectorMath.Exp(0f));
        Assert.Equal(float.PositiveInfinity, VectorMath.Exp(89f));
        Assert.Equal(float.PositiveInfinity, VectorMath.Exp(float.PositiveInfinity));
        Assert.Equal(float.Epsilon, VectorMath.Exp(-103.2f));
        Assert.True(float.IsNaN(VectorMath.Exp(float.NaN)));

        Assert.Equal(0f, VectorMath.Log(1f));
        Assert.Equal(float.NegativeInfinity, VectorMath.Log(0f));
        Assert.Equal(float.NegativeInfinity, VectorMath.Log(-0f));
        Assert.Equal(float.PositiveInfinity, VectorMath.Log(float.PositiveInfinity));
        Assert.True(float.IsNaN(VectorMath.Log(-1f)));
        Assert.True(float.IsNaN(VectorMath.Log(float.NegativeInfinity)));
        Assert.True(float.IsNaN(VectorMath.Log(float.NaN)));

        Assert.Equal(1f, VectorMath.Tanh(float.PositiveInfinity));
        Assert.Equal(-1f, VectorMath.Tanh(float.NegativeInfinity));
        Assert.Equal(BitConverter.SingleToInt32Bits(-0f), BitConverter.SingleToInt32Bits(VectorMath.Tanh(-0f)));
        Assert.True(float.IsNaN(VectorMath.Tanh(float.NaN)));

        Assert.Equal(1f, VectorMath.Sigmoid(float.PositiveInfinity));
        Assert.Equal(0f, VectorMath.Sigmoid(float.NegativeInfinity));
        Assert.Equal(0.5f, VectorMath.Sigmoid(0f));
        Assert.True(float.IsNaN(VectorMath.Sigmoid(float.NaN)));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(15)]
    [InlineData(16)]
    [InlineData(17)]
    [InlineData(64)]
    [InlineData(1000)]
    [InlineData(4099)]
    public void Reductions_OfAnyLength_FollowTheFixedOrder(int length)
    {
        float[] x = Values(length, 1);
        float[] y = Values(length, 2);
        Same(Folded(length, (i, sum) => sum + x[i]), VectorMath.Sum(x));
        Same(Folded(length, (i, sum) => MathF.FusedMultiplyAdd(x[i], y[i], sum)), VectorMath.Dot(x, y));
        Same(Folded(length, (i, sum) => MathF.FusedMultiplyAdd(x[i], x[i], sum)), VectorMath.SumOfSquares(x));
        Assert.Equal(length == 0 ? float.NegativeInfinity : x.Max(), VectorMath.Max(x));
        double squares = x.Sum(v => (double)v * v);
        Assert.InRange(VectorMath.SumOfSquaresDouble(x), squares * (1 - 1e-14), squares * (1 + 1e-14));
    }

    [Fact]
    public void Reductions_WithANaNAnywhere_GiveNaN()
    {
        for (int at = 0; at < 40; at++)
        {
            float[] x = Values(40, 3);
            x[at] = float.NaN;
            Assert.True(float.IsNaN(VectorMath.Max(x)), $"Max with NaN at {at}");
            Assert.True(float.IsNaN(VectorMath.Sum(x)), $"Sum with NaN at {at}");
            Assert.True(double.IsNaN(VectorMath.SumOfSquaresDouble(x)), $"SumOfSquaresDouble with NaN at {at}");
        }
    }

    [Fact]
    public void Max_WithTheLargestAnywhere_FindsIt()
    {
        for (int at = 0; at < 40; at++)
        {
            float[] x = Values(40, 3);
            x[at] = 50;
            Assert.Equal(50, VectorMath.Max(x));
            Assert.Equal(-3, VectorMath.Max([.. x.Select(v => v == 50 ? -3 : -100f)]));
        }
    }

    [Fact]
    public void Tails_OfAnyLength_TouchNothingElse()
    {
        for (int length = 1; length <= 16; length++)
        {
            float[] x = Values(length, 4);
            Vector512<float> lanes = VectorMath.LoadTail(x, 7f);
            float[] stored = Enumerable.Repeat(-1f, length + 2).ToArray();
            VectorMath.StoreTail(lanes, stored.AsSpan(1, length));
            Assert.Equal([-1f, .. x, -1f], stored);
            for (int lane = length; lane < 16; lane++)
            {
                Assert.Equal(7f, lanes.GetElement(lane));
            }
        }
    }

    /// <summary>The rule written out: 16 lanes, then l + (l+8), l + (l+4), l + (l+2), l + (l+1). Lanes past the end add zeros.</summary>
    private static float Folded(int length, Func<int, float, float> add)
    {
        float[] lanes = new float[16];
        for (int i = 0; i < length; i++)
        {
            lanes[i % 16] = add(i, lanes[i % 16]);
        }

        for (int width = 8; width > 0; width /= 2)
        {
            for (int i = 0; i < width; i++)
            {
                lanes[i] += lanes[i + width];
            }
        }

        return lanes[0];
    }

    private static void CheckAccuracy(
        Func<Vector512<float>, Vector512<float>> vector, Func<float, float> scalar, Func<double, double> exact, double low, double high, double ulps)
    {
        const int Points = 40_000;
        Span<float> x = stackalloc float[16];
        for (int i = 0; i < Points; i += 16)
        {
            for (int lane = 0; lane < 16; lane++)
            {
                x[lane] = (float)(low + ((high - low) * (i + lane) / Points));
            }

            Vector512<float> result = vector(Vector512.Create<float>(x));
            for (int lane = 0; lane < 16; lane++)
            {
                float actual = result.GetElement(lane);
                Same(scalar(x[lane]), actual);
                double expected = exact(x[lane]);
                if (Math.Abs(expected) > float.MaxValue)
                {
                    Assert.Equal(float.PositiveInfinity, actual);
                    continue;
                }

                double ulp = Math.Max(Math.ScaleB(1, Math.ILogB(expected == 0 ? 1e-300 : expected) - 23), float.Epsilon);
                Assert.True(Math.Abs(actual - expected) <= ulps * ulp, $"at {x[lane]:R}: {actual:R}, exactly {expected:R}: {Math.Abs(actual - expected) / ulp:F2} ulp");
            }
        }

    }

    private static float[] Values(int length, int seed)
        => [.. Enumerable.Range(0, length).Select(i => (float)(Math.Sin((i * 12.9898) + seed) * 10))];

    private static void Same(float expected, float actual)
        => Assert.Equal(BitConverter.SingleToInt32Bits(expected), BitConverter.SingleToInt32Bits(actual));
}
