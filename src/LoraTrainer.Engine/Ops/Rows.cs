using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>Copies between chosen rows of a matrix and a dense block of rows.</summary>
public static partial class Rows
{
    /// <summary>output[i] = input[rows[i]]; overwritten.</summary>
    /// <param name="output">(M, D) activations</param>
    /// <param name="input">(N, D) activations</param>
    /// <param name="rows">(M) i32 in 0..N-1</param>
    public static void Gather(Tensor output, Tensor input, Tensor rows) => Move("Rows.Gather", input, output, rows, gather: true);

    /// <summary>output[rows[i]] = input[i]; rows that are not named keep their content. No row may be named twice.</summary>
    /// <param name="output">(N, D) activations</param>
    /// <param name="input">(M, D) activations</param>
    /// <param name="rows">(M) i32 in 0..N-1</param>
    public static void Scatter(Tensor output, Tensor input, Tensor rows) => Move("Rows.Scatter", output, input, rows, gather: false);

    private static void Move(string op, Tensor whole, Tensor chosen, Tensor rows, bool gather)
    {
        (long _, long d) = Contract.ExpectActivations(op, whole);
        Contract.Expect(op, chosen, whole.DType, rows.ElementCount, d);
        Contract.Expect(op, rows, DType.I32, rows.ElementCount);
        Contract.ExpectSameDevice(op, whole, chosen, rows);
        switch (whole.Device)
        {
            case CpuDevice cpu:
                MoveCpu(cpu, whole, chosen, rows, gather);
                break;
            case CudaDevice cuda:
                MoveCuda(cuda, whole, chosen, rows, gather);
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
