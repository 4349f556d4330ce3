using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class RmsNorm
{
    private const uint Block = 256;

    private static void ForwardCuda(CudaDevice cuda, Tensor output, Tensor rstd, Tensor input, Tensor weight, float eps) =>
        cuda.Launch(CudaKernels.RmsNormForward, (uint)input.Shape[0], Block, [output.Address, rstd.Address, input.Address, weight.Address, (int)input.Shape[1], eps]);

    private static void BackwardCuda(CudaDevice cuda, Tensor dInput, Tensor dWeight, Tensor dOutput, Tensor input, Tensor weight, Tensor rstd, GradientMode mode)
    {
        int rows = (int)input.Shape[0], width = (int)input.Shape[1];
        if (!dWeight.IsNone)
        {
            // First: dInput may take the place of dOutput.
            cuda.Launch(CudaKernels.RmsNormWeightGradient, CudaGrid.Of(width, 32), Block, [dWeight.Address, dOutput.Address, input.Address, rstd.Address, rows, width]);
        }

        cuda.Launch(
            CudaKernels.RmsNormBackward, (uint)rows, Block,
            [dInput.Address, dOutput.Address, input.Address, weight.Address, rstd.Address, width, mode == GradientMode.Accumulate ? 1 : 0]);
    }
}
