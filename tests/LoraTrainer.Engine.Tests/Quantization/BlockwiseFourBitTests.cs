using System.Runtime.InteropServices;
using System.Text.Json;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Quantization;

public sealed unsafe class BlockwiseFourBitTests
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
            NonFiniteWeightException exception = Assert.Throws<NonFiniteWeightException>(() => Quantize(pool, FourBitCode.Nf4, Encode(weight, format), format, weight.Length, 6400, 128));
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
        TensorAssert.BitEqual(file.Floats("code"), new ReadOnlySpan<float>(FourBitCode.Nf4.Values, 16), name + " code");

        // In one piece, and in pieces of 128 elements.
        (byte[] packed, float[] absmax) = Quantize(pool, FourBitCode.Nf4, weight, format, count, count);
        Assert.Equal(file.Bytes("packed"), packed);
        (byte[] piecewise, float[] piecewiseAbsmax) = Quantize(pool, FourBitCode.Nf4, weight, format, count, 128);
        Assert.Equal(packed, piecewise);
        TensorAssert.BitEqual(absmax, piecewiseAbsmax, name + " absmax in pieces");

        float[] values = CheckScales(pool, FourBitCode.Nf4, file, name, packed, absmax, count);
        Assert.True(file.Bytes("dequantized").AsSpan().SequenceEqual(Encode(values, format)), name + " dequantized");
    }

    [Fact]
    public void QuantizeFp4_AroundEveryThreshold_TieTakesTheSmallerMagnitude()
    {
        // The magnitudes in ascending order, and bitsandbytes' literals between them.
        int[] codes = [0, 1, 6, 7, 4, 5, 2, 3];
        float[] thresholds = [0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f];
        foreach (int sign in (int[])[1, -1])
        {
            var weight = new float[64];
            weight[63] = 1;
            for (int i = 0; i < thresholds.Length; i++)
            {
                (weight[4 * i], weight[4 * i + 1], weight[4 * i + 2]) = (sign * MathF.BitDecrement(thresholds[i]), sign * thresholds[i], sign * MathF.BitIncrement(thresholds[i]));
            }

            byte[] packed = Quantize(weight, FourBitCode.Fp4).Packed;
            int bit = sign < 0 ? 8 : 0;
            for (int i = 0; i < thresholds.Length; i++)
            {
                Assert.Equal((codes[i] | bit, codes[i] | bit, codes[i + 1] | bit), (packed[2 * i] >> 4, packed[2 * i] & 15, packed[2 * i + 1] >> 4));
                Assert.True(FourBitCode.Fp4.Values[codes[i]] < thresholds[i] && thresholds[i] < FourBitCode.Fp4.Values[codes[i + 1]]);
            }
        }
    }

    [Fact]
    public void QuantizeFp4_ZerosOfAllKinds_AreZero()
    {
        var weight = new float[64 + 5];
        (weight[3], weight[64], weight[65], weight[66], weight[67], weight[68]) = (-0f, 4, -0f, 1e-30f, -1e-30f, -4);
        (byte[] packed, float[] absmax) = Quantize(weight, FourBitCode.Fp4);
        Assert.Equal([0, 4], absmax);
        Assert.All(packed[..32], value => Assert.Equal(0, value));
        // Code 8 is minus nothing: its value is +0 too.
        Assert.Equal([0x30, 0x08, 0xB0], packed[32..]);
        Assert.Equal(0u, BitConverter.SingleToUInt32Bits(FourBitCode.Fp4.Values[8]));
    }

    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(BitsandbytesFixtures.Fp4), MemberType = typeof(BitsandbytesFixtures))]
    public void Fp4Fixture_PackedScalesAndValues_AreEqual(string name)
    {
        var file = new SafetensorsFile(Fixtures.Require($"bitsandbytes/{name}"));
        using var pool = new WorkerPool(2);
        FloatFormat format = Enum.Parse<FloatFormat>(file.DType("weight"));
        byte[] weight = file.Bytes("weight"), expected = file.Bytes("packed");
        int count = weight.Length / ElementConversions.SizeOf(format);
        float[] values = new float[count], code = file.Floats("code");
        for (int i = 0; i < 16; i++)
        {
            Assert.Equal(code[i], FourBitCode.Fp4.Values[i]);
        }

        (byte[] packed, float[] absmax) = Quantize(pool, FourBitCode.Fp4, weight, format, count, count);
        (byte[] piecewise, float[] piecewiseAbsmax) = Quantize(pool, FourBitCode.Fp4, weight, format, count, 128);
        Assert.Equal(packed, piecewise);
        TensorAssert.BitEqual(absmax, piecewiseAbsmax, name + " absmax in pieces");
        fixed (byte* w = weight)
        fixed (float* v = values)
        {
            ElementConversions.ToF32(format, w, v, count);
        }

        int other = 0;
        for (int i = 0; i < count; i++)
        {
            int shift = i % 2 == 0 ? 4 : 0, stored = expected[i / 2] >> shift & 15, own = packed[i / 2] >> shift & 15;
            if (stored != own && (stored & 7) + (own & 7) != 0)
            {
                // Another code than a neighbour's, or a value further than 1e-6 from where the two part, is an error.
                float x = values[i] / absmax[i / 64], middle = (code[stored] + code[own]) / 2;
                Assert.True(Math.Abs(x - middle) <= 1e-6, $"{name}, element {i}: code {own}, expected {stored} for {x:R}");
                other++;
            }
        }

        Assert.True(other <= count / 100, $"{name}: {other} of {count} codes are the neighbour's");
        float[] decoded = CheckScales(pool, FourBitCode.Fp4, file, name, expected, absmax, count);

        // By value: the reference's own zeros have either sign.
        byte[] bytes = Encode(decoded, format), reference = file.Bytes("dequantized");
        float[] left = new float[count], right = new float[count];
        fixed (byte* l = bytes, r = reference)
        fixed (float* lv = left, rv = right)
        {
            ElementConversions.ToF32(format, l, lv, count);
            ElementConversions.ToF32(format, r, rv, count);
        }

        Assert.Equal(right, left);
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
        (byte[] packed, float[] absmax) = Quantize(pool, FourBitCode.Nf4, weight, format, count, count);

        byte[] dequantized = file.Bytes("dequantized");
        int zeroBlocks = 0;
        for (int block = 0; block < absmax.Length; block++)
        {
            if (absmax[block] == 0)
            {
                zeroBlocks++;
                Assert.Equal(-1, expected.AsSpan(block * BlockwiseFourBit.Blocksize / 2, BlockwiseFourBit.Blocksize / 2).IndexOfAnyExcept((byte)0));
                expected.AsSpan(block * BlockwiseFourBit.Blocksize / 2, BlockwiseFourBit.Blocksize / 2).Fill(0x77);
                dequantized.AsSpan(block * BlockwiseFourBit.Blocksize * size, BlockwiseFourBit.Blocksize * size).Clear();
            }
        }

        Assert.Equal(1, zeroBlocks);
        Assert.Equal(expected, packed);
        float[] values = CheckScales(pool, FourBitCode.Nf4, file, name, packed, absmax, count);
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
            var blocks = new FourBitBlocks(p, FourBitCode.Nf4.Values, a);
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
                    Assert.Equal(FourBitCode.Nf4.Values[nibble] * absmax[(first + i) / 64], run[i]);
                }
            }
        }
    }

    /// <summary>The scales as the fixture has them, and the values that they give.</summary>
    private static float[] CheckScales(WorkerPool pool, FourBitCode code, SafetensorsFile file, string name, byte[] packed, float[] absmax, int count)
    {
        if (!file.Has("absmax"))
        {
            return CheckDoubleQuantization(pool, code, file, name, packed, absmax, count);
        }

        TensorAssert.BitEqual(file.Floats("absmax"), absmax, name + " absmax");
        fixed (float* a = absmax)
        fixed (byte* p = packed)
        {
            return Dequantize(new FourBitBlocks(p, code.Values, a), count);
        }
    }

    /// <summary>Codes with the stored offset, our own offset, and the values from what the file stores.</summary>
    private static float[] CheckDoubleQuantization(WorkerPool pool, FourBitCode code, SafetensorsFile file, string name, byte[] packed, float[] absmax, int count)
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
            return Dequantize(new FourBitBlocks(p, code.Values, c, n, m, offset), count);
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

    private static (byte[] Packed, float[] Absmax) Quantize(float[] weight, FourBitCode? code = null)
    {
        using var pool = new WorkerPool(1);
        return Quantize(pool, code ?? FourBitCode.Nf4, Encode(weight, FloatFormat.F32), FloatFormat.F32, weight.Length, weight.Length);
    }

    private static (byte[] Packed, float[] Absmax) Quantize(WorkerPool pool, FourBitCode code, byte[] weight, FloatFormat format, int count, int piece, int firstElement = 0)
    {
        var packed = new byte[BlockwiseFourBit.PackedBytes(count)];
        var absmax = new float[BlockwiseFourBit.Blocks(count)];
        fixed (byte* w = weight, p = packed)
        fixed (float* a = absmax)
        {
            for (int first = 0; first < count; first += piece)
            {
                int size = Math.Min(piece, count - first);
                BlockwiseFourBit.Quantize(pool, code, w + first * ElementConversions.SizeOf(format), format, size, p + first / 2, a + first / BlockwiseFourBit.Blocksize, firstElement + first);
            }
        }

        return (packed, absmax);
    }
}
