using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Quantization;

public sealed unsafe class Int8QuantizerTests
{
    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(BitsandbytesFixtures.Int8Rowwise), MemberType = typeof(BitsandbytesFixtures))]
    public void Fixture_CodesAndRowScales_AreEqual(string name)
    {
        var file = new SafetensorsFile(Fixtures.Require($"bitsandbytes/{name}"));
        long[] shape = file.Shape("weight");
        byte[] halves = file.Bytes("weight");
        float[] weight = new float[halves.Length / 2];
        fixed (byte* h = halves)
        fixed (float* w = weight)
        {
            ElementConversions.FromF16((ushort*)h, w, weight.Length);
        }

        using var device = new CpuDevice(2, 1 << 22);
        Int8Matrix matrix = Quantize(device, weight, (int)shape[0], (int)shape[1]);
        Assert.Equal(file.Bytes("codes"), new ReadOnlySpan<byte>(matrix.Codes.I8, weight.Length).ToArray());
        float[] scales = matrix.Scales.Download();
        TensorAssert.BitEqual([.. file.Floats("row_absmax").Select(absmax => absmax / 127)], scales, name + " scales");
    }

    [Fact]
    public void Quantize_RowByRowAndAtOnce_GiveTheSame()
    {
        using var device = new CpuDevice(2, 1 << 22);
        float[] weight = Random(37 * 50, seed: 5);
        Int8Matrix whole = Quantize(device, weight, 37, 50), rows = Quantize(device, weight, 37, 50, rowsAtOnce: 1);
        Assert.Equal(new ReadOnlySpan<byte>(whole.Codes.I8, 37 * 50), new ReadOnlySpan<byte>(rows.Codes.I8, 37 * 50));
        TensorAssert.BitEqual(whole.Scales.Download(), rows.Scales.Download(), "scales");
    }

    [Fact]
    public void Quantize_RowOfZeros_NearZeroAndLargest_AreKept()
    {
        using var device = new CpuDevice(1, 1 << 20);
        // 65519.99 rounds to the largest f16; 1e-8 to zero.
        Int8Matrix matrix = Quantize(device, [0, -0f, 0, 65519.99f, -65504, 1, 1e-8f, -1e-8f, 0], 3, 3);
        Assert.Equal<sbyte>([0, 0, 0, 127, -127, 0, 0, 0, 0], new ReadOnlySpan<sbyte>(matrix.Codes.I8, 9).ToArray());
        Assert.Equal([0, 65504 / 127f, 0], matrix.Scales.Download());
    }

    [Fact]
    public void Quantize_PartOfARow_IsRefused()
    {
        using var device = new CpuDevice(1, 1 << 20);
        var quantizer = new Int8Quantizer(device, 2, 4);
        Assert.Throws<ArgumentException>(() => quantizer.Add(new float[6]));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Linear_ForwardAndBackward_MultiplyWithTheDequantizedWeights(bool roundsToBF16)
    {
        const int n = 5, outs = 19, ins = 515;
        using var device = new CpuDevice(2, 1 << 24, roundsToBF16);
        Int8Matrix matrix = Quantize(device, Random(outs * ins, seed: 7), outs, ins);
        var weight = new double[outs * ins];
        for (int i = 0; i < weight.Length; i++)
        {
            weight[i] = Round(matrix.Codes.I8[i] * matrix.Scales.F32[i / ins]);
        }

        float[] x = [.. Random(n * ins, seed: 8).Select(Round)], dy = [.. Random(n * outs, seed: 9).Select(Round)];
        Tensor input = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(n, ins)), output = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(n, outs));
        Tensor dOutput = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(n, outs)), dInput = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(n, ins));
        device.Upload(input, System.Runtime.InteropServices.MemoryMarshal.AsBytes<float>(x));
        device.Upload(dOutput, System.Runtime.InteropServices.MemoryMarshal.AsBytes<float>(dy));
        Linear.Forward(output, input, matrix);
        Linear.BackwardInput(dInput, dOutput, matrix);

        var y = new float[n * outs];
        var dx = new float[n * ins];
        for (int row = 0; row < n; row++)
        {
            for (int o = 0; o < outs; o++)
            {
                y[row * outs + o] = (float)Enumerable.Range(0, ins).Sum(i => x[row * ins + i] * weight[o * ins + i]);
            }

            for (int i = 0; i < ins; i++)
            {
                dx[row * ins + i] = (float)Enumerable.Range(0, outs).Sum(o => dy[row * outs + o] * weight[o * ins + i]);
            }
        }

        // Sums of up to 515 products of numbers up to 1; results are rounded to bf16 where the device does.
        double tolerance = roundsToBF16 ? 0.004 * y.Max(Math.Abs) : 2e-5;
        TensorAssert.Close(y, output.Download(), tolerance, "y");
        TensorAssert.Close(dx, dInput.Download(), tolerance, "dx");

        float Round(float value) => roundsToBF16 ? BrainFloat.Round(value) : value;
    }

    private static Int8Matrix Quantize(Device device, float[] weight, int rows, int columns, int? rowsAtOnce = null)
    {
        var quantizer = new Int8Quantizer(device, rows, columns);
        int piece = (rowsAtOnce ?? rows) * columns;
        for (int first = 0; first < weight.Length; first += piece)
        {
            quantizer.Add(weight.AsSpan(first, Math.Min(piece, weight.Length - first)));
        }

        return quantizer.Finish();
    }

    private static float[] Random(int count, int seed)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => random.NextSingle() * 2 - 1)];
    }
}
