using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

public sealed class AdamWTests
{
    private static readonly AdamWSettings Settings = new(0.9, 0.999, 1e-8, 0.1);

    [Theory]
    [InlineData("cpu", 1)]
    [InlineData("cpu", 2)]
    [InlineData("cpu", 1000)]
    public void Step_SegmentsWithTheirOwnRates_MatchReferenceAndTouchNothingElse(string name, int step)
    {
        const int size = 2048;
        const double rate = 3e-3;
        const float scale = 0.37f;
        ParameterSegment[] segments = [new(0, 123, 1, true), new(256, 1, 16, false), new(512, 1041, 0.5, true)];
        using Device device = Open(name);
        Tensor p = device.Random(1, new Shape(size)), g = device.Random(2, new Shape(size)), m = device.Random(3, new Shape(size), 0.1f);
        Tensor v = device.Upload([.. Values(4, size).Select(x => x * x * 0.01f)], new Shape(size));
        double[] p0 = p.Doubles(), g0 = g.Doubles(), m0 = m.Doubles(), v0 = v.Doubles();
        AdamW.Step(p, g, m, v, segments, Settings, step, rate, device.Report(1, 1 / (double)scale - 1e-6), 1);

        double[] expectedP = [.. p0], expectedM = [.. m0], expectedV = [.. v0], boundP = new double[size], boundM = new double[size], boundV = new double[size];
        foreach (ParameterSegment segment in segments)
        {
            double lr = rate * segment.LearningRateScale;
            for (long i = segment.Offset; i < segment.Offset + segment.Count; i++)
            {
                double gradient = g0[i] * scale;
                expectedM[i] = Settings.Beta1 * m0[i] + (1 - Settings.Beta1) * gradient;
                expectedV[i] = Settings.Beta2 * v0[i] + (1 - Settings.Beta2) * gradient * gradient;
                double denominator = Math.Sqrt(expectedV[i] / (1 - Math.Pow(Settings.Beta2, step))) + Settings.Epsilon;
                double factor = lr / (1 - Math.Pow(Settings.Beta1, step)) / denominator;
                double kept = p0[i] * (segment.Decays ? 1 - lr * Settings.WeightDecay : 1);
                expectedP[i] = kept - factor * expectedM[i];

                // A handful of roundings in each; the update inherits the absolute error of m, which may have cancelled.
                boundM[i] = 4 * U * (Math.Abs(m0[i]) + Math.Abs(gradient));
                boundV[i] = 6 * U * expectedV[i];
                boundP[i] = 4 * U * Math.Abs(kept) + factor * (boundM[i] + 16 * U * Math.Abs(expectedM[i]));
            }
        }

        // Bounds of zero outside the segments: what lies there stays as it was, live or not.
        Within(expectedM, boundM, m.Download(), "m");
        Within(expectedV, boundV, v.Download(), "v");
        Within(expectedP, boundP, p.Download(), "p");
        Assert.Equal(g0, g.Doubles());
    }

    [Theory]
    [MemberData(nameof(OpCases.Devices), MemberType = typeof(OpCases))]
    public void Step_Repeated_KeepsPaddingZero(string name)
    {
        using Device device = Open(name);
        float[] live = new float[256];
        Values(1, 100).CopyTo(live, 0);
        Tensor p = device.Upload(live, new Shape(256)), g = device.Upload(live, new Shape(256));
        Tensor m = device.Filled(0, new Shape(256)), v = device.Filled(0, new Shape(256));
        for (int step = 1; step <= 20; step++)
        {
            AdamW.Step(p, g, m, v, [new ParameterSegment(0, 100, 1, true)], Settings, step, 1e-2, device.Report(1, 1), 0);
        }

        foreach (Tensor tensor in new[] { p, m, v })
        {
            TensorAssert.BitEqual(new float[156], tensor.Download().AsSpan(100), "padding");
        }

        Assert.All(p.Download()[..100].Zip(live), pair => Assert.NotEqual(pair.First, pair.Second));
    }

    /// <summary>A step that went wrong leaves no trace: the host reads why only afterwards.</summary>
    [Theory]
    [MemberData(nameof(OpCases.Devices), MemberType = typeof(OpCases))]
    public void Step_ReportIsNotFinite_ChangesNothing(string name)
    {
        using Device device = Open(name);
        Tensor p = device.Random(1, new Shape(512)), g = device.Random(2, new Shape(512)), m = device.Random(3, new Shape(512)), v = device.Filled(0.5f, new Shape(512));
        foreach ((double lossSum, double norm) in new[] { (double.NaN, 1.0), (1.0, double.PositiveInfinity), (double.NegativeInfinity, 1.0), (1.0, double.NaN) })
        {
            float[][] before = [p.Download(), m.Download(), v.Download()];
            AdamW.Step(p, g, m, v, [new(0, 512, 1, true)], Settings, 1, 1e-2, device.Report(lossSum, norm), 1);
            TensorAssert.BitEqual(before[0], p.Download(), "p");
            TensorAssert.BitEqual(before[1], m.Download(), "m");
            TensorAssert.BitEqual(before[2], v.Download(), "v");
        }
    }

    [Fact]
    public void Step_WrongArguments_SaysWhich()
    {
        using Device device = Open("cpu"), other = Open("cpu", 1);
        Tensor x = device.Filled(0, new Shape(512));
        void Step(Tensor m, ParameterSegment segment, int step = 1) => AdamW.Step(x, x, m, x, [segment], Settings, step, 1, device.Report(1, 1), 0);
        Throws("AdamW.Step: firstMoment must be F32 (512), got F32 (256).", () => Step(device.Filled(0, new Shape(256)), new(0, 1, 1, true)));
        Throws("AdamW.Step: a segment of 1 elements at 16 must lie within the 512 parameters and start at a multiple of 256.", () => Step(x, new(16, 1, 1, true)));
        Throws("AdamW.Step: a segment of 257 elements at 256 must lie within the 512 parameters and start at a multiple of 256.", () => Step(x, new(256, 257, 1, true)));
        Throws($"AdamW.Step: its tensors lie on two devices, {device.Description} and {other.Description}.", () => Step(other.Filled(0, new Shape(512)), new(0, 1, 1, true)));
        Assert.Throws<ArgumentOutOfRangeException>(() => Step(x, new(0, 1, 1, true), 0));
    }
}
