using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>Copies of other precision.</summary>
public static partial class Cast
{
    /// <summary>output = bf16(input), to nearest even; OVERWRITTEN.</summary>
    /// <param name="output">(P) bf16</param>
    /// <param name="input">(P) f32</param>
    public static void ToBF16(Tensor output, Tensor input)
    {
        const string op = "Cast.ToBF16";
        Contract.Expect(op, input, DType.F32, input.ElementCount);
        Contract.Expect(op, output, DType.BF16, input.ElementCount);
        Contract.ExpectSameDevice(op, input, output);
        switch (input.Device)
        {
            case CpuDevice cpu:
                ToBF16Cpu(cpu, output, input);
                break;
            case CudaDevice cuda:
                ToBF16Cuda(cuda, output, input);
                break;
            case MeasureDevice measure:
                measure.Count(0, output, input);
                break;
            default:
                Contract.ThrowNoKernel(op, input.Device);
                break;
        }
    }
}
