using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class AdamW
{
    private static void StepCpu(
        CpuDevice cpu, Tensor parameters, Tensor gradients, Tensor firstMoment, Tensor secondMoment,
        ReadOnlySpan<AdamWSegment> segments, in AdamWConstants constants, Tensor report, double maxGradientNorm)
    {
        (double lossSum, double norm) = (report.F64[0], report.F64[1]);
        if (!double.IsFinite(lossSum) || !double.IsFinite(norm))
        {
            return;
        }

        foreach (AdamWSegment segment in segments)
        {
            var work = new StepWork
            {
                P = parameters.F32 + segment.Offset,
                G = gradients.F32 + segment.Offset,
                M = firstMoment.F32 + segment.Offset,
                V = secondMoment.F32 + segment.Offset,
                GradientScale = GradientNorm.ClipCoefficient(norm, maxGradientNorm),
                Segment = segment,
                Constants = constants,
                Split = new RowSplit((segment.Count + 15) / 16, cpu.ThreadCount, 512),
            };
            cpu.Pool.Run(work.Split.Parts, ref work);
        }
    }

    /// <summary>The last vector of a segment may be a part: what follows it is not touched.</summary>
    private struct StepWork : IParallelWork
    {
        public float* P;
        public float* G;
        public float* M;
        public float* V;
        public float GradientScale;
        public AdamWSegment Segment;
        public AdamWConstants Constants;
        public RowSplit Split;

        public readonly void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long i = start * 16; i < end * 16; i += 16)
            {
                long lanes = Segment.Count - i;
                Vector512<float> g = VectorMath.Load(G + i, lanes) * Vector512.Create(GradientScale);
                Vector512<float> m = VectorMath.Load(M + i, lanes);
                m = Vector512.FusedMultiplyAdd(Vector512.Create(Constants.OneMinusBeta1), g - m, m);
                Vector512<float> v = Vector512.FusedMultiplyAdd(Vector512.Create(Constants.OneMinusBeta2) * g, g, Vector512.Create(Constants.Beta2) * VectorMath.Load(V + i, lanes));
                Vector512<float> denominator = Vector512.Sqrt(v) / Vector512.Create(Constants.RootCorrection2) + Vector512.Create(Constants.Epsilon);
                Vector512<float> p = VectorMath.Load(P + i, lanes) * Vector512.Create(Segment.Keep) - Vector512.Create(Segment.StepSize) * (m / denominator);
                VectorMath.Store(m, M + i, lanes);
                VectorMath.Store(v, V + i, lanes);
                VectorMath.Store(p, P + i, lanes);
            }
        }
    }
}
