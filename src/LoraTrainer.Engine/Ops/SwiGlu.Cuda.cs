using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class SwiGlu
{
    private readonly partial struct Silu
    {
        public static void ForwardCuda(CudaDevice cuda, Tensor output, Tensor gate, Tensor up) =>
            cuda.Launch(CudaKernels.SwiGluForward, LaunchShape.EightEach(gate.ElementCount), output, gate, up, gate.ElementCount);

        public static void BackwardCuda(CudaDevice cuda, Tensor dGate, Tensor dUp, Tensor dOutput, Tensor gate, Tensor up) =>
            cuda.Launch(CudaKernels.SwiGluBackward, LaunchShape.EightEach(gate.ElementCount), dGate, dUp, dOutput, gate, up, gate.ElementCount);
    }
}
