using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests;

/// <summary>What holds for all kernels: the same bits again, in whatever order threads run and however many work on a grid; and nothing to do is nothing done.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class EveryKernelTests
{
    private const string WorkersVariable = "LT_EMULATOR_WORKERS";
    private const long CapacityBytes = 64L << 20;
    private const int N = 67;

    private static readonly AttentionHeads Heads = new(4, 2, 24, 0.2f);

    private static readonly Dictionary<string, Func<KernelBench, Tensor[]>> Cases = new()
    {
        ["rms_norm"] = bench => [.. RmsNormCase(bench, 1043), .. RmsNormCase(bench, 1024)],
        ["swiglu"] = bench =>
        {
            Tensor a = Matrix(bench, 1, 123), b = Matrix(bench, 2, 123), h = Matrix(bench, 3, 123);
            SwiGlu.Forward(h, a, b);
            SwiGlu.Backward(a, b, Matrix(bench, 4, 123), a, b);
            return [h, a, b];
        },
        ["geglu"] = bench =>
        {
            Tensor a = Matrix(bench, 1, 123), b = Matrix(bench, 2, 123), h = Matrix(bench, 3, 123);
            GeGlu.Forward(h, a, b);
            GeGlu.Backward(a, b, Matrix(bench, 4, 123), a, b);
            return [h, a, b];
        },
        ["softcap"] = bench =>
        {
            Tensor y = bench.RandomF32(1, new Shape(N, 123), 40), dy = Matrix(bench, 2, 123);
            Softcap.Forward(y, 20);
            Softcap.Backward(dy, y, 20);
            return [y, dy];
        },
        ["dora"] = bench =>
        {
            Tensor w = Matrix(bench, 1, 132), a = bench.RandomF32(2, new Shape(4, 132)), b = bench.RandomF32(3, new Shape(N, 4)), norms = bench.Poisoned(DType.F32, new Shape(N));
            Dora.Norms(norms, new DenseMatrix(w), a, b, 2);
            Tensor x = bench.RandomBf16(4, new Shape(50, N)), y = bench.RandomBf16(5, new Shape(50, N)), m = bench.RandomF32(6, new Shape(N)), dm = bench.RandomF32(7, new Shape(N));
            Dora.Scale(y, x, m, norms, -1, GradientMode.Accumulate);
            Dora.MagnitudeGradient(dm, x, y, norms);
            return [norms, y, dm];
        },
        ["embedding_noise"] = bench =>
        {
            Tensor x = Matrix(bench, 1, 123);
            EmbeddingNoise.Add(x, new PackedDocuments(Tensor.None, new[] { 0, 30, N }), 5, new DropoutKey(1, 2, 3, 5));
            return [x];
        },
        ["rope"] = bench =>
        {
            Tensor c = bench.Poisoned(DType.F32, new Shape(N, 16)), s = bench.Poisoned(DType.F32, new Shape(N, 16)), x = Matrix(bench, 1, 120);
            Rope.BuildTables(c, s, bench.Integers([.. Enumerable.Range(0, N)]), [.. Enumerable.Range(1, 16).Select(i => 1f / i)], 1.1f);
            Rope.Forward(x, 40, c, s);
            return [c, s, x];
        },
        ["embedding"] = bench =>
        {
            Tensor tokens = bench.Integers([.. Enumerable.Range(0, N).Select(i => i * i % 7)]), output = bench.Poisoned(DType.BF16, new Shape(N, 123)), table = bench.RandomF32(2, new Shape(7, 123));
            Embedding.Forward(output, tokens, bench.RandomBf16(1, new Shape(7, 123)));
            Embedding.Backward(table, Matrix(bench, 3, 123), tokens, -1);
            return [output, table];
        },
        ["elementwise"] = bench =>
        {
            Tensor x = Matrix(bench, 1, 1043), bias = bench.RandomF32(2, new Shape(1043)), copy = bench.Poisoned(DType.BF16, new Shape(1043));
            Elementwise.Add(x, x, Matrix(bench, 3, 1043));
            Elementwise.AddBias(x, bias);
            Elementwise.BiasGradient(bias, x);
            Cast.ToBF16(copy, bias);
            return [x, bias, copy];
        },
        ["rows"] = bench =>
        {
            Tensor rows = bench.Integers(66, 0, 3), chosen = bench.Poisoned(DType.BF16, new Shape(3, 123)), whole = Matrix(bench, 1, 123);
            Rows.Gather(chosen, whole, rows);
            Rows.Scatter(whole, chosen, rows);
            Tensor columns = bench.Poisoned(DType.BF16, new Shape(N, 40));
            Columns.Gather(columns, whole, 7);
            Columns.Scatter(whole, columns, 60);
            return [chosen, whole, columns];
        },
        ["dropout"] = bench =>
        {
            Tensor x = Matrix(bench, 1, 1043);
            Dropout.Apply(x, x, 0.3f, new DropoutKey(1, 2, 3, 5));
            return [x];
        },
        ["linear"] = bench =>
        {
            FourBitMatrix single = Quantized(bench, FourBitCode.Nf4, false), doubled = Quantized(bench, FourBitCode.Nf4, true), fp4 = Quantized(bench, FourBitCode.Fp4, false), fp4Doubled = Quantized(bench, FourBitCode.Fp4, true);
            var quantizer = new Int8Quantizer(bench.Device, 50, 123);
            quantizer.Add(Values(5, 50 * 123, 0.1f));
            Int8Matrix bytes = quantizer.Finish();
            Tensor x = Matrix(bench, 1, 123), y = bench.Poisoned(DType.BF16, new Shape(N, 50)), z = bench.Poisoned(DType.F32, new Shape(N, 50)), dw = bench.RandomF32(3, new Shape(50, 123)), dx = Matrix(bench, 4, 123);
            Linear.Forward(y, x, single);
            Linear.Forward(z, x, doubled);
            Linear.BackwardInput(dx, y, doubled, GradientMode.Accumulate, 0.5f);
            Linear.BackwardInput(dx, y, fp4, GradientMode.Accumulate);
            Linear.BackwardInput(dx, y, fp4Doubled, GradientMode.Accumulate);
            Linear.BackwardInput(dx, y, bytes, GradientMode.Accumulate);
            Linear.BackwardWeight(dw, y, x, 0.3f);
            return [fp4.Packed, fp4Doubled.AbsmaxCodes, bytes.Codes, bytes.Scales, single.Packed, single.Absmax, doubled.Packed, doubled.AbsmaxCodes, doubled.NestedAbsmax, y, z, dx, dw];
        },
        ["linear_cross_entropy"] = bench =>
        {
            Tensor x = Matrix(bench, 1, 40), w = bench.RandomBf16(2, new Shape(1100, 40)), dw = bench.RandomF32(3, new Shape(1100, 40)), dx = bench.Poisoned(DType.BF16, new Shape(N, 40)), losses = bench.Poisoned(DType.F32, new Shape(N));
            int[] rows = [.. Enumerable.Range(0, N)];
            LinearCrossEntropy.ForwardBackward(losses, dx, dw, x, new DenseMatrix(w), bench.Integers([.. rows.Select(i => i * 13 % 1100)]), bench.Integers(rows), 0.1f);
            Tensor total = bench.F64([1]);
            LossSum.Accumulate(total, losses);
            return [losses, dx, dw, total];
        },
        ["attention"] = bench => [.. AttentionCase(bench, Heads), .. AttentionCase(bench, new AttentionHeads(2, 1, 128, 0.1f))],
        ["attention_window"] = bench => AttentionCase(bench, Heads with { Window = 11 }),
        ["attention_capped"] = bench => AttentionCase(bench, Heads with { Window = 11, Softcap = 2 }),
        ["adamw"] = bench =>
        {
            Tensor p = bench.RandomF32(1, new Shape(70_000)), g = bench.RandomF32(2, new Shape(70_000)), m = bench.RandomF32(3, new Shape(70_000)), v = bench.F32([.. Enumerable.Repeat(0.5f, 70_000)], new Shape(70_000));
            Tensor report = bench.F64([1, 0]);
            GradientNorm.Compute(report.Slice(1, new Shape(1)), g);
            AdamW.Step(p, g, m, v, [new(0, 500, 1, true), new(512, 69_488 - 3, 1, true)], new AdamWSettings(0.9, 0.99, 1e-8, 0.1), 3, 1e-2, report, 0.7);
            return [report, p, m, v];
        },
        ["adamw_8bit"] = bench =>
        {
            const int count = 5000, blocks = 20;
            Tensor p = bench.RandomF32(1, new Shape(70_000)), g = bench.RandomF32(2, new Shape(70_000)), s = bench.F32([.. Enumerable.Repeat(0.5f, blocks)], new Shape(blocks)), t = bench.F32([.. Enumerable.Repeat(0.1f, blocks)], new Shape(blocks));
            Tensor m = bench.Bytes([.. Enumerable.Range(0, count).Select(i => (byte)(i * 7))]), v = bench.Bytes([.. Enumerable.Range(0, count).Select(i => (byte)(i * 5))]);
            AdamW8Bit.Step(p, g, m, s, v, t, [new(new(512, 300, 1, true), 0), new(new(1280, 4488, 2, false), 512)], new AdamWSettings(0.9, 0.99, 1e-8, 0.1), 3, 1e-2, bench.F64([1, 2]), 0.7);
            return [p, m, s, v, t];
        },
    };

    public static TheoryData<string> Names => [.. Cases.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void Results_AgainAndInEveryOrder_AreBitEqual(string name)
    {
        string[] modes = CudaTestDevice.IsRealGpuRequired
            ? ["gpu", "gpu", "gpu"]
            : [.. KernelModes.Names, KernelModes.Names[0], "random late", "random early", "random late lazy", "forward early lazy"];
        byte[][]? expected = null;
        foreach (string mode in modes)
        {
            byte[][] actual = Run(name, mode);
            expected ??= actual;
            for (int i = 0; i < expected.Length; i++)
            {
                Assert.True(expected[i].AsSpan().SequenceEqual(actual[i]), $"{name}, result {i}: other bits {mode}");
            }
        }
    }

    /// <summary>Blocks of a grid run beside each other, in no order, on any number of processors.</summary>
    [Fact]
    public async Task Results_WithAnyNumberOfWorkers_AreBitEqual()
    {
        Assert.SkipWhen(CudaTestDevice.IsRealGpuRequired, "a GPU has the processors that it has");
        string expected = Lines();
        Assert.Equal(Cases.Count, expected.Split('\n', StringSplitOptions.RemoveEmptyEntries).Length);
        foreach (string workers in (string[])["1", "2", "3"])
        {
            Assert.Equal(expected, await ChildTest.Run(typeof(EveryKernelTests), nameof(Child), new Dictionary<string, string> { [WorkersVariable] = workers }));
        }
    }

    [Fact(Explicit = true)]
    public void Child()
    {
        Assert.NotNull(Environment.GetEnvironmentVariable(WorkersVariable));
        ChildTest.Report(Results());
    }

    [Fact]
    public void Cases_Together_LaunchEveryKernel()
    {
        Assert.SkipWhen(CudaTestDevice.IsRealGpuRequired, "a real driver does not count");
        CudaStandin.Require();
        CudaStandin.Reset();
        foreach (string name in Cases.Keys)
        {
            Run(name, KernelModes.Names[0]);
        }

        Assert.Equal([], CudaKernels.All.Where(kernel => CudaStandin.Count(kernel.Name) == 0).Select(kernel => kernel.Name));
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Calls_WithoutRows_DoNothing(string mode)
    {
        using var bench = new KernelBench(mode, capacityBytes: CapacityBytes);
        Tensor none = bench.Poisoned(DType.BF16, new Shape(0, 24)), rows = bench.Poisoned(DType.F32, new Shape(0)), tokens = bench.Integers();
        Tensor weight = bench.RandomF32(1, new Shape(24)), matrix = bench.RandomF32(2, new Shape(5, 24)), table = bench.RandomBf16(3, new Shape(5, 24)), total = bench.F64([3.5]);
        Tensor half = bench.Poisoned(DType.F32, new Shape(0, 4)), five = bench.Poisoned(DType.BF16, new Shape(0, 5)), whole = bench.RandomBf16(4, new Shape(3, 24)), lse = bench.Poisoned(DType.F32, new Shape(1, 0));
        Tensor[] kept = [weight, matrix, table, total, whole];
        byte[][] before = [.. kept.Select(tensor => tensor.DownloadBytes())];

        RmsNorm.Forward(bench.Poisoned(DType.BF16, new Shape(0, 24)), rows, none, weight, 1e-5f);
        RmsNorm.Backward(none, weight, none, none, weight, rows, GradientMode.Accumulate);
        SwiGlu.Forward(none, none, none);
        SwiGlu.Backward(none, none, none, none, none);
        GeGlu.Forward(none, none, none);
        GeGlu.Backward(none, none, none, none, none);
        Softcap.Forward(half, 1);
        Softcap.Backward(bench.Poisoned(DType.BF16, new Shape(0, 4)), half, 1);
        Dora.Scale(none, none, weight, weight, 0, GradientMode.Overwrite);
        Dora.MagnitudeGradient(weight, none, none, bench.F32([.. Enumerable.Repeat(1f, 24)], new Shape(24)));
        EmbeddingNoise.Add(none, new PackedDocuments(Tensor.None, new[] { 0, 0 }), 1, new DropoutKey(1, 2, 3, 4));
        Columns.Gather(bench.Poisoned(DType.BF16, new Shape(0, 8)), none, 4);
        Columns.Scatter(none, bench.Poisoned(DType.BF16, new Shape(0, 8)), 4);
        Rope.BuildTables(half, half, tokens, [1, 2, 3, 4], 1);
        Rope.Forward(none, 8, half, half);
        Embedding.Forward(none, tokens, table);
        Embedding.Backward(matrix, none, tokens, -1);
        Elementwise.Add(none, none, none);
        Elementwise.AddBias(none, weight);
        Elementwise.BiasGradient(weight, none);
        Cast.ToBF16(bench.Poisoned(DType.BF16, new Shape(0)), rows);
        Rows.Gather(none, whole, tokens);
        Rows.Scatter(whole, none, tokens);
        Dropout.Apply(none, none, 0.5f, new DropoutKey(1, 2, 3, 4));
        Linear.Forward(five, bench.Poisoned(DType.BF16, new Shape(0, 24)), new DenseMatrix(table));
        Linear.BackwardInput(none, bench.Poisoned(DType.BF16, new Shape(0, 5)), new DenseMatrix(table));
        Linear.BackwardWeight(matrix, five, none);
        LinearCrossEntropy.ForwardBackward(rows, bench.Poisoned(DType.BF16, new Shape(0, 24)), matrix, none, new DenseMatrix(table), tokens, tokens, 1);
        LossSum.Accumulate(total, rows);
        Assert.Equal(0, GradientNorm.Compute(rows));
        var documents = new PackedDocuments(tokens, new[] { 0, 0 });
        var heads = new AttentionHeads(1, 1, 24, 1);
        Attention.Forward(none, lse, none, none, none, documents, heads);
        Attention.Backward(none, none, none, none, none, lse, none, none, none, documents, heads);
        AdamW8Bit.Step(rows, rows, bench.Bytes([]), rows, bench.Bytes([]), rows, [], new AdamWSettings(0.9, 0.99, 1e-8, 0), 1, 1, bench.F64([1, 1]), 1);
        AdamW.Step(rows, rows, rows, rows, [], new AdamWSettings(0.9, 0.99, 1e-8, 0), 1, 1, bench.F64([1, 1]), 1);

        bench.CheckMargins();
        for (int i = 0; i < kept.Length; i++)
        {
            Assert.Equal(before[i], kept[i].DownloadBytes());
        }
    }

    private static string Lines() => ChildTest.Lines(Results());

    private static IEnumerable<(string Name, ReadOnlyMemory<byte> Bytes)> Results() =>
        Cases.Keys.Select(name => (name, (ReadOnlyMemory<byte>)Run(name, KernelModes.Names[0]).SelectMany(bytes => bytes).ToArray()));

    private static byte[][] Run(string name, string mode)
    {
        using var bench = new KernelBench(mode, capacityBytes: CapacityBytes);
        Tensor[] results = Cases[name](bench);
        byte[][] bytes = [.. results.Select(tensor => tensor.DownloadBytes())];
        foreach (Tensor tensor in results.Where(tensor => tensor.DType is DType.F32 or DType.BF16))
        {
            Assert.DoesNotContain(tensor.Download(), float.IsNaN);
        }

        bench.CheckMargins();
        return bytes;
    }

    private static Tensor Matrix(KernelBench bench, uint stream, int width) => bench.RandomBf16(stream, new Shape(N, width));

    private static Tensor[] RmsNormCase(KernelBench bench, int d)
    {
        const int offset = 1;
        Tensor x = Matrix(bench, 1, d), w = bench.RandomF32(2, new Shape(d)), y = bench.Poisoned(DType.BF16, new Shape(N, d)), r = bench.Poisoned(DType.F32, new Shape(N)), dw = bench.RandomF32(3, new Shape(d));
        RmsNorm.Forward(y, r, x, w, 1e-5f, offset);
        Tensor dx = Matrix(bench, 4, d);
        RmsNorm.Backward(dx, dw, Matrix(bench, 5, d), x, w, r, GradientMode.Accumulate, offset);
        return [y, r, dx, dw];
    }

    private static Tensor[] AttentionCase(KernelBench bench, AttentionHeads heads)
    {
        Tensor q = Matrix(bench, 1, heads.QueryWidth), k = Matrix(bench, 2, heads.KeyValueWidth), v = Matrix(bench, 3, heads.KeyValueWidth);
        Tensor o = bench.Poisoned(DType.BF16, q.Shape), lse = bench.Poisoned(DType.F32, new Shape(heads.Query, N));
        Tensor dq = bench.Poisoned(DType.BF16, q.Shape), dk = bench.Poisoned(DType.BF16, k.Shape), dv = bench.Poisoned(DType.BF16, k.Shape);
        var documents = new PackedDocuments(bench.Integers([.. Enumerable.Range(0, 30), .. Enumerable.Range(0, N - 30)]), new[] { 0, 30, N });
        Attention.Forward(o, lse, q, k, v, documents, heads);
        Attention.Backward(dq, dk, dv, Matrix(bench, 4, heads.QueryWidth), o, lse, q, k, v, documents, heads);
        return [o, lse, dq, dk, dv];
    }

    private static FourBitMatrix Quantized(KernelBench bench, FourBitCode code, bool doubled)
    {
        var quantizer = new FourBitQuantizer(bench.Device, code, 50, 123, doubled);
        quantizer.Add(Values(5, 50 * 123, 0.1f));
        return quantizer.Finish();
    }
}
