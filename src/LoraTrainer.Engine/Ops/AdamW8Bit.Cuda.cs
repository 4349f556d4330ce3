using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class AdamW8Bit
{
    private const int MapBytes = DynamicMap.Entries * sizeof(float);

    // Both maps, then the segments.
    private static Tensor Table(Device device, int segments) =>
        device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(2 * MapBytes + (long)segments * sizeof(AdamW8BitSegment)));

    private static void StepCuda(
        CudaDevice cuda, Tensor parameters, Tensor gradients, Tensor firstCodes, Tensor firstAbsmax, Tensor secondCodes, Tensor secondAbsmax, Tensor table,
        ReadOnlySpan<AdamW8BitSegment> segments, AdamW8BitConstants constants, Tensor report, double maxGradientNorm)
    {
        cuda.Upload(table, MemoryMarshal.AsBytes(DynamicMap.Signed.AsSpan()));
        cuda.Upload(table, MemoryMarshal.AsBytes(DynamicMap.Unsigned.AsSpan()), MapBytes);
        cuda.Upload(table, MemoryMarshal.AsBytes(segments), 2 * MapBytes);
        cuda.Launch(
            CudaKernels.AdamW8BitStep, LaunchShape.EightEach(segments[^1].Moments + segments[^1].Count),
            parameters, gradients, firstCodes, firstAbsmax, secondCodes, secondAbsmax, table.Address + 2 * MapBytes, segments.Length,
            table.Address, table.Address + MapBytes, report, maxGradientNorm, KernelArgument.Struct(&constants));
    }
}
