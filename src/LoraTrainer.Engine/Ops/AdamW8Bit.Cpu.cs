using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class AdamW8Bit
{
    /// <summary>The signed map's codes below this one stand for negative numbers; this one for zero.</summary>
    private const int CodeOfZero = 127;

    private static void StepCpu(
        CpuDevice cpu, Tensor parameters, Tensor gradients, Tensor firstCodes, Tensor firstAbsmax, Tensor secondCodes, Tensor secondAbsmax,
        ReadOnlySpan<AdamW8BitSegment> segments, in AdamW8BitConstants constants, Tensor report, double maxGradientNorm)
    {
        (double lossSum, double norm) = (report.F64[0], report.F64[1]);
        if (!double.IsFinite(lossSum) || !double.IsFinite(norm))
        {
            return;
        }

        foreach (AdamW8BitSegment segment in segments)
        {
            var work = new StepWork
            {
                P = parameters.F32 + segment.Offset,
                G = gradients.F32 + segment.Offset,
                FirstCodes = firstCodes.U8 + segment.Moments,
                FirstAbsmax = firstAbsmax.F32 + segment.Moments / Blocksize,
                SecondCodes = secondCodes.U8 + segment.Moments,
                SecondAbsmax = secondAbsmax.F32 + segment.Moments / Blocksize,
                FirstValues = DynamicMap.Signed.Values,
                FirstThresholds = DynamicMap.Signed.Thresholds,
                SecondValues = DynamicMap.Unsigned.Values,
                SecondThresholds = DynamicMap.Unsigned.Thresholds,
                GradientScale = GradientNorm.ClipCoefficient(norm, maxGradientNorm),
                Segment = segment,
                Constants = constants,
                Split = new RowSplit(Blocks(segment.Count), cpu.ThreadCount, 8),
            };
            cpu.Pool.Run(work.Split.Parts, ref work);
        }
    }

    private struct StepWork : IParallelWork
    {
        public float* P, G, FirstAbsmax, SecondAbsmax;
        public float* FirstValues, FirstThresholds, SecondValues, SecondThresholds;
        public byte* FirstCodes, SecondCodes;
        public float GradientScale;
        public AdamW8BitSegment Segment;
        public AdamW8BitConstants Constants;
        public RowSplit Split;

        public readonly void Execute(int part, int worker)
        {
            float* first = stackalloc float[Blocksize], second = stackalloc float[Blocksize];
            (long start, long end) = Split.Of(part);
            for (long block = start; block < end; block++)
            {
                long i = block * Blocksize;
                int count = (int)Math.Min(Blocksize, Segment.Count - i);
                Dequantize(FirstValues, FirstCodes + i, FirstAbsmax[block], count, first);
                Dequantize(SecondValues, SecondCodes + i, SecondAbsmax[block], count, second);
                Update(P + i, G + i, first, second, count);
                FirstAbsmax[block] = Quantize(FirstThresholds, first, count, FirstCodes + i);
                KeepSigns(first, FirstCodes + i, count);
                SecondAbsmax[block] = Quantize(SecondThresholds, second, count, SecondCodes + i);
            }
        }

        /// <summary>The last vector of a tensor may be a part: what follows it is not touched.</summary>
        private readonly void Update(float* p, float* g, float* first, float* second, int count)
        {
            for (int i = 0; i < count; i += VectorMath.Lanes)
            {
                long lanes = count - i;
                Vector512<float> gradient = VectorMath.Load(g + i, lanes) * Vector512.Create(GradientScale);
                Vector512<float> m = Vector512.FusedMultiplyAdd(Vector512.Create(Constants.OneMinusBeta1), gradient, Vector512.Create(Constants.Beta1) * VectorMath.Load(first + i, lanes));
                Vector512<float> v = Vector512.FusedMultiplyAdd(
                    Vector512.Create(Constants.OneMinusBeta2) * gradient, gradient, Vector512.Create(Constants.Beta2) * VectorMath.Load(second + i, lanes));
                Vector512<float> change = m / (Vector512.Sqrt(v) + Vector512.Create(Constants.Epsilon));
                VectorMath.Store(m, first + i, lanes);
                VectorMath.Store(v, second + i, lanes);
                VectorMath.Store((VectorMath.Load(p + i, lanes) - Vector512.Create(Segment.StepSize) * change) * Vector512.Create(Segment.Keep), p + i, lanes);
            }
        }

        private static void Dequantize(float* map, byte* codes, float absmax, int count, float* values)
        {
            for (int i = 0; i < count; i++)
            {
                values[i] = map[codes[i]] * absmax;
            }
        }

        /// <summary>Gives the absmax. A block of zeros is divided by it too, and gets code 0: its values are zero whatever the code.</summary>
        private static float Quantize(float* thresholds, float* values, int count, byte* codes)
        {
            float absmax = 0;
            for (int i = 0; i < count; i++)
            {
                absmax = Math.Max(absmax, Math.Abs(values[i]));
            }

            float* scaled = stackalloc float[Blocksize];
            for (int i = 0; i < count; i++)
            {
                scaled[i] = values[i] / absmax;
            }

            DynamicMap.Nearest(thresholds, scaled, 1, count, codes);
            return absmax;
        }

        private static void KeepSigns(float* values, byte* codes, int count)
        {
            for (int i = 0; i < count; i++)
            {
                if (codes[i] < CodeOfZero != float.IsNegative(values[i]))
                {
                    // Wraps in a block of zeros, as the reference does.
                    codes[i] = unchecked((byte)(codes[i] + (values[i] > 0 ? 1 : -1)));
                }
            }
        }
    }
}
