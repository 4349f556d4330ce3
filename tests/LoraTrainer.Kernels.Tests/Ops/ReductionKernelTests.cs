using System.Runtime.InteropServices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Kernels.Tests.Ops;

/// <summary>Sums of whole arrays in double.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class ReductionKernelTests
{
    public static TheoryData<string, int> Counts
    {
        get
        {
            var data = new TheoryData<string, int>();
            foreach (string mode in KernelModes.Names)
            {
                foreach (int count in (int[])[1, 3, 8, 1023, 32_768, 32_769, 70_003])
                {
                    data.Add(mode, count);
                }
            }

            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Counts))]
    public void GradientNorm_AnySize_MatchesReference(string mode, int count)
    {
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            float[] values = Values(1, count);
            Tensor gradients = bench.F32(values, new Shape(count)), norm = bench.Poisoned(DType.F64, new Shape(1));
            double expected = Math.Sqrt(values.Sum(v => (double)v * v));
            GradientNorm.Compute(norm, gradients);
            Assert.Equal(expected, Double(norm), 1e-12 * expected);
            Assert.Equal(Double(norm), GradientNorm.Compute(gradients));
            foreach (float wrong in (float[])[float.NaN, float.PositiveInfinity])
            {
                values[^1] = wrong;
                Assert.Equal(double.IsNaN(wrong) ? double.NaN : double.PositiveInfinity, GradientNorm.Compute(bench.F32(values, new Shape(count))));
            }

            bench.CheckMargins();
        }
    }

    [Theory]
    [MemberData(nameof(Counts))]
    public void LossSum_AnySize_AddsToTheTotal(string mode, int count)
    {
        foreach (bool shifted in (bool[])[false, true])
        {
            using var bench = new KernelBench(mode, shifted);
            float[] values = Values(1, count, 10);
            Tensor losses = bench.F32(values, new Shape(count)), total = bench.F64([3.5]);
            LossSum.Accumulate(total, losses);
            LossSum.Accumulate(total, losses);
            Assert.Equal(3.5 + 2 * values.Sum(v => (double)v), Double(total), 1e-13 * values.Sum(v => (double)Math.Abs(v)) + 1e-14);
            bench.CheckMargins();
        }
    }

    private static double Double(Tensor tensor) => MemoryMarshal.Cast<byte, double>(tensor.DownloadBytes())[0];
}
