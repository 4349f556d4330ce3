using LoraTrainer.Models.Adapters;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Adapters;

public sealed class LowRankUpdateTests
{
    /// <summary>An element is a sum of rank + 1 products of numbers below 1, each rounded: (rank + 2) 2^-24 at most, and DoRA's norm as much again.</summary>
    [Theory]
    [InlineData(1, 1, 1, 1.0f, false)]
    [InlineData(5, 123, 3, 2.0f, false)]
    [InlineData(64, 128, 8, 0.5f, false)]
    [InlineData(17, 40, 16, -1.5f, false)]
    [InlineData(5, 123, 3, 2.0f, true)]
    [InlineData(64, 128, 8, 0.5f, true)]
    public void Apply_MatchesReferenceInDouble(int rows, int columns, int rank, float scaling, bool isDora)
    {
        (float[] weight, float[] a, float[] b, float[] magnitude) = Numbers(rows, columns, rank);
        float[] merged = [.. weight];
        new LowRankUpdate(a, b, rank, scaling, isDora ? magnitude : null).Apply(merged, 0, threads: 2);
        TensorAssert.Close(Reference(weight, a, b, rank, scaling, isDora ? magnitude : null), merged, (rank + 2) * 4e-7, $"{rows} x {columns}, rank {rank}");
    }

    [Fact]
    public void Apply_InPiecesAndThreads_GivesTheSameBits()
    {
        const int rows = 37, columns = 45, rank = 5;
        (float[] weight, float[] a, float[] b, float[] magnitude) = Numbers(rows, columns, rank);
        var update = new LowRankUpdate(a, b, rank, 0.7f, magnitude);
        float[] whole = [.. weight];
        update.Apply(whole, 0, threads: 1);
        float[] pieces = [.. weight];
        for (int row = 0; row < rows; row += 8)
        {
            update.Apply(pieces.AsSpan(row * columns, Math.Min(8, rows - row) * columns), row, threads: 4);
        }

        TensorAssert.BitEqual(whole, pieces, "in pieces");
    }

    [Fact]
    public void Apply_Dora_GivesEachRowItsMagnitude_AndLeavesZerosAlone()
    {
        float[] rows = [3, 4, 0, 0];
        new LowRankUpdate([0, 0], [0, 0], 1, 1, [10, 7]).Apply(rows, 0, threads: 1);
        Assert.Equal([6, 8, 0, 0], rows);
    }

    [Fact]
    public void WrongSizes_AreRefused()
    {
        Assert.Throws<ArgumentException>(() => new LowRankUpdate(new float[7], new float[4], 2, 1));
        Assert.Throws<ArgumentException>(() => new LowRankUpdate(new float[6], new float[4], 2, 1, new float[3]));
        Assert.Throws<ArgumentException>(() => new LowRankUpdate(new float[6], new float[4], 2, 1).Apply(new float[6], 1, 1));
        Assert.Throws<ArgumentException>(() => new LowRankUpdate(new float[6], new float[4], 2, 1).Apply(new float[4], 0, 1));
    }

    private static float[] Reference(float[] weight, float[] a, float[] b, int rank, float scaling, float[]? magnitude)
    {
        int rows = b.Length / rank, columns = a.Length / rank;
        float[] result = new float[weight.Length];
        for (int row = 0; row < rows; row++)
        {
            double[] values = [.. Enumerable.Range(0, columns).Select(column =>
                weight[row * columns + column] + scaling * Enumerable.Range(0, rank).Sum(k => (double)b[row * rank + k] * a[k * columns + column]))];
            double factor = magnitude is null ? 1 : magnitude[row] / Math.Sqrt(values.Sum(value => value * value));
            for (int column = 0; column < columns; column++)
            {
                result[row * columns + column] = (float)(values[column] * factor);
            }
        }

        return result;
    }

    private static (float[] Weight, float[] A, float[] B, float[] Magnitude) Numbers(int rows, int columns, int rank)
    {
        var random = new Random(rows * 1000 + columns);
        return (Draw(rows * columns), Draw(rank * columns), Draw(rows * rank), [.. Draw(rows).Select(value => Math.Abs(value) * MathF.Sqrt(columns))]);

        float[] Draw(int count) => [.. Enumerable.Range(0, count).Select(_ => (float)(random.NextDouble() * 2 - 1))];
    }
}
