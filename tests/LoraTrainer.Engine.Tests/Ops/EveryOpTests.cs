using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Engine.Tests.Numerics;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

/// <summary>What holds for all operations: the same bits again, with any number of threads and any instruction set, and a plan that is exact.</summary>
public sealed class EveryOpTests
{
    private const int N = 67, D = 1043;

    private static readonly AttentionHeads Heads = new(4, 2, 20, 0.3f);

    private static readonly Dictionary<string, (double Flops, Func<Device, Tensor[]> Run)> Cases = new()
    {
        ["rms_norm"] = (4.0 * N * D + 10.0 * N * D, device =>
        {
            Tensor x = Matrix(device, 1), w = device.Random(2, new Shape(D)), y = device.Poisoned(new Shape(N, D)), r = device.Poisoned(new Shape(N)), dw = device.Random(3, new Shape(D));
            RmsNorm.Forward(y, r, x, w, 1e-5f);
            Tensor dx = Matrix(device, 4);
            RmsNorm.Backward(dx, dw, Matrix(device, 5), x, w, r, GradientMode.Accumulate);
            return [y, r, dx, dw];
        }),
        ["swiglu"] = (15.0 * N * D, device =>
        {
            Tensor a = Matrix(device, 1), b = Matrix(device, 2), h = Matrix(device, 3), g = Matrix(device, 4);
            SwiGlu.Forward(h, a, b);
            SwiGlu.Backward(a, b, g, a, b);
            return [h, a, b];
        }),
        ["rms_norm with a gain offset"] = (4.0 * N * D + 10.0 * N * D, device =>
        {
            Tensor x = Matrix(device, 1), w = device.Random(2, new Shape(D)), y = device.Poisoned(new Shape(N, D)), r = device.Poisoned(new Shape(N)), dw = device.Random(3, new Shape(D));
            RmsNorm.Forward(y, r, x, w, 1e-5f, 1);
            Tensor dx = Matrix(device, 4);
            RmsNorm.Backward(dx, dw, Matrix(device, 5), x, w, r, GradientMode.Accumulate, 1);
            return [y, r, dx, dw];
        }),
        ["geglu"] = (30.0 * N * D, device =>
        {
            Tensor a = Matrix(device, 1), b = Matrix(device, 2), h = Matrix(device, 3), g = Matrix(device, 4);
            GeGlu.Forward(h, a, b);
            GeGlu.Backward(a, b, g, a, b);
            return [h, a, b];
        }),
        ["softcap"] = (8.0 * N * D, device =>
        {
            Tensor x = Matrix(device, 1), g = Matrix(device, 2);
            Softcap.Forward(x, 1.5f);
            Softcap.Backward(g, x, 1.5f);
            return [x, g];
        }),
        ["embedding_noise"] = (4.0 * N * D, device =>
        {
            Tensor x = Matrix(device, 1);
            EmbeddingNoise.Add(x, new PackedDocuments(Tensor.None, new int[] { 0, N / 3, N }), 5, new DropoutKey(7, 3, 2, 11));
            return [x];
        }),
        ["columns"] = (0, device =>
        {
            Tensor x = Matrix(device, 1), own = device.Poisoned(new Shape(N, 40));
            Columns.Gather(own, x, 7);
            Columns.Scatter(x, own, 100);
            return [x, own];
        }),
        ["rope"] = (2.0 * N * 16 + 6.0 * N * 3 * 16, device =>
        {
            Tensor c = device.Poisoned(new Shape(N, 16)), s = device.Poisoned(new Shape(N, 16)), x = device.Random(1, new Shape(N, 120));
            Rope.BuildTables(c, s, device.Integers([.. Enumerable.Range(0, N)]), [.. Enumerable.Range(1, 16).Select(i => 1f / i)], 1.1f);
            Rope.Forward(x, 40, c, s);
            return [c, s, x];
        }),
        ["embedding"] = ((double)N * D, device =>
        {
            Tensor tokens = device.Integers([.. Enumerable.Range(0, N).Select(i => i % 7)]), table = device.BF16(Values(1, 7 * D), new Shape(7, D));
            Tensor y = device.Poisoned(new Shape(N, D)), g = device.Random(2, new Shape(7, D));
            Embedding.Forward(y, tokens, table);
            Embedding.Backward(g, Matrix(device, 3), tokens, -1);
            return [y, g];
        }),
        ["elementwise"] = (3.0 * N * D, device =>
        {
            Tensor x = Matrix(device, 1), b = device.Random(2, new Shape(D));
            Elementwise.Add(x, x, Matrix(device, 3));
            Elementwise.AddBias(x, b);
            Elementwise.BiasGradient(b, x);
            return [x, b];
        }),
        ["dropout"] = ((double)N * D, device =>
        {
            Tensor x = Matrix(device, 1);
            Dropout.Apply(x, x, 0.3f, new DropoutKey(1, 2, 3, 5));
            return [x];
        }),
        ["dora"] = (2.0 * 6 * 50 * D + 2 * 2.0 * N * 50, device =>
        {
            Tensor w = device.Random(1, new Shape(50, D)), a = device.Random(2, new Shape(5, D)), b = device.Random(3, new Shape(50, 5)), norms = device.Poisoned(new Shape(50));
            Tensor y = device.Random(4, new Shape(N, 50)), m = device.Random(5, new Shape(50)), dm = device.Random(6, new Shape(50));
            Dora.Norms(norms, new DenseMatrix(w), a, b, 0.5f);
            Dora.MagnitudeGradient(dm, y, y, norms);
            Dora.Scale(y, y, m, norms, -1, GradientMode.Accumulate);
            return [norms, y, dm];
        }),
        ["linear"] = (3 * 2.0 * N * D * 50, device =>
        {
            Tensor x = Matrix(device, 1), w = device.Random(2, new Shape(50, D)), y = device.Poisoned(new Shape(N, 50)), dw = device.Random(3, new Shape(50, D)), dx = Matrix(device, 4);
            Linear.Forward(y, x, new DenseMatrix(w));
            Linear.BackwardInput(dx, y, new DenseMatrix(w), GradientMode.Accumulate, 0.5f);
            Linear.BackwardWeight(dw, y, x, 0.3f);
            return [y, dx, dw];
        }),
        ["gemv"] = (2.0 * 192 * (7 + 50 + 1100) + 2.0 * D * (21 + 22 + 23), device =>
        {
            Tensor x = device.Random(1, new Shape(1, 192)), wide = device.Random(2, new Shape(1, D));
            Tensor[] y = [.. new[] { 7, 50, 1100, 21, 22, 23 }.Select(width => device.Random((uint)width, new Shape(1, width)))];
            Gemv.Forward(y.AsSpan(0, 3), x, [GemvTests.Matrix(device, OperandKind.Nf4Double, 7, 192), GemvTests.Matrix(device, OperandKind.Fp4, 50, 192), GemvTests.Matrix(device, OperandKind.Nf4Double, 1100, 192)], GradientMode.Accumulate, 0.3f);
            Gemv.Forward(y.AsSpan(3), wide, [GemvTests.Matrix(device, OperandKind.RowwiseBytes, 21, D), GemvTests.Matrix(device, OperandKind.BF16, 22, D), GemvTests.Matrix(device, OperandKind.F32, 23, D)]);
            return y;
        }),
        ["linear_cross_entropy"] = (N * (3 * 2.0 * D * 51 + 6 * 51), device =>
        {
            Tensor x = Matrix(device, 1), w = device.Random(2, new Shape(51, D), 0.05f), dw = device.Random(3, new Shape(51, D)), dx = Matrix(device, 4), losses = device.Poisoned(new Shape(N));
            int[] rows = [.. Enumerable.Range(0, N)];
            LinearCrossEntropy.ForwardBackward(losses, dx, dw, x, new DenseMatrix(w), device.Integers([.. rows.Select(i => i % 51)]), device.Integers(rows), 0.1f);
            return [losses, dx, dw];
        }),
        ["linear_cross_entropy with a softcap"] = (N * (3 * 2.0 * D * 51 + (6 + 8) * 51), device =>
        {
            Tensor x = Matrix(device, 1), w = device.Random(2, new Shape(51, D), 0.05f), dw = device.Random(3, new Shape(51, D)), dx = Matrix(device, 4), losses = device.Poisoned(new Shape(N));
            int[] rows = [.. Enumerable.Range(0, N)];
            LinearCrossEntropy.ForwardBackward(losses, dx, dw, x, new DenseMatrix(w), device.Integers([.. rows.Select(i => i % 51)]), device.Integers(rows), 0.1f, softcap: 3);
            return [losses, dx, dw];
        }),
        ["attention"] = (3 * 2.0 * (30 * 30 + 37 * 37) * 80, device =>
        {
            Tensor q = device.Random(1, new Shape(N, 80)), k = device.Random(2, new Shape(N, 40)), v = device.Random(3, new Shape(N, 40)), o = device.Poisoned(new Shape(N, 80)), lse = device.Poisoned(new Shape(4, N));
            Tensor dq = device.Poisoned(new Shape(N, 80)), dk = device.Poisoned(new Shape(N, 40)), dv = device.Poisoned(new Shape(N, 40));
            PackedDocuments documents = Documents(device, 30, N);
            Attention.Forward(o, lse, q, k, v, documents, Heads);
            Attention.Backward(dq, dk, dv, device.Random(4, new Shape(N, 80)), o, lse, q, k, v, documents, Heads);
            return [o, lse, dq, dk, dv];
        }),
        ["attention with window and softcap"] = (3 * 2.0 * (9 * (60 - 9) + 9 * (74 - 9)) * 80, device =>
        {
            AttentionHeads heads = Heads with { Window = 9, Softcap = 2 };
            Tensor q = device.Random(1, new Shape(N, 80)), k = device.Random(2, new Shape(N, 40)), v = device.Random(3, new Shape(N, 40)), o = device.Poisoned(new Shape(N, 80)), lse = device.Poisoned(new Shape(4, N));
            Tensor dq = device.Poisoned(new Shape(N, 80)), dk = device.Poisoned(new Shape(N, 40)), dv = device.Poisoned(new Shape(N, 40));
            PackedDocuments documents = Documents(device, 30, N);
            Attention.Forward(o, lse, q, k, v, documents, heads);
            Attention.Backward(dq, dk, dv, device.Random(4, new Shape(N, 80)), o, lse, q, k, v, documents, heads);
            return [o, lse, dq, dk, dv];
        }),
        ["attention of one query"] = (4.0 * 300 * 80 + 4.0 * 70 * 80, device =>
        {
            Tensor q = device.Random(1, new Shape(1, 80)), k = device.Random(2, new Shape(300, 40)), v = device.Random(3, new Shape(300, 40)), all = device.Poisoned(new Shape(1, 80)), window = device.Poisoned(new Shape(1, 80));
            Attention.ForwardCached(all, q, k, v, Heads);
            Attention.ForwardCached(window, q, k, v, Heads with { Window = 70, Softcap = 2 });
            return [all, window];
        }),
        ["adamw"] = (12.0 * 70000 + 2.0 * 70000, device =>
        {
            Tensor p = device.Random(1, new Shape(70000)), g = device.Random(2, new Shape(70000)), m = device.Random(3, new Shape(70000)), v = device.Filled(0.5f, new Shape(70000));
            AdamW.Step(p, g, m, v, [new(0, 69997, 1, true)], new AdamWSettings(0.9, 0.99, 1e-8, 0.1), 3, 1e-2, device.Report(1, GradientNorm.Compute(g)), 0.7);
            return [p, m, v];
        }),
        ["adamw_8bit"] = (2 * 12.0 * 70001, device =>
        {
            Tensor p = device.Random(1, new Shape(70001)), g = device.Random(2, new Shape(70001)), s = device.Filled(0.5f, new Shape(274)), t = device.Filled(0.1f, new Shape(274));
            Tensor m = device.AllocateZeroed(MemoryKind.Moments, DType.U8, new Shape(70001)), v = device.AllocateZeroed(MemoryKind.Moments, DType.U8, new Shape(70001));
            for (int step = 3; step < 5; step++)
            {
                AdamW8Bit.Step(p, g, m, s, v, t, [new(new(0, p.ElementCount, 1, true), 0)], new AdamWSettings(0.9, 0.99, 1e-8, 0.1), step, 1e-2, device.Report(1, 2), 0.7);
            }

            return [p, s, t];
        }),
    };

    /// <summary>Two documents: the first of so many tokens, the second with the rest.</summary>
    private static PackedDocuments Documents(Device device, int first, int total) =>
        new(device.Integers([.. Enumerable.Range(0, first), .. Enumerable.Range(0, total - first)]), new[] { 0, first, total });

    public static TheoryData<string> Names => [.. Cases.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void Results_AgainAndWithOtherThreads_AreBitEqual(string name)
    {
        float[][] expected = Run(name, 1);
        foreach (int threads in new[] { 1, 2, 3, 3 })
        {
            float[][] actual = Run(name, threads);
            for (int i = 0; i < expected.Length; i++)
            {
                TensorAssert.BitEqual(expected[i], actual[i], $"{name}, result {i}, {threads} threads");
                Assert.DoesNotContain(actual[i], float.IsNaN);
            }
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Plan_MemoryAndOperations_AreExact(string name)
    {
        foreach (int threads in new[] { 1, 3 })
        {
            using Device device = Open("cpu", threads);
            using var plan = new MeasureDevice(threads);
            Cases[name].Run(device);
            Cases[name].Run(plan);
            Assert.Equal(Cases[name].Flops, plan.Flops, 1e-9 * plan.Flops);
            foreach (MemoryKind kind in Enum.GetValues<MemoryKind>())
            {
                Assert.Equal(device.Arena.HighWaterOf(kind), plan.Arena.HighWaterOf(kind));
            }
        }
    }

    [Fact]
    public async Task Results_WithFewerInstructionSets_AreBitEqual()
    {
        string expected = await InstructionSets.RunChild(typeof(EveryOpTests), nameof(Child), "");
        Assert.Equal(Cases.Count, expected.Split('\n', StringSplitOptions.RemoveEmptyEntries).Length);
        foreach (string switchName in InstructionSets.Switches)
        {
            Assert.Equal(expected, await InstructionSets.RunChild(typeof(EveryOpTests), nameof(Child), switchName));
        }
    }

    [Fact(Explicit = true)]
    public void Child() => InstructionSets.Report(Cases.Keys.Select(name => (name, InstructionSets.Bytes(Run(name, 2).SelectMany(r => r)))));

    private static Tensor Matrix(Device device, uint stream) => device.Random(stream, new Shape(N, D));

    private static float[][] Run(string name, int threads)
    {
        using Device device = Open("cpu", threads);
        return [.. Cases[name].Run(device).Select(t => t.Download())];
    }
}
