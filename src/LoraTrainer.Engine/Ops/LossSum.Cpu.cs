using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class LossSum
{
    // A few thousand numbers in their order: not worth a second thread.
    private static void AccumulateCpu(Tensor total, Tensor losses)
    {
        double sum = 0;
        foreach (float loss in new ReadOnlySpan<float>(losses.F32, checked((int)losses.ElementCount)))
        {
            sum += loss;
        }

        *total.F64 += sum;
    }
}
