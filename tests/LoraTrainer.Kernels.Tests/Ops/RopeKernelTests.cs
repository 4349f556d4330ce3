using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Kernels.Tests.KernelBench;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class RopeKernelTests
{
    private const float Scaling = 1.25f;

    /// <summary>Mode, rows, heads, head dim, pairs that turn: whole heads and parts of them, with and without vectors.</summary>
    public static TheoryData<string, int, int, int, int> Shapes
    {
        get
        {
            var data = new TheoryData<string, int, int, int, int>();
            foreach (string mode in KernelModes.Names)
            {
                data.Add(mode, 3, 1, 2, 1);
                data.Add(mode, 5, 3, 20, 7);
                data.Add(mode, 4, 2, 24, 8);
                data.Add(mode, 5, 3, 16, 8);
                data.Add(mode, 3, 5, 24, 12);
                data.Add(mode, 9, 2, 128, 64);
                data.Add(mode, 2, 33, 64, 32);
            }

            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Shapes))]
    public void TablesAndTurns_AnyShape_MatchReference(string mode, int n, int heads, int dh, int half)
    {
        int[] positions = [.. Enumerable.Range(0, n).Select(i => i * 977 * 31 % 131072)];
        float[] frequencies = [.. Enumerable.Range(0, half).Select(i => (float)Math.Pow(10000, -i / (double)half))];
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            Tensor cosine = bench.Poisoned(DType.F32, new Shape(n, half)), sine = bench.Poisoned(DType.F32, new Shape(n, half));
            Rope.BuildTables(cosine, sine, bench.Integers(positions), frequencies, Scaling);
            double[] angles = [.. Enumerable.Range(0, n * half).Select(i => (double)(frequencies[i % half] * (float)positions[i / half]))];

            // Sine and cosine within 2 units of the last place, then one product.
            Within([.. angles.Select(a => Math.Cos(a) * Scaling)], [.. angles.Select(a => Math.Abs(Math.Cos(a)) * Scaling * 5.01 * U)], cosine.Download(), "cos");
            Within([.. angles.Select(a => Math.Sin(a) * Scaling)], [.. angles.Select(a => Math.Abs(Math.Sin(a)) * Scaling * 5.01 * U)], sine.Download(), "sin");

            double[] c = cosine.Doubles(), s = sine.Doubles();
            foreach (int direction in (int[])[1, -1])
            {
                Tensor x = bench.RandomBf16(1, new Shape(n, heads * dh));
                (double[] expected, double[] size) = RopeReference.Turn(x.Doubles(), c, s, heads, dh, half, direction);
                if (direction == 1)
                {
                    Rope.Forward(x, dh, cosine, sine);
                }
                else
                {
                    Rope.Backward(x, dh, cosine, sine);
                }

                double[] bound = RoundedBound(expected, [.. size.Select(v => 2 * U * v)]);
                Within(expected, [.. bound.Select((b, i) => size[i] == 0 ? 0 : b)], x.Download(), "direction " + direction);
            }

            bench.CheckMargins();
        }
    }
}
