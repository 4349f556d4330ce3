using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

/// <summary>NF4 and FP4 on the CUDA device have the bytes of the CPU's, and so of bitsandbytes.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class FourBitKernelTests
{
    private const long CapacityBytes = 64L << 20;

    /// <summary>Rows and columns: parts of a block of 64, odd counts, blocks across row ends, more than 256 blocks for the nested scales.</summary>
    private static readonly (int Rows, int Columns)[] Shapes = [(1, 1), (1, 7), (3, 8), (5, 24), (2, 64), (3, 100), (5, 123), (9, 1024), (17, 2050)];

    public static TheoryData<string, string, int, int> Cases
    {
        get
        {
            var data = new TheoryData<string, string, int, int>();
            foreach (FourBitCode code in Codes)
            {
                foreach (string mode in ModesOf(code))
                {
                    foreach ((int rows, int columns) in Shapes)
                    {
                        data.Add(code.Name, mode, rows, columns);
                    }
                }
            }

            return data;
        }
    }

    public static TheoryData<string, string> CodesAndModes
    {
        get
        {
            var data = new TheoryData<string, string>();
            foreach (FourBitCode code in Codes)
            {
                foreach (string mode in ModesOf(code))
                {
                    data.Add(code.Name, mode);
                }
            }

            return data;
        }
    }

    public static TheoryData<string> Files => [.. Fixtures.Files("bitsandbytes", "nf4_*.safetensors")];

    /// <summary>Made by the library's CUDA kernels; always there.</summary>
    public static TheoryData<string> Fp4Files => [.. Directory.GetFiles(Fixtures.Golden("bitsandbytes_cuda"), "fp4_*.safetensors").Select(path => Path.GetFileName(path)!).Order(StringComparer.Ordinal)];

    // Threads meet in the same places for both codes: one code in all orders, the other in one.
    private static string[] ModesOf(FourBitCode code) => code == FourBitCode.Nf4 ? KernelModes.Names : KernelModes.Names[..1];

    private static FourBitCode[] Codes => [FourBitCode.Nf4, FourBitCode.Fp4];

    [Theory]
    [MemberData(nameof(Cases))]
    public void Quantize_AnyShape_HasTheBytesOfTheCpu(string code, string mode, int rows, int columns)
    {
        float[] values = Values(1, (long)rows * columns, 0.1f);
        Zeroed(values).AsSpan().CopyTo(values);
        CompareWithCpu(Named(code), mode, values, rows, columns, new CudaDeviceOptions());
    }

    /// <summary>The kernel source with the two codes of a byte exchanged must not pass the comparison above.</summary>
    [Theory]
    [InlineData("nf4")]
    [InlineData("fp4")]
    public void NibblesSwapped_TurnsRed(string code)
    {
        const string right = "(i * 4 ^ 4)", wrong = "(i * 4)";
        string source = KernelSources.Embedded.Read("four_bit.cu");
        Assert.Contains(right, source, StringComparison.Ordinal);
        var options = new CudaDeviceOptions
        {
            Sources = new KernelSources(KernelSources.Embedded.Files.Select(file => KeyValuePair.Create(file, file == "four_bit.cu" ? source.Replace(right, wrong, StringComparison.Ordinal) : KernelSources.Embedded.Read(file)))),
        };
        Exception exception = Assert.ThrowsAny<Exception>(() => CompareWithCpu(Named(code), KernelModes.Names[0], Values(1, 300), 3, 100, options));
        Assert.Contains("packed", exception.Message, StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(CodesAndModes))]
    public void Quantize_AroundEveryThreshold_TakesTheCodeOfTheCpu(string code, string mode)
    {
        // Absmax 1, so that a weight is what is compared with the thresholds.
        float[] values = new float[128];
        for (int i = 0; i < 15; i++)
        {
            float middle = Threshold(Named(code), i);
            (values[4 * i], values[4 * i + 1], values[4 * i + 2]) = (MathF.BitDecrement(middle), middle, MathF.BitIncrement(middle));
        }

        (values[63], values[126], values[127]) = (1, -0f, -1);
        CompareWithCpu(Named(code), mode, values, 1, 128, new CudaDeviceOptions());
    }

    /// <summary>Extremes of the scale: a block of zeros, one whose reciprocal would overflow, the largest numbers.</summary>
    [Theory]
    [MemberData(nameof(CodesAndModes))]
    public void Quantize_ExtremeScales_HasTheBytesOfTheCpu(string code, string mode)
    {
        float[] values = new float[64 * 5];
        for (int i = 0; i < 64; i++)
        {
            values[64 + i] = (i - 32) * 1e-42f;
            values[128 + i] = (i - 32) * 1e36f;
            values[192 + i] = (i - 32) * 1e-37f;
        }

        CompareWithCpu(Named(code), mode, values, 5, 64, new CudaDeviceOptions());
    }

    [Theory]
    [MemberData(nameof(Files))]
    public void Fixtures_PackedScalesAndValues_AreBitEqual(string name)
    {
        string folder = Fixtures.Require("bitsandbytes");
        using SafetensorsFile file = SafetensorsFile.Open(Path.Combine(folder, name));
        byte[] Read(string tensor) => ReadTensor(file, tensor);
        float[] Floats(string tensor) => MemoryMarshal.Cast<byte, float>(Read(tensor)).ToArray();
        SafetensorsEntry weight = file.Entries.Single(entry => entry.Name == "weight");
        long[] shape = weight.Shape.ToArray();
        float[] values = Decode(Read("weight"), weight.DType);
        bool isDouble = !file.Entries.Any(entry => entry.Name == "absmax");
        foreach (string mode in KernelModes.Names)
        {
            using var bench = new KernelBench(mode, capacityBytes: CapacityBytes);

            // Scales first: with double quantization the quantizer keeps them no longer than it needs them.
            FourBitMatrix single = Quantize(bench.Device, FourBitCode.Nf4, values, (int)shape[0], (int)shape[1], doubled: false, piece: 128);
            float[] absmax = single.Absmax.Download();
            Assert.Equal(WithZeroBlocks(Read("packed"), absmax), single.Packed.DownloadBytes());
            FourBitMatrix matrix = single;
            if (isDouble)
            {
                float offset = Floats("offset")[0];
                FourBitMatrix own = Quantize(bench.Device, FourBitCode.Nf4, values, (int)shape[0], (int)shape[1], doubled: true, piece: FourBitQuantizer.PieceElements);
                Assert.True(own.Offset >= MathF.BitDecrement(offset) && own.Offset <= MathF.BitIncrement(offset), $"offset {own.Offset:R}, expected {offset:R} within 1 ulp");
                TensorAssert.BitEqual(Floats("nested_code"), own.NestedMap.Download(), "nested map");

                // Codes depend on every bit of the offset, so they are compared with the stored one.
                Tensor scales = bench.F32(absmax, single.Absmax.Shape);
                Tensor codes = bench.Poisoned(DType.U8, own.AbsmaxCodes.Shape), nested = bench.Poisoned(DType.F32, own.NestedAbsmax.Shape);
                bench.Device.Launch(
                    CudaKernels.QuantizeAbsmax, LaunchShape.Blocks(nested.ElementCount, FourBitBlocks.NestedBlocksize), codes, nested, scales, own.NestedMap, offset, codes.ElementCount);
                Assert.Equal(Read("absmax_codes"), codes.DownloadBytes());
                TensorAssert.BitEqual(Floats("nested_absmax"), nested.Download(), "nested absmax");
                matrix = new FourBitMatrix(own.Code, own.Out, own.In, own.Packed, codes, nested, own.NestedMap, offset);
            }
            else
            {
                TensorAssert.BitEqual(Floats("absmax"), absmax, "absmax");
            }

            // The file's values have the type of its weights; the device's are bf16.
            float[] stored = KernelBench.Rounded(QuantizedValues.Of(matrix));
            if (weight.DType != SafetensorsDType.F16)
            {
                TensorAssert.BitEqual(WithZeroBlocks(KernelBench.Rounded(Decode(Read("dequantized"), weight.DType)), absmax), stored, "the CPU's values");
            }

            TensorAssert.BitEqual(stored, Expanded(bench, matrix), "dequantized");
            bench.CheckMargins();
        }
    }

    /// <summary>
    /// What bitsandbytes' CUDA kernels made on a card. Its codes are ours, or a neighbour's where the number lies within 1e-6 of a threshold: that library is
    /// compiled with an approximate reciprocal.
    /// </summary>
    [Theory]
    [MemberData(nameof(Fp4Files))]
    public void CudaFixtures_OfFp4_AreEqual(string name)
    {
        using SafetensorsFile file = SafetensorsFile.Open(Fixtures.Golden($"bitsandbytes_cuda/{name}"));
        float[] Floats(string tensor) => MemoryMarshal.Cast<byte, float>(ReadTensor(file, tensor)).ToArray();
        SafetensorsEntry weight = file.Entries.Single(entry => entry.Name == "weight");
        int rows = (int)weight.Shape.ToArray()[0], columns = (int)weight.Shape.ToArray()[1], others = 0;
        float[] values = Decode(ReadTensor(file, "weight"), weight.DType);
        using var bench = new KernelBench(KernelModes.Names[0], capacityBytes: CapacityBytes);
        Assert.Equal(Floats("code"), FourBitCode.Fp4.Table.ToArray());
        FourBitMatrix matrix = Quantize(bench.Device, FourBitCode.Fp4, values, rows, columns, doubled: false, piece: FourBitQuantizer.PieceElements);
        byte[] packed = ReadTensor(file, "packed"), own = matrix.Packed.DownloadBytes();
        float[] absmax = matrix.Absmax.Download();
        for (int i = 0; i < values.Length; i++)
        {
            int shift = i % 2 == 0 ? 4 : 0;
            if ((packed[i / 2] >> shift & 15) != (own[i / 2] >> shift & 15))
            {
                double x = values[i] / (double)absmax[i / BlockwiseFourBit.Blocksize];
                Assert.True(Enumerable.Range(0, 15).Any(t => Math.Abs(x - Threshold(FourBitCode.Fp4, t)) <= 1e-6), $"element {i}: code {own[i / 2] >> shift & 15}, expected {packed[i / 2] >> shift & 15} for {x:R}");
                others++;
            }
        }

        Assert.True(others <= values.Length / 1000, $"{others} of {values.Length} codes are a neighbour's");
        Tensor codes = bench.Bytes(packed);
        if (file.Entries.Any(entry => entry.Name == "absmax"))
        {
            TensorAssert.BitEqual(Floats("absmax"), absmax, "absmax");
            matrix = new FourBitMatrix(FourBitCode.Fp4, rows, columns, codes, matrix.Absmax);
        }
        else
        {
            // With the file's own scales, because the offset's last bit may differ.
            Tensor scales = bench.Bytes(ReadTensor(file, "absmax_codes")), nested = bench.F32(Floats("nested_absmax"), new Shape(Floats("nested_absmax").Length));
            matrix = new FourBitMatrix(FourBitCode.Fp4, rows, columns, codes, scales, nested, bench.F32(Floats("nested_code"), new Shape(256)), Floats("offset")[0]);
        }

        // By value: zeros have either sign there.
        Assert.Equal(Decode(ReadTensor(file, "dequantized"), weight.DType), Expanded(bench, matrix));
    }

    /// <summary>In a block of zeros bitsandbytes' CUDA kernels take code 0 (-1 times the scale), its CPU code and ours code 7 (0).</summary>
    private static byte[] WithZeroBlocks(byte[] packed, float[] absmax)
    {
        for (int block = 0; block < absmax.Length; block++)
        {
            Span<byte> codes = packed.AsSpan(block * BlockwiseFourBit.Blocksize / 2)[..Math.Min(BlockwiseFourBit.Blocksize / 2, packed.Length - block * BlockwiseFourBit.Blocksize / 2)];
            if (absmax[block] == 0 && codes.IndexOfAnyExcept((byte)0) < 0)
            {
                codes.Fill(0x77);
            }
        }

        return packed;
    }

    /// <summary>The same for values: whatever code 0 came to there is the zero that was quantized.</summary>
    private static float[] WithZeroBlocks(float[] values, float[] absmax) =>
        [.. values.Select((value, i) => absmax[i / BlockwiseFourBit.Blocksize] == 0 ? 0 : value)];

    internal static void CompareWithCpu(FourBitCode code, string mode, float[] values, int rows, int columns, CudaDeviceOptions options)
    {
        using var cpu = new CpuDevice(1, 1 << 26);
        using var bench = new KernelBench(mode, capacityBytes: CapacityBytes, options: options);
        foreach (bool doubled in (bool[])[false, true])
        {
            foreach (int piece in (int[])[128, FourBitQuantizer.PieceElements])
            {
                FourBitMatrix expected = Quantize(cpu, code, values, rows, columns, doubled, piece), actual = Quantize(bench.Device, code, values, rows, columns, doubled, piece);
                Assert.True(expected.Packed.DownloadBytes().AsSpan().SequenceEqual(actual.Packed.DownloadBytes()), "packed codes differ");
                Assert.Equal(doubled, actual.IsDoubleQuantized);
                if (doubled)
                {
                    // The mean's sum has another order than the CPU's; both are exact to far below a float's last place.
                    Assert.Equal(expected.Offset, actual.Offset);
                    Assert.Equal(expected.AbsmaxCodes.DownloadBytes(), actual.AbsmaxCodes.DownloadBytes());
                    TensorAssert.BitEqual(expected.NestedAbsmax.Download(), actual.NestedAbsmax.Download(), "nested absmax");
                    TensorAssert.BitEqual(expected.NestedMap.Download(), actual.NestedMap.Download(), "nested map");
                }
                else
                {
                    TensorAssert.BitEqual(expected.Absmax.Download(), actual.Absmax.Download(), "absmax");
                }

                // A sum of a negative zero and zeros is a zero.
                TensorAssert.BitEqual([.. KernelBench.Rounded(QuantizedValues.Of(expected)).Select(value => value + 0f)], Expanded(bench, actual), "dequantized");
            }
        }
    }

    private static FourBitMatrix Quantize(Device device, FourBitCode code, float[] values, int rows, int columns, bool doubled, int piece)
    {
        var quantizer = new FourBitQuantizer(device, code, rows, columns, doubled);
        for (int first = 0; first < values.Length; first += piece)
        {
            quantizer.Add(values.AsSpan(first, Math.Min(piece, values.Length - first)));
        }

        return quantizer.Finish();
    }

    /// <summary>The matrix's values by its product with the unit matrix, row for row: one term and zeros.</summary>
    private static float[] Expanded(KernelBench bench, FourBitMatrix matrix)
    {
        int rows = matrix.Out;
        float[] unit = new float[rows * rows];
        for (int i = 0; i < rows; i++)
        {
            unit[i * rows + i] = 1;
        }

        Tensor output = bench.Poisoned(DType.BF16, new Shape(rows, matrix.In));
        Linear.BackwardInput(output, bench.Bf16(unit, new Shape(rows, rows)), matrix);
        return output.Download();
    }

    private static float[] Zeroed(float[] values) => [.. values.Select((v, i) => i / 64 % 5 == 3 ? 0 : v)];

    private static FourBitCode Named(string name) => Codes.Single(code => code.Name == name);

    private static unsafe float Threshold(FourBitCode code, int i) => code.Thresholds[i];

    private static byte[] ReadTensor(SafetensorsFile file, string name)
    {
        SafetensorsEntry entry = file.Entries.Single(entry => entry.Name == name);
        byte[] bytes = new byte[entry.ByteLength];
        file.ReadInto(entry, 0, bytes);
        return bytes;
    }

    private static float[] Decode(byte[] bytes, SafetensorsDType type) => type switch
    {
        SafetensorsDType.F32 => MemoryMarshal.Cast<byte, float>(bytes).ToArray(),
        SafetensorsDType.F16 => Array.ConvertAll(MemoryMarshal.Cast<byte, Half>(bytes).ToArray(), v => (float)v),
        _ => Array.ConvertAll(MemoryMarshal.Cast<byte, ushort>(bytes).ToArray(), BrainFloat.ToSingle),
    };
}
