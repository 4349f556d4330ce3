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

/// <summary>NF4 on the CUDA device has the bytes of the CPU's, and so of bitsandbytes.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class Nf4KernelTests
{
    private const long CapacityBytes = 64L << 20;

    /// <summary>Rows and columns: parts of a block of 64, odd counts, blocks across row ends, more than 256 blocks for the nested scales.</summary>
    private static readonly (int Rows, int Columns)[] Shapes = [(1, 1), (1, 7), (3, 8), (5, 24), (2, 64), (3, 100), (5, 123), (9, 1024), (17, 2050)];

    public static TheoryData<string, int, int> Cases => KernelModes.With(Shapes);

    public static TheoryData<string> Files => [.. Fixtures.Files("bitsandbytes", "nf4_*.safetensors")];

    [Theory]
    [MemberData(nameof(Cases))]
    public void Quantize_AnyShape_HasTheBytesOfTheCpu(string mode, int rows, int columns)
    {
        float[] values = Values(1, (long)rows * columns, 0.1f);
        Zeroed(values).AsSpan().CopyTo(values);
        CompareWithCpu(mode, values, rows, columns, new CudaDeviceOptions());
    }

    /// <summary>The kernel source with the two codes of a byte exchanged must not pass the comparison above.</summary>
    [Fact]
    public void NibblesSwapped_TurnsRed()
    {
        const string right = "(i * 4 ^ 4)", wrong = "(i * 4)";
        string source = KernelSources.Embedded.Read("nf4.cu");
        Assert.Contains(right, source, StringComparison.Ordinal);
        var options = new CudaDeviceOptions
        {
            Sources = new KernelSources(KernelSources.Embedded.Files.Select(file => KeyValuePair.Create(file, file == "nf4.cu" ? source.Replace(right, wrong, StringComparison.Ordinal) : KernelSources.Embedded.Read(file)))),
        };
        Exception exception = Assert.ThrowsAny<Exception>(() => CompareWithCpu(KernelModes.Names[0], Values(1, 300), 3, 100, options));
        Assert.Contains("packed", exception.Message, StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Quantize_AroundEveryThreshold_TakesTheCodeOfTheCpu(string mode)
    {
        // Absmax 1, so that a weight is what is compared with the thresholds.
        float[] values = new float[128];
        for (int i = 0; i < 15; i++)
        {
            float middle = CodeMiddle(i);
            (values[4 * i], values[4 * i + 1], values[4 * i + 2]) = (MathF.BitDecrement(middle), middle, MathF.BitIncrement(middle));
        }

        (values[63], values[127]) = (1, -1);
        CompareWithCpu(mode, values, 1, 128, new CudaDeviceOptions());
    }

    /// <summary>Extremes of the scale: a block of zeros, one whose reciprocal would overflow, the largest numbers.</summary>
    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Quantize_ExtremeScales_HasTheBytesOfTheCpu(string mode)
    {
        float[] values = new float[64 * 5];
        for (int i = 0; i < 64; i++)
        {
            values[64 + i] = (i - 32) * 1e-42f;
            values[128 + i] = (i - 32) * 1e36f;
            values[192 + i] = (i - 32) * 1e-37f;
        }

        CompareWithCpu(mode, values, 5, 64, new CudaDeviceOptions());
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
            FourBitMatrix single = Quantize(bench.Device, values, (int)shape[0], (int)shape[1], doubled: false, piece: 128);
            float[] absmax = single.Absmax.Download();
            Assert.Equal(WithZeroBlocks(Read("packed"), absmax), single.Packed.DownloadBytes());
            FourBitMatrix matrix = single;
            if (isDouble)
            {
                float offset = Floats("offset")[0];
                FourBitMatrix own = Quantize(bench.Device, values, (int)shape[0], (int)shape[1], doubled: true, piece: FourBitQuantizer.PieceElements);
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
            float[] stored = KernelBench.Rounded(Nf4Values.Of(matrix));
            if (weight.DType != SafetensorsDType.F16)
            {
                TensorAssert.BitEqual(WithZeroBlocks(KernelBench.Rounded(Decode(Read("dequantized"), weight.DType)), absmax), stored, "the CPU's values");
            }

            TensorAssert.BitEqual(stored, Expanded(bench, matrix), "dequantized");
            bench.CheckMargins();
        }
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

    internal static void CompareWithCpu(string mode, float[] values, int rows, int columns, CudaDeviceOptions options)
    {
        using var cpu = new CpuDevice(1, 1 << 26);
        using var bench = new KernelBench(mode, capacityBytes: CapacityBytes, options: options);
        foreach (bool doubled in (bool[])[false, true])
        {
            foreach (int piece in (int[])[128, FourBitQuantizer.PieceElements])
            {
                FourBitMatrix expected = Quantize(cpu, values, rows, columns, doubled, piece), actual = Quantize(bench.Device, values, rows, columns, doubled, piece);
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

                TensorAssert.BitEqual(KernelBench.Rounded(Nf4Values.Of(expected)), Expanded(bench, actual), "dequantized");
            }
        }
    }

    private static FourBitMatrix Quantize(Device device, float[] values, int rows, int columns, bool doubled, int piece)
    {
        var quantizer = new FourBitQuantizer(device, FourBitCode.Nf4, rows, columns, doubled);
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

    private static unsafe float CodeMiddle(int code) => (FourBitCode.Nf4.Values[code] + FourBitCode.Nf4.Values[code + 1]) * 0.5f;

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
