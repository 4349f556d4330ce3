using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;
using Xunit;

namespace LoraTrainer.TestSupport;

/// <summary>What the tests of the operations share: devices by name, tensors with known content, comparison against a bound for each element.</summary>
public static class OpHarness
{
    /// <summary>Half the distance of neighbouring floats around 1: the largest relative error of one rounding.</summary>
    public const double U = 1.0 / (1 << 24);

    public static Device Open(string name, int threads = 2) => name switch
    {
        "cpu" => new CpuDevice(threads, 1 << 28),
        _ => throw new ArgumentOutOfRangeException(nameof(name), name, "no such device"),
    };

    public static float[] Values(uint stream, long count, float magnitude = 1)
    {
        var random = new CounterRandom(11, stream, 0);
        float[] values = new float[count];
        for (int i = 0; i < values.Length; i++)
        {
            values[i] = magnitude * random.Normal((ulong)i);
        }

        return values;
    }

    public static Tensor Random(this Device device, uint stream, Shape shape, float magnitude = 1) => device.Upload(Values(stream, shape.ElementCount, magnitude), shape);

    public static Tensor Filled(this Device device, float value, Shape shape) => device.Upload(Enumerable.Repeat(value, (int)shape.ElementCount).ToArray(), shape);

    /// <summary>Full of NaN: what is overwritten must not depend on it.</summary>
    public static Tensor Poisoned(this Device device, Shape shape) => device.Filled(float.NaN, shape);

    public static Tensor Integers(this Device device, params int[] values)
    {
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.I32, new Shape(values.Length));
        device.Upload(tensor, MemoryMarshal.AsBytes(values.AsSpan()));
        return tensor;
    }

    /// <summary>What a step reports, as the optimizer reads it; with a norm of 1/s and a maximum of 1 gradients are scaled by s.</summary>
    public static Tensor Report(this Device device, double lossSum, double norm)
    {
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.F64, new Shape(2));
        device.Upload(tensor, MemoryMarshal.AsBytes<double>([lossSum, norm]));
        return tensor;
    }

    public static Tensor BF16(this Device device, float[] values, Shape shape)
    {
        Tensor tensor = device.Arena.Allocate(MemoryKind.Weights, DType.BF16, shape);
        ushort[] bits = [.. values.Select(v => (ushort)(BitConverter.SingleToUInt32Bits(v) >> 16))];
        device.Upload(tensor, MemoryMarshal.AsBytes(bits.AsSpan()));
        return tensor;
    }

    public static double[] Doubles(this Tensor tensor) => [.. tensor.Download().Select(v => (double)v)];

    /// <summary>|actual - expected| is at most the bound, for every element; NaN never is.</summary>
    public static void Within(double[] expected, double[] bound, float[] actual, string what)
    {
        Assert.Equal(expected.Length, actual.Length);
        Assert.Equal(bound.Length, actual.Length);
        for (int i = 0; i < expected.Length; i++)
        {
            double error = Math.Abs(actual[i] - expected[i]);
            Assert.True(error <= bound[i], $"{what}[{i}]: expected {expected[i]:R}, got {actual[i]:R}, error {error:G4} is above the bound {bound[i]:G4}");
        }
    }

    /// <summary>The derivative of <paramref name="loss"/> by each of <paramref name="x"/>, by central differences, equals <paramref name="gradient"/>.</summary>
    public static void MatchesFiniteDifference(double[] x, Func<double> loss, double[] gradient)
    {
        for (int i = 0; i < x.Length; i++)
        {
            const double h = 1e-5;
            double before = x[i];
            x[i] = before + h;
            double above = loss();
            x[i] = before - h;
            double below = loss();
            x[i] = before;
            double numeric = (above - below) / (2 * h);
            Assert.True(Math.Abs(numeric - gradient[i]) <= 1e-8 * (1 + Math.Abs(numeric)), $"[{i}]: finite difference {numeric:R}, formula {gradient[i]:R}");
        }
    }

    public static void Throws(string message, Action action) => Assert.Equal(message, Assert.Throws<ShapeMismatchException>(action).Message);
}
