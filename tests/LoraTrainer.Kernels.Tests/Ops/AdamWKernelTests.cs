using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

/// <summary>The optimizer computes each element by itself, in operations that are rounded alike everywhere: its bits are the CPU's.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class AdamWKernelTests
{
    private static readonly AdamWSettings Settings = new(0.9, 0.999, 1e-8, 0.1);

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Step_SegmentsWithTheirOwnRates_HaveTheBitsOfTheCpuAndTouchNothingElse(string mode)
    {
        const int size = 40 * 2048;

        // Many short ones, so that the search has several levels; ends before, at and after a vector's border; a hole; a long one.
        ParameterSegment[] segments =
        [
            new(0, 123, 1, true), new(256, 1, 16, false), new(512, 256, 0.5, true), new(1024, 255, 0.25, true),
            .. Enumerable.Range(5, 60).Select(i => new ParameterSegment(i * 256L, 1 + i * 37 % 256, i, i % 3 == 0)),
            new(70 * 256, size - 70 * 256 - 61, 2, true),
        ];
        float[] values = Values(1, size), gradients = Values(2, size), first = Values(3, size, 0.1f), second = [.. Values(4, size).Select(x => x * x * 0.01f)];
        using var cpu = new CpuDevice(1, 1 << 26);
        foreach ((int step, double norm, double maximum) in ((int, double, double)[])[(1, 2.7, 1), (2, 0.3, 1), (1000, 2.7, 0)])
        {
            using ArenaFrame frame = cpu.Arena.Frame();
            var shape = new Shape(size);
            Tensor[] expected = [cpu.Upload(values, shape), cpu.Upload(gradients, shape), cpu.Upload(first, shape), cpu.Upload(second, shape)];
            AdamW.Step(expected[0], expected[1], expected[2], expected[3], segments, Settings, step, 3e-3, cpu.Report(1, norm), maximum);
            foreach (bool shifted in (bool[])[false, true])
            {
                using var bench = new KernelBench(mode, shifted);
                Tensor[] actual = [bench.F32(values, shape), bench.F32(gradients, shape), bench.F32(first, shape), bench.F32(second, shape)];
                AdamW.Step(actual[0], actual[1], actual[2], actual[3], segments, Settings, step, 3e-3, bench.F64([1, norm]), maximum);
                foreach ((int i, string name) in ((int, string)[])[(2, "m"), (3, "v"), (0, "p"), (1, "g")])
                {
                    TensorAssert.BitEqual(expected[i].Download(), actual[i].Download(), $"{name} after step {step}");
                }

                Assert.NotEqual(values, actual[0].Download());
                bench.CheckMargins();
            }
        }
    }

    /// <summary>A step that went wrong leaves no trace: the host reads why only afterwards.</summary>
    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Step_ReportIsNotFinite_ChangesNothing(string mode)
    {
        using var bench = new KernelBench(mode);
        var shape = new Shape(600);
        float[][] values = [Values(1, 600), Values(2, 600), Values(3, 600), Values(4, 600)];
        Tensor p = bench.F32(values[0], shape), g = bench.F32(values[1], shape), m = bench.F32(values[2], shape), v = bench.F32(values[3], shape);
        foreach ((double lossSum, double norm) in ((double, double)[])[(double.NaN, 1), (1, double.PositiveInfinity), (double.NegativeInfinity, 1), (1, double.NaN)])
        {
            foreach (double maximum in (double[])[1, 0])
            {
                AdamW.Step(p, g, m, v, [new(0, 500, 1, true), new(512, 88, 1, true)], Settings, 1, 1e-2, bench.F64([lossSum, norm]), maximum);
                TensorAssert.BitEqual(values[0], p.Download(), "p");
                TensorAssert.BitEqual(values[2], m.Download(), "m");
                TensorAssert.BitEqual(values[3], v.Download(), "v");
            }
        }
    }
}
