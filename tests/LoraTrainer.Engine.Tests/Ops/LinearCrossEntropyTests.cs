using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

public sealed class LinearCrossEntropyTests
{
    private const float Scale = 0.125f;

    [Theory]
    [InlineData("cpu", 1, 1, 1, 1f)]
    [InlineData("cpu", 9, 24, 37, 1f)]
    [InlineData("cpu", 5, 64, 160, 1f)]
    [InlineData("cpu", 2500, 5, 19, 1f)] // more rows than a chunk has
    [InlineData("cpu", 7, 16, 33, 50f)] // logits around 1e4
    public void ForwardBackward_AnyShape_MatchesReference(string name, int n, int d, int vocabulary, float magnitude)
    {
        using Device device = Open(name);
        var problem = new Problem(device, n, d, vocabulary, magnitude);
        Assert.Equal(n > 1024, LinearCrossEntropy.ChunkRows(DevicePlatform.Cpu, n, vocabulary) < problem.Rows.Length);
        Tensor losses = device.Poisoned(new Shape(n)), dHidden = device.Poisoned(new Shape(n, d)), dWeight = device.Random(9, new Shape(vocabulary, d));
        double[] before = dWeight.Doubles();
        problem.Run(losses, dHidden, dWeight, problem.Rows);
        LinearCrossEntropyReference e = LinearCrossEntropyReference.Compute(problem.Hidden.Doubles(), problem.Weight.Doubles(), problem.Targets, problem.Rows, vocabulary, Scale);
        Within(e.Losses, e.LossBound, losses.Download(), "losses");
        Within(e.DHidden, e.DHiddenBound, dHidden.Download(), "dHidden");
        double[] weightBound = [.. e.DWeightBound.Zip(before, (a, b) => a + (n + 2) * U * Math.Abs(b))];
        Within([.. e.DWeight.Zip(before, (a, b) => a + b)], weightBound, dWeight.Download(), "dWeight");

        // Bounds of rows without a target are zero: exactly zero. Less asked for gives the same bits of the rest.
        Tensor onlyLosses = device.Poisoned(new Shape(n)), frozen = device.Poisoned(new Shape(n, d));
        problem.Run(onlyLosses, Tensor.None, Tensor.None, problem.Rows);
        TensorAssert.BitEqual(losses.Download(), onlyLosses.Download(), "losses alone");
        problem.Run(onlyLosses, frozen, Tensor.None, problem.Rows);
        TensorAssert.BitEqual(dHidden.Download(), frozen.Download(), "dHidden with a frozen head");
    }

    [Theory]
    [InlineData(9, 24, 37, 1f, 2f)]
    [InlineData(2500, 5, 19, 1f, 1.5f)] // more rows than a chunk has
    [InlineData(7, 16, 33, 50f, 30f)] // logits around 1e4
    public void ForwardBackward_WithASoftcap_MatchesReference(int n, int d, int vocabulary, float magnitude, float softcap)
    {
        using Device device = Open("cpu");
        var problem = new Problem(device, n, d, vocabulary, magnitude);
        Tensor losses = device.Poisoned(new Shape(n)), dHidden = device.Poisoned(new Shape(n, d)), dWeight = device.Filled(0, new Shape(vocabulary, d));
        problem.Run(losses, dHidden, dWeight, problem.Rows, softcap);
        LinearCrossEntropyReference e = LinearCrossEntropyReference.Compute(problem.Hidden.Doubles(), problem.Weight.Doubles(), problem.Targets, problem.Rows, vocabulary, Scale, softcap: softcap);
        Within(e.Losses, e.LossBound, losses.Download(), "losses");
        Within(e.DHidden, e.DHiddenBound, dHidden.Download(), "dHidden");
        Within(e.DWeight, e.DWeightBound, dWeight.Download(), "dWeight");
        Tensor onlyLosses = device.Poisoned(new Shape(n));
        problem.Run(onlyLosses, Tensor.None, Tensor.None, problem.Rows, softcap);
        TensorAssert.BitEqual(losses.Download(), onlyLosses.Download(), "losses alone");
    }

    [Theory]
    [MemberData(nameof(OpCases.Devices), MemberType = typeof(OpCases))]
    public void ForwardBackward_OtherChunks_GiveARowTheSameBits(string name)
    {
        const int n = 2500, d = 5, vocabulary = 19;
        using Device device = Open(name);
        var problem = new Problem(device, n, d, vocabulary, 1);
        Tensor losses = device.Poisoned(new Shape(n)), dHidden = device.Poisoned(new Shape(n, d));
        problem.Run(losses, dHidden, Tensor.None, problem.Rows);
        int[] some = problem.Rows[1500..1507];
        Tensor fewLosses = device.Poisoned(new Shape(n)), fewHidden = device.Poisoned(new Shape(n, d));
        problem.Run(fewLosses, fewHidden, Tensor.None, some);
        foreach (int row in some)
        {
            TensorAssert.BitEqual(losses.Download().AsSpan(row, 1), fewLosses.Download().AsSpan(row, 1), "loss");
            TensorAssert.BitEqual(dHidden.Download().AsSpan(row * d, d), fewHidden.Download().AsSpan(row * d, d), "dHidden");
        }
    }

    [Fact]
    public void ForwardBackward_NoScoredRow_IsZero()
    {
        using Device device = Open("cpu");
        var problem = new Problem(device, 3, 4, 5, 1);
        Tensor losses = device.Poisoned(new Shape(3)), dHidden = device.Poisoned(new Shape(3, 4));
        problem.Run(losses, dHidden, Tensor.None, []);
        TensorAssert.BitEqual(new float[3], losses.Download(), "losses");
        TensorAssert.BitEqual(new float[12], dHidden.Download(), "dHidden");
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1.5)]
    public void Reference_Gradients_MatchFiniteDifference(double softcap)
    {
        const int n = 4, d = 3, vocabulary = 5;
        double[] hidden = [.. Values(1, n * d)], weight = [.. Values(2, vocabulary * d)];
        int[] targets = [0, 4, -100, 2], rows = [0, 1, 3];
        LinearCrossEntropyReference e = LinearCrossEntropyReference.Compute(hidden, weight, targets, rows, vocabulary, Scale, softcap: softcap);
        double Loss() => Scale * LinearCrossEntropyReference.Compute(hidden, weight, targets, rows, vocabulary, Scale, softcap: softcap).Losses.Sum();
        MatchesFiniteDifference(hidden, Loss, e.DHidden);
        MatchesFiniteDifference(weight, Loss, e.DWeight);
    }

    [Fact]
    public void ForwardBackward_WrongArguments_SaysWhichAndDoesNothing()
    {
        using Device device = Open("cpu");
        var problem = new Problem(device, 3, 4, 5, 1);
        Tensor losses = device.Filled(7, new Shape(3)), dHidden = device.Filled(7, new Shape(3, 4)), wrong = device.Filled(7, new Shape(4, 5));
        Throws("LinearCrossEntropy.ForwardBackward: dWeight must be F32 (5, 4), got F32 (4, 5).", () => problem.Run(losses, dHidden, wrong, []));
        Throws("LinearCrossEntropy.ForwardBackward: dHidden must be F32 (3, 4), got F32 (4, 5).", () => problem.Run(losses, wrong, Tensor.None, []));
        Throws("LinearCrossEntropy.ForwardBackward: dHidden may not share memory with hidden.", () => problem.Run(losses, problem.Hidden, Tensor.None, []));
        Assert.All(losses.Download().Concat(dHidden.Download()), v => Assert.Equal(7, v));
    }

    /// <summary>Every third row is not scored, and its target is one that may not be read.</summary>
    private sealed class Problem(Device device, int n, int d, int vocabulary, float magnitude)
    {
        public Tensor Hidden { get; } = device.Random(1, new Shape(n, d), magnitude);

        public Tensor Weight { get; } = device.Random(2, new Shape(vocabulary, d), magnitude);

        public int[] Targets { get; } = [.. Enumerable.Range(0, n).Select(i => i % 3 == 2 ? -100 : i * 7 % vocabulary)];

        public int[] Rows { get; } = [.. Enumerable.Range(0, n).Where(i => i % 3 != 2)];

        public void Run(Tensor losses, Tensor dHidden, Tensor dWeight, int[] rows, float softcap = 0)
            => LinearCrossEntropy.ForwardBackward(losses, dHidden, dWeight, Hidden, new DenseMatrix(Weight), device.Integers(Targets), device.Integers(rows), Scale, softcap);
    }
}
