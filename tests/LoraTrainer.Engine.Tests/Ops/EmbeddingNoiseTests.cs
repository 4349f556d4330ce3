using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

public sealed class EmbeddingNoiseTests
{
    private const float Alpha = 5;

    private static readonly DropoutKey Key = new(Seed: 77, Stream: 9, Step: 4, FirstRow: 1000);

    [Theory]
    [InlineData(1, 1, new[] { 0, 1 })]
    [InlineData(7, 64, new[] { 0, 7 })]
    [InlineData(40, 123, new[] { 0, 1, 3, 40 })]
    [InlineData(33, 600, new[] { 0, 20, 33 })]
    public void Add_AnyDocuments_MatchesTheFormula(int n, int d, int[] offsets)
    {
        float[] before = Values(1, n * d);
        float[]? first = null;
        foreach (int threads in (int[])[1, 2, 3])
        {
            using Device device = Open("cpu", threads);
            Tensor embedded = device.Upload(before, new Shape(n, d));
            EmbeddingNoise.Add(embedded, Documents(offsets), Alpha, Key);
            float[] after = embedded.Download();
            var random = new CounterRandom(Key.Seed, Key.Stream, Key.Step);
            var expected = new double[n * d];
            for (int row = 0; row < n; row++)
            {
                int document = Array.FindIndex(offsets, end => end > row) - 1;
                double magnitude = Alpha / Math.Sqrt((offsets[document + 1] - offsets[document]) * (double)d);
                for (int column = 0; column < d; column++)
                {
                    expected[(row * d) + column] = before[(row * d) + column] + (((2.0 * random.Uniform((ulong)((1000 + row) * (long)d) + (ulong)column)) - 1) * magnitude);
                }
            }

            Within(expected, [.. expected.Select((value, i) => ((2 * Math.Abs(value)) + Math.Abs(value - before[i])) * 2 * U)], after, $"{threads} threads");
            TensorAssert.BitEqual(first ??= after, after, $"{threads} threads");
        }
    }

    [Fact]
    public void Add_BatchThatIsCutBetweenDocuments_GivesTheSameBits()
    {
        using Device device = Open("cpu");
        const int d = 96;
        Tensor whole = device.Random(1, new Shape(30, d)), cut = device.Random(1, new Shape(30, d));
        EmbeddingNoise.Add(whole, Documents(0, 12, 30), Alpha, Key);
        EmbeddingNoise.Add(cut.Rows(0, 12), Documents(0, 12), Alpha, Key);
        EmbeddingNoise.Add(cut.Rows(12, 18), Documents(0, 18), Alpha, Key with { FirstRow = Key.FirstRow + 12 });
        TensorAssert.BitEqual(whole.Download(), cut.Download(), "cut");
    }

    [Fact]
    public void Add_ManyElements_IsUniformAndOtherInEachStep()
    {
        using Device device = Open("cpu");
        const int n = 400, d = 500;
        Tensor noise = device.Filled(0, new Shape(n, d)), other = device.Filled(0, new Shape(n, d));
        EmbeddingNoise.Add(noise, Documents(0, n), Alpha, Key);
        EmbeddingNoise.Add(other, Documents(0, n), Alpha, Key with { Step = Key.Step + 1 });
        double magnitude = Alpha / Math.Sqrt(n * (double)d);
        double[] x = [.. noise.Doubles().Select(value => value / magnitude)], y = [.. other.Doubles().Select(value => value / magnitude)];

        // Mean 0 and variance 1/3, within six of their standard errors; the steps do not correlate.
        double error = 6 / Math.Sqrt(x.Length);
        Assert.All(x, value => Assert.InRange(value, -1.0001, 1.0001));
        Assert.InRange(x.Average(), -error * 0.577, error * 0.577);
        Assert.InRange(x.Average(value => value * value), (1 / 3.0) - (error * 0.298), (1 / 3.0) + (error * 0.298));
        Assert.InRange(x.Zip(y, (a, b) => a * b).Average(), -error / 3, error / 3);
    }

    [Fact]
    public void Calls_WrongArguments_SayWhich()
    {
        using Device device = Open("cpu");
        Tensor x = device.Random(1, new Shape(2, 8));
        Throws("EmbeddingNoise.Add: the documents end at token 3, expected 2", () => EmbeddingNoise.Add(x, Documents(0, 3), Alpha, Key));
        Assert.Equal("alpha", Assert.Throws<ArgumentOutOfRangeException>(() => EmbeddingNoise.Add(x, Documents(0, 2), 0, Key)).ParamName);
    }

    private static PackedDocuments Documents(params int[] offsets) => new(Tensor.None, offsets);
}
