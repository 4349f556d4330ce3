using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;
using static LoraTrainer.TestSupport.SwiGluReference;

namespace LoraTrainer.Engine.Tests.Ops;

public sealed class SwiGluTests
{
    [Theory]
    [MemberData(nameof(OpCases.DevicesAndShapes), MemberType = typeof(OpCases))]
    public void ForwardAndBackward_AnyShape_MatchReference(string name, int n, int f)
    {
        using Device device = Open(name);
        var shape = new Shape(n, f);
        Tensor gate = device.Random(1, shape, 3), up = device.Random(2, shape), dh = device.Random(3, shape), h = device.Poisoned(shape);
        double[] a = gate.Doubles(), b = up.Doubles(), g = dh.Doubles();
        double[] expected = [.. a.Zip(b, Value)];
        SwiGlu.Forward(h, gate, up);

        // Sigmoid within 4 roundings, then two products.
        Within(expected, [.. expected.Select(v => Math.Abs(v) * 8 * U)], h.Download(), "h");

        Tensor dGate = device.Poisoned(shape), dUp = device.Poisoned(shape);
        SwiGlu.Backward(dGate, dUp, dh, gate, up);
        double[] da = [.. a.Select((v, i) => g[i] * b[i] * Slope(v))], db = [.. a.Select((v, i) => g[i] * Value(v, 1))];
        Within(db, [.. db.Select(v => Math.Abs(v) * 8 * U)], dUp.Download(), "dUp");

        // 1 - s has the absolute error of s, which a multiplies: hence 1 + |a| beside the slope's own size.
        Within(da, [.. a.Select((v, i) => Math.Abs(g[i] * b[i]) * Sigmoid(v) * (1 + Math.Abs(v)) * 16 * U)], dGate.Download(), "dGate");

        SwiGlu.Backward(gate, up, dh, gate, up);
        TensorAssert.BitEqual(dGate.Download(), gate.Download(), "dGate in place");
        TensorAssert.BitEqual(dUp.Download(), up.Download(), "dUp in place");
    }

    [Theory]
    [MemberData(nameof(OpCases.Devices), MemberType = typeof(OpCases))]
    public void Calls_OnRowsOfAMatrix_LeaveItsOtherRowsAlone(string name)
    {
        // Rows of 17 elements start at no vector's border, and the next row begins where the last vector would run over.
        using Device device = Open(name);
        var shape = new Shape(3, 17);
        Tensor gate = device.Random(1, shape), up = device.Random(2, shape), dh = device.Random(3, shape), whole = device.Poisoned(shape);
        SwiGlu.Forward(whole, gate, up);
        Tensor output = device.Filled(7, shape), dGate = device.Filled(8, shape), dUp = device.Filled(9, shape);
        SwiGlu.Forward(output.Rows(1, 1), gate.Rows(1, 1), up.Rows(1, 1));
        SwiGlu.Backward(dGate.Rows(1, 1), dUp.Rows(1, 1), dh.Rows(1, 1), gate.Rows(1, 1), up.Rows(1, 1));
        TensorAssert.BitEqual(whole.Download().AsSpan(17, 17), output.Download().AsSpan(17, 17), "the row");
        foreach ((Tensor tensor, float guard) in new[] { (output, 7f), (dGate, 8f), (dUp, 9f) })
        {
            float[] values = tensor.Download();
            Assert.All(values[..17].Concat(values[34..]), v => Assert.Equal(guard, v));
            Assert.All(values[17..34], v => Assert.NotEqual(guard, v));
        }
    }

    [Fact]
    public void Forward_ExtremeGates_IsFiniteOrExact()
    {
        using Device device = Open("cpu");
        Tensor h = device.Poisoned(new Shape(1, 4));
        SwiGlu.Forward(h, device.Upload([-1e4f, 1e4f, 0, float.NaN], new Shape(1, 4)), device.Filled(2, new Shape(1, 4)));
        Assert.Equal([0f, 2e4f, 0f, float.NaN], h.Download());
    }

    [Fact]
    public void Reference_Slope_MatchesFiniteDifference()
    {
        double[] a = [-20, -3, -0.5, 0, 0.7, 4, 30];
        MatchesFiniteDifference(a, () => a.Sum(v => Value(v, 1)), [.. a.Select(Slope)]);
    }

    [Fact]
    public void Calls_WrongArguments_SayWhich()
    {
        using Device device = Open("cpu"), other = Open("cpu", 1);
        Tensor x = device.Random(1, new Shape(2, 8)), y = device.Random(1, new Shape(2, 9));
        Throws("SwiGlu.Forward: up must be F32 (2, 8), got F32 (2, 9).", () => SwiGlu.Forward(x, x, y));
        Throws("SwiGlu.Backward: dUp must be F32 (2, 8), got F32 (2, 9).", () => SwiGlu.Backward(x, y, x, x, x));
        Throws(
            $"SwiGlu.Forward: its tensors lie on two devices, {device.Description} and {other.Description}.",
            () => SwiGlu.Forward(x, x, other.Random(1, new Shape(2, 8))));
    }
}
