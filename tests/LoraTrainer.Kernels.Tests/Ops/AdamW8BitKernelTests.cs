using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

/// <summary>The optimizer with moments in eight bits: every operation is rounded by itself, so codes, scales and parameters have the CPU's bits.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class AdamW8BitKernelTests
{
    private static readonly AdamWSettings Settings = new(0.9, 0.999, 1e-8, 0.1);

    // Blocks of one element, a part and a whole; a tensor over several blocks of threads; holes in both buffers; so many that the search has levels.
    private static readonly EightBitSegment[] Segments =
    [
        new(new(256, 1, 1, true), 0), new(new(512, 256, 16, false), 256), new(new(1024, 255, 0.5, true), 768),
        .. Enumerable.Range(5, 40).Select(i => new EightBitSegment(new(i * 512L, 1 + i * 37 % 256, i, i % 3 == 0), i * 256L)),
        new(new(23_040, 5003, 2, true), 12_032),
    ];

    // As the reference was made.
    private static readonly AdamWSettings FixtureSettings = new(0.9, 0.999, 1e-8, 0.01);

    private const double FixtureRate = 1e-3;
    private const int Size = 29_000, Codes = 12_032 + 5003;

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Step_TensorsWithTheirOwnRates_HaveTheBitsOfTheCpuAndTouchNothingElse(string mode)
    {
        int blocks = (int)AdamW8Bit.Blocks(Codes);
        float[] values = Values(1, Size), gradients = Values(2, Size), scales = [.. Values(3, blocks).Select(v => 0.1f + Math.Abs(v))];

        // Nothing at all in one block, and a block whose gradients are zeros: its moments shrink.
        scales[1] = 0;
        gradients.AsSpan(512, 256).Clear();
        gradients.AsSpan(23_040, 300).Clear();
        byte[] first = [.. Enumerable.Range(0, Codes).Select(i => (byte)(i * 73 % 251))], second = [.. Enumerable.Range(0, Codes).Select(i => (byte)(i * 41 % 256))];
        using var cpu = new CpuDevice(1, 1 << 26);
        foreach ((int step, double norm, double maximum) in ((int, double, double)[])[(1, 2.7, 1), (40, 0.3, 1), (1000, 2.7, 0)])
        {
            using ArenaFrame frame = cpu.Arena.Frame();
            Tensor Bytes(byte[] content)
            {
                Tensor tensor = cpu.Arena.Allocate(MemoryKind.Moments, DType.U8, new Shape(content.Length));
                cpu.Upload(tensor, content);
                return tensor;
            }

            Tensor[] expected = [cpu.Upload(values, new Shape(Size)), cpu.Upload(gradients, new Shape(Size)), Bytes(first), cpu.Upload(scales, new Shape(blocks)), Bytes(second), cpu.Upload(scales, new Shape(blocks))];
            Run(expected, Segments, step, cpu.Report(1, norm), maximum);
            foreach (bool shifted in (bool[])[false, true])
            {
                using var bench = new KernelBench(mode, shifted);
                Tensor[] actual = [bench.F32(values, new Shape(Size)), bench.F32(gradients, new Shape(Size)), bench.Bytes(first), bench.F32(scales, new Shape(blocks)), bench.Bytes(second), bench.F32(scales, new Shape(blocks))];
                Run(actual, Segments, step, bench.F64([1, norm]), maximum);
                foreach ((int i, string name) in ((int, string)[])[(2, "codes of m"), (3, "scales of m"), (4, "codes of v"), (5, "scales of v"), (0, "p"), (1, "g")])
                {
                    Assert.True(expected[i].DownloadBytes().AsSpan().SequenceEqual(actual[i].DownloadBytes()), $"{name} after step {step} differ");
                }

                Assert.NotEqual(values, actual[0].Download());
                Assert.NotEqual(first, actual[2].DownloadBytes());
                bench.CheckMargins();
            }
        }
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Step_ReportIsNotFinite_ChangesNothing(string mode)
    {
        using var bench = new KernelBench(mode);
        float[] values = Values(1, 600);
        byte[] codes = [.. Enumerable.Range(0, 600).Select(i => (byte)i)];
        Tensor[] state = [bench.F32(values, new Shape(600)), bench.F32(Values(2, 600), new Shape(600)), bench.Bytes(codes), bench.F32([1, 2, 3], new Shape(3)), bench.Bytes(codes), bench.F32([4, 5, 6], new Shape(3))];
        byte[][] before = [.. state.Select(tensor => tensor.DownloadBytes())];
        foreach ((double lossSum, double norm) in ((double, double)[])[(double.NaN, 1), (1, double.PositiveInfinity), (1, double.NaN)])
        {
            Run(state, [new(new(0, 600, 1, true), 0)], 1, bench.F64([lossSum, norm]), 1);
            Assert.Equal(before, state.Select(tensor => tensor.DownloadBytes()));
        }
    }

    /// <summary>
    /// Against bitsandbytes' CUDA kernels on a card, each update from their own state. They form 1 - b2 in f32, which for 0.999 is 1.3e-5 less than the number
    /// that is meant here, and so are their scales of v; codes are theirs, or a neighbour's where the number lies between the two.
    /// </summary>
    [Fact]
    public void CudaFixture_EveryUpdate_GivesTheCodesScalesAndParameters()
    {
        using SafetensorsFile file = SafetensorsFile.Open(Fixtures.Golden("bitsandbytes_cuda/adamw8bit_blockwise.safetensors"));
        byte[] Read(string name)
        {
            SafetensorsEntry entry = file.Entries.Single(entry => entry.Name == name);
            byte[] bytes = new byte[entry.ByteLength];
            file.ReadInto(entry, 0, bytes);
            return bytes;
        }

        float[] Floats(string name) => MemoryMarshal.Cast<byte, float>(Read(name)).ToArray();
        TensorAssert.BitEqual(Floats("code_signed"), DynamicMap.Signed.AsSpan(), "signed map");
        TensorAssert.BitEqual(Floats("code_unsigned"), DynamicMap.Unsigned.AsSpan(), "unsigned map");
        int count = Floats("param_0").Length, blocks = (int)AdamW8Bit.Blocks(count), updates = file.Entries.Count(entry => entry.Name.StartsWith("grad_", StringComparison.Ordinal)), neighbours = 0;
        var shape = new Shape(count);
        using var bench = new KernelBench(KernelModes.Names[0]);
        for (int step = 1; step <= updates; step++)
        {
            bool isFirst = step == 1;
            Tensor[] state =
            [
                bench.F32(Floats($"param_{step - 1}"), shape), bench.F32(Floats($"grad_{step}"), shape),
                bench.Bytes(isFirst ? new byte[count] : Read($"state1_{step - 1}")), bench.F32(isFirst ? new float[blocks] : Floats($"absmax1_{step - 1}"), new Shape(blocks)),
                bench.Bytes(isFirst ? new byte[count] : Read($"state2_{step - 1}")), bench.F32(isFirst ? new float[blocks] : Floats($"absmax2_{step - 1}"), new Shape(blocks)),
            ];
            AdamW8Bit.Step(state[0], state[1], state[2], state[3], state[4], state[5], [new(new(0, count, 1, true), 0)], FixtureSettings, step, FixtureRate, bench.F64([1, 1]), 0);
            TensorAssert.Close(Floats($"param_{step}"), state[0].Download(), 1e-6, $"parameters after update {step}");
            Relative(Floats($"absmax1_{step}"), state[3].Download(), 1e-6, $"absmax1 after update {step}");
            Relative(Floats($"absmax2_{step}"), state[5].Download(), 2e-5, $"absmax2 after update {step}");
            neighbours += Neighbours(Read($"state1_{step}"), state[2].DownloadBytes(), $"state1 after update {step}");
            neighbours += Neighbours(Read($"state2_{step}"), state[4].DownloadBytes(), $"state2 after update {step}");
        }

        Assert.True(updates > 1);
        Assert.True(neighbours <= 2 * updates * count / 1000, $"{neighbours} of {2 * updates * count} codes are a neighbour's");
    }

    private static void Run(Tensor[] state, EightBitSegment[] segments, int step, Tensor report, double maximum) =>
        AdamW8Bit.Step(state[0], state[1], state[2], state[3], state[4], state[5], segments, Settings, step, 3e-3, report, maximum);

    private static int Neighbours(byte[] expected, byte[] actual, string what)
    {
        Assert.All(expected.Zip(actual), pair => Assert.True(Math.Abs(pair.First - pair.Second) <= 1, $"{what}: code {pair.Second}, expected {pair.First}"));
        return expected.Zip(actual).Count(pair => pair.First != pair.Second);
    }

    private static void Relative(float[] expected, float[] actual, double tolerance, string what) =>
        Assert.All(expected.Zip(actual), pair => Assert.True(Math.Abs(pair.First - pair.Second) <= tolerance * Math.Abs(pair.First), $"{what}: {pair.Second:R}, expected {pair.First:R}"));
}
