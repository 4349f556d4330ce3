using System.Diagnostics;
using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Benchmarks;

/// <summary>
/// Measures work on a GPU: filled tensors, calls in turns with a baseline, one row each. A call only queues work, so a slice of many calls is timed
/// from an idle device to an idle device; what lies between two calls is the host's, and shows where a kernel is shorter than its launch.
/// </summary>
internal sealed class CudaBench
{
    private const int Rounds = 15;

    // What a call touches is changed from call to call until no cache of a GPU holds it.
    private const double RotatedBytes = 512e6;
    private const int PoolElements = 1 << 22;
    private static readonly TimeSpan SliceTime = TimeSpan.FromMilliseconds(6);

    private readonly BenchmarkReport report;
    private readonly bool shrink;
    private readonly Tensor pool;
    private readonly Tensor positivePool;
    private readonly Tensor brainPool;
    private Tensor scaledPool;
    private float scaledPoolScale;
    private int calls;

    public CudaBench(BenchmarkReport report, CudaDevice device, CudaSizes sizes)
    {
        this.report = report;
        Device = device;
        Sizes = sizes;
        shrink = sizes.Shrunk;
        Workspace = device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(CudaGemm.WorkspaceBytes));
        int count = shrink ? 1 << 12 : PoolElements;
        var random = new Random(1);
        float[] values = new float[count];
        for (int i = 0; i < count; i++)
        {
            values[i] = 2 * random.NextSingle() - 1;
        }

        pool = Upload(DType.F32, MemoryMarshal.AsBytes(values.AsSpan()), count);
        brainPool = Upload(DType.BF16, MemoryMarshal.AsBytes(Array.ConvertAll(values, BrainFloat.FromSingle).AsSpan()), count);
        positivePool = Upload(DType.F32, MemoryMarshal.AsBytes(Array.ConvertAll(values, MathF.Abs).AsSpan()), count);
    }

    public CudaDevice Device { get; }

    public CudaSizes Sizes { get; }

    /// <summary>What matrix products compute in; one for all, as a step has it.</summary>
    public Tensor Workspace { get; }

    /// <summary>(extents) bf16, random in (-1, 1).</summary>
    public Tensor BF16(params ReadOnlySpan<long> extents) => Filled(DType.BF16, brainPool, extents);

    /// <summary>(extents) f32, random in (-1, 1).</summary>
    public Tensor F32(params ReadOnlySpan<long> extents) => Filled(DType.F32, pool, extents);

    /// <summary>(extents) f32, random in [0, 1).</summary>
    public Tensor Positive(params ReadOnlySpan<long> extents) => Filled(DType.F32, positivePool, extents);

    /// <summary>(count) bytes, as random as the low bytes of random numbers.</summary>
    public Tensor Bytes(long count) => Filled(DType.U8, brainPool, [count]);

    public Tensor Integers(ReadOnlySpan<int> values) => Upload(DType.I32, MemoryMarshal.AsBytes(values), values.Length);

    /// <summary>0, 1, 2, ...: one document.</summary>
    public Tensor Positions(int count) => Integers([.. Enumerable.Range(0, count)]);

    public Tensor F64(long count) => Device.AllocateZeroed(MemoryKind.Workspace, DType.F64, new Shape(count));

    /// <summary>Fills a tensor that is there with random values of its type.</summary>
    public void Fill(Tensor tensor) => Fill(tensor, tensor.DType == DType.F32 ? pool : brainPool);

    /// <summary>Fills a bf16 tensor with random numbers in (-scale, scale).</summary>
    public void FillScaled(Tensor tensor, float scale)
    {
        if (scaledPool.IsNone || scaledPoolScale != scale)
        {
            float[] values = new float[pool.ElementCount];
            Device.Download(pool, MemoryMarshal.AsBytes(values.AsSpan()));
            scaledPool = Upload(DType.BF16, MemoryMarshal.AsBytes(Array.ConvertAll(values, value => BrainFloat.FromSingle(scale * value)).AsSpan()), values.Length);
            scaledPoolScale = scale;
        }

        Fill(tensor, scaledPool);
    }

    /// <summary>As many sets of tensors as it takes to pass over a GPU's cache.</summary>
    /// <param name="bytes">Of one set.</param>
    /// <param name="make">Makes one.</param>
    public T[] Sets<T>(double bytes, Func<T> make) => [.. Enumerable.Range(0, shrink ? 1 : (int)Math.Clamp(Math.Ceiling(RotatedBytes / bytes), 1, 64)).Select(_ => make())];

    /// <summary>Runs candidate and baseline in turns and prints the medians of both rates and of their ratio.</summary>
    /// <param name="name">Of the row.</param>
    /// <param name="unit">Of the rates.</param>
    /// <param name="work">Units times seconds that one call does.</param>
    /// <param name="call">Queues one call; gets a number that counts up.</param>
    /// <param name="baselineName">What the candidate is held against.</param>
    /// <param name="baselineWork">Of one call of the baseline.</param>
    /// <param name="baseline">Queues one call.</param>
    public void Compare(string name, string unit, double work, Action<int> call, string baselineName, double baselineWork, Action<int> baseline)
    {
        int perSlice = CallsPerSlice(call), baselinePerSlice = CallsPerSlice(baseline);
        int rounds = shrink ? 1 : Rounds;
        double[] rates = new double[rounds], baselineRates = new double[rounds], ratios = new double[rounds];
        for (int round = 0; round < rounds; round++)
        {
            rates[round] = work / SecondsPerCall(call, perSlice);
            baselineRates[round] = baselineWork / SecondsPerCall(baseline, baselinePerSlice);
            ratios[round] = rates[round] / baselineRates[round];
        }

        report.Add(name, Median(rates), unit, baselineName, Median(baselineRates), Median(ratios), rates);
    }

    /// <summary>The median rate of a call.</summary>
    public double Rate(double work, Action<int> call)
    {
        int perSlice = CallsPerSlice(call);
        return Median([.. Enumerable.Range(0, shrink ? 1 : Rounds).Select(_ => work / SecondsPerCall(call, perSlice))]);
    }

    public static double Median(double[] values)
    {
        double[] sorted = [.. values.Order()];
        return sorted[sorted.Length / 2];
    }

    private int CallsPerSlice(Action<int> call)
    {
        // The first call compiles and loads what it needs.
        SecondsPerCall(call, 1);
        return shrink ? 1 : (int)Math.Clamp(SliceTime.TotalSeconds / SecondsPerCall(call, 5), 1, 1000);
    }

    private double SecondsPerCall(Action<int> call, int count)
    {
        Device.Synchronize();
        long start = Stopwatch.GetTimestamp();
        for (int i = 0; i < count; i++)
        {
            call(calls++);
        }

        Device.Synchronize();
        return Stopwatch.GetElapsedTime(start).TotalSeconds / count;
    }

    private Tensor Filled(DType dtype, Tensor from, ReadOnlySpan<long> extents)
    {
        Tensor tensor = Device.Arena.Allocate(MemoryKind.Workspace, dtype, extents.Length == 1 ? new Shape(extents[0]) : new Shape(extents[0], extents[1]));
        Fill(tensor, from);
        return tensor;
    }

    private void Fill(Tensor tensor, Tensor from)
    {
        // Bytes are taken from numbers as they lie in memory.
        long size = tensor.DType.SizeBytes(), poolCount = from.SizeBytes / size;
        for (long first = 0; first < tensor.ElementCount; first += poolCount)
        {
            long count = Math.Min(poolCount, tensor.ElementCount - first);
            Device.Copy(tensor.Reshape(new Shape(tensor.ElementCount)).Slice(first, new Shape(count)), new Tensor(Device, from.Address, new Shape(count), tensor.DType));
        }
    }

    private Tensor Upload(DType dtype, ReadOnlySpan<byte> bytes, int count)
    {
        Tensor tensor = Device.Arena.Allocate(MemoryKind.Workspace, dtype, new Shape(count));
        Device.Upload(tensor, bytes);
        return tensor;
    }
}

/// <summary>The shapes of the cuda_* rows: those of training an 8-billion-parameter Llama, or tiny ones to try the code.</summary>
internal sealed record CudaSizes
{
    public static readonly CudaSizes Full = new()
    {
        Tokens = 4096, Hidden = 4096, Intermediate = 14336, Vocabulary = 128256, QueryHeads = 32, KeyHeads = 8, HeadDims = [128, 64], Trained = 41_943_040,
        CopyBytes = 1L << 30, Square = 8192, GemmTokens = 2048, KernelArenaBytes = 8L << 30,
    };

    public static readonly CudaSizes Tiny = new()
    {
        Shrunk = true, Tokens = 48, Hidden = 64, Intermediate = 160, Vocabulary = 320, QueryHeads = 4, KeyHeads = 2, HeadDims = [16], Trained = 40_000,
        CopyBytes = 1 << 20, Square = 64, GemmTokens = 32, KernelArenaBytes = 128 << 20,
    };

    public bool Shrunk { get; private init; }

    /// <summary>N</summary>
    public required int Tokens { get; init; }

    /// <summary>D</summary>
    public required int Hidden { get; init; }

    /// <summary>F</summary>
    public required int Intermediate { get; init; }

    /// <summary>V</summary>
    public required int Vocabulary { get; init; }

    public required int QueryHeads { get; init; }

    public required int KeyHeads { get; init; }

    public required int[] HeadDims { get; init; }

    /// <summary>Trained numbers: rank 16 on all linear layers of 8B.</summary>
    public required int Trained { get; init; }

    public required long CopyBytes { get; init; }

    /// <summary>Edge of the square matrix product that finds the GPU's rate.</summary>
    public required int Square { get; init; }

    public required int GemmTokens { get; init; }

    public required long KernelArenaBytes { get; init; }
}
