using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests.Ops;

/// <summary>The noise is the CPU's, rounded to bf16: each of its operations is rounded by itself on both.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class EmbeddingNoiseKernelTests
{
    public static TheoryData<string, int, int> Shapes => KernelModes.With((1, 1), (3, 7), (5, 8), (40, 24), (33, 123), (9, 1024));

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Add_AnyDocuments_HasTheBitsOfTheCpu(string mode, int n, int d)
    {
        int[] offsets = n > 3 ? [0, 1, 3, n] : [0, n];
        float[] values = KernelBench.Rounded(OpHarness.Values(1, (long)n * d));
        using var cpu = new CpuDevice(1, 1 << 24);

        // A first token whose elements begin inside a group of four, and beyond 2^32.
        foreach (long firstRow in (long[])[0, 1001, 1L << 33])
        {
            var key = new DropoutKey(77, 9, 4, firstRow);
            using ArenaFrame frame = cpu.Arena.Frame();
            Tensor expected = cpu.Upload(values, new Shape(n, d));
            EmbeddingNoise.Add(expected, new PackedDocuments(Tensor.None, offsets), 5, key);
            foreach (bool shifted in (bool[])[false, true])
            {
                using var bench = new KernelBench(mode, shifted);
                Tensor actual = bench.Bf16(values, new Shape(n, d));
                EmbeddingNoise.Add(actual, new PackedDocuments(Tensor.None, offsets), 5, key);
                TensorAssert.BitEqual(KernelBench.Rounded(expected.Download()), actual.Download(), $"from token {firstRow} on");
                Assert.NotEqual(values, actual.Download());
                bench.CheckMargins();
            }
        }
    }
}
