using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Cast
{
    private static void ToBF16Cuda(CudaDevice cuda, Tensor output, Tensor input) =>
        cuda.Launch(CudaKernels.CastToBf16, LaunchShape.EightEach(input.ElementCount), output, input, input.ElementCount);
}
