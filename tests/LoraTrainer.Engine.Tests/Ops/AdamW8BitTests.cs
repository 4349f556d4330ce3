using System.Runtime.InteropServices;
using System.Text.Json;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Engine.Tests.Quantization;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

public sealed class AdamW8BitTests(ITestOutputHelper output)
{
    private static readonly AdamWSettings Settings = new(0.9, 0.999, 1e-8, 0.1);

    /// <summary>Each update starts from the reference's state, so that a code that may take either neighbour does not spoil those after it.</summary>
    [Fact]
    [Trait("Category", "Fixtures")]
    public void Fixture_EveryUpdate_GivesTheCodesScalesAndParameters()
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Require("bitsandbytes/adamw8bit_blockwise.json")));
        var file = new SafetensorsFile(Fixtures.Require("bitsandbytes/adamw8bit_blockwise.safetensors"));
        JsonElement json = document.RootElement;
        Assert.Equal(AdamW8Bit.Blocksize, json.GetProperty("block").GetInt32());
        TensorAssert.BitEqual(file.Floats("code_signed"), DynamicMap.Signed.AsSpan(), "signed map");
        TensorAssert.BitEqual(file.Floats("code_unsigned"), DynamicMap.Unsigned.AsSpan(), "unsigned map");
        var settings = new AdamWSettings(json.GetProperty("beta1").GetDouble(), json.GetProperty("beta2").GetDouble(), json.GetProperty("eps").GetDouble(), json.GetProperty("weight_decay").GetDouble());
        int count = file.Floats("param_0").Length, blocks = (int)AdamW8Bit.Blocks(count), updates = json.GetProperty("updates").GetInt32(), neighbours = 0;
        Assert.True(updates > 1);
        using Device device = Open("cpu", 2);
        var state = new State(device, count);
        for (int step = 1; step <= updates; step++)
        {
            state.Fill(
                file.Floats($"param_{step - 1}"), file.Floats($"grad_{step}"), step == 1 ? new byte[count] : file.Bytes($"state1_{step - 1}"), step == 1 ? new float[blocks] : file.Floats($"absmax1_{step - 1}"),
                step == 1 ? new byte[count] : file.Bytes($"state2_{step - 1}"), step == 1 ? new float[blocks] : file.Floats($"absmax2_{step - 1}"));
            state.Step(settings, step, json.GetProperty("lr").GetDouble(), device.Report(1, 1), 0);
            TensorAssert.Close(file.Floats($"param_{step}"), state.Parameters.Download(), 1e-6, $"parameters after update {step}");
            Relative(file.Floats($"absmax1_{step}"), state.FirstAbsmax.Download(), $"absmax1 after update {step}");
            Relative(file.Floats($"absmax2_{step}"), state.SecondAbsmax.Download(), $"absmax2 after update {step}");

            (double[] m, double[] v) = Moments(file, step, settings);
            neighbours += Compare(file.Bytes($"state1_{step}"), state.FirstCodes, m, DynamicMap.Signed, $"state1 after update {step}");
            neighbours += Compare(file.Bytes($"state2_{step}"), state.SecondCodes, v, DynamicMap.Unsigned, $"state2 after update {step}");
        }

        output.WriteLine($"{updates} updates of {count} elements: {neighbours} codes of {2 * updates * count} are the neighbour's, all within 1e-6 of a midpoint");
        Assert.False(file.Has($"param_{updates + 1}"));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(37)]
    public void Step_PartialBlock_MatchesADoubleReference(int step)
    {
        const int count = 256 + 123;
        const double rate = 3e-3;
        const float scale = 0.37f;
        using Device device = Open("cpu", 2);
        var state = new State(device, count);
        var random = new Random(step);
        byte[] first = new byte[count], second = new byte[count];
        random.NextBytes(first);
        random.NextBytes(second);
        float[] p0 = Values(1, count), g0 = Values(2, count), absmax1 = [0.3f, 0.02f], absmax2 = [0.01f, 3f];
        state.Fill(p0, g0, first, absmax1, second, absmax2);
        state.Step(Settings, step, rate, device.Report(1, 1 / (double)scale - 1e-6), 1);

        double[] m = new double[count], v = new double[count], p = new double[count], bounds = new double[count];
        double c1 = 1 - Math.Pow(Settings.Beta1, step), c2 = Math.Sqrt(1 - Math.Pow(Settings.Beta2, step));
        for (int i = 0; i < count; i++)
        {
            double g = g0[i] * (double)scale;
            m[i] = Settings.Beta1 * DynamicMap.Signed.AsSpan()[first[i]] * absmax1[i / 256] + (1 - Settings.Beta1) * g;
            v[i] = Settings.Beta2 * DynamicMap.Unsigned.AsSpan()[second[i]] * absmax2[i / 256] + (1 - Settings.Beta2) * g * g;
            double factor = rate * c2 / c1 / (Math.Sqrt(v[i]) + c2 * Settings.Epsilon);
            p[i] = (p0[i] - factor * m[i]) * (1 - rate * Settings.WeightDecay);
            bounds[i] = 4 * U * Math.Abs(p0[i]) + factor * (6 * U * (absmax1[i / 256] + Math.Abs(g)) + 16 * U * Math.Abs(m[i]));
        }

        Within(p, bounds, state.Parameters.Download(), "p");
        for (int block = 0; block < 2; block++)
        {
            Range range = (block * 256)..Math.Min(count, (block + 1) * 256);
            Assert.Equal(m[range].Max(Math.Abs), state.FirstAbsmax.Download()[block], 1e-6);
            Assert.Equal(v[range].Max(Math.Abs), state.SecondAbsmax.Download()[block], 1e-6);
        }

        // What was stored is as near as eight bits allow, and has the sign of what it stands for.
        byte[] codes1 = state.FirstCodes, codes2 = state.SecondCodes;
        for (int i = 0; i < count; i++)
        {
            double x = m[i] / m[(i / 256 * 256)..Math.Min(count, (i / 256 + 1) * 256)].Max(Math.Abs), y = v[i] / v[(i / 256 * 256)..Math.Min(count, (i / 256 + 1) * 256)].Max();
            AssertNearest(DynamicMap.Signed, codes1[i], x, i);
            AssertNearest(DynamicMap.Unsigned, codes2[i], y, i);
            Assert.False(m[i] < 0 && codes1[i] >= 127, $"element {i}: {m[i]} was stored as {DynamicMap.Signed.AsSpan()[codes1[i]]}");
        }
    }

    [Fact]
    public void Step_GradientsOfZeroFromTheStart_ChangeNothingButDecay()
    {
        using Device device = Open("cpu", 1);
        var state = new State(device, 300);
        float[] p = Values(1, 300);
        state.Fill(p, new float[300], new byte[300], new float[2], new byte[300], new float[2]);
        for (int step = 1; step <= 3; step++)
        {
            state.Step(Settings with { WeightDecay = 0 }, step, 1e-2, device.Report(1, 0), 1);
        }

        TensorAssert.BitEqual(p, state.Parameters.Download(), "p");
        Assert.Equal([0, 0], state.FirstAbsmax.Download());
        Assert.Equal([0, 0], state.SecondAbsmax.Download());
    }

    [Fact]
    public void Step_ReportIsNotFinite_ChangesNothing()
    {
        using Device device = Open("cpu", 2);
        var state = new State(device, 512);
        state.Fill(Values(1, 512), Values(2, 512), [.. Enumerable.Range(0, 512).Select(i => (byte)i)], [1, 2], [.. Enumerable.Range(0, 512).Select(i => (byte)i)], [3, 4]);
        foreach ((double lossSum, double norm) in new[] { (double.NaN, 1.0), (1.0, double.PositiveInfinity), (1.0, double.NaN) })
        {
            (float[] p, byte[] first, byte[] second) = (state.Parameters.Download(), state.FirstCodes, state.SecondCodes);
            state.Step(Settings, 1, 1e-2, device.Report(lossSum, norm), 1);
            TensorAssert.BitEqual(p, state.Parameters.Download(), "p");
            Assert.Equal(first, state.FirstCodes);
            Assert.Equal(second, state.SecondCodes);
        }
    }

    [Fact]
    public void Step_WrongArguments_SaysWhich()
    {
        using Device device = Open("cpu");
        var state = new State(device, 512);
        Tensor x = device.Filled(0, new Shape(512)), codes = device.Arena.Allocate(MemoryKind.Moments, DType.U8, new Shape(512)), scales = device.Filled(0, new Shape(2));
        Throws("AdamW8Bit.Step: firstAbsmax must be F32 (2), got F32 (512).", () => AdamW8Bit.Step(x, x, codes, x, codes, scales, [], Settings, 1, 1, device.Report(1, 1), 0));
        Throws("AdamW8Bit.Step: secondCodes must be U8 (512), got F32 (512).", () => AdamW8Bit.Step(x, x, codes, scales, x, scales, [], Settings, 1, 1, device.Report(1, 1), 0));
        Assert.Throws<ArgumentOutOfRangeException>(() => state.Step(Settings, 0, 1, device.Report(1, 1), 0));
    }

    /// <summary>m and v of an update before they are stored, from the reference's state before it.</summary>
    private static (double[] M, double[] V) Moments(SafetensorsFile file, int step, AdamWSettings settings)
    {
        float[] gradients = file.Floats($"grad_{step}");
        double[] m = [.. gradients.Select(g => (1 - settings.Beta1) * g)], v = [.. gradients.Select(g => (1 - settings.Beta2) * g * g)];
        if (step > 1)
        {
            byte[] first = file.Bytes($"state1_{step - 1}"), second = file.Bytes($"state2_{step - 1}");
            float[] absmax1 = file.Floats($"absmax1_{step - 1}"), absmax2 = file.Floats($"absmax2_{step - 1}");
            for (int i = 0; i < m.Length; i++)
            {
                m[i] += settings.Beta1 * DynamicMap.Signed.AsSpan()[first[i]] * absmax1[i / 256];
                v[i] += settings.Beta2 * DynamicMap.Unsigned.AsSpan()[second[i]] * absmax2[i / 256];
            }
        }

        return (m, v);
    }

    /// <summary>How many codes are a neighbour's: allowed where the value lies within 1e-6 (relative) of the midpoint of the two.</summary>
    private static int Compare(byte[] expected, byte[] actual, double[] moments, DynamicMap map, string what)
    {
        int neighbours = 0;
        for (int i = 0; i < expected.Length; i++)
        {
            if (expected[i] != actual[i])
            {
                double absmax = moments[(i / 256 * 256)..Math.Min(moments.Length, (i / 256 + 1) * 256)].Max(Math.Abs);
                double middle = ((double)map.AsSpan()[expected[i]] + map.AsSpan()[actual[i]]) / 2;
                Assert.True(
                    Math.Abs(expected[i] - actual[i]) == 1 && Math.Abs(moments[i] / absmax - middle) <= 1e-6 * Math.Abs(middle),
                    $"{what}, element {i}: code {actual[i]}, expected {expected[i]} for {moments[i] / absmax:R} between {middle:R}");
                neighbours++;
            }
        }

        return neighbours;
    }

    private static void AssertNearest(DynamicMap map, byte code, double x, int i)
    {
        double distance = map.AsSpan().ToArray().Min(value => Math.Abs(value - x)), actual = Math.Abs(map.AsSpan()[code] - x);

        // One further than the nearest near zero, where the sign counts.
        Assert.True(actual <= distance + 1e-6, $"element {i}: {x:R} is {actual:R} from its code's value, {distance:R} from the nearest");
    }

    private static void Relative(float[] expected, float[] actual, string what)
    {
        Assert.Equal(expected.Length, actual.Length);
        for (int i = 0; i < expected.Length; i++)
        {
            Assert.True(Math.Abs(expected[i] - actual[i]) <= 1e-6 * Math.Abs(expected[i]), $"{what}, block {i}: {actual[i]:R}, expected {expected[i]:R}");
        }
    }

    /// <summary>Parameters, gradients and moments of one tensor.</summary>
    private sealed class State(Device device, int count)
    {
        private readonly Tensor gradients = device.Filled(0, new Shape(count)), first = device.AllocateZeroed(MemoryKind.Moments, DType.U8, new Shape(count)), second = device.AllocateZeroed(MemoryKind.Moments, DType.U8, new Shape(count));

        public Tensor Parameters { get; } = device.Filled(0, new Shape(count));

        public Tensor FirstAbsmax { get; } = device.Filled(0, new Shape(AdamW8Bit.Blocks(count)));

        public Tensor SecondAbsmax { get; } = device.Filled(0, new Shape(AdamW8Bit.Blocks(count)));

        public byte[] FirstCodes => Bytes(first);

        public byte[] SecondCodes => Bytes(second);

        public void Fill(float[] parameters, float[] gradient, byte[] firstCodes, float[] firstAbsmax, byte[] secondCodes, float[] secondAbsmax)
        {
            device.Upload(Parameters, MemoryMarshal.AsBytes<float>(parameters));
            device.Upload(gradients, MemoryMarshal.AsBytes<float>(gradient));
            device.Upload(first, firstCodes);
            device.Upload(FirstAbsmax, MemoryMarshal.AsBytes<float>(firstAbsmax));
            device.Upload(second, secondCodes);
            device.Upload(SecondAbsmax, MemoryMarshal.AsBytes<float>(secondAbsmax));
        }

        public void Step(in AdamWSettings settings, int step, double rate, Tensor report, double maxGradientNorm) =>
            AdamW8Bit.Step(Parameters, gradients, first, FirstAbsmax, second, SecondAbsmax, [new(new(0, count, 1, true), 0)], settings, step, rate, report, maxGradientNorm);

        private byte[] Bytes(Tensor tensor)
        {
            byte[] bytes = new byte[tensor.SizeBytes];
            device.Download(tensor, bytes);
            return bytes;
        }
    }
}
