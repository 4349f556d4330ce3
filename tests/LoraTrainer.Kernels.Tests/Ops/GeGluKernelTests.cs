using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Kernels.Tests.KernelBench;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class GeGluKernelTests
{
    private const double Smallest = 1.2e-38;

    private static readonly double C = Math.Sqrt(2 / Math.PI);

    public static TheoryData<string, int, int> Shapes => KernelModes.With((1, 1), (3, 7), (4, 24), (5, 123), (2, 1024), (3, 2050));

    [Theory]
    [MemberData(nameof(Shapes))]
    public void ForwardAndBackward_AnyShape_MatchReference(string mode, int n, int f)
    {
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            var shape = new Shape(n, f);
            Tensor gate = bench.RandomBf16(1, shape, 3), up = bench.RandomBf16(2, shape), dh = bench.RandomBf16(3, shape), h = bench.Poisoned(DType.BF16, shape);
            double[] a = gate.Doubles(), b = up.Doubles(), g = dh.Doubles(), expected = [.. a.Zip(b, (x, y) => Gelu(x) * y)];
            GeGlu.Forward(h, gate, up);

            // A share below the smallest normal number may be zero. The exponential within 2 units of the last place at an argument of a few roundings, which its size multiplies; 1 + exp, the division, two products.
            double[] relative = [.. a.Select(x => (12 + 8 * Math.Abs(Argument(x))) * U)];
            Within(expected, RoundedBound(expected, [.. expected.Select((v, i) => Math.Abs(v) * relative[i] + Math.Abs(a[i] * b[i]) * Smallest)]), h.Download(), "h");
            float[] apart = h.Download();
            foreach (bool overGate in (bool[])[true, false])
            {
                Tensor first = bench.RandomBf16(1, shape, 3), second = bench.RandomBf16(2, shape), place = overGate ? first : second;
                GeGlu.Forward(place, first, second);
                TensorAssert.BitEqual(apart, place.Download(), overGate ? "h in the place of gate" : "h in the place of up");
            }

            Tensor dGate = bench.Poisoned(DType.BF16, shape), dUp = bench.Poisoned(DType.BF16, shape);
            GeGlu.Backward(dGate, dUp, dh, gate, up);
            double[] da = [.. a.Select((v, i) => g[i] * b[i] * Slope(v))], db = [.. a.Select((v, i) => g[i] * Gelu(v))];
            Within(db, RoundedBound(db, [.. db.Select((v, i) => Math.Abs(v) * relative[i] + Math.Abs(a[i] * g[i]) * Smallest)]), dUp.Download(), "dUp");

            // 1 - s has the absolute error of s, which a and the slope of the argument multiply.
            double[] error = [.. a.Select((v, i) => Math.Abs(g[i] * b[i]) * Share(v) * (1 + Math.Abs(v) * (1 + 0.134145 * v * v)) * (2 * relative[i] + 12 * U) + Math.Abs(g[i] * b[i]) * (1 + Math.Abs(v * v * v)) * Smallest)];
            Within(da, RoundedBound(da, error), dGate.Download(), "dGate");

            GeGlu.Backward(gate, up, dh, gate, up);
            TensorAssert.BitEqual(dGate.Download(), gate.Download(), "dGate in place");
            TensorAssert.BitEqual(dUp.Download(), up.Download(), "dUp in place");
            bench.CheckMargins();
        }
    }

    /// <summary>Where the square of a gate is infinite the slope is 0 or 1, not 0 times infinity.</summary>
    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Calls_ExtremeGates_AreFiniteOrExact(string mode)
    {
        using var bench = new KernelBench(mode);
        var shape = new Shape(1, 5);
        Tensor gate = bench.Bf16([-8192, 8192, 0, float.NaN, -1e30f], shape), up = bench.Bf16([2, 2, 2, 2, 2], shape), h = bench.Poisoned(DType.BF16, shape);
        GeGlu.Forward(h, gate, up);
        Assert.Equal([0f, 16384f, 0f, float.NaN, 0f], h.Download());
        gate = bench.Bf16([-1e30f, 1e30f, 0, -8192, 8192], shape);
        Tensor dGate = bench.Poisoned(DType.BF16, shape), dUp = bench.Poisoned(DType.BF16, shape);
        GeGlu.Backward(dGate, dUp, bench.Bf16([1, 1, 1, 1, 1], shape), gate, up);
        Assert.Equal([0f, 2f, 1f, 0f, 2f], dGate.Download());
    }

    private static double Argument(double a) => 2 * C * (a + 0.044715 * a * a * a);

    private static double Share(double a) => 1 / (1 + Math.Exp(-Argument(a)));

    private static double Gelu(double a) => a * Share(a);

    private static double Slope(double a) => Share(a) + 2 * a * Share(a) * (1 - Share(a)) * C * (1 + 0.134145 * a * a);
}
