using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class SwiGlu
{
    private static void ForwardCuda(CudaDevice cuda, Tensor output, Tensor gate, Tensor up) =>
        cuda.Launch(CudaKernels.SwiGluForward, CudaGrid.OfElements(gate), CudaGrid.Block, [output.Address, gate.Address, up.Address, gate.ElementCount]);

    private static void BackwardCuda(CudaDevice cuda, Tensor dGate, Tensor dUp, Tensor dOutput, Tensor gate, Tensor up) =>
        cuda.Launch(CudaKernels.SwiGluBackward, CudaGrid.OfElements(gate), CudaGrid.Block, [dGate.Address, dUp.Address, dOutput.Address, gate.Address, up.Address, gate.ElementCount]);
}
