using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Kernels.Tests.KernelBench;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

/// <summary>The three products of a linear layer, with dense and with quantized matrices.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class LinearKernelTests
{
    // A product may use up to 32 MiB of scratch.
    private const long CapacityBytes = 64L << 20;

    /// <summary>Kind of matrix, rows, In, Out.</summary>
    public static TheoryData<string, string, int, int, int> Cases
    {
        get
        {
            var data = new TheoryData<string, string, int, int, int>();
            foreach (string kind in (string[])["dense", "nf4", "double", "fp4", "int8"])
            {
                // The scheduling of threads matters to the kernels that expand a quantized matrix; those of FP4 and of bytes have tests of their own.
                foreach (string mode in kind is "nf4" or "double" ? KernelModes.Names : KernelModes.Names[..1])
                {
                    data.Add(kind, mode, 1, 1, 1);
                    data.Add(kind, mode, 3, 7, 5);
                    data.Add(kind, mode, 8, 64, 8);
                    data.Add(kind, mode, 5, 24, 100);
                    data.Add(kind, mode, 70, 123, 33);
                    data.Add(kind, mode, 2, 2050, 9);
                }
            }

            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Products_AnyShape_MatchReference(string kind, string mode, int n, int width, int height)
    {
        const float alpha = 0.375f;
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted, CapacityBytes);
            (WeightMatrix weight, double[] w) = Matrix(bench, kind, height, width);
            Tensor x = bench.RandomBf16(2, new Shape(n, width)), dy = bench.RandomBf16(3, new Shape(n, height));
            double[] a = x.Doubles(), g = dy.Doubles();
            (double[] y, double[] ySize) = Product(n, width, height, (i, k) => a[i * width + k], (k, j) => w[j * width + k]);
            (double[] dx, double[] dxSize) = Product(n, height, width, (i, k) => g[i * height + k], (k, j) => w[k * width + j]);
            (double[] dw, double[] dwSize) = Product(height, n, width, (i, k) => g[k * height + i], (k, j) => a[k * width + j]);

            foreach (float factor in (float[])[1, alpha])
            {
                foreach (GradientMode accumulate in (GradientMode[])[GradientMode.Overwrite, GradientMode.Accumulate])
                {
                    foreach (DType type in (DType[])[DType.BF16, DType.F32])
                    {
                        Tensor output = Start(bench, type, new Shape(n, height), accumulate);
                        Check(y, ySize, width, factor, accumulate, output, () => Linear.Forward(output, x, weight, accumulate, factor), $"y in {type}");
                    }

                    Tensor dInput = Start(bench, DType.BF16, new Shape(n, width), accumulate);
                    Check(dx, dxSize, height, factor, accumulate, dInput, () => Linear.BackwardInput(dInput, dy, weight, accumulate, factor), "dx");
                }

                Tensor dWeight = Start(bench, DType.F32, new Shape(height, width), GradientMode.Accumulate);
                Check(dw, dwSize, n, factor, GradientMode.Accumulate, dWeight, () => Linear.BackwardWeight(dWeight, dy, x, factor), "dw");
            }

            bench.CheckMargins();
        }
    }

    /// <summary>An output layer in bytes is expanded some rows at a time; the last part has fewer. The sum over the parts is rounded once.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(100)]
    [InlineData(10 * 24)]
    [InlineData(36 * 24)]
    public void Products_InParts_MatchReference(int largest)
    {
        const int n = 5, width = 24, height = 37;
        using var bench = new KernelBench(KernelModes.Names[0], capacityBytes: CapacityBytes);
        (WeightMatrix weight, double[] w) = Matrix(bench, "int8", height, width);
        Tensor x = bench.RandomBf16(2, new Shape(n, width)), dy = bench.RandomBf16(3, new Shape(n, height));
        double[] a = x.Doubles(), g = dy.Doubles();
        (double[] y, double[] ySize) = Product(n, width, height, (i, k) => a[i * width + k], (k, j) => w[j * width + k]);
        (double[] dx, double[] dxSize) = Product(n, height, width, (i, k) => g[i * height + k], (k, j) => w[k * width + j]);
        foreach (GradientMode mode in (GradientMode[])[GradientMode.Overwrite, GradientMode.Accumulate])
        {
            Tensor output = Start(bench, DType.F32, new Shape(n, height), mode), dInput = Start(bench, DType.BF16, new Shape(n, width), mode);
            Check(y, ySize, width, 0.5f, mode, output, () => Linear.Product("test", output, x, weight, transposeWeight: true, mode, 0.5f, largest), "y");
            if (mode == GradientMode.Overwrite)
            {
                Check(dx, dxSize, height, 0.5f, mode, dInput, () => Linear.Product("test", dInput, dy, weight, transposeWeight: false, mode, 0.5f, largest), "dx");
                continue;
            }

            // Added part by part: a rounding for each.
            double[] before = dInput.Doubles();
            Linear.Product("test", dInput, dy, weight, transposeWeight: false, mode, 0.5f, largest);
            double[] expected = [.. dx.Zip(before, (p, b) => 0.5 * p + b)];
            Within(expected, [.. dxSize.Zip(before, (s, b) => (height + 1) * HalfUlp * (0.5 * s + Math.Abs(b)))], dInput.Download(), "dx added");
        }

        bench.CheckMargins();
    }

    /// <summary>Columns between others, which are NaN where they are read and keep their content where these are written. Even and odd places: the library's loads care.</summary>
    [Theory]
    [InlineData(1, 1, 1, 3)]
    [InlineData(5, 8, 24, 8)]
    [InlineData(33, 16, 70, 16)]
    [InlineData(9, 5, 123, 2)]
    public void Products_OfColumns_MatchReference(int n, int rank, int width, int before)
    {
        const int after = 3;
        const float alpha = 0.375f;
        using var bench = new KernelBench(KernelModes.Names[0], capacityBytes: CapacityBytes);
        int stride = before + rank + after;
        float[] own = Rounded(Values(2, (long)n * rank));
        Tensor whole = bench.Bf16([.. Enumerable.Range(0, n * stride).Select(i => IsOwn(i) ? own[i / stride * rank + i % stride - before] : float.NaN)], new Shape(n, stride));
        var columns = new MatrixColumns(whole, before, rank);
        Tensor dy = bench.RandomBf16(3, new Shape(n, width)), weight = bench.RandomBf16(4, new Shape(width, rank));
        double[] g = dy.Doubles(), w = weight.Doubles();
        (double[] y, double[] ySize) = Product(n, rank, width, (i, k) => own[i * rank + k], (k, j) => w[j * rank + k]);
        (double[] dw, double[] dwSize) = Product(width, n, rank, (i, k) => g[k * width + i], (k, j) => own[k * rank + j]);
        (double[] dx, double[] dxSize) = Product(n, width, rank, (i, k) => g[i * width + k], (k, j) => w[k * rank + j]);
        foreach (GradientMode mode in (GradientMode[])[GradientMode.Overwrite, GradientMode.Accumulate])
        {
            Tensor output = Start(bench, DType.BF16, new Shape(n, width), mode);
            Check(y, ySize, rank, alpha, mode, output, () => Linear.Forward(output, columns, new DenseMatrix(weight), mode, alpha), "y");
        }

        Tensor dWeight = Start(bench, DType.F32, new Shape(width, rank), GradientMode.Accumulate);
        Check(dw, dwSize, n, alpha, GradientMode.Accumulate, dWeight, () => Linear.BackwardWeight(dWeight, dy, columns, alpha), "dw");

        // The gradient takes the place of what was multiplied, as in a layer's backward pass.
        Linear.BackwardInput(columns, dy, new DenseMatrix(weight), GradientMode.Overwrite, alpha);
        float[] all = whole.Download();
        double[] expected = [.. dx.Select(v => alpha * v)];
        Within(expected, RoundedBound(expected, [.. dxSize.Select(s => 2 * (width + 4) * U * alpha * s)]), [.. all.Where((_, i) => IsOwn(i))], "dx");
        Assert.All(all.Where((_, i) => !IsOwn(i)), value => Assert.True(float.IsNaN(value), "a neighbouring column was written to"));
        bench.CheckMargins();

        bool IsOwn(int i) => i % stride >= before && i % stride < before + rank;
    }

    private static Tensor Start(KernelBench bench, DType type, Shape shape, GradientMode mode) =>
        mode == GradientMode.Overwrite ? bench.Poisoned(type, shape) : type == DType.F32 ? bench.RandomF32(9, shape) : bench.RandomBf16(9, shape);

    private static void Check(double[] product, double[] size, int terms, float factor, GradientMode mode, Tensor output, Action run, string what)
    {
        double[] before = mode == GradientMode.Accumulate ? output.Doubles() : new double[product.Length];
        run();
        double[] expected = [.. product.Zip(before, (p, b) => factor * p + b)];

        // A chain over the terms (twice that: tensor cores may cut where they add), the scaling and the sum with what was there.
        double[] error = [.. size.Zip(before, (s, b) => 2 * (terms + 4) * U * factor * s + 2 * U * Math.Abs(b))];
        if (CudaTestDevice.IsRealGpuRequired && mode == GradientMode.Accumulate && output.DType == DType.BF16)
        {
            // Some of cuBLASLt's algorithms round the product to the type of the result before they add it (seen at 8 x 64 x 8 on an H200).
            error = [.. error.Zip(product, (e, p) => e + HalfUlp * Math.Abs(factor * p))];
        }

        Within(expected, output.DType == DType.BF16 ? RoundedBound(expected, error) : error, output.Download(), $"{what}, factor {factor}, {mode}");
    }

    /// <summary>A matrix and its values as the product sees them: in bf16.</summary>
    internal static (WeightMatrix Weight, double[] Values) Matrix(KernelBench bench, string kind, int rows, int columns)
    {
        float[] values = Values(1, (long)rows * columns, 0.1f);
        if (kind == "dense")
        {
            Tensor dense = bench.Bf16(values, new Shape(rows, columns));
            return (new DenseMatrix(dense), dense.Doubles());
        }

        if (kind == "int8")
        {
            var eight = new Int8Quantizer(bench.Device, rows, columns);
            eight.Add(values);
            Int8Matrix bytes = eight.Finish();
            return (bytes, [.. Rounded(QuantizedValues.Of(bytes)).Select(v => (double)v)]);
        }

        var quantizer = new FourBitQuantizer(bench.Device, kind == "fp4" ? FourBitCode.Fp4 : FourBitCode.Nf4, rows, columns, kind == "double");
        quantizer.Add(values);
        FourBitMatrix matrix = quantizer.Finish();
        return (matrix, [.. Rounded(QuantizedValues.Of(matrix)).Select(v => (double)v)]);
    }

    private static (double[] Sums, double[] Sizes) Product(int rows, int inner, int columns, Func<int, int, double> a, Func<int, int, double> b)
    {
        double[] sums = new double[rows * columns], sizes = new double[rows * columns];
        for (int i = 0; i < rows; i++)
        {
            for (int j = 0; j < columns; j++)
            {
                for (int k = 0; k < inner; k++)
                {
                    double term = a(i, k) * b(k, j);
                    sums[i * columns + j] += term;
                    sizes[i * columns + j] += Math.Abs(term);
                }
            }
        }

        return (sums, sizes);
    }
}
