using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class RmsNorm
{
    private static void ForwardCuda(CudaDevice cuda, Tensor output, Tensor rstd, Tensor input, Tensor weight, float eps) =>
        cuda.Launch(CudaKernels.RmsNormForward, LaunchShape.PerRow(input.Shape[0], input.Shape[1]), output, rstd, input, weight, (int)input.Shape[1], eps);

    private static void BackwardCuda(CudaDevice cuda, Tensor dInput, Tensor dWeight, Tensor dOutput, Tensor input, Tensor weight, Tensor rstd, GradientMode mode)
    {
        int rows = (int)input.Shape[0], width = (int)input.Shape[1];
        if (!dWeight.IsNone)
        {
            // First: dInput may take the place of dOutput.
            cuda.Launch(CudaKernels.RmsNormWeightGradient, LaunchShape.PerColumns(width), dWeight, dOutput, input, rstd, rows, width);
        }

        cuda.Launch(CudaKernels.RmsNormBackward, LaunchShape.PerRow(rows, width), dInput, dOutput, input, weight, rstd, width, mode == GradientMode.Accumulate ? 1 : 0);
    }
}
