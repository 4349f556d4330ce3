using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>Sums of whole tensors, the residual connections and biases.</summary>
public static partial class Elementwise
{
    /// <summary>output = first + second, element by element.</summary>
    /// <param name="output">activations; overwritten; may be either input.</param>
    /// <param name="first">activations, same size</param>
    /// <param name="second">activations, same size</param>
    public static void Add(Tensor output, Tensor first, Tensor second)
    {
        const string op = "Elementwise.Add";
        (long n, long d) = Contract.ExpectActivations(op, output);
        Contract.Expect(op, first, output.DType, n, d);
        Contract.Expect(op, second, output.DType, n, d);
        Contract.ExpectSameDevice(op, output, first, second);
        switch (output.Device)
        {
            case CpuDevice cpu:
                AddCpu(cpu, output, first, second);
                cpu.RoundActivations(output);
                break;
            case CudaDevice cuda:
                AddCuda(cuda, output, first, second);
                break;
            case MeasureDevice measure:
                measure.Count((double)n * d, output, first, second);
                break;
            default:
                Contract.ThrowNoKernel(op, output.Device);
                break;
        }
    }

    /// <summary>Adds <paramref name="bias"/> to each row, in place.</summary>
    /// <param name="rows">(N, D) activations; changed in place.</param>
    /// <param name="bias">(D) f32</param>
    public static void AddBias(Tensor rows, Tensor bias)
    {
        const string op = "Elementwise.AddBias";
        (long n, long d) = Contract.ExpectActivations(op, rows);
        Contract.Expect(op, bias, DType.F32, d);
        Contract.ExpectSameDevice(op, rows, bias);
        switch (rows.Device)
        {
            case CpuDevice cpu:
                AddBiasCpu(cpu, rows, bias);
                cpu.RoundActivations(rows);
                break;
            case CudaDevice cuda:
                AddBiasCuda(cuda, rows, bias);
                break;
            case MeasureDevice measure:
                measure.Count((double)n * d, rows, rows);
                break;
            default:
                Contract.ThrowNoKernel(op, rows.Device);
                break;
        }
    }

    /// <summary>dBias ACCUMULATES the sum over the rows of dOutput, in their order.</summary>
    /// <param name="dBias">(D) f32</param>
    /// <param name="dOutput">(N, D) activations</param>
    public static void BiasGradient(Tensor dBias, Tensor dOutput)
    {
        const string op = "Elementwise.BiasGradient";
        (long n, long d) = Contract.ExpectActivations(op, dOutput);
        Contract.Expect(op, dBias, DType.F32, d);
        Contract.ExpectSameDevice(op, dOutput, dBias);
        switch (dOutput.Device)
        {
            case CpuDevice cpu:
                BiasGradientCpu(cpu, dBias, dOutput);
                break;
            case CudaDevice cuda:
                BiasGradientCuda(cuda, dBias, dOutput);
                break;
            case MeasureDevice measure:
                measure.Count((double)n * d, dOutput);
                break;
            default:
                Contract.ThrowNoKernel(op, dOutput.Device);
                break;
        }
    }
}
