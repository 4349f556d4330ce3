using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests.Ops;

[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class EmbeddingKernelTests
{
    /// <summary>Among them more rows than a block looks through at once, and more columns than a block has.</summary>
    public static TheoryData<string, int, int> Shapes => KernelModes.With((1, 1), (3, 7), (5, 8), (40, 24), (33, 100), (70, 123), (9, 1024), (7, 2056), (6, 2050), (1100, 8), (1030, 3));

    [Theory]
    [MemberData(nameof(Shapes))]
    public void ForwardAndBackward_AnyShape_EqualTheDefinition(string mode, int n, int d)
    {
        const int vocabulary = 6, padding = 1;
        const float Scale = 6.9375f;

        // Token 5 occurs in the first and in the last row only, the others all over.
        int[] ids = [.. Enumerable.Range(0, n).Select(i => i == 0 || i == n - 1 ? 5 : i * i % 5)];
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            Tensor tokens = bench.Integers(ids), table = bench.RandomBf16(1, new Shape(vocabulary, d)), output = bench.Poisoned(DType.BF16, new Shape(n, d));
            float[] values = table.Download();
            Embedding.Forward(output, tokens, table);
            TensorAssert.BitEqual(ids.SelectMany(id => values[(id * d)..((id + 1) * d)]).ToArray(), output.Download(), "output");

            Embedding.Forward(output, tokens, table, Scale);
            TensorAssert.BitEqual(KernelBench.Rounded([.. ids.SelectMany(id => values[(id * d)..((id + 1) * d)]).Select(value => value * Scale)]), output.Download(), "scaled output");

            Tensor dOutput = bench.RandomBf16(2, new Shape(n, d)), dTable = bench.RandomF32(3, new Shape(vocabulary, d));
            foreach ((int left, float scale) in ((int, float)[])[(padding, 1), (-1, 1), (padding, Scale)])
            {
                float[] g = dOutput.Download(), expected = dTable.Download();
                Embedding.Backward(dTable, dOutput, tokens, left, scale);
                for (int i = 0; i < n * d; i++)
                {
                    if (ids[i / d] != left)
                    {
                        float scaled = g[i] * scale;
                        expected[ids[i / d] * d + i % d] += scaled;
                    }
                }

                TensorAssert.BitEqual(expected, dTable.Download(), $"table gradient without token {left}, scale {scale}");
            }

            bench.CheckMargins();
        }
    }
}
