using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Cast
{
    private static void ToBF16Cuda(CudaDevice cuda, Tensor output, Tensor input) =>
        cuda.Launch(CudaKernels.CastToBF16, CudaGrid.OfElements(input), CudaGrid.Block, [output.Address, input.Address, input.ElementCount]);
}
