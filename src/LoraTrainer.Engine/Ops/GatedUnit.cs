using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>The activation of a gated MLP, as <see cref="GatedUnit{TActivation}"/> asks for it.</summary>
internal interface IGateActivation
{
    /// <summary>The operation's name in messages.</summary>
    static abstract string Forward { get; }

    /// <summary>The operation's name in messages.</summary>
    static abstract string Backward { get; }

    /// <summary>Floating-point operations of an element, forward; backward takes twice as many.</summary>
    static abstract double Flops { get; }

    /// <summary>act(a).</summary>
    static abstract Vector512<float> Value(Vector512<float> a);

    /// <summary>act(a), and its derivative.</summary>
    static abstract Vector512<float> Value(Vector512<float> a, out Vector512<float> slope);

    static abstract void ForwardCuda(CudaDevice cuda, Tensor output, Tensor gate, Tensor up);

    static abstract void BackwardCuda(CudaDevice cuda, Tensor dGate, Tensor dUp, Tensor dOutput, Tensor gate, Tensor up);
}

/// <summary>h = act(gate) * up: what <see cref="SwiGlu"/> and <see cref="GeGlu"/> have in common. Nothing but its two inputs is kept.</summary>
internal static partial class GatedUnit<TActivation>
    where TActivation : struct, IGateActivation
{
    public static void Forward(Tensor output, Tensor gate, Tensor up)
    {
        string op = TActivation.Forward;
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
                TActivation.ForwardCuda(cuda, output, gate, up);
                break;
            case MeasureDevice measure:
                measure.Count(TActivation.Flops * n * f, output, gate, up);
                break;
            default:
                Contract.ThrowNoKernel(op, gate.Device);
                break;
        }
    }

    public static void Backward(Tensor dGate, Tensor dUp, Tensor dOutput, Tensor gate, Tensor up)
    {
        string op = TActivation.Backward;
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
                TActivation.BackwardCuda(cuda, dGate, dUp, dOutput, gate, up);
                break;
            case MeasureDevice measure:
                measure.Count(2 * TActivation.Flops * n * f, dGate, dUp, dOutput, gate, up);
                break;
            default:
                Contract.ThrowNoKernel(op, gate.Device);
                break;
        }
    }
}
