using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

public sealed class GeGluTests
{
    private static readonly double C = Math.Sqrt(2 / Math.PI);

    [Theory]
    [MemberData(nameof(OpCases.DevicesAndShapes), MemberType = typeof(OpCases))]
    public void ForwardAndBackward_AnyShape_MatchReference(string name, int n, int f)
    {
        using Device device = Open(name);
        var shape = new Shape(n, f);
        Tensor gate = device.Random(1, shape, 3), up = device.Random(2, shape), dh = device.Random(3, shape), h = device.Poisoned(shape);
        double[] a = gate.Doubles(), b = up.Doubles(), g = dh.Doubles();
        GeGlu.Forward(h, gate, up);

        // 1 + t has the absolute error of t: a few roundings of numbers of size 1, and the error of its argument times the slope of tanh, at most 2.
        double[] unit = [.. a.Select(v => Math.Abs(v) * 16 * U)];
        Within([.. a.Zip(b, (x, y) => Gelu(x) * y)], [.. unit.Zip(b, (x, y) => x * Math.Abs(y))], h.Download(), "h");

        Tensor dGate = device.Poisoned(shape), dUp = device.Poisoned(shape);
        GeGlu.Backward(dGate, dUp, dh, gate, up);
        Within([.. a.Select((v, i) => g[i] * Gelu(v))], [.. unit.Select((v, i) => v * Math.Abs(g[i]))], dUp.Download(), "dUp");

        // The second term is a * (1 - t^2) * c * (1 + 3 * 0.044715 a^2) / 2, and 1 - t^2 has an absolute error of a few roundings.
        Within(
            [.. a.Select((v, i) => g[i] * b[i] * Slope(v))],
            [.. a.Select((v, i) => Math.Abs(g[i] * b[i]) * (1 + Math.Abs(v) * (1 + 0.134145 * v * v)) * 16 * U)], dGate.Download(), "dGate");

        GeGlu.Backward(gate, up, dh, gate, up);
        TensorAssert.BitEqual(dGate.Download(), gate.Download(), "dGate in place");
        TensorAssert.BitEqual(dUp.Download(), up.Download(), "dUp in place");
    }

    [Fact]
    public void Calls_OnRowsOfAMatrix_LeaveItsOtherRowsAlone()
    {
        using Device device = Open("cpu");
        var shape = new Shape(3, 17);
        Tensor gate = device.Random(1, shape), up = device.Random(2, shape), dh = device.Random(3, shape);
        Tensor output = device.Filled(7, shape), dGate = device.Filled(8, shape), dUp = device.Filled(9, shape);
        GeGlu.Forward(output.Rows(1, 1), gate.Rows(1, 1), up.Rows(1, 1));
        GeGlu.Backward(dGate.Rows(1, 1), dUp.Rows(1, 1), dh.Rows(1, 1), gate.Rows(1, 1), up.Rows(1, 1));
        foreach ((Tensor tensor, float guard) in new[] { (output, 7f), (dGate, 8f), (dUp, 9f) })
        {
            float[] values = tensor.Download();
            Assert.All(values[..17].Concat(values[34..]), v => Assert.Equal(guard, v));
            Assert.All(values[17..34], v => Assert.NotEqual(guard, v));
        }
    }

    [Fact]
    public void Calls_ExtremeGates_AreFiniteOrExact()
    {
        using Device device = Open("cpu");
        Tensor gate = device.Upload([-1e4f, 1e4f, 0, -1e30f, 1e30f, float.NaN], new Shape(1, 6)), up = device.Filled(2, gate.Shape), h = device.Poisoned(gate.Shape);
        GeGlu.Forward(h, gate, up);
        Assert.Equal([0f, 2e4f, 0f, 0f, 2e30f, float.NaN], h.Download());
        GeGlu.Backward(gate, h, device.Filled(1, gate.Shape), gate, up);
        Assert.Equal([0f, 2f, 1f, 0f, 2f, float.NaN], gate.Download());
    }

    [Fact]
    public void Reference_Slope_MatchesFiniteDifference()
    {
        double[] a = [-20, -3, -0.5, 0, 0.7, 4, 30];
        MatchesFiniteDifference(a, () => a.Sum(Gelu), [.. a.Select(Slope)]);
    }

    [Fact]
    public void Calls_WrongArguments_SayWhich()
    {
        using Device device = Open("cpu");
        Tensor x = device.Random(1, new Shape(2, 8)), y = device.Random(1, new Shape(2, 9));
        Throws("GeGlu.Forward: up must be F32 (2, 8), got F32 (2, 9).", () => GeGlu.Forward(x, x, y));
        Throws("GeGlu.Backward: dUp must be F32 (2, 8), got F32 (2, 9).", () => GeGlu.Backward(x, y, x, x, x));
    }

    private static double Tanh(double a) => Math.Tanh(C * (a + 0.044715 * a * a * a));

    private static double Gelu(double a) => 0.5 * a * (1 + Tanh(a));

    private static double Slope(double a) => 0.5 * (1 + Tanh(a)) + 0.5 * a * (1 - Tanh(a) * Tanh(a)) * C * (1 + 0.134145 * a * a);
}
