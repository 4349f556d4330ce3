using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Elementwise
{
    private static void AddCuda(CudaDevice cuda, Tensor output, Tensor first, Tensor second) =>
        cuda.Launch(CudaKernels.Add, LaunchShape.EightEach(output.ElementCount), output, first, second, output.ElementCount);

    private static void AddBiasCuda(CudaDevice cuda, Tensor rows, Tensor bias) =>
        cuda.Launch(CudaKernels.AddBias, LaunchShape.PerRow(rows.Shape[0], rows.Shape[1]), rows, bias, (int)rows.Shape[0], (int)rows.Shape[1]);

    private static void BiasGradientCuda(CudaDevice cuda, Tensor dBias, Tensor dOutput) =>
        cuda.Launch(CudaKernels.BiasGradient, LaunchShape.PerColumns(dOutput.Shape[1]), dBias, dOutput, (int)dOutput.Shape[0], (int)dOutput.Shape[1]);
}
