using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Kernels.Tests.KernelBench;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

/// <summary>Sums, biases, copies of rows and of other precision: all but the sums over rows are fixed to the bit.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class ElementwiseKernelTests
{
    public static TheoryData<string, int, int> Shapes => KernelModes.With((1, 1), (3, 7), (5, 8), (4, 24), (3, 100), (5, 123), (2, 1024), (3, 2050), (70, 33));

    [Theory]
    [MemberData(nameof(Shapes))]
    public void SumsAndBiases_AnyShape_EqualTheDefinition(string mode, int n, int d)
    {
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            var shape = new Shape(n, d);
            Tensor x = bench.RandomBf16(1, shape), y = bench.RandomBf16(2, shape), bias = bench.RandomF32(3, new Shape(d)), sum = bench.Poisoned(DType.BF16, shape);
            float[] a = x.Download(), b = y.Download(), c = bias.Download();
            float[] expected = Rounded([.. a.Zip(b, (p, q) => p + q)]);
            Elementwise.Add(sum, x, y);
            TensorAssert.BitEqual(expected, sum.Download(), "sum");
            Elementwise.Add(x, x, y);
            TensorAssert.BitEqual(expected, x.Download(), "sum in the place of the first");
            x = bench.RandomBf16(1, shape);
            Elementwise.Add(y, x, y);
            TensorAssert.BitEqual(expected, y.Download(), "sum in the place of the second");

            Elementwise.AddBias(x, bias);
            TensorAssert.BitEqual(Rounded([.. a.Select((p, i) => p + c[i % d])]), x.Download(), "with bias");

            Tensor dOutput = bench.RandomBf16(2, shape);
            Elementwise.BiasGradient(bias, dOutput);
            double[] sums = [.. c.Select(v => (double)v)], size = [.. c.Select(v => (double)Math.Abs(v))];
            for (int i = 0; i < n * d; i++)
            {
                sums[i % d] += b[i];
                size[i % d] += Math.Abs(b[i]);
            }

            Within(sums, [.. size.Select(v => (n / 16.0 + 20) * U * v)], bias.Download(), "bias gradient");
            bench.CheckMargins();
        }
    }

    /// <summary>So many rows that threads have 15 or 16 of them: batches of every size, and two of the largest.</summary>
    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void BiasGradient_ManyRows_SumsEachOnce(string mode)
    {
        const int n = 15 * 256 + 5, d = 40;
        using var bench = new KernelBench(mode);
        Tensor dOutput = bench.RandomBf16(1, new Shape(n, d)), bias = bench.RandomF32(2, new Shape(d));
        double[] terms = dOutput.Doubles(), sums = bias.Doubles(), size = [.. sums.Select(Math.Abs)];
        for (int i = 0; i < terms.Length; i++)
        {
            sums[i % d] += terms[i];
            size[i % d] += Math.Abs(terms[i]);
        }

        Elementwise.BiasGradient(bias, dOutput);

        // Chains of 16 rows, eight of them, then 32.
        Within(sums, [.. size.Select(v => 56 * U * v)], bias.Download(), "bias gradient");
        bench.CheckMargins();
    }

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Rows_GatherThenScatter_MovesThoseRowsOnly(string mode, int n, int d)
    {
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            int[] chosen = [.. Enumerable.Range(0, n).Where(i => i % 2 == 0).Reverse()];
            Tensor whole = bench.RandomBf16(1, new Shape(n, d)), rows = bench.Integers(chosen), block = bench.Poisoned(DType.BF16, new Shape(chosen.Length, d));
            float[] values = whole.Download();
            Rows.Gather(block, whole, rows);
            TensorAssert.BitEqual(chosen.SelectMany(r => values[(r * d)..((r + 1) * d)]).ToArray(), block.Download(), "gathered");
            Tensor target = bench.Bf16([.. Enumerable.Repeat(7f, n * d)], new Shape(n, d));
            Rows.Scatter(target, block, rows);
            TensorAssert.BitEqual(values.Select((v, i) => i / d % 2 == 0 ? v : 7).ToArray(), target.Download(), "scattered");
            bench.CheckMargins();
        }
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Cast_EveryKindOfNumber_RoundsToNearestEven(string mode)
    {
        float[] special =
        [
            0, -0f, 1, -1, float.PositiveInfinity, float.NegativeInfinity, float.MaxValue, -float.MaxValue, float.Epsilon, 1e-40f, -1e-40f,
            BitConverter.UInt32BitsToSingle(0x3F808000), BitConverter.UInt32BitsToSingle(0x3F818000), BitConverter.UInt32BitsToSingle(0x3F808001), BitConverter.UInt32BitsToSingle(0x3F807FFF),
            BitConverter.UInt32BitsToSingle(0x7F7F7FFF), BitConverter.UInt32BitsToSingle(0x7F7F8000),
        ];
        foreach (int count in (int[])[1, 7, 8, 24, 100, 123, 2050, 4099])
        {
            foreach (bool shifted in (bool[])[false, true])
            {
                using var bench = new KernelBench(mode, shifted);
                float[] values = [.. special.Concat(Values(1, count)).Take(count)];
                Tensor output = bench.Poisoned(DType.BF16, new Shape(count));
                Cast.ToBF16(output, bench.F32(values, new Shape(count)));
                TensorAssert.BitEqual(Rounded(values), output.Download(), $"{count} to bf16");
                bench.CheckMargins();
            }
        }
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Cast_NaN_StaysNaN(string mode)
    {
        using var bench = new KernelBench(mode);
        float[] values = [BitConverter.UInt32BitsToSingle(0x7F800001), BitConverter.UInt32BitsToSingle(0xFFFFFFFF), float.NaN];
        Tensor output = bench.Bf16(new float[3], new Shape(3));
        Cast.ToBF16(output, bench.F32(values, new Shape(3)));
        Assert.All(output.Download(), v => Assert.Equal(float.NaN, v));
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Dropout_AnyFirstRowAndWidth_HasTheMaskOfTheCpu(string mode)
    {
        const float p = 0.3f;
        using var cpu = new CpuDevice(1, 1 << 26);
        foreach ((int n, int d) in ((int, int)[])[(1, 1), (3, 7), (5, 8), (4, 24), (3, 100), (5, 123), (2, 1024), (3, 2050)])
        {
            foreach (long firstRow in (long[])[0, 1, 3, 5_000_000_001])
            {
                using ArenaFrame frame = cpu.Arena.Frame();
                var key = new DropoutKey(0x1234_5678_9ABC_DEF0, 7, 11, firstRow);
                float[] values = Rounded(Values(1, n * d));
                Tensor masked = cpu.Upload(values, new Shape(n, d));
                Dropout.Apply(masked, masked, p, key);
                float[] expected = Rounded(masked.Download());
                foreach (bool shifted in (bool[])[false, true])
                {
                    using var bench = new KernelBench(mode, shifted);
                    Tensor input = bench.Bf16(values, new Shape(n, d)), output = bench.Poisoned(DType.BF16, new Shape(n, d));
                    Dropout.Apply(output, input, p, key);
                    TensorAssert.BitEqual(expected, output.Download(), $"({n}, {d}) from row {firstRow}");
                    if (!shifted)
                    {
                        // Numbers in device memory are what counts.
                        Tensor numbers = bench.Integers(MemoryMarshal.Cast<PassNumbers, int>([new PassNumbers(firstRow, key.Step, 0)]).ToArray());
                        Dropout.Apply(output, input, p, key with { FirstRow = 77, Step = 1, Numbers = numbers });
                        TensorAssert.BitEqual(expected, output.Download(), $"({n}, {d}) from row {firstRow} on the device");
                    }

                    Dropout.Apply(input, input, p, key);
                    TensorAssert.BitEqual(expected, input.Download(), $"({n}, {d}) from row {firstRow}, in place");
                    bench.CheckMargins();
                }
            }
        }
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Dropout_OfNothing_PassesEveryElement(string mode)
    {
        using var bench = new KernelBench(mode);
        float[] values = Rounded(Values(1, 123));
        values[5] = -0f;
        Tensor output = bench.Poisoned(DType.BF16, new Shape(1, 123));
        Dropout.Apply(output, bench.Bf16(values, new Shape(1, 123)), 0, new DropoutKey(1, 2, 3, 4));
        TensorAssert.BitEqual(values, output.Download(), "probability 0");
    }

    /// <summary>Columns of a fused matrix: from its start, its middle and its end, at vectors' borders and not.</summary>
    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Columns_GatheredAndScattered_AreThoseOfTheMatrix(string mode)
    {
        const int n = 5;
        foreach ((int d, int c, int first) in ((int, int, int)[])[(1, 1, 0), (24, 8, 8), (24, 16, 8), (25, 8, 16), (24, 8, 5), (2600, 1032, 520), (77, 31, 46), (40, 24, 0)])
        {
            foreach (bool shifted in (bool[])[false, true])
            {
                using var bench = new KernelBench(mode, shifted);
                Tensor whole = bench.RandomBf16(1, new Shape(n, d)), part = bench.Poisoned(DType.BF16, new Shape(n, c)), other = bench.RandomBf16(2, new Shape(n, c));
                float[] before = whole.Download(), taken = other.Download();
                Columns.Gather(part, whole, first);
                TensorAssert.BitEqual([.. Enumerable.Range(0, n * c).Select(i => before[i / c * d + first + i % c])], part.Download(), $"columns {first} to {first + c} of {d}");
                Columns.Scatter(whole, other, first);
                TensorAssert.BitEqual(
                    [.. before.Select((value, i) => i % d >= first && i % d < first + c ? taken[i / d * c + i % d - first] : value)], whole.Download(), $"columns {first} to {first + c} of {d} written");
                bench.CheckMargins();
            }
        }
    }
}
