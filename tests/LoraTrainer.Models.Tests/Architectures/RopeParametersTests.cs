using LoraTrainer.Models.Architectures;
using Xunit;

namespace LoraTrainer.Models.Tests.Architectures;

public class RopeParametersTests
{
    /// <summary>Values of the reference implementation for Llama 3.1, in double; floats agree to half a unit in the last place, the printed digits to 5e-10.</summary>
    [Theory]
    [InlineData(0, 1.0)]
    [InlineData(1, 8.146172339e-01)]
    [InlineData(28, 3.211445995e-03)]
    [InlineData(29, 2.166570764e-03)]
    [InlineData(30, 1.371893568e-03)]
    [InlineData(31, 8.567514129e-04)]
    [InlineData(32, 5.248461610e-04)]
    [InlineData(33, 3.126937504e-04)]
    [InlineData(34, 1.785078128e-04)]
    [InlineData(35, 9.556212354e-05)]
    [InlineData(63, 3.068925989e-07)]
    public void ComputeInverseFrequencies_Llama3_MatchesReference(int index, double expected)
    {
        var rope = new RopeParameters { Type = RopeType.Llama3, Theta = 5e5, Factor = 8, LowFreqFactor = 1, HighFreqFactor = 4, OriginalMaxPositionEmbeddings = 8192 };
        RopeFrequencies frequencies = rope.ComputeInverseFrequencies(128, 131072);
        Assert.Equal(64, frequencies.InverseFrequencies.Length);
        Assert.Equal(1f, frequencies.AttentionScaling);
        AssertRelative(expected, frequencies.InverseFrequencies[index]);
    }

    [Theory]
    [InlineData(20, 1.333521432e-02)]
    [InlineData(24, 5.375321491e-03)]
    [InlineData(30, 1.064360981e-03)]
    [InlineData(40, 4.445698525e-05)]
    [InlineData(63, 3.102344402e-07)]
    public void ComputeInverseFrequencies_Yarn_MatchesReference(int index, double expected)
    {
        var rope = new RopeParameters { Type = RopeType.Yarn, Theta = 1e6, Factor = 4, OriginalMaxPositionEmbeddings = 32768 };
        RopeFrequencies frequencies = rope.ComputeInverseFrequencies(128, 131072);
        Assert.Equal((float)1.138629436111989, frequencies.AttentionScaling);
        AssertRelative(expected, frequencies.InverseFrequencies[index]);
    }

    [Fact]
    public void ComputeInverseFrequencies_Yarn_TakesGivenFactorBeforeQuotient()
    {
        // 131072 / 32768 is 4; a given factor of 2 stays 2, and without one the quotient counts.
        var rope = new RopeParameters { Type = RopeType.Yarn, Theta = 1e6, Factor = 2, OriginalMaxPositionEmbeddings = 32768 };
        float given = rope.ComputeInverseFrequencies(128, 131072).InverseFrequencies[63];
        float quotient = (rope with { Factor = null }).ComputeInverseFrequencies(128, 131072).InverseFrequencies[63];
        AssertRelative(2 * 3.102344402e-07, given);
        AssertRelative(3.102344402e-07, quotient);
    }

    [Fact]
    public void ComputeInverseFrequencies_Yarn_AttentionFactorRules()
    {
        var rope = new RopeParameters { Type = RopeType.Yarn, Theta = 1e4, Factor = 40, OriginalMaxPositionEmbeddings = 4096 };
        Assert.Equal(0.25f, Scaling(rope with { AttentionFactor = 0.25 }));
        Assert.Equal(1f, Scaling(rope with { MScale = 0.707, MScaleAllDim = 0.707 }));
        Assert.Equal((float)(((0.1 * Math.Log(40)) + 1) / ((0.05 * Math.Log(40)) + 1)), Scaling(rope with { MScale = 1, MScaleAllDim = 0.5 }));
        Assert.Equal((float)((0.1 * Math.Log(40)) + 1), Scaling(rope with { MScale = 1, MScaleAllDim = 0 }));
        Assert.Equal(1f, Scaling(rope with { Factor = 1 }));

        static float Scaling(RopeParameters rope) => rope.ComputeInverseFrequencies(64, 163840).AttentionScaling;
    }

    [Fact]
    public void ComputeInverseFrequencies_Linear_DividesAll()
    {
        float[] plain = new RopeParameters { Theta = 1e4 }.ComputeInverseFrequencies(16, 512).InverseFrequencies;
        float[] linear = new RopeParameters { Type = RopeType.Linear, Theta = 1e4, Factor = 2 }.ComputeInverseFrequencies(16, 512).InverseFrequencies;
        Assert.Equal(1f, plain[0]);
        AssertRelative(Math.Pow(1e4, -0.875), plain[7]);
        Assert.Equal(plain.Select(value => value / 2), linear);
    }

    [Fact]
    public void ComputeInverseFrequencies_Dynamic_ChangesOnlyPastTheContext()
    {
        var rope = new RopeParameters { Type = RopeType.Dynamic, Theta = 1e4, Factor = 2 };
        float[] plain = new RopeParameters { Theta = 1e4 }.ComputeInverseFrequencies(16, 512).InverseFrequencies;
        Assert.Equal(plain, rope.ComputeInverseFrequencies(16, 512, 512).InverseFrequencies);
        double theta = 1e4 * Math.Pow((2.0 * 1024 / 512) - 1, 16.0 / 14);
        AssertRelative(Math.Pow(theta, -0.875), rope.ComputeInverseFrequencies(16, 512, 1024).InverseFrequencies[7]);
    }

    private static void AssertRelative(double expected, float actual)
        => Assert.True(Math.Abs(actual - expected) <= 7e-8 * expected, $"expected {expected:R}, got {actual:R}");
}
