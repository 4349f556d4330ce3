using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class GeGlu
{
    private readonly partial struct GeluTanh
    {
        public static void ForwardCuda(CudaDevice cuda, Tensor output, Tensor gate, Tensor up) =>
            cuda.Launch(CudaKernels.GeGluForward, LaunchShape.EightEach(gate.ElementCount), output, gate, up, gate.ElementCount);

        public static void BackwardCuda(CudaDevice cuda, Tensor dGate, Tensor dUp, Tensor dOutput, Tensor gate, Tensor up) =>
            cuda.Launch(CudaKernels.GeGluBackward, LaunchShape.EightEach(gate.ElementCount), dGate, dUp, dOutput, gate, up, gate.ElementCount);
    }
}
