using LoraTrainer.Engine.Devices;
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
public sealed class SoftcapKernelTests
{
    private const float Cap = 30;

    public static TheoryData<string, int, int> Shapes => KernelModes.With((1, 1), (3, 7), (4, 24), (5, 123), (3, 2050));

    [Theory]
    [MemberData(nameof(Shapes))]
    public void ForwardAndBackward_AnyShape_MatchReference(string mode, int n, int v)
    {
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            var shape = new Shape(n, v);

            // From numbers that the cap leaves alone to those that it stops.
            float[] values = [.. Values(1, n * v, 90).Select((x, i) => i % 4 == 0 ? x * 1e-3f : x)];
            Tensor y = bench.F32(values, shape), dy = bench.RandomBf16(2, shape);
            double[] x = [.. values.Select(value => (double)value)], g = dy.Doubles(), expected = [.. x.Select(value => Cap * Math.Tanh(value / Cap))];
            Softcap.Forward(y, Cap);
            Within(expected, [.. expected.Select(value => Math.Abs(value) * 8 * U)], y.Download(), "y");

            // 1 - (y/c)^2 has an absolute error of a few roundings of numbers of size 1.
            Softcap.Backward(dy, y, Cap);
            double[] slope = [.. x.Zip(g, (value, gradient) => gradient * (1 - Math.Tanh(value / Cap) * Math.Tanh(value / Cap)))];
            Within(slope, RoundedBound(slope, [.. g.Select(gradient => Math.Abs(gradient) * 20 * U)]), dy.Download(), "dx");
            bench.CheckMargins();
        }
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Forward_ExtremeValues_StopAtTheCap(string mode)
    {
        using var bench = new KernelBench(mode);
        Tensor y = bench.F32([-1e30f, 1e30f, 0, -0f, float.PositiveInfinity], new Shape(1, 5));
        Softcap.Forward(y, Cap);
        TensorAssert.BitEqual([-Cap, Cap, 0, -0f, Cap], y.Download(), "y");
    }

    /// <summary>The output layer with capped logits: losses and gradients against the CPU in f32 on the same bf16 numbers.</summary>
    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void LinearCrossEntropy_CappedLogits_MatchTheCpu(string mode)
    {
        const int n = 9, d = 24, vocabulary = 37;
        const float cap = 3;
        float[] hidden = Rounded(Values(1, n * d)), weight = Rounded(Values(2, vocabulary * d));
        int[] targets = [.. Enumerable.Range(0, n).Select(i => i * 7 % vocabulary)], rows = [.. Enumerable.Range(0, n).Where(i => i % 3 != 2)];
        using var cpu = new CpuDevice(1, 1 << 26);
        using var bench = new KernelBench(mode, capacityBytes: 80L << 20);
        Tensor exactLosses = cpu.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(n)), exactHidden = cpu.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(n, d));
        Tensor exactWeight = cpu.AllocateZeroed(MemoryKind.Gradients, DType.F32, new Shape(vocabulary, d));
        LinearCrossEntropy.ForwardBackward(
            exactLosses, exactHidden, exactWeight, cpu.Upload(hidden, new Shape(n, d)), new DenseMatrix(cpu.Upload(weight, new Shape(vocabulary, d))), cpu.Integers(targets), cpu.Integers(rows), 0.5f, cap);
        Tensor losses = bench.Poisoned(DType.F32, new Shape(n)), dHidden = bench.Poisoned(DType.BF16, new Shape(n, d)), dWeight = bench.F32(new float[vocabulary * d], new Shape(vocabulary, d));
        LinearCrossEntropy.ForwardBackward(
            losses, dHidden, dWeight, bench.Bf16(hidden, new Shape(n, d)), new DenseMatrix(bench.Bf16(weight, new Shape(vocabulary, d))), bench.Integers(targets), bench.Integers(rows), 0.5f, cap);
        TensorAssert.Close(exactLosses.Download(), losses.Download(), 1e-5, "losses");

        // Gradients of logits are rounded twice to bf16, after the softmax and after the cap, and what they come to once more.
        TensorAssert.RelativeL2(exactHidden.Download(), dHidden.Download(), 3 * HalfUlp, "dHidden");
        TensorAssert.RelativeL2(exactWeight.Download(), dWeight.Download(), 2 * HalfUlp, "dWeight");
        bench.CheckMargins();
    }
}
