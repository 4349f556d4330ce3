using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>h = silu(gate) * up with silu(a) = a * sigmoid(a): the gated activation of Llama's MLP. Nothing but its two inputs is kept.</summary>
public static partial class SwiGlu
{
    /// <param name="output">(N, F) activations; overwritten. May alias gate or up.</param>
    /// <param name="gate">(N, F) activations</param>
    /// <param name="up">(N, F) activations</param>
    public static void Forward(Tensor output, Tensor gate, Tensor up)
    {
        const string op = "SwiGlu.Forward";
        (long n, long f) = Contract.ExpectActivations(op, gate);
        Contract.Expect(op, up, gate.DType, n, f);
        Contract.Expect(op, output, gate.DType, n, f);
        Contract.ExpectSameDevice(op, gate, up, output);
        switch (gate.Device)
        {
            case CpuDevice cpu:
                ForwardCpu(cpu, output, gate, up);
                cpu.RoundActivations(output);
                break;
            case CudaDevice cuda:
                ForwardCuda(cuda, output, gate, up);
                break;
            case MeasureDevice measure:
                measure.Count(5.0 * n * f, output, gate, up);
                break;
            default:
                Contract.ThrowNoKernel(op, gate.Device);
                break;
        }
    }

    /// <summary>
    /// dGate and dUp are OVERWRITTEN; each may take the place of its forward input, which saves 2*N*F numbers.
    /// dup = dh * silu(a);  dgate = dh * up * s * (1 + a*(1 - s)) with s = sigmoid(a), a = gate.
    /// </summary>
    /// <param name="dGate">(N, F) activations; may be gate itself.</param>
    /// <param name="dUp">(N, F) activations; may be up itself.</param>
    /// <param name="dOutput">(N, F) activations</param>
    /// <param name="gate">(N, F) activations</param>
    /// <param name="up">(N, F) activations</param>
    public static void Backward(Tensor dGate, Tensor dUp, Tensor dOutput, Tensor gate, Tensor up)
    {
        const string op = "SwiGlu.Backward";
        (long n, long f) = Contract.ExpectActivations(op, gate);
        Contract.Expect(op, up, gate.DType, n, f);
        Contract.Expect(op, dOutput, gate.DType, n, f);
        Contract.Expect(op, dGate, gate.DType, n, f);
        Contract.Expect(op, dUp, gate.DType, n, f);
        Contract.ExpectSameDevice(op, gate, up, dOutput, dGate, dUp);
        switch (gate.Device)
        {
            case CpuDevice cpu:
                BackwardCpu(cpu, dGate, dUp, dOutput, gate, up);
                cpu.RoundActivations(dGate, dUp);
                break;
            case CudaDevice cuda:
                BackwardCuda(cuda, dGate, dUp, dOutput, gate, up);
                break;
            case MeasureDevice measure:
                measure.Count(10.0 * n * f, dGate, dUp, dOutput, gate, up);
                break;
            default:
                Contract.ThrowNoKernel(op, gate.Device);
                break;
        }
    }
}
