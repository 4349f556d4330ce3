using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>Copies between neighbouring columns of a matrix and a matrix of their own: what a fused linear layer gives, taken apart and put together.</summary>
public static partial class Columns
{
    /// <summary>output[i, j] = input[i, first + j]; overwritten.</summary>
    /// <param name="output">(N, C) activations</param>
    /// <param name="input">(N, D) activations</param>
    /// <param name="first">The first of the C columns.</param>
    public static void Gather(Tensor output, Tensor input, long first) => Move("Columns.Gather", input, output, first, gather: true);

    /// <summary>output[i, first + j] = input[i, j]; other columns keep their content.</summary>
    /// <param name="output">(N, D) activations</param>
    /// <param name="input">(N, C) activations</param>
    /// <param name="first">The first of the C columns.</param>
    public static void Scatter(Tensor output, Tensor input, long first) => Move("Columns.Scatter", output, input, first, gather: false);

    private static void Move(string op, Tensor whole, Tensor chosen, long first, bool gather)
    {
        (long n, long d) = Contract.ExpectActivations(op, whole);
        (long _, long c) = Contract.ExpectActivations(op, chosen);
        Contract.Expect(op, chosen, whole.DType, n, c);
        if (first < 0 || first + c > d)
        {
            throw new ShapeMismatchException($"{op}: columns {first} to {first + c} lie outside a matrix of {d}.");
        }

        Contract.ExpectSameDevice(op, whole, chosen);
        switch (whole.Device)
        {
            case CpuDevice cpu:
                MoveCpu(cpu, whole, chosen, first, gather);
                break;
            case CudaDevice cuda:
                MoveCuda(cuda, whole, chosen, first, gather);
                break;
            case MeasureDevice measure:
                measure.Count(0, chosen, chosen);
                break;
            default:
                Contract.ThrowNoKernel(op, whole.Device);
                break;
        }
    }
}
