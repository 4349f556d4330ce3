using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Kernels.Tests.KernelBench;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class LinearCrossEntropyKernelTests
{
    private const float Scale = 0.125f;
    private const long CapacityBytes = 80L << 20;

    /// <summary>Mode, rows, width, vocabulary, magnitude.</summary>
    public static TheoryData<string, int, int, int, float> Cases
    {
        get
        {
            var data = new TheoryData<string, int, int, int, float>();
            foreach (string mode in KernelModes.Names)
            {
                data.Add(mode, 1, 1, 1, 1);
                data.Add(mode, 9, 24, 37, 1);
                data.Add(mode, 5, 64, 160, 1);
                data.Add(mode, 4, 8, 5003, 1);
                data.Add(mode, 3, 8, 12_000, 1);
                data.Add(mode, 7, 16, 33, 50); // logits around 1e4
                data.Add(mode, 1700, 5, 19, 1); // more rows than a chunk has
            }

            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void ForwardBackward_AnyShape_MatchesReference(string mode, int n, int d, int vocabulary, float magnitude)
    {
        using var bench = new KernelBench(mode, capacityBytes: CapacityBytes);
        Tensor hidden = bench.RandomBf16(1, new Shape(n, d), magnitude), weight = bench.RandomBf16(2, new Shape(vocabulary, d), magnitude);

        // Every third row is not scored, and its target is one that may not be read.
        int[] targets = [.. Enumerable.Range(0, n).Select(i => i % 3 == 2 ? -100 : i * 7 % vocabulary)], rows = [.. Enumerable.Range(0, n).Where(i => i % 3 != 2)];
        Assert.Equal(n > 1600, LinearCrossEntropy.ChunkRows(DevicePlatform.Cuda, n, vocabulary) < rows.Length);
        void Run(Tensor losses, Tensor dHidden, Tensor dWeight, int[] scored) =>
            LinearCrossEntropy.ForwardBackward(losses, dHidden, dWeight, hidden, new DenseMatrix(weight), bench.Integers(targets), bench.Integers(scored), Scale);

        Tensor losses = bench.Poisoned(DType.F32, new Shape(n)), dHidden = bench.Poisoned(DType.BF16, new Shape(n, d)), dWeight = bench.RandomF32(9, new Shape(vocabulary, d));
        double[] before = dWeight.Doubles();
        Run(losses, dHidden, dWeight, rows);
        var e = LinearCrossEntropyReference.Compute(hidden.Doubles(), weight.Doubles(), targets, rows, vocabulary, Scale, HalfUlp);
        Within(e.Losses, e.LossBound, losses.Download(), "losses");
        double[] bound = RoundedBound(e.DHidden, e.DHiddenBound);
        Within(e.DHidden, [.. bound.Select((b, i) => rows.Contains(i / d) ? b : 0)], dHidden.Download(), "dHidden");
        double[] weightBound = [.. e.DWeightBound.Zip(before, (a, b) => a + (n + 2) * U * Math.Abs(b))];
        Within([.. e.DWeight.Zip(before, (a, b) => a + b)], weightBound, dWeight.Download(), "dWeight");

        // Less asked for gives the same bits of the rest; so do the rows in other chunks, where a product's sums do not depend on its other rows.
        Tensor onlyLosses = bench.Poisoned(DType.F32, new Shape(n)), frozen = bench.Poisoned(DType.BF16, new Shape(n, d));
        Run(onlyLosses, Tensor.None, Tensor.None, rows);
        TensorAssert.BitEqual(losses.Download(), onlyLosses.Download(), "losses alone");
        Run(onlyLosses, frozen, Tensor.None, rows);
        TensorAssert.BitEqual(dHidden.Download(), frozen.Download(), "dHidden with a frozen head");
        int[] some = [.. rows.Skip(rows.Length / 2)];
        Run(onlyLosses, frozen, Tensor.None, some);
        float[] few = onlyLosses.Download(), all = losses.Download();
        if (CudaTestDevice.IsRealGpuRequired)
        {
            // cuBLASLt sums a product of other rows in another order.
            Within([.. some.Select(row => e.Losses[row])], [.. some.Select(row => e.LossBound[row])], [.. some.Select(row => few[row])], "losses of some rows");
        }
        else
        {
            TensorAssert.BitEqual(some.Select(row => all[row]).ToArray(), some.Select(row => few[row]).ToArray(), "losses of some rows");
        }

        Assert.All(Enumerable.Range(0, n).Except(some), row => Assert.Equal(0, few[row]));
        bench.CheckMargins();
    }

    /// <summary>Cards differ in how much of a row a block can keep: none of it, a part, all. The last piece of the row is a single thread's.</summary>
    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void SoftmaxCrossEntropy_HoweverMuchIsKept_HasTheSameBits(string mode)
    {
        const int n = 2, vocabulary = 5 * 4096 + 4;
        using var bench = new KernelBench(mode, capacityBytes: CapacityBytes);
        Tensor logits = bench.RandomF32(1, new Shape(n, vocabulary), 12), rows = bench.Integers(1, 0);
        double[] z = logits.Doubles(), expectedLosses = new double[n], gradient = new double[n * vocabulary], bound = new double[n * vocabulary];
        int[] targets = [vocabulary - 1, 4095];
        for (int i = 0; i < n; i++)
        {
            double[] row = z[(i * vocabulary)..((i + 1) * vocabulary)];
            double max = row.Max(), sum = row.Sum(value => Math.Exp(value - max));
            int target = targets[1 - i];
            expectedLosses[1 - i] = max + Math.Log(sum) - row[target];
            for (int v = 0; v < vocabulary; v++)
            {
                double p = Math.Exp(row[v] - max) / sum, hit = v == target ? 1 : 0;
                gradient[i * vocabulary + v] = Scale * (p - hit);

                // The difference to the maximum and its product are rounded, which exp magnifies; a thread sums 24 terms, 1024 threads meet in ten additions.
                // An exponential below the smallest normal number is zero.
                bound[i * vocabulary + v] = Scale * ((p * (2 * (max - row[v]) + 60) + hit) * U + 1.2e-38);
            }
        }

        byte[]? losses = null, bits = null;
        var kept = new List<int>();
        foreach (int sharedBytes in (int[])[0, 20_000, 70_000, bench.Device.Info.SharedBytesPerBlock])
        {
            (LaunchShape shape, int pieces) = LinearCrossEntropy.CudaLaunch(n, vocabulary, sharedBytes);
            kept.Add(pieces);
            Tensor loss = bench.Poisoned(DType.F32, new Shape(n)), dLogits = bench.Poisoned(DType.BF16, new Shape(n, vocabulary));
            bench.Device.Launch(CudaKernels.SoftmaxCrossEntropy, shape, loss, dLogits, logits, bench.Integers(targets), rows, vocabulary, pieces, Scale, Tensor.None);
            Within(expectedLosses, [.. expectedLosses.Select(value => (Math.Abs(value) + 60) * U)], loss.Download(), $"losses, {pieces} pieces kept");
            Within(gradient, RoundedBound(gradient, bound), dLogits.Download(), $"gradient, {pieces} pieces kept");
            losses ??= loss.DownloadBytes();
            bits ??= dLogits.DownloadBytes();
            Assert.Equal(losses, loss.DownloadBytes());
            Assert.True(bits.AsSpan().SequenceEqual(dLogits.DownloadBytes()), $"gradient: other bits with {pieces} pieces kept");
        }

        // A scale in device memory is the one that counts.
        (LaunchShape all, int allPieces) = LinearCrossEntropy.CudaLaunch(n, vocabulary, bench.Device.Info.SharedBytesPerBlock);
        Tensor lossAgain = bench.Poisoned(DType.F32, new Shape(n)), again = bench.Poisoned(DType.BF16, new Shape(n, vocabulary));
        Tensor numbers = bench.Integers(MemoryMarshal.Cast<PassNumbers, int>([new PassNumbers(0, 0, Scale)]).ToArray());
        bench.Device.Launch(CudaKernels.SoftmaxCrossEntropy, all, lossAgain, again, logits, bench.Integers(targets), rows, vocabulary, allPieces, 3 * Scale, numbers);
        Assert.Equal(losses, lossAgain.DownloadBytes());
        Assert.True(bits.AsSpan().SequenceEqual(again.DownloadBytes()), "gradient: other bits with the scale on the device");

        Assert.Equal([0, 1, 4, 6], kept);
        bench.CheckMargins();
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void ForwardBackward_NoScoredRow_IsZero(string mode)
    {
        using var bench = new KernelBench(mode, capacityBytes: CapacityBytes);
        Tensor losses = bench.Poisoned(DType.F32, new Shape(3)), dHidden = bench.Poisoned(DType.BF16, new Shape(3, 4));
        LinearCrossEntropy.ForwardBackward(
            losses, dHidden, Tensor.None, bench.RandomBf16(1, new Shape(3, 4)), new DenseMatrix(bench.RandomBf16(2, new Shape(5, 4))), bench.Integers(0, 1, 2), bench.Integers(), Scale);
        TensorAssert.BitEqual(new float[3], losses.Download(), "losses");
        TensorAssert.BitEqual(new float[12], dHidden.Download(), "dHidden");
        bench.CheckMargins();
    }
}
