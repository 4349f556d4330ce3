using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Rope
{
    private const uint TableThreads = 256;

    // frequencies: (R/2) f32 on the device, filled here.
    private static void BuildTablesCuda(CudaDevice cuda, Tensor cosine, Tensor sine, Tensor positions, Tensor frequencies, ReadOnlySpan<float> inverseFrequencies, float attentionScaling)
    {
        cuda.Upload(frequencies, MemoryMarshal.AsBytes(inverseFrequencies));
        cuda.Launch(
            CudaKernels.RopeTables, LaunchShape.Blocks(LaunchShape.Ceiling(cosine.ElementCount, TableThreads), TableThreads),
            cosine, sine, positions, frequencies, (int)cosine.Shape[0], (int)cosine.Shape[1], attentionScaling);
    }

    private static void TurnCuda(CudaDevice cuda, Tensor heads, int headDim, Tensor cosine, Tensor sine, float direction) =>
        cuda.Launch(
            CudaKernels.RopeApply, LaunchShape.PerRow(heads.Shape[0], heads.Shape[1]),
            heads, cosine, sine, (int)heads.Shape[0], (int)(heads.Shape[1] / headDim), headDim, (int)cosine.Shape[1], direction);
}
