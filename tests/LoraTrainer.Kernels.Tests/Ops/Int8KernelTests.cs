using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

/// <summary>Matrices of signed bytes on the CUDA device have the bytes of the CPU's, and so of bitsandbytes.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class Int8KernelTests
{
    private const long CapacityBytes = 64L << 20;

    /// <summary>Rows of parts of a vector, of whole ones, of more than a block of threads covers at once.</summary>
    public static TheoryData<string, int, int> Cases => KernelModes.With((1, 1), (3, 7), (5, 16), (2, 48), (4, 123), (3, 1024), (2, 17_000), (2, 33_000));

    public static TheoryData<string> Files => [.. Directory.GetFiles(Fixtures.Golden("bitsandbytes_cuda"), "int8_*.safetensors").Select(path => Path.GetFileName(path)!).Order(StringComparer.Ordinal)];

    [Theory]
    [MemberData(nameof(Cases))]
    public void Quantize_AnyShape_HasTheBytesOfTheCpu(string mode, int rows, int columns)
    {
        float[] values = Values(1, (long)rows * columns, 0.1f);

        // A row of zeros, and one of numbers below the smallest normal f16, whose rounding is another.
        if (rows > 2)
        {
            values.AsSpan(columns, columns).Clear();
            foreach (ref float value in values.AsSpan(2 * columns, columns))
            {
                value *= 3e-5f;
            }
        }

        Compare(mode, values, rows, columns);
    }

    /// <summary>Numbers half-way between two of f16, normal and not, with an even and an odd one below; and the largest.</summary>
    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Quantize_BetweenTwoOfF16_RoundsAsTheCpu(string mode)
    {
        float[] middles = [.. ((int[])[0, 1, 2, 3, 1022, 1023, 1024, 1025, 0x3bff, 0x3c00, 0x3c01, 0x7bfe]).Select(bits => ((float)BitConverter.UInt16BitsToHalf((ushort)bits) + (float)BitConverter.UInt16BitsToHalf((ushort)(bits + 1))) / 2)];
        float[] around = [.. middles.SelectMany(middle => (float[])[MathF.BitDecrement(middle), middle, MathF.BitIncrement(middle), -middle]), MathF.BitDecrement(Int8Quantizer.FirstTooLarge), -0f, 65504];

        // One number a row beside a larger one of its size, so that each decides its row's scale or its code.
        float[] values = [.. around.SelectMany(value => (float[])[value, value * 0.5f, Math.Clamp(value * 1.7f, -65504, 65504), -value * 0.3f])];
        Compare(mode, values, around.Length, 4);
    }

    [Theory]
    [MemberData(nameof(Files))]
    public void CudaFixtures_CodesAndScales_AreBitEqual(string name)
    {
        using SafetensorsFile file = SafetensorsFile.Open(Fixtures.Golden($"bitsandbytes_cuda/{name}"));
        byte[] Read(string tensor)
        {
            SafetensorsEntry entry = file.Entries.Single(entry => entry.Name == tensor);
            byte[] bytes = new byte[entry.ByteLength];
            file.ReadInto(entry, 0, bytes);
            return bytes;
        }

        long[] shape = file.Entries.Single(entry => entry.Name == "weight").Shape.ToArray();
        float[] values = Array.ConvertAll(MemoryMarshal.Cast<byte, Half>(Read("weight")).ToArray(), value => (float)value);
        using var bench = new KernelBench(KernelModes.Names[0], capacityBytes: CapacityBytes);
        Int8Matrix matrix = Quantize(bench.Device, values, (int)shape[0], (int)shape[1]);
        Assert.Equal(Read("codes"), matrix.Codes.DownloadBytes());
        TensorAssert.BitEqual([.. MemoryMarshal.Cast<byte, float>(Read("row_absmax")).ToArray().Select(absmax => absmax / 127)], matrix.Scales.Download(), "scales");
    }

    private static void Compare(string mode, float[] values, int rows, int columns)
    {
        using var cpu = new CpuDevice(1, 1 << 26);
        using var bench = new KernelBench(mode, capacityBytes: CapacityBytes);
        Int8Matrix expected = Quantize(cpu, values, rows, columns), actual = Quantize(bench.Device, values, rows, columns);
        TensorAssert.BitEqual(expected.Scales.Download(), actual.Scales.Download(), "scales");
        byte[] wanted = expected.Codes.DownloadBytes(), made = actual.Codes.DownloadBytes();
        int other = wanted.AsSpan().CommonPrefixLength(made);
        Assert.True(other == wanted.Length, $"element {other}: code {(sbyte)made[Math.Min(other, made.Length - 1)]}, expected {(sbyte)wanted[Math.Min(other, made.Length - 1)]} for {values[Math.Min(other, made.Length - 1)]:R} with scale {expected.Scales.Download()[Math.Min(other, made.Length - 1) / columns]:R}");

        // Tensors at odd addresses have no vectors.
        foreach (bool shifted in (bool[])[false, true])
        {
            using var place = new KernelBench(mode, shifted, CapacityBytes);
            Tensor output = place.Poisoned(DType.BF16, new Shape(rows, columns)), codes = place.Bytes(actual.Codes.DownloadBytes()), scales = place.F32(actual.Scales.Download(), new Shape(rows));
            place.Device.Launch(CudaKernels.Int8Dequantize, LaunchShape.PerRow(rows, columns), output, codes, scales, rows, columns);
            TensorAssert.BitEqual(KernelBench.Rounded(QuantizedValues.Of(expected)), output.Download(), "dequantized");
            place.CheckMargins();
        }

        // Row by row gives what all at once gives.
        Int8Matrix pieces = Quantize(bench.Device, values, rows, columns, rowsAtOnce: 1);
        Assert.Equal(actual.Codes.DownloadBytes(), pieces.Codes.DownloadBytes());
        bench.CheckMargins();
    }

    private static Int8Matrix Quantize(Device device, float[] values, int rows, int columns, int rowsAtOnce = int.MaxValue)
    {
        var quantizer = new Int8Quantizer(device, rows, columns);
        int piece = Math.Min(rowsAtOnce, Int8Quantizer.RowsOfAPiece(columns)) * columns;
        for (int first = 0; first < values.Length; first += piece)
        {
            quantizer.Add(values.AsSpan(first, Math.Min(piece, values.Length - first)));
        }

        return quantizer.Finish();
    }
}
