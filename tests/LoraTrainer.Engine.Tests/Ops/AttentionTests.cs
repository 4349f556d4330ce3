using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Engine.Tests.Numerics;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Ops;

public sealed class AttentionTests
{
    // fp32 chains of at most 257 terms (scores, weighted sums) and exp of differences of scores up to about 20: a few 1e-7 relative.
    private const double Tolerance = 2e-6;

    public static TheoryData<int[], int, int, int, int, float> Cases()
    {
        var cases = new TheoryData<int[], int, int, int, int, float>();
        foreach (int length in new[] { 1, 2, 5, 17, 63, 64, 65, 130, 257 })
        {
            cases.Add([length], 4, 2, 16, 0, 0);
            cases.Add([length], 2, 2, 20, 7, 0);
        }

        foreach (int dh in new[] { 8, 16, 20, 64, 128 })
        {
            foreach (int group in new[] { 1, 2, 4 })
            {
                cases.Add([1, 70, 1, 66], 4, 4 / group, dh, 0, 0);
                cases.Add([1, 70, 1, 66], 4, 4 / group, dh, 33, 2.5f);
            }
        }

        foreach (int window in new[] { 1, 2, 63, 64, 65, 127, 128, 135, 500 })
        {
            cases.Add([200, 3], 2, 1, 16, window, 0);
        }

        cases.Add([0, 5, 0, 0, 90, 0], 3, 1, 64, 0, 0);
        cases.Add([100], 9, 3, 64, 0, 30);
        return cases;
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void ForwardAndBackward_OfAnyShape_MatchTheReference(int[] lengths, int h, int hkv, int dh, int window, float softcap)
    {
        var call = new Call(lengths, h, hkv, dh, window, softcap);
        Result actual = call.Run(threads: 2);
        AttentionReference reference = call.Reference();
        (double[] output, double[] lse) = reference.Forward(Doubles(call.Q), Doubles(call.K), Doubles(call.V));
        (double[] dq, double[] dk, double[] dv) = reference.Backward(Doubles(call.DOutput), Doubles(call.Q), Doubles(call.K), Doubles(call.V));
        TensorAssert.RelativeL2(Floats(output), actual.Output, Tolerance, "output");
        TensorAssert.Close(Floats(lse), actual.Lse, 5e-6, "lse");
        TensorAssert.RelativeL2(Floats(dv), actual.DV, Tolerance, "dv");
        // With one visible key dq and dk are differences of equal numbers: 0 in the reference, rounding errors here. Their size is that of dv.
        double[] scaleOf = dv;
        double size = Math.Sqrt(scaleOf.Sum(x => x * x) / Math.Max(1, scaleOf.Length));
        TensorAssert.Close(Floats(dq), actual.DQ, 4e-6 * Math.Max(size, Largest(dq)), "dq");
        TensorAssert.Close(Floats(dk), actual.DK, 4e-6 * Math.Max(size, Largest(dk)), "dk");
    }

    [Theory]
    [InlineData(0, 0)]
    [InlineData(3, 0)]
    [InlineData(0, 1.5)]
    [InlineData(4, 1.5)]
    public void Reference_Backward_MatchesFiniteDifferences(int window, double softcap)
    {
        var call = new Call([3, 6], 4, 2, 5, window, (float)softcap);
        AttentionReference reference = call.Reference();
        double[][] inputs = [Doubles(call.Q), Doubles(call.K), Doubles(call.V)];
        double[] dOutput = Doubles(call.DOutput);
        (double[] dq, double[] dk, double[] dv) = reference.Backward(dOutput, inputs[0], inputs[1], inputs[2]);
        double[][] gradients = [dq, dk, dv];
        double Loss() => reference.Forward(inputs[0], inputs[1], inputs[2]).Output.Zip(dOutput, (a, b) => a * b).Sum();
        const double Step = 1e-5;
        for (int tensor = 0; tensor < 3; tensor++)
        {
            for (int i = 0; i < inputs[tensor].Length; i++)
            {
                double saved = inputs[tensor][i];
                inputs[tensor][i] = saved + Step;
                double up = Loss();
                inputs[tensor][i] = saved - Step;
                double down = Loss();
                inputs[tensor][i] = saved;
                Assert.Equal((up - down) / (2 * Step), gradients[tensor][i], 1e-7);
            }
        }
    }

    [Theory]
    [InlineData(0, 0)]
    [InlineData(100, 0)]
    [InlineData(0, 20)]
    public void Results_WithAnyNumberOfThreads_AreBitEqual(int window, float softcap)
    {
        var call = new Call([300, 1, 130, 64], 4, 2, 24, window, softcap);
        Result expected = call.Run(threads: 1);
        for (int threads = 2; threads <= 5; threads++)
        {
            for (int repeat = 0; repeat < 5; repeat++)
            {
                call.Run(threads).AssertBitEqual(expected, $"{threads} threads");
            }
        }
    }

    [Theory]
    [InlineData(0)]
    [InlineData(50)]
    public void Results_OfAPackedStream_AreThoseOfEachDocumentAlone(int window)
    {
        int[] lengths = [65, 1, 130, 17, 64];
        var packed = new Call(lengths, 4, 2, 20, window, 0);
        Result together = packed.Run(threads: 2);
        int start = 0;
        foreach (int length in lengths)
        {
            Call alone = packed.Document(start, length);
            alone.Run(threads: 2).AssertBitEqual(packed.Slice(together, start, length), $"document at {start}");
            start += length;
        }
    }

    [Theory]
    [InlineData(2, 4, 2, 16, 0, 0)]
    [InlineData(2, 8, 1, 64, 70, 0)]
    [InlineData(3, 4, 4, 20, 0, 5)]
    [InlineData(65, 4, 2, 16, 40, 0)]
    [InlineData(130, 2, 1, 8, 0, 0)]
    [InlineData(150, 3, 1, 64, 0, 0)]
    public unsafe void ForwardDecode_OfTheLastRows_HasTheBitsOfForward(int queries, int h, int hkv, int dh, int window, float softcap)
    {
        var call = new Call([150], h, hkv, dh, window, softcap);
        Result whole = call.Run(threads: 1);
        float[] expected = whole.Output[((150 - queries) * h * dh)..];
        float[] actual = Enumerable.Repeat(float.NaN, expected.Length).ToArray();
        float[] q = call.Q[((150 - queries) * h * dh)..];
        using var pool = new WorkerPool(2);
        byte[] workspace = new byte[CpuAttention.DecodeWorkspaceBytes(2, dh)];
        workspace.AsSpan().Fill(0xFF);
        fixed (byte* w = workspace)
        fixed (float* o = actual, qp = q, kp = call.K, vp = call.V)
        {
            CpuAttention.ForwardDecode(pool, w, o, qp, kp, vp, queries, 150, new AttentionShape(h, hkv, dh, h * dh, hkv * dh, h * dh), call.Options);
        }

        TensorAssert.BitEqual(expected, actual, "decoded rows");
    }

    /// <summary>Splits of one block, of several, a last one that is short; heads of whole and of partial vectors.</summary>
    [Theory]
    [InlineData(1, 4, 2, 16, 0, 0)]
    [InlineData(3, 2, 1, 8, 0, 0)]
    [InlineData(64, 4, 4, 20, 0, 5)]
    [InlineData(65, 8, 1, 64, 0, 0)]
    [InlineData(200, 6, 2, 80, 70, 0)]
    [InlineData(150, 9, 3, 64, 1, 0)]
    [InlineData(2500, 2, 1, 128, 0, 30)]
    [InlineData(4200, 3, 3, 24, 4100, 0)]
    public void ForwardCached_OfOneQuery_MatchesTheReference(int keys, int h, int hkv, int dh, int window, float softcap)
    {
        var call = new Call([keys], h, hkv, dh, window, softcap);
        double[] whole = call.Reference().Forward(Doubles(call.Q), Doubles(call.K), Doubles(call.V)).Output;
        var heads = new AttentionHeads(h, hkv, dh, call.Options.Scale, window, softcap);
        float[]? first = null;
        foreach (int threads in new[] { 1, 2, 5 })
        {
            using Device device = OpHarness.Open("cpu", threads);
            Tensor output = device.Poisoned(new Shape(1, h * dh));
            Attention.ForwardCached(
                output, device.Upload([.. call.Q.Skip((keys - 1) * h * dh)], new Shape(1, h * dh)), device.Upload(call.K, new Shape(keys, hkv * dh)), device.Upload(call.V, new Shape(keys, hkv * dh)), heads);
            TensorAssert.RelativeL2(Floats([.. whole.Skip((keys - 1) * h * dh)]), output.Download(), Tolerance, "output");
            first ??= output.Download();
            TensorAssert.BitEqual(first, output.Download(), $"{threads} threads");
        }
    }

    [Fact]
    public void ForwardCached_OfOneQueryWithoutAFiniteScore_IsZero()
    {
        using Device device = OpHarness.Open("cpu");
        Tensor output = device.Poisoned(new Shape(1, 16)), v = device.Random(1, new Shape(130, 16));
        Attention.ForwardCached(output, device.Filled(1, new Shape(1, 16)), device.Filled(float.NegativeInfinity, new Shape(130, 16)), v, new AttentionHeads(1, 1, 16, 0.25f));
        Assert.All(output.Download(), x => Assert.Equal(0f, x));
    }

    [Fact]
    public void Contract_WithWindowAndSoftcap_MatchesTheReference()
    {
        const int H = 4, Hkv = 2, Dh = 20;
        using Device device = OpHarness.Open("cpu");
        int[] offsets = [0, 70, 75, 140];
        var heads = new AttentionHeads(H, Hkv, Dh, 0.3f, Window: 9, Softcap: 1.5f);
        Tensor q = device.Random(1, new Shape(140, H * Dh)), k = device.Random(2, new Shape(140, Hkv * Dh)), v = device.Random(3, new Shape(140, Hkv * Dh)), dOutput = device.Random(4, q.Shape);
        Tensor output = device.Poisoned(q.Shape), lse = device.Poisoned(new Shape(H, 140)), dq = device.Poisoned(q.Shape), dk = device.Poisoned(k.Shape), dv = device.Poisoned(v.Shape);
        var documents = new PackedDocuments(device.Integers([.. offsets.Zip(offsets.Skip(1), (a, b) => Enumerable.Range(0, b - a)).SelectMany(p => p)]), offsets);
        Attention.Forward(output, lse, q, k, v, documents, heads);
        Attention.Backward(dq, dk, dv, dOutput, output, lse, q, k, v, documents, heads);
        var reference = new AttentionReference(H, Hkv, Dh, offsets, heads.Scale, heads.Window, heads.Softcap);
        TensorAssert.RelativeL2(Floats(reference.Forward(q.Doubles(), k.Doubles(), v.Doubles()).Output), output.Download(), Tolerance, "output");
        (double[] eq, double[] ek, double[] ev) = reference.Backward(dOutput.Doubles(), q.Doubles(), k.Doubles(), v.Doubles());
        TensorAssert.RelativeL2(Floats(eq), dq.Download(), 2 * Tolerance, "dq");
        TensorAssert.RelativeL2(Floats(ek), dk.Download(), 2 * Tolerance, "dk");
        TensorAssert.RelativeL2(Floats(ev), dv.Download(), Tolerance, "dv");

        // The last rows of the last document, from its keys and values alone.
        Tensor last = device.Poisoned(new Shape(3, H * Dh));
        Attention.ForwardCached(last, q.Rows(137, 3), k.Rows(75, 65), v.Rows(75, 65), heads);
        TensorAssert.BitEqual(output.Download().AsSpan(137 * H * Dh), last.Download(), "cached");
    }

    [Fact]
    public void Backward_OfRowsWithInfiniteLse_GivesZeros()
    {
        // What a fully masked row would look like: lse = +inf, output 0.
        var call = new Call([70], 2, 1, 16, 0, 0);
        Result result = call.Run(threads: 1, overrideLse: float.PositiveInfinity);
        Assert.All(result.DQ, x => Assert.Equal(0f, x));
        Assert.All(result.DK, x => Assert.Equal(0f, x));
        Assert.All(result.DV, x => Assert.Equal(0f, x));
    }

    [Fact]
    public void Forward_OfARowWithoutAFiniteScore_GivesZeroAndInfiniteLse()
    {
        // What a fully masked row looks like: every score is -inf.
        var call = new Call([70], 1, 1, 16, 1, 0);
        Array.Fill(call.Q, 1f);
        call.K.AsSpan(40 * 16, 16).Fill(float.NegativeInfinity);
        Result result = call.Run(threads: 1);
        Assert.All(result.Output[(40 * 16)..(41 * 16)], x => Assert.Equal(0f, x));
        Assert.Equal(float.PositiveInfinity, result.Lse[40]);
        Assert.True(float.IsFinite(result.Lse[39]));
    }

    [Fact]
    public void Forward_WithLargeScores_StaysFinite()
    {
        var call = new Call([130], 2, 1, 16, 0, 0, magnitude: 100);
        Result result = call.Run(threads: 1);
        Assert.All(result.Output, x => Assert.True(float.IsFinite(x)));
        (double[] output, _) = call.Reference().Forward(Doubles(call.Q), Doubles(call.K), Doubles(call.V));
        // Scores near 1e5 have an ulp of 0.008: the error of exp, not a looser kernel.
        TensorAssert.RelativeL2(Floats(output), result.Output, 0.02, "output");
    }

    [Fact]
    public void Forward_WithANaN_DoesNotHideIt()
    {
        var call = new Call([70], 1, 1, 16, 0, 0);
        call.K[(40 * 16) + 3] = float.NaN;
        Result result = call.Run(threads: 1);
        for (int row = 0; row < 70; row++)
        {
            // Earlier rows never see the key.
            Assert.Equal(row >= 40, float.IsNaN(result.Output[row * 16]));
        }
    }

    [Fact]
    public async Task Results_WithFewerInstructionSets_AreBitEqual()
    {
        string expected = await InstructionSets.RunChild(typeof(AttentionTests), nameof(Child), "");
        Assert.Equal(20, expected.Split('\n', StringSplitOptions.RemoveEmptyEntries).Length);
        foreach (string switchName in InstructionSets.Switches)
        {
            Assert.Equal(expected, await InstructionSets.RunChild(typeof(AttentionTests), nameof(Child), switchName));
        }
    }

    [Fact(Explicit = true)]
    public void Child()
    {
        var results = new List<(string, ReadOnlyMemory<byte>)>();
        foreach (Call call in new[]
        {
            new Call([70, 1, 20], 4, 2, 20, 0, 0),
            new Call([70, 1, 20], 2, 1, 64, 33, 0),
            new Call([66], 2, 1, 128, 0, 4),
            new Call([67], 2, 2, 8, 0, 0),
        })
        {
            Result result = call.Run(threads: 2);
            results.AddRange(result.All().Select(x => ($"{call.Dh} {x.Name}", InstructionSets.Bytes(x.Values))));
        }

        InstructionSets.Report(results);
    }

    private static double Largest(double[] x) => x.Length == 0 ? 0 : x.Max(Math.Abs);

    private static double[] Doubles(float[] x) => [.. x.Select(v => (double)v)];

    private static float[] Floats(double[] x) => [.. x.Select(v => (float)v)];

    /// <summary>Dense results of both directions.</summary>
    private sealed record Result(float[] Output, float[] Lse, float[] DQ, float[] DK, float[] DV)
    {
        public IEnumerable<(string Name, float[] Values)> All() => [("output", Output), ("lse", Lse), ("dq", DQ), ("dk", DK), ("dv", DV)];

        public void AssertBitEqual(Result expected, string what)
        {
            foreach (((string name, float[] values), (_, float[] other)) in All().Zip(expected.All()))
            {
                TensorAssert.BitEqual(other, values, $"{name}, {what}");
            }
        }
    }

    /// <summary>Inputs of one call, dense; <see cref="Run"/> spreads them over strided buffers: q, k, v side by side in one, the output with gaps.</summary>
    private sealed unsafe class Call
    {
        private const int Gap = 3;
        private readonly int[] lengths;
        private readonly int h, hkv, window;
        private readonly float softcap;

        public Call(int[] lengths, int h, int hkv, int dh, int window, float softcap, float magnitude = 1.5f)
        {
            (this.lengths, this.h, this.hkv, Dh, this.window, this.softcap) = (lengths, h, hkv, dh, window, softcap);
            Q = Values(1, Tokens * h * dh, magnitude);
            K = Values(2, Tokens * hkv * dh, magnitude);
            V = Values(3, Tokens * hkv * dh, 1);
            DOutput = Values(4, Tokens * h * dh, 1);
        }

        public float[] Q { get; private init; }

        public float[] K { get; private init; }

        public float[] V { get; private init; }

        public float[] DOutput { get; private init; }

        public int Dh { get; }

        public AttentionOptions Options => new((float)(1 / Math.Sqrt(Dh)), window, softcap);

        private int Tokens => lengths.Sum();

        private int[] Offsets => [0, .. lengths.Select((_, i) => lengths[..(i + 1)].Sum())];

        public AttentionReference Reference() => new(h, hkv, Dh, Offsets, Options.Scale, window, softcap);

        public Call Document(int start, int length) => new([length], h, hkv, Dh, window, softcap)
        {
            Q = Rows(Q, h * Dh, start, length),
            K = Rows(K, hkv * Dh, start, length),
            V = Rows(V, hkv * Dh, start, length),
            DOutput = Rows(DOutput, h * Dh, start, length),
        };

        public Result Slice(Result all, int start, int length) => new(
            Rows(all.Output, h * Dh, start, length),
            [.. Enumerable.Range(0, h).SelectMany(head => all.Lse[((head * Tokens) + start)..((head * Tokens) + start + length)])],
            Rows(all.DQ, h * Dh, start, length),
            Rows(all.DK, hkv * Dh, start, length),
            Rows(all.DV, hkv * Dh, start, length));

        /// <summary>Both directions, every output and the workspace filled with NaN beforehand; numbers between the rows must survive.</summary>
        public Result Run(int threads, float? overrideLse = null)
        {
            int qWidth = h * Dh, kvWidth = hkv * Dh, inputStride = qWidth + (2 * kvWidth), outputStride = qWidth + Gap;
            float[] input = Poisoned(Tokens * inputStride), gradient = Poisoned(Tokens * inputStride);
            Spread(Q, input, qWidth, inputStride, 0);
            Spread(K, input, kvWidth, inputStride, qWidth);
            Spread(V, input, kvWidth, inputStride, qWidth + kvWidth);
            float[] output = Poisoned(Tokens * outputStride), dOutput = Poisoned(Tokens * outputStride), lse = Poisoned(h * Tokens);
            Spread(DOutput, dOutput, qWidth, outputStride, 0);
            var shape = new AttentionShape(h, hkv, Dh, inputStride, inputStride, outputStride);
            using var pool = new WorkerPool(threads);
            RunPoisoned(CpuAttention.ForwardWorkspaceBytes(threads, Tokens, lengths.Length, Dh), w =>
            {
                fixed (float* o = output, l = lse, i = input)
                {
                    CpuAttention.Forward(pool, w, o, l, i, i + qWidth, i + qWidth + kvWidth, Offsets, shape, Options);
                }
            });
            if (overrideLse is { } given)
            {
                lse.AsSpan().Fill(given);
            }

            RunPoisoned(CpuAttention.BackwardWorkspaceBytes(threads, Tokens, lengths.Length, h, hkv, Dh), w =>
            {
                fixed (float* g = gradient, d = dOutput, o = output, l = lse, i = input)
                {
                    CpuAttention.Backward(
                        pool, w, g, g + qWidth, g + qWidth + kvWidth, d, o, l, i, i + qWidth, i + qWidth + kvWidth, Offsets, shape, Options);
                }
            });
            for (int row = 0; row < Tokens; row++)
            {
                Assert.All(output[((row * outputStride) + qWidth)..((row + 1) * outputStride)], x => Assert.True(float.IsNaN(x)));
            }

            return new Result(
                Gather(output, qWidth, outputStride, 0), lse, Gather(gradient, qWidth, inputStride, 0),
                Gather(gradient, kvWidth, inputStride, qWidth), Gather(gradient, kvWidth, inputStride, qWidth + kvWidth));
        }

        private delegate void WithWorkspace(byte* workspace);

        /// <summary>Runs with a workspace of just that size between two guards that must not change.</summary>
        private static void RunPoisoned(long bytes, WithWorkspace action)
        {
            const int Guard = 64;
            byte* memory = (byte*)NativeMemory.AlignedAlloc((nuint)bytes + (2 * Guard), 64);
            try
            {
                new Span<byte>(memory, (int)bytes + (2 * Guard)).Fill(0xFF);
                action(memory + Guard);
                Assert.True(new Span<byte>(memory, Guard).IndexOfAnyExcept((byte)0xFF) < 0, "wrote before the workspace");
                Assert.True(new Span<byte>(memory + Guard + bytes, Guard).IndexOfAnyExcept((byte)0xFF) < 0, "wrote past the workspace");
            }
            finally
            {
                NativeMemory.AlignedFree(memory);
            }
        }

        private static float[] Values(uint stream, int count, float magnitude)
        {
            var random = new CounterRandom(42, stream, 0);
            return [.. Enumerable.Range(0, count).Select(i => magnitude * random.Normal((ulong)i))];
        }

        private static float[] Poisoned(int count) => Enumerable.Repeat(float.NaN, count).ToArray();

        private static float[] Rows(float[] x, int width, int start, int length) => x[(start * width)..((start + length) * width)];

        private void Spread(float[] dense, float[] strided, int width, int stride, int column)
        {
            for (int row = 0; row < Tokens; row++)
            {
                dense.AsSpan(row * width, width).CopyTo(strided.AsSpan((row * stride) + column));
            }
        }

        private float[] Gather(float[] strided, int width, int stride, int column)
            => [.. Enumerable.Range(0, Tokens).SelectMany(row => strided[((row * stride) + column)..((row * stride) + column + width)])];
    }
}
