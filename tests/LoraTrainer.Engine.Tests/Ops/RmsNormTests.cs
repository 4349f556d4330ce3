using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

public sealed class RmsNormTests
{
    private const float Eps = 1e-5f;

    // The D squares are summed in 16 chains of D/16 terms, then 4 more additions; the root halves that error.
    private static double RstdError(int d) => (d / 32.0 + 6) * U;

    [Theory]
    [MemberData(nameof(OpCases.DevicesAndShapes), MemberType = typeof(OpCases))]
    public void Forward_AnyShape_MatchesReference(string name, int n, int d)
    {
        using Device device = Open(name);
        Tensor x = device.Random(1, new Shape(n, d)), w = device.Random(2, new Shape(d)), y = device.Poisoned(new Shape(n, d)), rstd = device.Poisoned(new Shape(n));
        RmsNorm.Forward(y, rstd, x, w, Eps);
        (double[] expected, double[] r) = RmsNormReference.Forward(x.Doubles(), w.Doubles(), n, d, Eps);
        Within(r, [.. r.Select(v => v * RstdError(d))], rstd.Download(), "rstd");
        Within(expected, [.. expected.Select(v => Math.Abs(v) * (RstdError(d) + 2 * U))], y.Download(), "y");
    }

    [Theory]
    [MemberData(nameof(OpCases.DevicesAndShapes), MemberType = typeof(OpCases))]
    public void Backward_AnyShape_OverwritesOrAddsAsAsked(string name, int n, int d)
    {
        using Device device = Open(name);
        Tensor x = device.Random(1, new Shape(n, d)), w = device.Random(2, new Shape(d)), dy = device.Random(3, new Shape(n, d));
        Tensor rstd = device.Poisoned(new Shape(n));
        RmsNorm.Forward(device.Poisoned(new Shape(n, d)), rstd, x, w, Eps);
        (double[] dx, double[] dw, double[] dxSize, double[] dwSize) = RmsNormReference.Backward(dy.Doubles(), x.Doubles(), w.Doubles(), n, d, Eps);

        // rstd, the D/16 + 4 additions of the mean and about ten single roundings; weights add a chain of N rows.
        double error = 3 * RstdError(d) + (d / 16.0 + 14) * U;
        Tensor dInput = device.Poisoned(new Shape(n, d)), dWeight = device.Random(4, new Shape(d));
        double[] before = dWeight.Doubles();
        RmsNorm.Backward(dInput, dWeight, dy, x, w, rstd, GradientMode.Overwrite);
        Within(dx, [.. dxSize.Select(v => v * error)], dInput.Download(), "dx");
        Within([.. dw.Zip(before, (a, b) => a + b)], [.. dwSize.Zip(before, (a, b) => (a + Math.Abs(b)) * (error + n * U))], dWeight.Download(), "dw");

        Tensor stream = device.Random(5, new Shape(n, d));
        double[] old = stream.Doubles();
        RmsNorm.Backward(stream, Tensor.None, dy, x, w, rstd, GradientMode.Accumulate);
        Within([.. dx.Zip(old, (a, b) => a + b)], [.. dxSize.Zip(old, (a, b) => a * error + (a + Math.Abs(b)) * 2 * U)], stream.Download(), "dx added");

        float[] apart = dInput.Download();
        Tensor again = device.Filled(0, new Shape(d));
        RmsNorm.Backward(dy, again, dy, x, w, rstd, GradientMode.Overwrite);
        TensorAssert.BitEqual(apart, dy.Download(), "dx in the place of dy");
        Within(dw, [.. dwSize.Select(v => v * (error + n * U))], again.Download(), "dw when dx takes the place of dy");
    }

    [Theory]
    [MemberData(nameof(OpCases.DevicesAndShapes), MemberType = typeof(OpCases))]
    public void Calls_WithAGainOffset_AreThoseWithTheSumAsWeight(string name, int n, int d)
    {
        using Device device = Open(name);
        Tensor x = device.Random(1, new Shape(n, d)), w = device.Random(2, new Shape(d)), dy = device.Random(3, new Shape(n, d));
        Tensor sum = device.Upload([.. w.Download().Select(v => v + 1)], new Shape(d));
        (float[] y, float[] dx, float[] dw) expected = Run(sum, 0), actual = Run(w, 1);
        TensorAssert.BitEqual(expected.y, actual.y, "y");
        TensorAssert.BitEqual(expected.dx, actual.dx, "dx");
        TensorAssert.BitEqual(expected.dw, actual.dw, "dw");
        TensorAssert.BitEqual(Values(2, d), w.Download(), "the weight is left alone");

        (float[] Y, float[] Dx, float[] Dw) Run(Tensor weight, float offset)
        {
            Tensor output = device.Poisoned(new Shape(n, d)), rstd = device.Poisoned(new Shape(n)), dInput = device.Poisoned(new Shape(n, d)), dWeight = device.Filled(0, new Shape(d));
            RmsNorm.Forward(output, rstd, x, weight, Eps, offset);
            RmsNorm.Backward(dInput, dWeight, dy, x, weight, rstd, GradientMode.Overwrite, offset);
            return (output.Download(), dInput.Download(), dWeight.Download());
        }
    }

    [Fact]
    public void Reference_Gradient_MatchesFiniteDifference()
    {
        const int n = 2, d = 7;
        double[] x = [.. Values(1, n * d)], w = [.. Values(2, d)], dy = [.. Values(3, n * d)];
        (double[] dx, double[] dw, _, _) = RmsNormReference.Backward(dy, x, w, n, d, Eps);
        double Loss() => RmsNormReference.Forward(x, w, n, d, Eps).Y.Zip(dy, (a, b) => a * b).Sum();
        MatchesFiniteDifference(x, Loss, dx);
        MatchesFiniteDifference(w, Loss, dw);
    }

    [Fact]
    public void Calls_WrongArguments_SayWhich()
    {
        using Device device = Open("cpu"), other = Open("cpu", 1);
        Tensor x = device.Random(1, new Shape(2, 8)), y = device.Random(1, new Shape(2, 8)), w = device.Random(2, new Shape(8)), r = device.Random(3, new Shape(2));
        Throws("RmsNorm.Forward: input must be a matrix of F32, got F32 (8).", () => RmsNorm.Forward(y, r, w, w, Eps));
        Throws("RmsNorm.Forward: weight must be F32 (8), got F32 (2).", () => RmsNorm.Forward(y, r, x, r, Eps));
        Throws("RmsNorm.Forward: rstd must be F32 (2), got I32 (2).", () => RmsNorm.Forward(y, device.Integers(1, 2), x, w, Eps));
        Throws("RmsNorm.Forward: output may not share memory with input.", () => RmsNorm.Forward(x, r, x, w, Eps));
        Throws("RmsNorm.Backward: dOutput must be F32 (2, 8), got nothing.", () => RmsNorm.Backward(y, Tensor.None, Tensor.None, x, w, r, GradientMode.Overwrite));
        Throws(
            $"RmsNorm.Forward: its tensors lie on two devices, {device.Description} and {other.Description}.",
            () => RmsNorm.Forward(y, r, x, other.Random(2, new Shape(8)), Eps));
    }
}
