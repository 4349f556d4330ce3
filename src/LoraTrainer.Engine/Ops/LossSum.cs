using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>The sum of a micro-batch's losses, in double, kept on the device so that a step is read back once.</summary>
public static partial class LossSum
{
    /// <summary>total ACCUMULATES the sum of the losses.</summary>
    /// <param name="total">(1) f64</param>
    /// <param name="losses">(N) f32</param>
    public static void Accumulate(Tensor total, Tensor losses)
    {
        const string op = "LossSum.Accumulate";
        Contract.Expect(op, total, DType.F64, 1);
        Contract.Expect(op, losses, DType.F32, losses.ElementCount);
        Contract.ExpectSameDevice(op, total, losses);
        switch (losses.Device)
        {
            case CpuDevice:
                AccumulateCpu(total, losses);
                break;
            case CudaDevice cuda:
                AccumulateCuda(cuda, total, losses);
                break;
            case MeasureDevice measure:
                measure.Count(losses.ElementCount, losses);
                break;
            default:
                Contract.ThrowNoKernel(op, losses.Device);
                break;
        }
    }
}
