using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

public sealed class DoraTests
{
    [Theory]
    [InlineData(1, 1, 1)]
    [InlineData(5, 123, 3)]
    [InlineData(3, 128, 8)]
    [InlineData(67, 300, 16)]
    [InlineData(40, 2048, 64)]
    public void Norms_AnyShape_MatchReference(int rows, int columns, int rank)
    {
        const float scaling = 0.75f;
        using Device device = Open("cpu");
        Tensor w = device.Random(1, new Shape(rows, columns)), a = device.Random(2, new Shape(rank, columns)), b = device.Random(3, new Shape(rows, rank)), norms = device.Poisoned(new Shape(rows));
        double[] wd = w.Doubles(), ad = a.Doubles(), bd = b.Doubles();
        Dora.Norms(norms, new DenseMatrix(w), a, b, scaling);
        double[] sum = [.. Enumerable.Range(0, rows * columns).Select(i => wd[i] + scaling * Enumerable.Range(0, rank).Sum(k => bd[i / columns * rank + k] * ad[k * columns + i % columns]))];
        double[] expected = Lengths(sum, columns);

        // Each element has the error of its rank products, the sum the error of its chain of at most columns/16 + 4 additions.
        Within(expected, [.. expected.Select(v => v * U * (4 * rank + columns / 16 + 8))], norms.Download(), "norms");

        Dora.Norms(norms, new DenseMatrix(w), Tensor.None, Tensor.None, 0);
        double[] own = Lengths(wd, columns);
        Within(own, [.. own.Select(v => v * U * (columns / 16 + 8))], norms.Download(), "norms of W alone");
    }

    [Fact]
    public void Norms_OfAQuantizedMatrix_AreThoseOfItsValues()
    {
        const int rows = 9, columns = 192;
        using Device device = Open("cpu");
        float[] values = Values(1, rows * columns);
        var quantizer = new FourBitQuantizer(device, FourBitCode.Nf4, rows, columns, doubleQuantized: true);
        quantizer.Add(values);
        FourBitMatrix matrix = quantizer.Finish();

        // The identity times the matrix: its values as products see them.
        Tensor expanded = device.Poisoned(new Shape(rows, columns)), identity = device.Upload([.. Enumerable.Range(0, rows * rows).Select(i => i / rows == i % rows ? 1f : 0f)], new Shape(rows, rows));
        Linear.BackwardInput(expanded, identity, matrix);
        Tensor dense = device.Poisoned(new Shape(rows)), packed = device.Poisoned(new Shape(rows)), a = device.Random(2, new Shape(4, columns)), b = device.Random(3, new Shape(rows, 4));
        Dora.Norms(dense, new DenseMatrix(expanded), a, b, 2);
        Dora.Norms(packed, matrix, a, b, 2);
        TensorAssert.BitEqual(dense.Download(), packed.Download(), "norms");
    }

    [Theory]
    [MemberData(nameof(OpCases.DevicesAndShapes), MemberType = typeof(OpCases))]
    public void ScaleAndMagnitudeGradient_AnyShape_MatchReference(string name, int n, int d)
    {
        using Device device = Open(name);
        var shape = new Shape(n, d);
        Tensor x = device.Random(1, shape), m = device.Random(2, new Shape(d)), norms = device.Upload([.. Values(3, d).Select(v => 0.5f + Math.Abs(v))], new Shape(d)), y = device.Poisoned(shape);
        double[] xd = x.Doubles(), md = m.Doubles(), nd = norms.Doubles();
        double Factor(int i) => md[i % d] / nd[i % d];

        Dora.Scale(y, x, m, norms, 0, GradientMode.Overwrite);
        Within([.. xd.Select((v, i) => v * Factor(i))], [.. xd.Select((v, i) => Math.Abs(v * Factor(i)) * 3 * U)], y.Download(), "y");
        double[] before = y.Doubles();
        Dora.Scale(y, x, m, norms, -1, GradientMode.Accumulate);
        Within([.. xd.Select((v, i) => before[i] + v * (Factor(i) - 1))], [.. xd.Select((v, i) => (Math.Abs(before[i]) + Math.Abs(v) * (Math.Abs(Factor(i)) + 1)) * 5 * U)], y.Download(), "y accumulated");

        Tensor dm = device.Filled(0.5f, new Shape(d)), g = device.Random(4, shape);
        double[] gd = g.Doubles();
        Dora.MagnitudeGradient(dm, g, x, norms);
        double Column(int j, Func<double, double> of) => Enumerable.Range(0, n).Sum(row => of(gd[row * d + j] * xd[row * d + j])) / nd[j];
        Within(
            [.. Enumerable.Range(0, d).Select(j => 0.5 + Column(j, v => v))],
            [.. Enumerable.Range(0, d).Select(j => (1 + Column(j, Math.Abs) * (n + 3)) * U)], dm.Download(), "dm");

        Dora.Scale(x, x, m, norms, 0, GradientMode.Overwrite);
        Within([.. xd.Select((v, i) => v * Factor(i))], [.. xd.Select((v, i) => Math.Abs(v * Factor(i)) * 3 * U)], x.Download(), "in place");
    }

    [Fact]
    public void Calls_OnARowOfZeros_ChangeNothing()
    {
        using Device device = Open("cpu");
        Tensor x = device.Random(1, new Shape(2, 3)), m = device.Upload([0f, 0f, 2f], new Shape(3)), norms = device.Upload([0f, 1f, 1f], new Shape(3)), y = device.Poisoned(x.Shape), dm = device.Filled(0, new Shape(3));
        Dora.Scale(y, x, m, norms, 0, GradientMode.Overwrite);
        float[] before = x.Download(), after = y.Download();
        Assert.Equal((before[0], 0f, 2 * before[2]), (after[0], after[1], after[2]));
        Dora.MagnitudeGradient(dm, x, x, norms);
        Assert.Equal(0f, dm.Download()[0]);
    }

    [Fact]
    public void Calls_WrongArguments_SayWhich()
    {
        using Device device = Open("cpu");
        Tensor x = device.Random(1, new Shape(2, 8)), w = device.Random(1, new Shape(3, 8)), three = device.Filled(1, new Shape(3)), eight = device.Filled(1, new Shape(8));
        Throws("Dora.Norms: norms must be F32 (3), got F32 (8).", () => Dora.Norms(eight, new DenseMatrix(w), Tensor.None, Tensor.None, 1));
        Throws("Dora.Norms: b must be F32 (3, 2), got F32 (3, 8).", () => Dora.Norms(three, new DenseMatrix(w), x, w, 1));
        Throws("Dora.Scale: magnitude must be F32 (8), got F32 (3).", () => Dora.Scale(x, x, three, eight, 0, GradientMode.Overwrite));
        Throws("Dora.MagnitudeGradient: norms must be F32 (8), got F32 (3).", () => Dora.MagnitudeGradient(eight, x, x, three));
    }

    private static double[] Lengths(double[] values, int columns) =>
        [.. Enumerable.Range(0, values.Length / columns).Select(row => Math.Sqrt(Enumerable.Range(0, columns).Sum(i => values[row * columns + i] * values[row * columns + i])))];
}
