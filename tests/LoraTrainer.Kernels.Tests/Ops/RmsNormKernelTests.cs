using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Kernels.Tests.KernelBench;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class RmsNormKernelTests
{
    private const float Eps = 1e-5f;

    /// <summary>Widths of one element, less than a vector, whole vectors, parts of them, several warps, and more than the registers of a block keep.</summary>
    public static TheoryData<string, int, int> Shapes => KernelModes.With((1, 1), (3, 7), (5, 8), (4, 24), (3, 100), (5, 123), (2, 1024), (3, 2050), (1, 20_488));

    // A thread sums at most D/32 squares, warps and the block meet in ten additions; the root halves that error.
    private static double RstdError(int d) => (d / 32.0 + 8) * U;

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Forward_AnyShape_MatchesReference(string mode, int n, int d)
    {
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            Tensor x = bench.RandomBf16(1, new Shape(n, d)), w = bench.RandomF32(2, new Shape(d));
            Tensor y = bench.Poisoned(DType.BF16, new Shape(n, d)), rstd = bench.Poisoned(DType.F32, new Shape(n));
            RmsNorm.Forward(y, rstd, x, w, Eps);
            (double[] expected, double[] r) = RmsNormReference.Forward(x.Doubles(), w.Doubles(), n, d, Eps);
            Within(r, [.. r.Select(v => v * RstdError(d))], rstd.Download(), "rstd");
            Within(expected, RoundedBound(expected, [.. expected.Select(v => Math.Abs(v) * (RstdError(d) + 2 * U))]), y.Download(), "y");
            bench.CheckMargins();
        }
    }

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Backward_AnyShape_OverwritesOrAddsAsAsked(string mode, int n, int d)
    {
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            var shape = new Shape(n, d);
            Tensor x = bench.RandomBf16(1, shape), w = bench.RandomF32(2, new Shape(d)), dy = bench.RandomBf16(3, shape), rstd = bench.Poisoned(DType.F32, new Shape(n));
            RmsNorm.Forward(bench.Poisoned(DType.BF16, shape), rstd, x, w, Eps);
            (double[] dx, double[] dw, double[] dxSize, double[] dwSize) = RmsNormReference.Backward(dy.Doubles(), x.Doubles(), w.Doubles(), n, d, Eps);

            // rstd, the sum of the mean and about ten single roundings; weights add chains over the rows.
            double error = 3 * RstdError(d) + (d / 16.0 + 14) * U;
            Tensor dInput = bench.Poisoned(DType.BF16, shape), dWeight = bench.RandomF32(4, new Shape(d));
            double[] before = dWeight.Doubles();
            RmsNorm.Backward(dInput, dWeight, dy, x, w, rstd, GradientMode.Overwrite);
            Within(dx, RoundedBound(dx, [.. dxSize.Select(v => v * error)]), dInput.Download(), "dx");
            Within([.. dw.Zip(before, (a, b) => a + b)], [.. dwSize.Zip(before, (a, b) => (a + Math.Abs(b)) * (error + (n + 8) * U))], dWeight.Download(), "dw");

            Tensor stream = bench.RandomBf16(5, shape);
            double[] old = stream.Doubles(), sum = [.. dx.Zip(old, (a, b) => a + b)];
            RmsNorm.Backward(stream, Tensor.None, dy, x, w, rstd, GradientMode.Accumulate);
            Within(sum, RoundedBound(sum, [.. dxSize.Zip(old, (a, b) => a * error + (a + Math.Abs(b)) * 2 * U)]), stream.Download(), "dx added");

            float[] apart = dInput.Download();
            Tensor again = bench.F32(new float[d], new Shape(d));
            RmsNorm.Backward(dy, again, dy, x, w, rstd, GradientMode.Overwrite);
            TensorAssert.BitEqual(apart, dy.Download(), "dx in the place of dy");
            Within(dw, [.. dwSize.Select(v => v * (error + (n + 8) * U))], again.Download(), "dw when dx takes the place of dy");
            bench.CheckMargins();
        }
    }

    /// <summary>A gain of one and the weight: the bits of a norm with that sum for its weight.</summary>
    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void ForwardAndBackward_GainWithAnOffset_AreThoseOfTheSum(string mode)
    {
        foreach ((int n, int d, bool shifted) in ((int, int, bool)[])[(3, 7, false), (2, 2056, false), (4, 100, true)])
        {
            using var bench = new KernelBench(mode, shifted);
            var shape = new Shape(n, d);
            Tensor x = bench.RandomBf16(1, shape), w = bench.RandomF32(2, new Shape(d)), gain = bench.F32([.. w.Download().Select(v => v + 1)], new Shape(d)), dy = bench.RandomBf16(3, shape);
            Tensor[] outputs = [bench.Poisoned(DType.BF16, shape), bench.Poisoned(DType.BF16, shape)], gradients = [bench.Poisoned(DType.BF16, shape), bench.Poisoned(DType.BF16, shape)];
            Tensor[] weights = [bench.RandomF32(4, new Shape(d)), bench.RandomF32(4, new Shape(d))];
            Tensor rstd = bench.Poisoned(DType.F32, new Shape(n));
            for (int i = 0; i < 2; i++)
            {
                RmsNorm.Forward(outputs[i], rstd, x, i == 0 ? gain : w, Eps, i);
                RmsNorm.Backward(gradients[i], weights[i], dy, x, i == 0 ? gain : w, rstd, GradientMode.Overwrite, i);
            }

            TensorAssert.BitEqual(outputs[0].Download(), outputs[1].Download(), "y");
            TensorAssert.BitEqual(gradients[0].Download(), gradients[1].Download(), "dx");
            TensorAssert.BitEqual(weights[0].Download(), weights[1].Download(), "dw");
            bench.CheckMargins();
        }
    }

    /// <summary>Columns are summed by threads that have different rows: as many rows that every thread has a whole batch, and most have more.</summary>
    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Backward_ManyRows_SumsEachOnce(string mode)
    {
        const int n = 1541, d = 40;
        using var bench = new KernelBench(mode);
        var shape = new Shape(n, d);
        Tensor x = bench.RandomBf16(1, shape), w = bench.RandomF32(2, new Shape(d)), dy = bench.RandomBf16(3, shape), rstd = bench.Poisoned(DType.F32, new Shape(n));
        RmsNorm.Forward(bench.Poisoned(DType.BF16, shape), rstd, x, w, Eps);
        (_, double[] dw, _, double[] dwSize) = RmsNormReference.Backward(dy.Doubles(), x.Doubles(), w.Doubles(), n, d, Eps);
        Tensor dWeight = bench.F32(new float[d], new Shape(d));
        RmsNorm.Backward(dy, dWeight, dy, x, w, rstd, GradientMode.Overwrite);

        // Chains of n/256 rows, eight of them, then 32: far below n roundings.
        Within(dw, [.. dwSize.Select(v => v * (3 * RstdError(d) + 60 * U))], dWeight.Download(), "dw");
        bench.CheckMargins();
    }
}
