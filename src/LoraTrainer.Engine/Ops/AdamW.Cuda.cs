using System.Buffers;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class AdamW
{
    /// <summary>Bytes of the segments' table on the device.</summary>
    private static Tensor SegmentTable(Device device, int segments) =>
        device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(segments * (long)Unsafe.SizeOf<CudaSegment>()));

    private static void StepCuda(
        CudaDevice cuda, Tensor parameters, Tensor gradients, Tensor firstMoment, Tensor secondMoment, Tensor table,
        ReadOnlySpan<ParameterSegment> segments, in AdamWSettings settings, int step, double learningRate, Tensor report, double maxGradientNorm)
    {
        double correction1 = 1 - DeterministicMath.Pow(settings.Beta1, step);
        double correction2 = 1 - DeterministicMath.Pow(settings.Beta2, step);
        CudaSegment[] entries = ArrayPool<CudaSegment>.Shared.Rent(segments.Length);
        for (int i = 0; i < segments.Length; i++)
        {
            double rate = learningRate * segments[i].LearningRateScale;
            entries[i] = new CudaSegment(segments[i].Offset, segments[i].Count, segments[i].Decays ? (float)(1 - rate * settings.WeightDecay) : 1, (float)(rate / correction1));
        }

        cuda.Upload(table, MemoryMarshal.AsBytes(entries.AsSpan(0, segments.Length)));
        ArrayPool<CudaSegment>.Shared.Return(entries);
        var constants = new CudaConstants((float)(1 - settings.Beta1), (float)settings.Beta2, (float)(1 - settings.Beta2), (float)Math.Sqrt(correction2), (float)settings.Epsilon);
        cuda.Launch(
            CudaKernels.AdamWStep, CudaGrid.Of(parameters.ElementCount, ParameterSegment.Alignment), CudaGrid.Block,
            [parameters.Address, gradients.Address, firstMoment.Address, secondMoment.Address, table.Address, segments.Length, report.Address, maxGradientNorm, KernelArgument.Of(constants)]);
    }

    /// <summary>A segment as the kernel reads it, with the factors of this step.</summary>
    private readonly record struct CudaSegment(long Offset, long Count, float Keep, float StepSize);

    /// <summary>What is the same for all segments.</summary>
    private readonly record struct CudaConstants(float OneMinusBeta1, float Beta2, float OneMinusBeta2, float RootCorrection2, float Epsilon);
}
