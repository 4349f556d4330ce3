using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests.Ops;

/// <summary>
/// Attention against double precision on the same bf16 inputs. The yardstick is the error of a plain computation that stores scores,
/// probabilities and their gradients in bf16.
/// </summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class AttentionKernelTests
{
    private const double ForwardFactor = 2, GradientFactor = 3;

    private static readonly int[] HeadDims = [8, 16, 24, 40, 64, 80, 96, 128, 192, 256];

    // Documents of one token, of less than a tile, of one that ends with a tile, and over several tiles.
    private static readonly int[][] Streams = [[1, 70, 1, 66], [1], [64, 64], [150], [0, 5, 0, 27, 1, 1, 0]];

    public static TheoryData<string, int> Cases
    {
        get
        {
            var data = new TheoryData<string, int>();
            foreach (string mode in KernelModes.Names)
            {
                foreach (int dh in HeadDims)
                {
                    data.Add(mode, dh);
                }
            }

            return data;
        }
    }

    /// <summary>Where the scores' other forms are tried: in each mode one head dim, and in one all that the tiles differ by.</summary>
    public static TheoryData<string, int> FormCases
    {
        get
        {
            var data = new TheoryData<string, int>();
            foreach (string mode in KernelModes.Names)
            {
                foreach (int dh in mode == KernelModes.Names[0] ? (int[])[24, 64, 80, 128, 192, 256] : [24, 128])
                {
                    data.Add(mode, dh);
                }
            }

            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void ForwardAndBackward_RaggedDocuments_AreAsCloseAsThePlainComputation(string mode, int dh)
    {
        // Each head dim meets each grouping once and each stream once; all of them in all combinations would say no more.
        (int[] Lengths, int H, int Hkv)[] problems = [(Streams[0], 4, 2), (Streams[1], 2, 2), (Streams[3], 2, 2), (Streams[2], 4, 1), (Streams[4], 3, 3)];
        for (int i = 0; i < problems.Length; i++)
        {
            (int[] lengths, int h, int hkv) = problems[i];
            var problem = new Problem(lengths, h, hkv, dh);
            using var bench = new KernelBench(mode);
            Result result = problem.Run(bench);
            bench.CheckMargins();
            problem.Check(result);
        }
    }

    /// <summary>
    /// A window of one key, of less than a tile, of a tile and a key, of more than a document; scores that a cap leaves nearly alone, and such as it bends.
    /// Each head dim that the kernels' tiles differ by.
    /// </summary>
    [Theory]
    [MemberData(nameof(FormCases))]
    public void ForwardAndBackward_WindowsAndSoftcaps_AreAsCloseAsThePlainComputation(string mode, int dh)
    {
        (int[] Lengths, int H, int Hkv, int Window, float Softcap)[] problems =
        [
            (Streams[0], 4, 2, 20, 0), (Streams[3], 2, 2, 65, 2), (Streams[2], 2, 1, 1, 0), (Streams[4], 2, 2, 7, 0.5f), ([130], 2, 1, 0, 3), (Streams[0], 2, 1, 500, 30),
        ];
        foreach ((int[] lengths, int h, int hkv, int window, float softcap) in problems)
        {
            var problem = new Problem(lengths, h, hkv, dh, window: window, softcap: softcap);
            using var bench = new KernelBench(mode);
            Result result = problem.Run(bench);
            bench.CheckMargins();
            problem.Check(result);
        }
    }

    /// <summary>A window that nothing is outside of changes no bit of the plain kernels' results.</summary>
    [Theory]
    [InlineData(64)]
    [InlineData(128)]
    [InlineData(256)]
    public void ForwardAndBackward_WindowOverAll_HasTheBitsOfNone(int dh)
    {
        using var bench = new KernelBench(KernelModes.Names[0]);
        Result plain = new Problem(Streams[0], 2, 1, dh).Run(bench), windowed = new Problem(Streams[0], 2, 1, dh, window: 1000).Run(bench);
        foreach ((string name, float[] expected, float[] actual) in plain.All().Zip(windowed.All(), (a, b) => (a.Name, a.Values, b.Values)))
        {
            TensorAssert.BitEqual(expected, actual, name);
        }
    }

    /// <summary>Rows of a document depend on that document alone.</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void ForwardAndBackward_OtherDocumentsChanged_LeaveTheRestAlone(string mode, int dh)
    {
        int[] lengths = [40, 33, 7];
        var problem = new Problem(lengths, 2, 1, dh);
        var changed = new Problem(lengths, 2, 1, dh);
        changed.Change(first: 40, count: 33);
        using var bench = new KernelBench(mode, capacityBytes: 32 << 20);
        Result expected = problem.Run(bench), actual = changed.Run(bench);
        foreach ((string name, float[] before, float[] after) in expected.All().Zip(actual.All(), (a, b) => (a.Name, a.Values, b.Values)))
        {
            int width = before.Length / 80;
            if (name == "lse")
            {
                continue;
            }

            TensorAssert.BitEqual(before.AsSpan(0, 40 * width), after.AsSpan(0, 40 * width), $"{name} of the first document");
            TensorAssert.BitEqual(before.AsSpan(73 * width), after.AsSpan(73 * width), $"{name} of the last document");
            Assert.NotEqual(before[(40 * width)..(73 * width)], after[(40 * width)..(73 * width)]);
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void ForwardCached_TheLastRows_HaveTheBitsOfTheWhole(string mode, int dh)
    {
        const int tokens = 133;
        var problem = new Problem([tokens], 4, 2, dh);
        using var bench = new KernelBench(mode);
        Result whole = problem.Run(bench, backward: false);
        foreach (int queries in (int[])[1, 3, 70])
        {
            var shape = new Shape(queries, problem.Heads.QueryWidth);
            int first = (tokens - queries) * problem.Heads.QueryWidth;
            Tensor output = bench.Poisoned(DType.BF16, shape), q = bench.Bf16(problem.Q[first..], shape);
            Attention.ForwardCached(output, q, problem.Upload(bench, problem.K), problem.Upload(bench, problem.V), problem.Heads);
            TensorAssert.BitEqual(whole.Output.AsSpan(first), output.Download(), $"the last {queries} rows");
        }

        bench.CheckMargins();
    }

    [Theory]
    [InlineData(16, 40, 0)]
    [InlineData(64, 0, 2)]
    [InlineData(128, 70, 2)]
    [InlineData(256, 5, 0)]
    public void ForwardCached_InAWindowOrCapped_HasTheBitsOfTheWhole(int dh, int window, float softcap)
    {
        const int tokens = 133;
        var problem = new Problem([tokens], 4, 2, dh, window: window, softcap: softcap);
        using var bench = new KernelBench(KernelModes.Names[0]);
        Result whole = problem.Run(bench, backward: false);
        foreach (int queries in (int[])[1, 70])
        {
            var shape = new Shape(queries, problem.Heads.QueryWidth);
            int first = (tokens - queries) * problem.Heads.QueryWidth;
            Tensor output = bench.Poisoned(DType.BF16, shape), q = bench.Bf16(problem.Q[first..], shape);
            Attention.ForwardCached(output, q, problem.Upload(bench, problem.K), problem.Upload(bench, problem.V), problem.Heads);

            // Tiles start at other keys than for the whole where the window begins with these rows; what is summed is the same, in another order.
            TensorAssert.RelativeL2(whole.Output.AsSpan(first).ToArray(), output.Download(), KernelBench.HalfUlp, $"the last {queries} rows");
        }

        bench.CheckMargins();
    }

    /// <summary>Products far beyond the cap: every score is the cap or its negative, nothing overflows, and no gradient passes the cap.</summary>
    [Theory]
    [InlineData(16)]
    [InlineData(96)]
    [InlineData(192)]
    public void ForwardAndBackward_ScoresFarBeyondTheCap_AreFinite(int dh)
    {
        var problem = new Problem([130], 2, 1, dh, magnitude: 1e4f, window: 50, softcap: 2);
        using var bench = new KernelBench(KernelModes.Names[0]);
        Result result = problem.Run(bench);
        Assert.All(result.All(), pair => Assert.DoesNotContain(pair.Values, v => !float.IsFinite(v)));
        double[] exact = problem.Reference().Forward(Doubles(problem.Q), Doubles(problem.K), Doubles(problem.V)).Output;
        TensorAssert.RelativeL2([.. exact.Select(v => (float)v)], result.Output, 0.02, "output");
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Forward_LargeScores_StaysFinite(string mode)
    {
        var problem = new Problem([130], 2, 1, 16, magnitude: 60);
        using var bench = new KernelBench(mode);
        Result result = problem.Run(bench);
        Assert.All(result.All(), pair => Assert.DoesNotContain(pair.Values, v => !float.IsFinite(v)));
        double[] exact = problem.Reference().Forward(Doubles(problem.Q), Doubles(problem.K), Doubles(problem.V)).Output;
        TensorAssert.RelativeL2([.. exact.Select(v => (float)v)], result.Output, 0.02, "output");
    }

    private static double[] Doubles(float[] values) => Array.ConvertAll(values, v => (double)v);

    private sealed record Result(float[] Output, float[] Lse, float[] DQ, float[] DK, float[] DV)
    {
        public IEnumerable<(string Name, float[] Values)> All() => [("output", Output), ("lse", Lse), ("dq", DQ), ("dk", DK), ("dv", DV)];
    }

    private sealed class Problem
    {
        private readonly int[] lengths;
        private readonly float[] dOutput;

        public Problem(int[] lengths, int h, int hkv, int dh, float magnitude = 1.5f, int window = 0, float softcap = 0)
        {
            this.lengths = lengths;
            Heads = new AttentionHeads(h, hkv, dh, (float)(1 / Math.Sqrt(dh)), window, softcap);
            Q = KernelBench.Rounded(OpHarness.Values(1, Tokens * h * dh, magnitude));
            K = KernelBench.Rounded(OpHarness.Values(2, Tokens * hkv * dh, magnitude));
            V = KernelBench.Rounded(OpHarness.Values(3, Tokens * hkv * dh));
            dOutput = KernelBench.Rounded(OpHarness.Values(4, Tokens * h * dh));
        }

        public AttentionHeads Heads { get; }

        public float[] Q { get; }

        public float[] K { get; }

        public float[] V { get; }

        private int Tokens => lengths.Sum();

        private int[] Offsets => [0, .. lengths.Select((_, i) => lengths[..(i + 1)].Sum())];

        public AttentionReference Reference() => new(Heads.Query, Heads.KeyValue, Heads.Dim, Offsets, Heads.Scale, Heads.Window, Heads.Softcap);

        /// <summary>Other numbers, and larger ones, in all inputs of some rows.</summary>
        public void Change(int first, int count)
        {
            foreach (float[] values in (float[][])[Q, K, V, dOutput])
            {
                int width = values.Length / Tokens;
                foreach (ref float value in values.AsSpan(first * width, count * width))
                {
                    value *= -4;
                }
            }
        }

        public Tensor Upload(KernelBench bench, float[] values) => bench.Bf16(values, new Shape(Tokens, values.Length / Tokens));

        public Result Run(KernelBench bench, bool backward = true)
        {
            Tensor q = Upload(bench, Q), k = Upload(bench, K), v = Upload(bench, V), dO = Upload(bench, dOutput);
            Tensor o = bench.Poisoned(DType.BF16, q.Shape), lse = bench.Poisoned(DType.F32, new Shape(Heads.Query, Tokens));
            Tensor dq = bench.Poisoned(DType.BF16, q.Shape), dk = bench.Poisoned(DType.BF16, k.Shape), dv = bench.Poisoned(DType.BF16, v.Shape);
            var documents = new PackedDocuments(bench.Integers([.. lengths.SelectMany(length => Enumerable.Range(0, length))]), Offsets);
            Attention.Forward(o, lse, q, k, v, documents, Heads);
            if (backward)
            {
                Attention.Backward(dq, dk, dv, dO, o, lse, q, k, v, documents, Heads);
            }

            return new Result(o.Download(), lse.Download(), dq.Download(), dk.Download(), dv.Download());
        }

        public void Check(Result actual)
        {
            AttentionReference exact = Reference(), plain = exact with { Stored = value => BrainFloat.Round((float)value) };
            double[] q = Doubles(Q), k = Doubles(K), v = Doubles(V), dO = Doubles(dOutput);
            (double[] output, double[] lse) = exact.Forward(q, k, v);
            (double[] dq, double[] dk, double[] dv) = exact.Backward(dO, q, k, v);
            (double[] plainOutput, _) = plain.Forward(q, k, v);
            (double[] plainDQ, double[] plainDK, double[] plainDV) = plain.Backward(dO, q, k, v);
            string what = $"{Heads.Query}/{Heads.KeyValue} heads of {Heads.Dim}, documents {string.Join('+', lengths)}, window {Heads.Window}, softcap {Heads.Softcap}: ";
            Compare(output, plainOutput, actual.Output, ForwardFactor, what + "output");
            Compare(dv, plainDV, actual.DV, GradientFactor, what + "dv");
            Compare(dq, plainDQ, actual.DQ, GradientFactor, what + "dq");
            Compare(dk, plainDK, actual.DK, GradientFactor, what + "dk");

            // Products of bf16 numbers are exact in f32; sums of head dim terms, the softmax's sum and exp remain.
            TensorAssert.Close([.. lse.Select(x => (float)x)], actual.Lse, 2e-5, what + "lse");
        }

        /// <summary>The root mean square and the largest difference are at most so many times those of the plain computation; a NaN never is.</summary>
        private static void Compare(double[] exact, double[] plain, float[] actual, double factor, string what)
        {
            Assert.Equal(exact.Length, actual.Length);
            (double plainMean, double plainLargest) = Differences(exact, plain);
            (double mean, double largest) = Differences(exact, Doubles(actual));

            // Where the exact result is 0, and with one visible key, the plain computation may make no error at all: then what f32 leaves counts.
            double size = Math.Sqrt(exact.Sum(x => x * x) / exact.Length), floor = 1e-6 * Math.Max(size, 1);
            Assert.True(mean <= factor * plainMean + floor, $"{what}: error {mean:G4}, of the plain computation in bf16 {plainMean:G4}");
            Assert.True(largest <= factor * plainLargest + 10 * floor, $"{what}: largest error {largest:G4}, of the plain computation in bf16 {plainLargest:G4}");
        }

        private static (double Mean, double Largest) Differences(double[] exact, double[] actual)
        {
            double sum = 0, largest = 0;
            for (int i = 0; i < exact.Length; i++)
            {
                double difference = Math.Abs(actual[i] - exact[i]);
                sum += difference * difference;
                largest = difference <= largest ? largest : difference;
            }

            return (Math.Sqrt(sum / exact.Length), double.IsNaN(sum) ? double.NaN : largest);
        }
    }
}
