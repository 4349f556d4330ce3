using LoraTrainer.Engine.Numerics;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Numerics;

/// <summary>Decompositions of a weight matrix, held against what defines them.</summary>
public sealed class DecompositionTests
{
    [Theory]
    [InlineData(1, 1, 1)]
    [InlineData(64, 64, 8)]
    [InlineData(64, 300, 4)]
    [InlineData(301, 40, 40)]
    [InlineData(400, 500, 16)]
    public void TruncatedSvd_OfARandomMatrix_HasSingularPairs(int rows, int columns, int count)
    {
        float[] w = Values(1, rows * columns);
        TruncatedSvd svd = TruncatedSvd.Compute(w, rows, columns, count, 2);
        double largest = svd.S[0];
        for (int k = 0; k < count; k++)
        {
            double[] wv = [.. Enumerable.Range(0, rows).Select(i => Enumerable.Range(0, columns).Sum(j => w[i * columns + j] * svd.V[k][j]))];
            double[] wu = [.. Enumerable.Range(0, columns).Select(j => Enumerable.Range(0, rows).Sum(i => w[i * columns + j] * svd.U[k][i]))];
            Assert.True(Distance(wv, svd.U[k], svd.S[k]) <= 1e-7 * largest, $"W v is not s u for pair {k}");
            Assert.True(Distance(wu, svd.V[k], svd.S[k]) <= 1e-7 * largest, $"W^T u is not s v for pair {k}");
            for (int other = 0; other <= k; other++)
            {
                double expected = other == k ? 1 : 0;
                Assert.True(Math.Abs(Dot(svd.U[k], svd.U[other]) - expected) <= 1e-10, $"u {k} and {other}");
                Assert.True(Math.Abs(Dot(svd.V[k], svd.V[other]) - expected) <= 1e-10, $"v {k} and {other}");
            }
        }

        // Nothing larger is left: what remains of the matrix beside the pairs has the length that the other values have.
        Assert.True(svd.S.SequenceEqual(svd.S.OrderDescending()));
        if (count == Math.Min(rows, columns))
        {
            double squares = w.Sum(v => (double)v * v);
            Assert.Equal(squares, svd.S.Sum(s => s * s), 1e-9 * squares);
        }
    }

    [Fact]
    public void TruncatedSvd_OfKnownValues_FindsTheLargest()
    {
        // H S H' with Householder reflections H = I - 2 h h^T: singular values 9, 9, 9 (repeated), 5, 1, 1e-3, then zeros.
        const int rows = 30, columns = 20;
        double[] values = [9, 9, 9, 5, 1, 1e-3];
        double[] left = Unit(1, rows), right = Unit(2, columns);
        float[] w = new float[rows * columns];
        for (int i = 0; i < rows; i++)
        {
            for (int j = 0; j < columns; j++)
            {
                w[i * columns + j] = (float)values.Select((s, k) => s * ((i == k ? 1 : 0) - 2 * left[i] * left[k]) * ((j == k ? 1 : 0) - 2 * right[j] * right[k])).Sum();
            }
        }

        TruncatedSvd svd = TruncatedSvd.Compute(w, rows, columns, 8, 1);
        for (int k = 0; k < 8; k++)
        {
            Assert.Equal(k < values.Length ? values[k] : 0, svd.S[k], 1e-5);
        }
    }

    [Fact]
    public void Decompositions_OfZeros_AreZero()
    {
        TruncatedSvd svd = TruncatedSvd.Compute(new float[60], 6, 10, 3, 2);
        Assert.All(svd.S, s => Assert.Equal(0, s));
        Assert.All(svd.U.Concat(svd.V), v => Assert.All(v, x => Assert.True(double.IsFinite(x))));
        (double[] q, double[] r) = PartialQr.Compute(new float[60], 6, 10, 3, 2);
        Assert.All(r, v => Assert.Equal(0, v));
        Assert.All(q, v => Assert.True(double.IsFinite(v)));
    }

    [Fact]
    public void Decompositions_AnyThreads_SameBits()
    {
        float[] w = Values(3, 130 * 600);
        TruncatedSvd one = TruncatedSvd.Compute(w, 130, 600, 5, 1), four = TruncatedSvd.Compute(w, 130, 600, 5, 4);
        Assert.Equal(one.S, four.S);
        Assert.Equal(one.U, four.U);
        Assert.Equal(one.V, four.V);
        Assert.Equal(PartialQr.Compute(w, 130, 600, 5, 1), PartialQr.Compute(w, 130, 600, 5, 4), (a, b) => a.Q.SequenceEqual(b.Q) && a.R.SequenceEqual(b.R));
    }

    [Theory]
    [InlineData(1, 1, 1)]
    [InlineData(50, 30, 7)]
    [InlineData(20, 90, 20)]
    public void PartialQr_IsTheFirstPartOfQR(int rows, int columns, int count)
    {
        float[] w = Values(4, rows * columns);
        (double[] q, double[] r) = PartialQr.Compute(w, rows, columns, count, 2);
        for (int a = 0; a < count; a++)
        {
            for (int b = 0; b < count; b++)
            {
                Assert.Equal(a == b ? 1 : 0, Enumerable.Range(0, rows).Sum(i => q[i * count + a] * q[i * count + b]), 1e-12);
                if (b < a)
                {
                    Assert.Equal(0, r[a * columns + b], 1e-10);
                }
            }
        }

        // The first columns are whole; with all of Q the product is W.
        for (int j = 0; j < (count == Math.Min(rows, columns) && rows <= columns ? columns : count); j++)
        {
            for (int i = 0; i < rows; i++)
            {
                Assert.Equal(w[i * columns + j], Enumerable.Range(0, count).Sum(k => q[i * count + k] * r[k * columns + j]), 1e-10);
            }
        }
    }

    private static double Dot(double[] a, double[] b) => a.Zip(b, (x, y) => x * y).Sum();

    private static double Distance(double[] a, double[] b, double scale) => Math.Sqrt(a.Zip(b, (x, y) => (x - scale * y) * (x - scale * y)).Sum());

    private static double[] Unit(uint stream, int length)
    {
        double[] values = [.. Values(stream, length).Select(v => (double)v)];
        double norm = Math.Sqrt(Dot(values, values));
        return [.. values.Select(v => v / norm)];
    }
}
