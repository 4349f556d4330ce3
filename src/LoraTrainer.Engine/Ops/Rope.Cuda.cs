using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Rope
{
    // frequencies: (R/2) f32 on the device, filled here.
    private static void BuildTablesCuda(CudaDevice cuda, Tensor cosine, Tensor sine, Tensor positions, Tensor frequencies, ReadOnlySpan<float> inverseFrequencies, float attentionScaling)
    {
        cuda.Upload(frequencies, MemoryMarshal.AsBytes(inverseFrequencies));
        cuda.Launch(
            CudaKernels.RopeTables, CudaGrid.Of(cosine.ElementCount, CudaGrid.Block), CudaGrid.Block,
            [cosine.Address, sine.Address, positions.Address, frequencies.Address, (int)cosine.Shape[0], (int)cosine.Shape[1], attentionScaling]);
    }

    private static void TurnCuda(CudaDevice cuda, Tensor heads, int headDim, Tensor cosine, Tensor sine, float direction) =>
        cuda.Launch(
            CudaKernels.RopeApply, (uint)heads.Shape[0], CudaGrid.Block,
            [heads.Address, cosine.Address, sine.Address, (int)heads.Shape[0], (int)(heads.Shape[1] / headDim), headDim, (int)cosine.Shape[1], direction]);
}
