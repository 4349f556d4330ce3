using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>h = silu(gate) * up with silu(a) = a * sigmoid(a): the gated activation of Llama's MLP. Nothing but its two inputs is kept.</summary>
public static partial class SwiGlu
{
    /// <param name="output">(N, F) f32; overwritten. May alias gate or up.</param>
    /// <param name="gate">(N, F) f32</param>
    /// <param name="up">(N, F) f32</param>
    public static void Forward(Tensor output, Tensor gate, Tensor up)
    {
        const string op = "SwiGlu.Forward";
        (long n, long f) = Contract.ExpectMatrix(op, gate, DType.F32);
        Contract.Expect(op, up, DType.F32, n, f);
        Contract.Expect(op, output, DType.F32, n, f);
        Contract.ExpectSameDevice(op, gate, up, output);
        switch (gate.Device)
        {
            case CpuDevice cpu:
                ForwardCpu(cpu, output, gate, up);
                break;
            case MeasureDevice measure:
                measure.Count(5.0 * n * f);
                break;
            default:
                Contract.ThrowNoKernel(op, gate.Device);
                break;
        }
    }

    /// <summary>
    /// dGate and dUp are OVERWRITTEN; each may take the place of its forward input, which saves 2*N*F floats.
    /// dup = dh * silu(a);  dgate = dh * up * s * (1 + a*(1 - s)) with s = sigmoid(a), a = gate.
    /// </summary>
    /// <param name="dGate">(N, F) f32; may be gate itself.</param>
    /// <param name="dUp">(N, F) f32; may be up itself.</param>
    /// <param name="dOutput">(N, F) f32</param>
    /// <param name="gate">(N, F) f32</param>
    /// <param name="up">(N, F) f32</param>
    public static void Backward(Tensor dGate, Tensor dUp, Tensor dOutput, Tensor gate, Tensor up)
    {
        const string op = "SwiGlu.Backward";
        (long n, long f) = Contract.ExpectMatrix(op, gate, DType.F32);
        Contract.Expect(op, up, DType.F32, n, f);
        Contract.Expect(op, dOutput, DType.F32, n, f);
        Contract.Expect(op, dGate, DType.F32, n, f);
        Contract.Expect(op, dUp, DType.F32, n, f);
        Contract.ExpectSameDevice(op, gate, up, dOutput, dGate, dUp);
        switch (gate.Device)
        {
            case CpuDevice cpu:
                BackwardCpu(cpu, dGate, dUp, dOutput, gate, up);
                break;
            case MeasureDevice measure:
                measure.Count(10.0 * n * f);
                break;
            default:
                Contract.ThrowNoKernel(op, gate.Device);
                break;
        }
    }
}
