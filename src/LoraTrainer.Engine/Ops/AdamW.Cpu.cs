using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class AdamW
{
    private static void StepCpu(
        CpuDevice cpu, Tensor parameters, Tensor gradients, Tensor firstMoment, Tensor secondMoment,
        ReadOnlySpan<ParameterSegment> segments, in AdamWSettings settings, int step, double learningRate, Tensor report, double maxGradientNorm)
    {
        (double lossSum, double norm) = (report.F64[0], report.F64[1]);
        if (!double.IsFinite(lossSum) || !double.IsFinite(norm))
        {
            return;
        }

        double correction1 = 1 - DeterministicMath.Pow(settings.Beta1, step);
        double correction2 = 1 - DeterministicMath.Pow(settings.Beta2, step);
        foreach (ParameterSegment segment in segments)
        {
            double rate = learningRate * segment.LearningRateScale;
            var work = new StepWork
            {
                P = parameters.F32 + segment.Offset,
                G = gradients.F32 + segment.Offset,
                M = firstMoment.F32 + segment.Offset,
                V = secondMoment.F32 + segment.Offset,
                GradientScale = GradientNorm.ClipCoefficient(norm, maxGradientNorm),
                Keep = segment.Decays ? (float)(1 - rate * settings.WeightDecay) : 1,
                OneMinusBeta1 = (float)(1 - settings.Beta1),
                Beta2 = (float)settings.Beta2,
                OneMinusBeta2 = (float)(1 - settings.Beta2),
                StepSize = (float)(rate / correction1),
                RootCorrection2 = (float)Math.Sqrt(correction2),
                Epsilon = (float)settings.Epsilon,
                Count = segment.Count,
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
        public long Count;
        public float GradientScale;
        public float Keep;
        public float OneMinusBeta1;
        public float Beta2;
        public float OneMinusBeta2;
        public float StepSize;
        public float RootCorrection2;
        public float Epsilon;
        public RowSplit Split;

        public readonly void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long i = start * 16; i < end * 16; i += 16)
            {
                long lanes = Count - i;
                Vector512<float> g = VectorMath.Load(G + i, lanes) * Vector512.Create(GradientScale);
                Vector512<float> m = VectorMath.Load(M + i, lanes);
                m = Vector512.FusedMultiplyAdd(Vector512.Create(OneMinusBeta1), g - m, m);
                Vector512<float> v = Vector512.FusedMultiplyAdd(Vector512.Create(OneMinusBeta2) * g, g, Vector512.Create(Beta2) * VectorMath.Load(V + i, lanes));
                Vector512<float> denominator = Vector512.Sqrt(v) / Vector512.Create(RootCorrection2) + Vector512.Create(Epsilon);
                Vector512<float> p = VectorMath.Load(P + i, lanes) * Vector512.Create(Keep) - Vector512.Create(StepSize) * (m / denominator);
                VectorMath.Store(m, M + i, lanes);
                VectorMath.Store(v, V + i, lanes);
                VectorMath.Store(p, P + i, lanes);
            }
        }
    }
}
