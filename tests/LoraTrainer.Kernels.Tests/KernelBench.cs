using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>
/// A CUDA device for one test of kernels. Every tensor lies between margins of 0xFF: read, they are NaN; written, <see cref="CheckMargins"/>
/// finds it. All memory that was not given a content holds the same bytes.
/// </summary>
internal sealed class KernelBench : IDisposable
{
    /// <summary>Half the distance of neighbouring bf16 numbers around 1: the largest relative error of one rounding to bf16.</summary>
    public const double HalfUlp = 1.0 / 256;

    private const int MarginBytes = 256;
    private const byte MarginByte = 0xFF;
    private const long DefaultCapacityBytes = 16L << 20;

    private readonly List<(Tensor Whole, int Start, int Bytes)> placed = [];
    private readonly int shift;

    /// <param name="mode">One of <see cref="KernelModes.Names"/>.</param>
    /// <param name="shifted">Tensors start one element after an aligned address, as the rows of a matrix of odd width do.</param>
    /// <param name="capacityBytes">Size of the arena.</param>
    /// <param name="options">Null: as in the program.</param>
    public KernelBench(string mode, bool shifted = false, long capacityBytes = DefaultCapacityBytes, CudaDeviceOptions? options = null)
    {
        shift = shifted ? 1 : 0;
        KernelModes.Enter(mode);
        Assert.True(CudaDevice.TryOpen(capacityBytes, options ?? new CudaDeviceOptions(), out CudaDevice? device, out string reason), reason);
        Device = device;
        if (CudaTestDevice.IsRealGpuRequired)
        {
            using ArenaFrame frame = device.Arena.Frame();
            Tensor all = device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(device.Arena.CapacityBytes));
            Poison(all);
        }
    }

    public CudaDevice Device { get; }

    public static float[] Rounded(float[] values) => Array.ConvertAll(values, BrainFloat.Round);

    /// <summary>What a result that is rounded to bf16 may be off by, if it was off by so much before.</summary>
    public static double[] RoundedBound(double[] expected, double[] error) =>
        [.. expected.Zip(error, (value, e) => e + HalfUlp * (Math.Abs(value) + e) + 1e-40)];

    /// <summary>bf16 with those values, rounded to nearest.</summary>
    public Tensor Bf16(float[] values, Shape shape) => Place(DType.BF16, shape, MemoryMarshal.AsBytes(Array.ConvertAll(values, BrainFloat.FromSingle).AsSpan()));

    public Tensor RandomBf16(uint stream, Shape shape, float magnitude = 1) => Bf16(OpHarness.Values(stream, shape.ElementCount, magnitude), shape);

    public Tensor F32(float[] values, Shape shape) => Place(DType.F32, shape, MemoryMarshal.AsBytes(values.AsSpan()));

    public Tensor RandomF32(uint stream, Shape shape, float magnitude = 1) => F32(OpHarness.Values(stream, shape.ElementCount, magnitude), shape);

    public Tensor F64(double[] values) => Place(DType.F64, new Shape(values.Length), MemoryMarshal.AsBytes(values.AsSpan()));

    public Tensor Integers(params int[] values) => Place(DType.I32, new Shape(values.Length), MemoryMarshal.AsBytes(values.AsSpan()));

    public Tensor Bytes(byte[] values) => Place(DType.U8, new Shape(values.Length), values);

    public Tensor Poisoned(DType dtype, Shape shape) => Place(dtype, shape, []);

    /// <summary>Nothing was written outside the tensors.</summary>
    public void CheckMargins()
    {
        foreach ((Tensor whole, int start, int bytes) in placed)
        {
            byte[] content = whole.DownloadBytes();
            int first = content.AsSpan(0, start).IndexOfAnyExcept(MarginByte), last = content.AsSpan(start + bytes).IndexOfAnyExcept(MarginByte);
            Assert.True(first < 0, $"{start - first} bytes before a tensor of {bytes} bytes were written to");
            Assert.True(last < 0, $"byte {last} after the end of a tensor of {bytes} bytes was written to");
        }
    }

    public void Dispose() => Device.Dispose();

    private Tensor Place(DType dtype, Shape shape, ReadOnlySpan<byte> content)
    {
        int start = MarginBytes + shift * dtype.SizeBytes(), bytes = checked((int)(shape.ElementCount * dtype.SizeBytes()));
        Tensor whole = Device.Arena.Allocate(MemoryKind.Activations, DType.U8, new Shape(start + bytes + MarginBytes));
        Poison(whole);
        var tensor = new Tensor(Device, whole.Address + start, shape, dtype);
        if (!content.IsEmpty)
        {
            Device.Upload(tensor, content);
        }

        placed.Add((whole, start, bytes));
        return tensor;
    }

    private void Poison(Tensor bytes)
    {
        byte[] poison = new byte[bytes.ElementCount];
        poison.AsSpan().Fill(MarginByte);
        Device.Upload(bytes, poison);
    }
}

/// <summary>In which ways kernels are run. The emulator's four find different mistakes: a missing wait shows with late copies, a buffer that is reused too early with early ones, and a read of what another thread has yet to write in one order only.</summary>
internal static class KernelModes
{
    private const string Gpu = "gpu";

    public static string[] Names => CudaTestDevice.IsRealGpuRequired ? [Gpu] : ["forward late", "forward early", "reverse late", "reverse early"];

    public static TheoryData<string> All => [.. Names];

    /// <summary>Each mode with each shape of two extents.</summary>
    public static TheoryData<string, int, int> With(params (int Rows, int Columns)[] shapes)
    {
        var data = new TheoryData<string, int, int>();
        foreach (string mode in Names)
        {
            foreach ((int rows, int columns) in shapes)
            {
                data.Add(mode, rows, columns);
            }
        }

        return data;
    }

    /// <summary>Configures the emulator.</summary>
    /// <param name="mode">One of <see cref="Names"/>, or "random ..." or "... lazy".</param>
    public static void Enter(string mode)
    {
        if (mode == Gpu)
        {
            return;
        }

        CudaStandin.Require();
        StandinOrder order = mode.Contains("reverse", StringComparison.Ordinal) ? StandinOrder.Reverse : mode.Contains("random", StringComparison.Ordinal) ? StandinOrder.Random : StandinOrder.Forward;
        CudaStandin.Configure(order, mode.Contains("early", StringComparison.Ordinal) ? StandinCopies.Early : StandinCopies.Late, mode.Contains("lazy", StringComparison.Ordinal));
    }
}
