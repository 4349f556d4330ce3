using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Kernels.Tests.KernelBench;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class DoraKernelTests
{
    private const float Scaling = 0.75f;

    /// <summary>Mode, rows, columns, rank: parts of a block's eight rows, rows with and without vectors, more columns than a block takes at once, more than 48 KB of B.</summary>
    public static TheoryData<string, int, int, int> NormCases
    {
        get
        {
            var data = new TheoryData<string, int, int, int>();
            foreach (string mode in KernelModes.Names)
            {
                data.Add(mode, 1, 1, 1);
                data.Add(mode, 5, 123, 3);
                data.Add(mode, 17, 132, 8);
                data.Add(mode, 9, 2052, 16);
                data.Add(mode, 3, 600, 5);
                data.Add(mode, 9, 24, 1600);
            }

            return data;
        }
    }

    public static TheoryData<string, int, int> Shapes => KernelModes.With((1, 1), (3, 7), (5, 8), (17, 24), (33, 123), (2, 1024), (19, 2056), (3, 2050), (700, 40));

    [Theory]
    [MemberData(nameof(NormCases))]
    public void Norms_AnyShape_MatchReference(string mode, int rows, int columns, int rank)
    {
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            Tensor w = bench.RandomBf16(1, new Shape(rows, columns)), a = bench.RandomF32(2, new Shape(rank, columns)), b = bench.RandomF32(3, new Shape(rows, rank)), norms = bench.Poisoned(DType.F32, new Shape(rows));
            double[] wd = w.Doubles(), ad = a.Doubles(), bd = b.Doubles();
            Dora.Norms(norms, new DenseMatrix(w), a, b, Scaling);
            double[] sum = [.. Enumerable.Range(0, rows * columns).Select(i => wd[i] + Scaling * Enumerable.Range(0, rank).Sum(k => bd[i / columns * rank + k] * ad[k * columns + i % columns]))];
            double[] expected = Lengths(sum, columns);

            // An element has the error of its rank products, the sum that of a thread's chain and of the meetings of 32 lanes and 8 warps.
            Within(expected, [.. expected.Select(v => v * U * (4 * rank + columns / 256 + 20))], norms.Download(), "norms");
            Dora.Norms(norms, new DenseMatrix(w), Tensor.None, Tensor.None, 0);
            double[] own = Lengths(wd, columns);
            Within(own, [.. own.Select(v => v * U * (columns / 256 + 20))], norms.Download(), "norms of W alone");
            bench.CheckMargins();
        }
    }

    [Theory]
    [InlineData("nf4")]
    [InlineData("double")]
    [InlineData("fp4")]
    [InlineData("int8")]
    public void Norms_OfAQuantizedMatrix_AreThoseOfItsValues(string kind)
    {
        const int rows = 9, columns = 192;
        using var bench = new KernelBench(KernelModes.Names[0], capacityBytes: 64L << 20);
        (WeightMatrix matrix, double[] values) = LinearKernelTests.Matrix(bench, kind, rows, columns);
        Tensor dense = bench.Poisoned(DType.F32, new Shape(rows)), packed = bench.Poisoned(DType.F32, new Shape(rows)), a = bench.RandomF32(2, new Shape(4, columns)), b = bench.RandomF32(3, new Shape(rows, 4));
        Dora.Norms(dense, new DenseMatrix(bench.Bf16([.. values.Select(v => (float)v)], new Shape(rows, columns))), a, b, 2);
        Dora.Norms(packed, matrix, a, b, 2);
        TensorAssert.BitEqual(dense.Download(), packed.Download(), "norms");
        bench.CheckMargins();
    }

    [Theory]
    [MemberData(nameof(Shapes))]
    public void ScaleAndMagnitudeGradient_AnyShape_MatchReference(string mode, int n, int d)
    {
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            var shape = new Shape(n, d);
            Tensor x = bench.RandomBf16(1, shape), m = bench.RandomF32(2, new Shape(d)), y = bench.Poisoned(DType.BF16, shape);

            // The last length is 0: its quotient is 1, and its magnitude gets nothing.
            Tensor norms = bench.F32([.. Values(3, d).Select((v, i) => i == d - 1 && d > 1 ? 0 : 0.5f + Math.Abs(v))], new Shape(d));
            double[] xd = x.Doubles(), md = m.Doubles(), nd = norms.Doubles();
            double Factor(int i) => nd[i % d] == 0 ? 1 : md[i % d] / nd[i % d];

            Dora.Scale(y, x, m, norms, 0, GradientMode.Overwrite);
            double[] expected = [.. xd.Select((v, i) => v * Factor(i))];
            Within(expected, RoundedBound(expected, [.. expected.Select(v => Math.Abs(v) * 6 * U)]), y.Download(), "y");
            double[] before = y.Doubles();
            Dora.Scale(y, x, m, norms, -1, GradientMode.Accumulate);
            double[] more = [.. xd.Select((v, i) => before[i] + v * (Factor(i) - 1))];
            Within(more, RoundedBound(more, [.. xd.Select((v, i) => (Math.Abs(before[i]) + Math.Abs(v) * (Math.Abs(Factor(i)) + 1)) * 6 * U)]), y.Download(), "y accumulated");

            Tensor dm = bench.RandomF32(5, new Shape(d)), g = bench.RandomBf16(4, shape);
            double[] start = dm.Doubles(), gd = g.Doubles();
            Dora.MagnitudeGradient(dm, g, x, norms);
            double Column(int j, Func<double, double> of) => nd[j] == 0 ? 0 : Enumerable.Range(0, n).Sum(row => of(gd[row * d + j] * xd[row * d + j])) / nd[j];
            Within(
                [.. start.Select((s, j) => s + Column(j, v => v))],
                [.. start.Select((s, j) => (Math.Abs(s) + Column(j, Math.Abs) * (n / 16.0 + 24)) * U)], dm.Download(), "dm");

            Dora.Scale(x, x, m, norms, 0, GradientMode.Overwrite);
            TensorAssert.BitEqual([.. before.Select(v => (float)v)], x.Download(), "y in the place of x");
            bench.CheckMargins();
        }
    }

    private static double[] Lengths(double[] values, int columns) =>
        [.. Enumerable.Range(0, values.Length / columns).Select(row => Math.Sqrt(Enumerable.Range(0, columns).Sum(i => values[row * columns + i] * values[row * columns + i])))];
}
