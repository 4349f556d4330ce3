using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

public sealed class SoftcapTests
{
    private const float Cap = 5;

    [Theory]
    [MemberData(nameof(OpCases.DevicesAndShapes), MemberType = typeof(OpCases))]
    public void ForwardAndBackward_AnyShape_MatchReference(string name, int n, int v)
    {
        using Device device = Open(name);
        var shape = new Shape(n, v);
        Tensor values = device.Random(1, shape, 4), gradient = device.Random(2, shape);
        double[] x = values.Doubles(), dy = gradient.Doubles();
        Softcap.Forward(values, Cap);
        Within([.. x.Select(Value)], [.. x.Select(z => Math.Abs(Value(z)) * 8 * U)], values.Download(), "y");
        Softcap.Backward(gradient, values, Cap);

        // 1 - t^2 has an absolute error of a few roundings of numbers of size 1.
        Within([.. x.Zip(dy, (z, g) => g * Slope(z))], [.. dy.Select(g => Math.Abs(g) * 20 * U)], gradient.Download(), "dx");
    }

    [Fact]
    public void Calls_OnRowsOfAMatrix_LeaveItsOtherRowsAlone()
    {
        using Device device = Open("cpu");
        Tensor values = device.Filled(7, new Shape(3, 17)), gradient = device.Filled(8, new Shape(3, 17));
        Softcap.Forward(values.Rows(1, 1), Cap);
        Softcap.Backward(gradient.Rows(1, 1), values.Rows(1, 1), Cap);
        foreach ((Tensor tensor, float guard) in new[] { (values, 7f), (gradient, 8f) })
        {
            float[] all = tensor.Download();
            Assert.All(all[..17].Concat(all[34..]), v => Assert.Equal(guard, v));
            Assert.All(all[17..34], v => Assert.NotEqual(guard, v));
        }
    }

    [Fact]
    public void Reference_Slope_MatchesFiniteDifference()
    {
        double[] x = [-40, -3, -0.5, 0, 0.7, 4, 30];
        MatchesFiniteDifference(x, () => x.Sum(Value), [.. x.Select(Slope)]);
    }

    [Fact]
    public void Calls_WrongArguments_SayWhich()
    {
        using Device device = Open("cpu");
        Tensor x = device.Random(1, new Shape(2, 8)), y = device.Random(1, new Shape(2, 9));
        Throws("Softcap.Backward: dValues must be F32 (2, 8), got F32 (2, 9).", () => Softcap.Backward(y, x, Cap));
        Assert.Equal("cap", Assert.Throws<ArgumentOutOfRangeException>(() => Softcap.Forward(x, 0)).ParamName);

        // On a GPU gradients of logits have the type of activations.
        using var gpu = new MeasureDevice(1, DevicePlatform.Cuda);
        Tensor z = gpu.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(2, 8));
        Throws("Softcap.Backward: dValues must be BF16 (2, 8), got F32 (2, 8).", () => Softcap.Backward(z, z, Cap));
    }

    private static double Value(double x) => Cap * Math.Tanh(x / Cap);

    private static double Slope(double x) => 1 - (Math.Tanh(x / Cap) * Math.Tanh(x / Cap));
}
