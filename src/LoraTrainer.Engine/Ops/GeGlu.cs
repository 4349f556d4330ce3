using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// h = gelu(gate) * up with gelu(a) = a/2 * (1 + tanh(c * (a + 0.044715 a^3))), c = sqrt(2/pi): the gated activation of Gemma's MLP (the tanh form).
/// Nothing but its two inputs is kept. Not on a GPU.
/// </summary>
public static partial class GeGlu
{
    /// <param name="output">(N, F) activations; overwritten. May alias gate or up.</param>
    /// <param name="gate">(N, F) activations</param>
    /// <param name="up">(N, F) activations</param>
    public static void Forward(Tensor output, Tensor gate, Tensor up)
    {
        const string op = "GeGlu.Forward";
        (long n, long f) = Contract.ExpectActivations(op, gate);
        Contract.Expect(op, up, gate.DType, n, f);
        Contract.Expect(op, output, gate.DType, n, f);
        Contract.ExpectSameDevice(op, gate, up, output);
        Contract.ExpectCpu(op, gate.Device, isAsked: true, "GELU");
        switch (gate.Device)
        {
            case CpuDevice cpu:
                ForwardCpu(cpu, output, gate, up);
                cpu.RoundActivations(output);
                break;
            case MeasureDevice measure:
                measure.Count(10.0 * n * f, output, gate, up);
                break;
            default:
                Contract.ThrowNoKernel(op, gate.Device);
                break;
        }
    }

    /// <summary>
    /// dGate and dUp are OVERWRITTEN; each may take the place of its forward input, which saves 2*N*F numbers.
    /// dup = dh * gelu(a);  dgate = dh * up * ((1 + t)/2 + a/2 * (1 - t^2) * c * (1 + 0.134145 a^2)) with t = tanh(c * (a + 0.044715 a^3)), a = gate.
    /// </summary>
    /// <param name="dGate">(N, F) activations; may be gate itself.</param>
    /// <param name="dUp">(N, F) activations; may be up itself.</param>
    /// <param name="dOutput">(N, F) activations</param>
    /// <param name="gate">(N, F) activations</param>
    /// <param name="up">(N, F) activations</param>
    public static void Backward(Tensor dGate, Tensor dUp, Tensor dOutput, Tensor gate, Tensor up)
    {
        const string op = "GeGlu.Backward";
        (long n, long f) = Contract.ExpectActivations(op, gate);
        Contract.Expect(op, up, gate.DType, n, f);
        Contract.Expect(op, dOutput, gate.DType, n, f);
        Contract.Expect(op, dGate, gate.DType, n, f);
        Contract.Expect(op, dUp, gate.DType, n, f);
        Contract.ExpectSameDevice(op, gate, up, dOutput, dGate, dUp);
        Contract.ExpectCpu(op, gate.Device, isAsked: true, "GELU");
        switch (gate.Device)
        {
            case CpuDevice cpu:
                BackwardCpu(cpu, dGate, dUp, dOutput, gate, up);
                cpu.RoundActivations(dGate, dUp);
                break;
            case MeasureDevice measure:
                measure.Count(20.0 * n * f, dGate, dUp, dOutput, gate, up);
                break;
            default:
                Contract.ThrowNoKernel(op, gate.Device);
                break;
        }
    }
}
