using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Numerics;
using Xunit;

namespace LoraTrainer.Engine.Tests.Numerics;

public sealed class CounterRandomTests
{
    // The published known answers of Philox4x32-10 (Random123, kat_vectors).
    [Theory]
    [InlineData(0u, 0u, 0u, 0u, 0u, 0u, 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u)]
    [InlineData(~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu)]
    [InlineData(0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xa4093822u, 0x299f31d0u, 0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u)]
    public void Philox_OfThePublishedVectors_GivesThePublishedAnswers(
        uint c0, uint c1, uint c2, uint c3, uint k0, uint k1, uint r0, uint r1, uint r2, uint r3)
    {
        Assert.Equal(Vector128.Create(r0, r1, r2, r3), CounterRandom.Philox(Vector128.Create(c0, c1, c2, c3), k0, k1));
    }

    [Fact]
    public void UniformUInt32_OfAnElement_IsAWordOfTheDocumentedCounter()
    {
        var random = new CounterRandom(seed: 0x1111111122222222, stream: 3, step: 4);
        for (ulong element = (1UL << 36) - 6; element < (1UL << 36) + 6; element++)
        {
            Vector128<uint> words = CounterRandom.Philox(Vector128.Create((uint)(element / 4), (uint)(element >> 34), 4, 3), 0x22222222, 0x11111111);
            Assert.Equal(words.GetElement((int)(element % 4)), random.UniformUInt32(element));
        }
    }

    [Fact]
    public void Numbers_OfDifferentAddresses_Differ()
    {
        uint[] all =
        [
            new CounterRandom(1, 2, 3).UniformUInt32(4),
            new CounterRandom(1UL << 32, 2, 3).UniformUInt32(4),
            new CounterRandom(1, 3, 2).UniformUInt32(4),
            new CounterRandom(1, 2, 4).UniformUInt32(4),
            new CounterRandom(1, 2, 3).UniformUInt32(5),
            new CounterRandom(1, 2, 3).UniformUInt32(4 + (1UL << 34)),
        ];
        Assert.Equal(all.Length, all.Distinct().Count());
    }

    [Fact]
    public void Uniform_OfManyElements_HasItsMoments()
    {
        const int Count = 200_000;
        var random = new CounterRandom(7, 1, 0);
        double sum = 0, squares = 0;
        for (ulong i = 0; i < Count; i++)
        {
            float u = random.Uniform(i);
            Assert.True(u is >= 0 and < 1);
            sum += u;
            squares += u * u;
        }

        // Five standard errors.
        Assert.InRange(sum / Count, 0.5 - (5 * 0.2887 / Math.Sqrt(Count)), 0.5 + (5 * 0.2887 / Math.Sqrt(Count)));
        Assert.InRange(squares / Count, 0.3333 - (5 * 0.2981 / Math.Sqrt(Count)), 0.3334 + (5 * 0.2981 / Math.Sqrt(Count)));
    }

    [Fact]
    public void Normal_OfManyElements_HasItsMoments()
    {
        const int Count = 200_000;
        var random = new CounterRandom(7, 2, 0);
        double sum = 0, squares = 0, fourth = 0, neighbours = 0, last = 0;
        for (ulong i = 0; i < Count; i++)
        {
            double z = random.Normal(i);
            sum += z;
            squares += z * z;
            fourth += z * z * z * z;
            neighbours += z * last;
            last = z;
        }

        double error = 5 / Math.Sqrt(Count);
        Assert.InRange(sum / Count, -error, error);
        Assert.InRange(neighbours / Count, -error, error);
        Assert.InRange(squares / Count, 1 - (1.42 * error), 1 + (1.42 * error));
        Assert.InRange(fourth / Count, 3 - (9.8 * error), 3 + (9.8 * error));
    }

    [Theory]
    [InlineData(0UL, 0)]
    [InlineData(0UL, 32)]
    [InlineData(1UL, 1)]
    [InlineData(31UL, 34)]
    [InlineData(5UL, 100_003)]
    [InlineData((1UL << 34) - 40, 100)]
    public void FillNormal_AnyOffsetAndLength_EqualsNormalBitForBit(ulong first, int count)
    {
        var random = new CounterRandom(0xDEADBEEF12345678, 9, 11);
        float[] filled = Enumerable.Repeat(float.NaN, count).ToArray();
        random.FillNormal(filled, first);
        for (int i = 0; i < count; i++)
        {
            Assert.Equal(BitConverter.SingleToUInt32Bits(random.Normal(first + (ulong)i)), BitConverter.SingleToUInt32Bits(filled[i]));
        }
    }

    [Theory]
    [InlineData(0UL, 0)]
    [InlineData(0UL, 32)]
    [InlineData(31UL, 34)]
    [InlineData(5UL, 10_003)]
    [InlineData((1UL << 34) - 40, 100)]
    public void FillUniform_AnyOffsetAndLength_EqualsUniformBitForBit(ulong first, int count)
    {
        var random = new CounterRandom(0xDEADBEEF12345678, 9, 11);
        float[] filled = Enumerable.Repeat(float.NaN, count).ToArray();
        random.FillUniform(filled, first);
        for (int i = 0; i < count; i++)
        {
            Assert.Equal(random.Uniform(first + (ulong)i), filled[i]);
        }
    }

    [Theory]
    [InlineData(0UL, 1, 0.9f)]
    [InlineData(0UL, 32, 0.9f)]
    [InlineData(0UL, 257, 0.5f)]
    [InlineData(5UL, 3, 0.5f)]
    [InlineData(31UL, 34, 0.95f)]
    [InlineData((1UL << 34) - 40, 100, 0.3f)]
    [InlineData(96UL, 1000, 1f)]
    public void Dropout_AnyOffsetAndLength_EqualsTheDefinition(ulong first, int count, float keep)
    {
        var random = new CounterRandom(0xDEADBEEF12345678, 9, 11);
        float[] x = [.. Enumerable.Range(0, count).Select(i => i - 7.25f)];
        float[] y = Enumerable.Repeat(float.NaN, count).ToArray();
        random.Dropout(y, x, first, keep);
        for (int i = 0; i < count; i++)
        {
            float expected = random.UniformUInt32(first + (ulong)i) < CounterRandom.KeepThreshold(keep) ? x[i] * (1 / keep) : 0;
            Assert.Equal(expected, y[i]);
        }

        random.Dropout(x, x, first, keep);
        Assert.Equal(y, x);
    }

    [Fact]
    public void Dropout_OfADroppedNaN_IsZero()
    {
        float[] x = Enumerable.Repeat(float.NaN, 320).ToArray();
        new CounterRandom(1, 1, 1).Dropout(x, x, 0, 0.5f);
        Assert.Contains(0f, x);
        Assert.Contains(float.NaN, x);
    }

    [Theory]
    [InlineData(0f)]
    [InlineData(-0.5f)]
    [InlineData(1.5f)]
    [InlineData(float.NaN)]
    public void Dropout_WithAnImpossibleProbability_Throws(float keep)
        => Assert.Throws<ArgumentOutOfRangeException>(() => new CounterRandom(1, 1, 1).Dropout(new float[1], new float[1], 0, keep));

    [Fact]
    public void Dropout_OfManyElements_KeepsTheirShare()
    {
        float[] x = Enumerable.Repeat(1f, 100_000).ToArray();
        new CounterRandom(3, 1, 4).Dropout(x, x, 0, 0.9f);
        Assert.InRange(x.Count(v => v != 0), 90_000 - 475, 90_000 + 475);
    }

    [Fact]
    public void Shuffle_OfThreeItems_GivesEachOrderEquallyOften()
    {
        const int Count = 60_000;
        var counts = new Dictionary<string, int>();
        for (uint i = 0; i < Count; i++)
        {
            int[] items = [0, 1, 2];
            new CounterRandom(1, 5, i).Shuffle(items);
            string key = string.Join(',', items);
            counts[key] = counts.GetValueOrDefault(key) + 1;
        }

        Assert.Equal(6, counts.Count);
        Assert.All(counts.Values, n => Assert.InRange(n, 10_000 - 460, 10_000 + 460));
    }

    [Fact]
    public void Shuffle_OfManyItems_IsAPermutationAndRepeats()
    {
        int[] first = [.. Enumerable.Range(0, 1000)];
        int[] second = [.. first];
        new CounterRandom(1, 5, 2).Shuffle(first);
        new CounterRandom(1, 5, 2).Shuffle(second);
        Assert.Equal(first, second);
        Assert.NotEqual(Enumerable.Range(0, 1000), first);
        Assert.Equal(Enumerable.Range(0, 1000), first.Order());
    }
}
