using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>y = c * tanh(x/c), element by element: logits that never leave (-c, c).</summary>
public static partial class Softcap
{
    /// <summary>values is changed in place.</summary>
    /// <param name="values">(N, V) f32</param>
    /// <param name="cap">c, above 0</param>
    public static void Forward(Tensor values, float cap)
    {
        const string op = "Softcap.Forward";
        (long n, long v) = Contract.ExpectMatrix(op, values, DType.F32);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(cap);
        switch (values.Device)
        {
            case CpuDevice cpu:
                ForwardCpu(cpu, values, cap);
                break;
            case CudaDevice cuda:
                cuda.Launch(CudaKernels.SoftcapForward, LaunchShape.EightEach(values.ElementCount), values, values.ElementCount, cap);
                break;
            case MeasureDevice measure:
                measure.Count(4.0 * n * v, values, values);
                break;
            default:
                Contract.ThrowNoKernel(op, values.Device);
                break;
        }
    }

    /// <summary>dValues becomes the gradient before the cap, in place: dx = dy * (1 - (y/c)^2).</summary>
    /// <param name="dValues">(N, V) activations; in: gradient of y; out: of x.</param>
    /// <param name="values">(N, V) f32: y, as <see cref="Forward"/> left it.</param>
    /// <param name="cap">c, above 0</param>
    public static void Backward(Tensor dValues, Tensor values, float cap)
    {
        const string op = "Softcap.Backward";
        (long n, long v) = Contract.ExpectMatrix(op, values, DType.F32);
        Contract.Expect(op, dValues, values.Device.ActivationType, n, v);
        Contract.ExpectSameDevice(op, values, dValues);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(cap);
        switch (values.Device)
        {
            case CpuDevice cpu:
                BackwardCpu(cpu, dValues, values, cap);
                cpu.RoundActivations(dValues);
                break;
            case CudaDevice cuda:
                cuda.Launch(CudaKernels.SoftcapBackward, LaunchShape.EightEach(values.ElementCount), dValues, values, values.ElementCount, cap);
                break;
            case MeasureDevice measure:
                measure.Count(4.0 * n * v, dValues, dValues, values);
                break;
            default:
                Contract.ThrowNoKernel(op, values.Device);
                break;
        }
    }
}
