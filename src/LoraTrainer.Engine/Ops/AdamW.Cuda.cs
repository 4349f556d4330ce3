using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class AdamW
{
    private static Tensor SegmentTable(Device device, int segments) =>
        device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape((long)segments * sizeof(AdamWSegment)));

    // table: where the segments go on the device.
    private static void StepCuda(
        CudaDevice cuda, Tensor parameters, Tensor gradients, Tensor firstMoment, Tensor secondMoment, Tensor table,
        ReadOnlySpan<AdamWSegment> segments, AdamWConstants constants, Tensor report, double maxGradientNorm)
    {
        cuda.Upload(table, MemoryMarshal.AsBytes(segments));
        cuda.Launch(
            CudaKernels.AdamWStep, LaunchShape.EightEach(segments[^1].Offset + segments[^1].Count),
            parameters, gradients, firstMoment, secondMoment, table, segments.Length, report, maxGradientNorm, KernelArgument.Struct(&constants));
    }
}
