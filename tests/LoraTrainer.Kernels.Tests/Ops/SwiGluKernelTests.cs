using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Kernels.Tests.KernelBench;
using static LoraTrainer.TestSupport.OpHarness;
using static LoraTrainer.TestSupport.SwiGluReference;

namespace LoraTrainer.Kernels.Tests.Ops;

[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class SwiGluKernelTests
{
    public static TheoryData<string, int, int> Shapes => KernelModes.With((1, 1), (3, 7), (5, 8), (4, 24), (3, 100), (5, 123), (2, 1024), (3, 2050));

    [Theory]
    [MemberData(nameof(Shapes))]
    public void ForwardAndBackward_AnyShape_MatchReference(string mode, int n, int f)
    {
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            var shape = new Shape(n, f);
            Tensor gate = bench.RandomBf16(1, shape, 3), up = bench.RandomBf16(2, shape), dh = bench.RandomBf16(3, shape), h = bench.Poisoned(DType.BF16, shape);
            double[] a = gate.Doubles(), b = up.Doubles(), g = dh.Doubles(), expected = [.. a.Zip(b, Value)];
            SwiGlu.Forward(h, gate, up);

            // exp within 2 units of the last place, 1 + exp, the division, two products.
            Within(expected, RoundedBound(expected, [.. expected.Select(v => Math.Abs(v) * 12 * U)]), h.Download(), "h");
            float[] apart = h.Download();
            foreach (bool overGate in (bool[])[true, false])
            {
                Tensor first = bench.RandomBf16(1, shape, 3), second = bench.RandomBf16(2, shape), place = overGate ? first : second;
                SwiGlu.Forward(place, first, second);
                TensorAssert.BitEqual(apart, place.Download(), overGate ? "h in the place of gate" : "h in the place of up");
            }

            Tensor dGate = bench.Poisoned(DType.BF16, shape), dUp = bench.Poisoned(DType.BF16, shape);
            SwiGlu.Backward(dGate, dUp, dh, gate, up);
            double[] da = [.. a.Select((v, i) => g[i] * b[i] * Slope(v))], db = [.. a.Select((v, i) => g[i] * Value(v, 1))];
            Within(db, RoundedBound(db, [.. db.Select(v => Math.Abs(v) * 12 * U)]), dUp.Download(), "dUp");

            // 1 - s has the absolute error of s, which a multiplies: hence 1 + |a| beside the slope's own size.
            Within(da, RoundedBound(da, [.. a.Select((v, i) => Math.Abs(g[i] * b[i]) * Sigmoid(v) * (1 + Math.Abs(v)) * 20 * U)]), dGate.Download(), "dGate");

            SwiGlu.Backward(gate, up, dh, gate, up);
            TensorAssert.BitEqual(dGate.Download(), gate.Download(), "dGate in place");
            TensorAssert.BitEqual(dUp.Download(), up.Download(), "dUp in place");
            bench.CheckMargins();
        }
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Forward_ExtremeGates_IsFiniteOrExact(string mode)
    {
        using var bench = new KernelBench(mode);
        Tensor h = bench.Poisoned(DType.BF16, new Shape(1, 4)), up = bench.Bf16([2, 2, 2, 2], new Shape(1, 4));
        SwiGlu.Forward(h, bench.Bf16([-8192, 8192, 0, float.NaN], new Shape(1, 4)), up);
        Assert.Equal([0f, 16384f, 0f, float.NaN], h.Download());
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Calls_OnRowsOfAMatrix_LeaveItsOtherRowsAlone(string mode)
    {
        // Rows of 17 elements start at no vector's border, and the next row begins where the last vector would run over.
        using var bench = new KernelBench(mode);
        var shape = new Shape(3, 17);
        Tensor gate = bench.RandomBf16(1, shape), up = bench.RandomBf16(2, shape), dh = bench.RandomBf16(3, shape), whole = bench.Poisoned(DType.BF16, shape);
        SwiGlu.Forward(whole, gate, up);
        Tensor output = bench.Poisoned(DType.BF16, shape), dGate = bench.Poisoned(DType.BF16, shape), dUp = bench.Poisoned(DType.BF16, shape);
        SwiGlu.Forward(output.Rows(1, 1), gate.Rows(1, 1), up.Rows(1, 1));
        SwiGlu.Backward(dGate.Rows(1, 1), dUp.Rows(1, 1), dh.Rows(1, 1), gate.Rows(1, 1), up.Rows(1, 1));
        TensorAssert.BitEqual(whole.Download().AsSpan(17, 17), output.Download().AsSpan(17, 17), "the row");
        foreach (Tensor tensor in (Tensor[])[output, dGate, dUp])
        {
            float[] values = tensor.Download();
            Assert.All(values[..17].Concat(values[34..]), v => Assert.Equal(float.NaN, v));
            Assert.All(values[17..34], v => Assert.NotEqual(float.NaN, v));
        }
    }
}
