using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>Row lookup: y[t] = scale * table[tokens[t]].</summary>
public static partial class Embedding
{
    /// <param name="output">(N, D) activations; overwritten.</param>
    /// <param name="tokens">(N) i32, each in 0..V-1 (checked where the data is read).</param>
    /// <param name="table">(V, D) f32 or bf16; bf16 on a device whose activations are</param>
    /// <param name="scale">Multiplies each row.</param>
    public static void Forward(Tensor output, Tensor tokens, Tensor table, float scale = 1)
    {
        const string op = "Embedding.Forward";
        (long n, long d) = Contract.ExpectActivations(op, output);
        (long v, long _) = Contract.ExpectMatrix(op, table, table.DType == DType.BF16 ? DType.BF16 : DType.F32);
        Contract.Expect(op, table, output.Device.Platform == DevicePlatform.Cuda ? output.DType : table.DType, v, d);
        Contract.Expect(op, tokens, DType.I32, n);
        Contract.ExpectSameDevice(op, output, tokens, table);
        switch (output.Device)
        {
            case CpuDevice cpu:
                ForwardCpu(cpu, output, tokens, table, scale);
                cpu.RoundActivations(output);
                break;
            case CudaDevice cuda:
                ForwardCuda(cuda, output, tokens, table, scale);
                break;
            case MeasureDevice measure:
                measure.Count(0, output, output);
                break;
            default:
                Contract.ThrowNoKernel(op, output.Device);
                break;
        }
    }

    /// <summary>dTable ACCUMULATES: dTable[tokens[t]] += scale * dOutput[t], in the order of t. The row of <paramref name="paddingToken"/> gets nothing, as in torch.</summary>
    /// <param name="dTable">(V, D) f32</param>
    /// <param name="dOutput">(N, D) activations</param>
    /// <param name="tokens">(N) i32</param>
    /// <param name="paddingToken">-1 where the model has none.</param>
    /// <param name="scale">As in the forward pass.</param>
    public static void Backward(Tensor dTable, Tensor dOutput, Tensor tokens, int paddingToken, float scale = 1)
    {
        const string op = "Embedding.Backward";
        (long n, long d) = Contract.ExpectActivations(op, dOutput);
        (long v, long _) = Contract.ExpectMatrix(op, dTable, DType.F32);
        Contract.Expect(op, dTable, DType.F32, v, d);
        Contract.Expect(op, tokens, DType.I32, n);
        Contract.ExpectSameDevice(op, dOutput, dTable, tokens);
        switch (dOutput.Device)
        {
            case CpuDevice cpu:
                BackwardCpu(cpu, dTable, dOutput, tokens, paddingToken, scale);
                break;
            case CudaDevice cuda:
                BackwardCuda(cuda, dTable, dOutput, tokens, paddingToken, scale);
                break;
            case MeasureDevice measure:
                measure.Count((double)n * d, dOutput, dOutput);
                break;
            default:
                Contract.ThrowNoKernel(op, dOutput.Device);
                break;
        }
    }
}
