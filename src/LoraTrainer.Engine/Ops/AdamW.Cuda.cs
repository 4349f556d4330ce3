using System.Buffers;
using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class AdamW
{
    private static Tensor SegmentTable(Device device, int segments) =>
        device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape((long)segments * sizeof(AdamWSegment)));

    // table: the segments as the kernel reads them, filled here with the factors of this step.
    private static void StepCuda(
        CudaDevice cuda, Tensor parameters, Tensor gradients, Tensor firstMoment, Tensor secondMoment, Tensor table,
        ReadOnlySpan<ParameterSegment> segments, in AdamWSettings settings, int step, double learningRate, Tensor report, double maxGradientNorm)
    {
        if (segments.IsEmpty)
        {
            return;
        }

        double correction1 = 1 - DeterministicMath.Pow(settings.Beta1, step);
        double correction2 = 1 - DeterministicMath.Pow(settings.Beta2, step);
        AdamWSegment[] entries = ArrayPool<AdamWSegment>.Shared.Rent(segments.Length);
        for (int i = 0; i < segments.Length; i++)
        {
            double rate = learningRate * segments[i].LearningRateScale;
            entries[i] = new AdamWSegment
            {
                Offset = segments[i].Offset,
                Count = segments[i].Count,
                Keep = segments[i].Decays ? (float)(1 - rate * settings.WeightDecay) : 1,
                StepSize = (float)(rate / correction1),
            };
        }

        cuda.Upload(table, MemoryMarshal.AsBytes(entries.AsSpan(0, segments.Length)));
        ArrayPool<AdamWSegment>.Shared.Return(entries);
        var constants = new AdamWConstants
        {
            OneMinusBeta1 = (float)(1 - settings.Beta1),
            Beta2 = (float)settings.Beta2,
            OneMinusBeta2 = (float)(1 - settings.Beta2),
            RootCorrection2 = (float)Math.Sqrt(correction2),
            Epsilon = (float)settings.Epsilon,
        };
        cuda.Launch(
            CudaKernels.AdamWStep, LaunchShape.EightEach(segments[^1].Offset + segments[^1].Count),
            parameters, gradients, firstMoment, secondMoment, table, segments.Length, report, maxGradientNorm, KernelArgument.Struct(&constants));
    }
}
