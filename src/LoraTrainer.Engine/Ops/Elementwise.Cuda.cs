using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Elementwise
{
    private static void AddCuda(CudaDevice cuda, Tensor output, Tensor first, Tensor second) =>
        cuda.Launch(CudaKernels.Add, CudaGrid.OfElements(output), CudaGrid.Block, [output.Address, first.Address, second.Address, output.ElementCount]);

    private static void AddBiasCuda(CudaDevice cuda, Tensor rows, Tensor bias) =>
        cuda.Launch(CudaKernels.AddBias, (uint)rows.Shape[0], CudaGrid.Block, [rows.Address, bias.Address, (int)rows.Shape[0], (int)rows.Shape[1]]);

    private static void BiasGradientCuda(CudaDevice cuda, Tensor dBias, Tensor dOutput) =>
        cuda.Launch(CudaKernels.BiasGradient, CudaGrid.Of(dOutput.Shape[1], 32), CudaGrid.Block, [dBias.Address, dOutput.Address, (int)dOutput.Shape[0], (int)dOutput.Shape[1]]);
}
