using System.Runtime.InteropServices;
using System.Text.Json;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Quantization;

public sealed unsafe class Nf4Tests
{
    [Fact]
    public void Quantize_GoldenBlock()
    {
        float[] weight = [.. Enumerable.Range(0, 64).Select(i => (i - 31.5f) * 0.02f)];
        (byte[] packed, float[] absmax) = Quantize(weight);
        Assert.Equal([0.6299999952316284f], absmax);
        Assert.Equal("00000111111112222233344445556667788899aaabbbccccddddeeeeeeefffff", Convert.ToHexStringLower(packed));
    }

    [Fact]
    public void Quantize_AroundEveryThreshold_TieTakesTheLowerCode()
    {
        // absmax 1, so that x is the weight itself.
        uint[] thresholds =
        [
            0xBF591CD8, 0xBF1C5270, 0xBEEB8480, 0xBEADEA76, 0xBE703CEC, 0xBE0D38BC, 0xBD3A7871, 0x3D22FAFF, 0x3DF64862, 0x3E5067E0, 0x3E9582D4, 0x3EC753F9, 0x3F006D04,
            0x3F248DAF, 0x3F5C89DA,
        ];
        var weight = new float[64];
        weight[63] = 1;
        for (int i = 0; i < thresholds.Length; i++)
        {
            float t = BitConverter.UInt32BitsToSingle(thresholds[i]);
            (weight[4 * i], weight[4 * i + 1], weight[4 * i + 2]) = (MathF.BitDecrement(t), t, MathF.BitIncrement(t));
        }

        byte[] packed = Quantize(weight).Packed;
        for (int i = 0; i < thresholds.Length; i++)
        {
            Assert.Equal((i, i, i + 1), (packed[2 * i] >> 4, packed[2 * i] & 15, packed[2 * i + 1] >> 4));
        }
    }

    [Fact]
    public void Quantize_ZeroBlockAndOddCount_TakeTheCodeOfZero()
    {
        var weight = new float[64 + 3];
        (weight[64], weight[65], weight[66]) = (-2, 1, 2);
        (byte[] packed, float[] absmax) = Quantize(weight);
        Assert.Equal([0, 2], absmax);
        Assert.All(packed[..32], value => Assert.Equal(0x77, value));
        Assert.Equal([0x0C, 0xF7], packed[32..]);
    }

    [Theory]
    [InlineData(float.NaN)]
    [InlineData(float.PositiveInfinity)]
    [InlineData(float.NegativeInfinity)]
    public void Quantize_NotFinite_NamesTheFirstElement(float bad)
    {
        using var pool = new WorkerPool(2);
        var weight = new float[20_000];
        weight[19_999] = bad;
        weight[9_000] = bad;
        foreach (FloatFormat format in Enum.GetValues<FloatFormat>())
        {
            NonFiniteWeightException exception = Assert.Throws<NonFiniteWeightException>(() => Quantize(pool, Encode(weight, format), format, weight.Length, 6400, 128));
            Assert.Equal(128 + 9_000, exception.Element);
            Assert.Contains("element 9128 of the flattened tensor", exception.Message, StringComparison.Ordinal);
        }
    }

    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(BitsandbytesFixtures.Nf4), MemberType = typeof(BitsandbytesFixtures))]
    public void Fixture_PackedScalesAndValues_AreBitEqual(string name)
    {
        var file = new SafetensorsFile(Fixtures.Require($"bitsandbytes/{name}"));
        using var pool = new WorkerPool(2);
        FloatFormat format = Enum.Parse<FloatFormat>(file.DType("weight"));
        byte[] weight = file.Bytes("weight");
        int count = weight.Length / ElementConversions.SizeOf(format);
        TensorAssert.BitEqual(file.Floats("code"), new ReadOnlySpan<float>(Nf4.Code, 16), name + " code");

        // In one piece, and in pieces of 128 elements.
        (byte[] packed, float[] absmax) = Quantize(pool, weight, format, count, count);
        Assert.Equal(file.Bytes("packed"), packed);
        (byte[] piecewise, float[] piecewiseAbsmax) = Quantize(pool, weight, format, count, 128);
        Assert.Equal(packed, piecewise);
        TensorAssert.BitEqual(absmax, piecewiseAbsmax, name + " absmax in pieces");

        float[] values;
        if (file.Has("absmax"))
        {
            TensorAssert.BitEqual(file.Floats("absmax"), absmax, name + " absmax");
            fixed (float* a = absmax)
            fixed (byte* p = packed)
            {
                values = Dequantize(new FourBitBlocks(p, Nf4.Code, a), count);
            }
        }
        else
        {
            values = CheckDoubleQuantization(pool, file, name, packed, absmax, count);
        }

        Assert.True(file.Bytes("dequantized").AsSpan().SequenceEqual(Encode(values, format)), name + " dequantized");
    }

    /// <summary>
    /// What bitsandbytes' CUDA kernels made on a real card: the bits of its CPU code, except in a block of zeros. There they divide by the scale, zero, and
    /// the comparisons with NaN end at code 0 (-1) instead of 7 (0); with double quantization, where that scale comes back as a little more than zero, the
    /// library's CUDA path turns such zeros into small negative numbers. Ours stay zeros.
    /// </summary>
    [Theory]
    [MemberData(nameof(BitsandbytesFixtures.CudaNf4), MemberType = typeof(BitsandbytesFixtures))]
    public void CudaFixture_PackedScalesAndValues_AreBitEqualExceptZeroBlocks(string name)
    {
        var file = new SafetensorsFile(Fixtures.Golden($"bitsandbytes_cuda/{name}"));
        using var pool = new WorkerPool(2);
        FloatFormat format = Enum.Parse<FloatFormat>(file.DType("weight"));
        byte[] weight = file.Bytes("weight"), expected = file.Bytes("packed");
        int size = ElementConversions.SizeOf(format), count = weight.Length / size;
        (byte[] packed, float[] absmax) = Quantize(pool, weight, format, count, count);

        byte[] dequantized = file.Bytes("dequantized");
        int zeroBlocks = 0;
        for (int block = 0; block < absmax.Length; block++)
        {
            if (absmax[block] == 0)
            {
                zeroBlocks++;
                Assert.Equal(-1, expected.AsSpan(block * Nf4.Blocksize / 2, Nf4.Blocksize / 2).IndexOfAnyExcept((byte)0));
                expected.AsSpan(block * Nf4.Blocksize / 2, Nf4.Blocksize / 2).Fill(0x77);
                dequantized.AsSpan(block * Nf4.Blocksize * size, Nf4.Blocksize * size).Clear();
            }
        }

        Assert.Equal(1, zeroBlocks);
        Assert.Equal(expected, packed);
        float[] values;
        if (file.Has("absmax"))
        {
            TensorAssert.BitEqual(file.Floats("absmax"), absmax, name + " absmax");
            fixed (float* a = absmax)
            fixed (byte* p = packed)
            {
                values = Dequantize(new FourBitBlocks(p, Nf4.Code, a), count);
            }
        }
        else
        {
            values = CheckDoubleQuantization(pool, file, name, packed, absmax, count);
        }

        Assert.True(dequantized.AsSpan().SequenceEqual(Encode(values, format)), name + " dequantized");
    }

    [Fact]
    [Trait("Category", "Fixtures")]
    public void StoredLayer_Product_MatchesTheReferenceOutput()
    {
        const string layer = "layer.weight";
        string folder = Fixtures.Require("bitsandbytes");
        var state = new SafetensorsFile(Path.Combine(folder, "linear4bit_state_dict.safetensors"));
        var io = new SafetensorsFile(Path.Combine(folder, "linear4bit_io.safetensors"));
        using JsonDocument quantState = JsonDocument.Parse(state.Bytes(layer + ".quant_state.bitsandbytes__nf4"));
        int rows = quantState.RootElement.GetProperty("shape")[0].GetInt32(), columns = quantState.RootElement.GetProperty("shape")[1].GetInt32();
        float offset = (float)quantState.RootElement.GetProperty("nested_offset").GetDouble();
        float[] x = io.Floats("x"), expected = io.Floats("y"), y = new float[expected.Length];
        using var pool = new WorkerPool(2);
        byte* workspace = (byte*)NativeMemory.AlignedAlloc((nuint)CpuGemm.WorkspaceBytes(2), 64);
        fixed (byte* packed = state.Bytes(layer), codes = state.Bytes(layer + ".absmax"))
        fixed (float* nested = state.Floats(layer + ".nested_absmax"), map = state.Floats(layer + ".nested_quant_map"))
        fixed (float* code = state.Floats(layer + ".quant_map"), px = x, py = y)
        {
            var blocks = new FourBitBlocks(packed, code, codes, nested, map, offset, quantState.RootElement.GetProperty("blocksize").GetInt32());
            GemmOperand weight = GemmOperand.FourBit(blocks, columns, transposed: true);
            CpuGemm.Run(pool, workspace, x.Length / columns, rows, columns, GemmOperand.F32(px, columns), weight, py, rows);
        }

        NativeMemory.AlignedFree(workspace);
        TensorAssert.Close(expected, y, 1e-5, "y");
    }

    [Fact]
    public void Dequantize_AnyRun_EqualsTheWhole()
    {
        var random = new Random(3);
        var weight = new float[1000];
        for (int i = 0; i < weight.Length; i++)
        {
            weight[i] = random.NextSingle() - 0.5f;
        }

        (byte[] packed, float[] absmax) = Quantize(weight);
        fixed (byte* p = packed)
        fixed (float* a = absmax)
        {
            var blocks = new FourBitBlocks(p, Nf4.Code, a);
            for (int round = 0; round < 500; round++)
            {
                int first = random.Next(weight.Length), count = random.Next(1, weight.Length - first + 1);
                var run = new float[count];
                fixed (float* destination = run)
                {
                    blocks.Dequantize(first, count, destination);
                }

                for (int i = 0; i < count; i++)
                {
                    int nibble = (packed[(first + i) / 2] >> ((first + i) % 2 == 0 ? 4 : 0)) & 15;
                    Assert.Equal(Nf4.Code[nibble] * absmax[(first + i) / 64], run[i]);
                }
            }
        }
    }

    /// <summary>Codes with the stored offset, our own offset, and the values from what the file stores.</summary>
    private static float[] CheckDoubleQuantization(WorkerPool pool, SafetensorsFile file, string name, byte[] packed, float[] absmax, int count)
    {
        float offset = file.Floats("offset")[0];
        byte[] codes = new byte[absmax.Length];
        float[] nestedAbsmax = new float[DoubleQuantization.NestedBlocks(absmax.Length)], map = file.Floats("nested_code");
        fixed (float* a = absmax, n = nestedAbsmax, m = map)
        fixed (byte* p = packed, c = codes)
        {
            float own = DoubleQuantization.Offset(a, absmax.Length);
            Assert.True(own >= MathF.BitDecrement(offset) && own <= MathF.BitIncrement(offset), $"{name}: offset {own:R}, expected {offset:R} within 1 ulp");
            DoubleQuantization.Quantize(pool, a, absmax.Length, offset, c, n);
            Assert.Equal(file.Bytes("absmax_codes"), codes);
            TensorAssert.BitEqual(file.Floats("nested_absmax"), nestedAbsmax, name + " nested absmax");
            return Dequantize(new FourBitBlocks(p, Nf4.Code, c, n, m, offset), count);
        }
    }

    private static float[] Dequantize(in FourBitBlocks blocks, int count)
    {
        var values = new float[count];
        fixed (float* pointer = values)
        {
            blocks.Dequantize(0, count, pointer);
        }

        return values;
    }

    private static byte[] Encode(float[] values, FloatFormat format)
        => [.. values.SelectMany(value => format switch
        {
            FloatFormat.F32 => BitConverter.GetBytes(value),
            FloatFormat.F16 => BitConverter.GetBytes((Half)value),
            _ => BitConverter.GetBytes(ToBF16(value)),
        })];

    private static ushort ToBF16(float value)
    {
        // To nearest, ties to even.
        uint bits = BitConverter.SingleToUInt32Bits(value);
        return float.IsNaN(value) ? (ushort)0x7FC0 : (ushort)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    }

    private static (byte[] Packed, float[] Absmax) Quantize(float[] weight)
    {
        using var pool = new WorkerPool(1);
        return Quantize(pool, Encode(weight, FloatFormat.F32), FloatFormat.F32, weight.Length, weight.Length);
    }

    private static (byte[] Packed, float[] Absmax) Quantize(WorkerPool pool, byte[] weight, FloatFormat format, int count, int piece, int firstElement = 0)
    {
        var packed = new byte[Nf4.PackedBytes(count)];
        var absmax = new float[Nf4.Blocks(count)];
        fixed (byte* w = weight, p = packed)
        fixed (float* a = absmax)
        {
            for (int first = 0; first < count; first += piece)
            {
                int size = Math.Min(piece, count - first);
                Nf4.Quantize(pool, w + first * ElementConversions.SizeOf(format), format, size, p + first / 2, a + first / Nf4.Blocksize, firstElement + first);
            }
        }

        return (packed, absmax);
    }
}
