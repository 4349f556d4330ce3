using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

/// <summary>Operations whose definition fixes every bit, and the rotary embedding.</summary>
public sealed class SmallOpsTests
{
    [Theory]
    [MemberData(nameof(OpCases.DevicesAndShapes), MemberType = typeof(OpCases))]
    public void Elementwise_AnyShape_EqualsTheDefinition(string name, int n, int d)
    {
        using Device device = Open(name);
        Tensor x = device.Random(1, new Shape(n, d)), y = device.Random(2, new Shape(n, d)), bias = device.Random(3, new Shape(d)), sum = device.Poisoned(new Shape(n, d));
        float[] a = x.Download(), b = y.Download(), c = bias.Download();
        Elementwise.Add(sum, x, y);
        TensorAssert.BitEqual(a.Zip(b, (p, q) => p + q).ToArray(), sum.Download(), "sum");
        Elementwise.AddBias(x, bias);
        TensorAssert.BitEqual(a.Select((p, i) => p + c[i % d]).ToArray(), x.Download(), "with bias");
        Elementwise.BiasGradient(bias, y);
        for (int i = 0; i < n * d; i++)
        {
            c[i % d] += b[i];
        }

        TensorAssert.BitEqual(c, bias.Download(), "bias gradient");
    }

    [Theory]
    [MemberData(nameof(OpCases.DevicesAndShapes), MemberType = typeof(OpCases))]
    public void Embedding_AnyShape_EqualsTheDefinition(string name, int n, int d)
    {
        const int vocabulary = 5;
        using Device device = Open(name);
        int[] ids = [.. Enumerable.Range(0, n).Select(i => i * i % vocabulary)];
        Tensor tokens = device.Integers(ids), table = device.Random(1, new Shape(vocabulary, d)), output = device.Poisoned(new Shape(n, d));
        float[] values = table.Download();
        Embedding.Forward(output, tokens, table);
        TensorAssert.BitEqual(ids.SelectMany(id => values[(id * d)..((id + 1) * d)]).ToArray(), output.Download(), "f32");
        Embedding.Forward(output, tokens, device.BF16(values, new Shape(vocabulary, d)));
        float[] halves = [.. values.Select(v => BitConverter.UInt32BitsToSingle(BitConverter.SingleToUInt32Bits(v) & 0xFFFF0000))];
        TensorAssert.BitEqual(ids.SelectMany(id => halves[(id * d)..((id + 1) * d)]).ToArray(), output.Download(), "bf16");

        Tensor dOutput = device.Random(2, new Shape(n, d));
        float[] g = dOutput.Download();
        Embedding.Backward(table, dOutput, tokens, paddingToken: 1);
        for (int i = 0; i < n * d; i++)
        {
            if (ids[i / d] != 1)
            {
                values[ids[i / d] * d + i % d] += g[i];
            }
        }

        TensorAssert.BitEqual(values, table.Download(), "table gradient");

        // Scaled: each product is rounded once, forward and backward.
        const float scale = 8.3f;
        float[] current = table.Download();
        Embedding.Forward(output, tokens, table, scale);
        TensorAssert.BitEqual(ids.SelectMany(id => current[(id * d)..((id + 1) * d)]).Select(v => v * scale).ToArray(), output.Download(), "scaled");
        Embedding.Backward(table, dOutput, tokens, paddingToken: 1, scale);
        for (int i = 0; i < n * d; i++)
        {
            if (ids[i / d] != 1)
            {
                current[ids[i / d] * d + i % d] += g[i] * scale;
            }
        }

        TensorAssert.BitEqual(current, table.Download(), "scaled table gradient");
    }

    [Theory]
    [MemberData(nameof(OpCases.DevicesAndShapes), MemberType = typeof(OpCases))]
    public void Columns_GatherThenScatter_MovesThoseColumnsOnly(string name, int n, int d)
    {
        using Device device = Open(name);
        int first = d / 3, count = Math.Max(1, d / 2);
        Tensor whole = device.Random(1, new Shape(n, d)), own = device.Poisoned(new Shape(n, count));
        float[] values = whole.Download();
        bool IsChosen(int i) => i % d >= first && i % d < first + count;
        Columns.Gather(own, whole, first);
        TensorAssert.BitEqual(values.Where((_, i) => IsChosen(i)).ToArray(), own.Download(), "gathered");
        Tensor target = device.Filled(7, new Shape(n, d));
        Columns.Scatter(target, own, first);
        TensorAssert.BitEqual(values.Select((v, i) => IsChosen(i) ? v : 7).ToArray(), target.Download(), "scattered");
    }

    [Theory]
    [MemberData(nameof(OpCases.DevicesAndShapes), MemberType = typeof(OpCases))]
    public void Rows_GatherThenScatter_MovesThoseRowsOnly(string name, int n, int d)
    {
        using Device device = Open(name);
        int[] chosen = [.. Enumerable.Range(0, n).Where(i => i % 2 == 0).Reverse()];
        Tensor whole = device.Random(1, new Shape(n, d)), rows = device.Integers(chosen), block = device.Poisoned(new Shape(chosen.Length, d));
        float[] values = whole.Download();
        Rows.Gather(block, whole, rows);
        TensorAssert.BitEqual(chosen.SelectMany(r => values[(r * d)..((r + 1) * d)]).ToArray(), block.Download(), "gathered");
        Tensor target = device.Filled(7, new Shape(n, d));
        Rows.Scatter(target, block, rows);
        TensorAssert.BitEqual(values.Select((v, i) => i / d % 2 == 0 ? v : 7).ToArray(), target.Download(), "scattered");
    }

    [Theory]
    [InlineData("cpu", 3, 1, 2, 1)]
    [InlineData("cpu", 5, 3, 20, 7)] // rotary part of 14 of 20 elements
    [InlineData("cpu", 70, 2, 64, 32)]
    public void Rope_AnyShape_MatchesReference(string name, int n, int heads, int dh, int half)
    {
        const float scaling = 1.25f;
        using Device device = Open(name);
        int[] positions = [.. Enumerable.Range(0, n).Select(i => i * 977 % 131072)];
        float[] frequencies = [.. Enumerable.Range(0, half).Select(i => (float)Math.Pow(10000, -i / (double)half))];
        Tensor cosine = device.Poisoned(new Shape(n, half)), sine = device.Poisoned(new Shape(n, half));
        Rope.BuildTables(cosine, sine, device.Integers(positions), frequencies, scaling);
        double[] angles = [.. Enumerable.Range(0, n * half).Select(i => (double)(frequencies[i % half] * (float)positions[i / half]))];

        // Rounded to f32, then one product: two roundings.
        Within([.. angles.Select(a => Math.Cos(a) * scaling)], [.. angles.Select(a => Math.Abs(Math.Cos(a)) * scaling * 2.01 * U)], cosine.Download(), "cos");
        Within([.. angles.Select(a => Math.Sin(a) * scaling)], [.. angles.Select(a => Math.Abs(Math.Sin(a)) * scaling * 2.01 * U)], sine.Download(), "sin");

        Tensor x = device.Random(1, new Shape(n, heads * dh));
        double[] before = x.Doubles(), c = cosine.Doubles(), s = sine.Doubles();
        Rope.Forward(x, dh, cosine, sine);
        Check(before, x, 1);
        x = device.Random(1, new Shape(n, heads * dh));
        Rope.Backward(x, dh, cosine, sine);
        Check(before, x, -1);

        void Check(double[] input, Tensor output, int direction)
        {
            (double[] expected, double[] size) = RopeReference.Turn(input, c, s, heads, dh, half, direction);
            Within(expected, [.. size.Select(v => 2 * U * v)], output.Download(), "direction " + direction);
        }
    }

    [Theory]
    [MemberData(nameof(OpCases.Devices), MemberType = typeof(OpCases))]
    public void Dropout_Masks_AreAddressedByRowAndKey(string name)
    {
        const int n = 200, d = 123;
        const float p = 0.1f;
        using Device device = Open(name);
        Tensor ones = device.Filled(1, new Shape(n, d)), whole = device.Poisoned(new Shape(n, d)), parts = device.Poisoned(new Shape(n, d));
        var key = new DropoutKey(3, 4, 5, 0);
        Dropout.Apply(whole, ones, p, key);
        float[] mask = whole.Download();
        Assert.All(mask, v => Assert.True(v == 0 || v == 1f / (1 - p)));
        double kept = mask.Count(v => v != 0) / (double)mask.Length;
        Assert.True(Math.Abs(kept - (1 - p)) < 5 * Math.Sqrt(p * (1 - p) / mask.Length), $"{kept} are kept");

        // Cut anywhere, in place, or on a gradient: the same elements are dropped.
        foreach ((int start, int count) in new[] { (0, 1), (1, 66), (67, 133) })
        {
            Dropout.Apply(parts.Rows(start, count), ones.Rows(start, count), p, key with { FirstRow = start });
        }

        TensorAssert.BitEqual(mask, parts.Download(), "in parts");
        Tensor g = device.Random(1, new Shape(n, d));
        float[] gradient = g.Download();
        Dropout.Apply(g, g, p, key);
        TensorAssert.BitEqual(gradient.Zip(mask, (a, b) => a * b).Select((v, i) => mask[i] == 0 ? 0 : v).ToArray(), g.Download(), "in place");
        foreach (DropoutKey other in new[] { key with { Seed = 4 }, key with { Stream = 5 }, key with { Step = 6 }, key with { FirstRow = 1 } })
        {
            Dropout.Apply(parts, ones, p, other);
            Assert.NotEqual(mask, parts.Download());
        }

        gradient[5] = -0f;
        Tensor same = device.Upload(gradient, new Shape(n, d));
        Dropout.Apply(parts, same, 0, key);
        TensorAssert.BitEqual(gradient, parts.Download(), "probability 0");
        foreach (float wrong in new[] { 1f, -0.1f, float.NaN })
        {
            Assert.Equal("probability", Assert.Throws<ArgumentOutOfRangeException>(() => Dropout.Apply(same, same, wrong, key)).ParamName);
        }
    }

    [Theory]
    [InlineData("cpu", 1)]
    [InlineData("cpu", 32768)]
    [InlineData("cpu", 100_003)]
    public void GradientNorm_AnySize_MatchesReference(string name, int count)
    {
        using Device device = Open(name);
        Tensor g = device.Random(1, new Shape(count));
        double expected = Math.Sqrt(g.Doubles().Sum(v => v * v));
        Assert.Equal(expected, GradientNorm.Compute(g), 1e-12 * expected);
        float[] values = g.Download();
        values[^1] = float.NaN;
        Assert.Equal(double.NaN, GradientNorm.Compute(device.Upload(values, new Shape(count))));
        Assert.Equal(1, GradientNorm.ClipCoefficient(1e9, 0));
        Assert.Equal(1, GradientNorm.ClipCoefficient(0.5, 1));
        Assert.Equal((float)(1 / (4 + 1e-6)), GradientNorm.ClipCoefficient(4, 1));
    }

    [Fact]
    public void Calls_WrongArguments_SayWhich()
    {
        using Device device = Open("cpu");
        Tensor x = device.Random(1, new Shape(2, 8)), v = device.Random(1, new Shape(7)), i = device.Integers(1, 2, 3);
        Throws("Elementwise.Add: second must be F32 (2, 8), got F32 (7).", () => Elementwise.Add(x, x, v));
        Throws("Elementwise.AddBias: bias must be F32 (8), got F32 (7).", () => Elementwise.AddBias(x, v));
        Throws("Elementwise.BiasGradient: dBias must be F32 (8), got F32 (7).", () => Elementwise.BiasGradient(v, x));
        Throws("Embedding.Forward: tokens must be I32 (2), got I32 (3).", () => Embedding.Forward(x, i, x));
        Throws("Embedding.Forward: table must be F32 (2, 9), got F32 (2, 8).", () => Embedding.Forward(device.Random(1, new Shape(3, 9)), i, x));
        Throws("Rows.Gather: chosen must be F32 (3, 8), got F32 (2, 8).", () => Rows.Gather(x, x, i));
        Throws("Columns.Gather: chosen must be F32 (2, 3), got F32 (1, 3).", () => Columns.Gather(device.Random(1, new Shape(1, 3)), x, 0));
        Throws("Columns.Scatter: columns 6 to 9 lie outside a matrix of 8.", () => Columns.Scatter(x, device.Random(1, new Shape(2, 3)), 6));
        Throws("Rope.BuildTables: 7 frequencies for tables with 8 columns.", () => Rope.BuildTables(x, x, device.Integers(0, 1), v.Download(), 1));
        Throws("Rope.Forward: heads of 8 elements do not divide a row of 8, or their rotary part (16) is larger than a head.", () => Rope.Forward(x, 8, x, x));
    }
}
