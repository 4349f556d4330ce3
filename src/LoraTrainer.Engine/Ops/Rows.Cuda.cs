using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Rows
{
    private static void MoveCuda(CudaDevice cuda, Tensor whole, Tensor chosen, Tensor rows, bool gather)
    {
        (int count, int width) = ((int)rows.ElementCount, (int)whole.Shape[1]);
        LaunchShape shape = LaunchShape.PerRow(count, width);
        if (gather)
        {
            cuda.Launch(CudaKernels.RowsGather, shape, chosen, whole, rows, count, width);
        }
        else
        {
            cuda.Launch(CudaKernels.RowsScatter, shape, whole, chosen, rows, count, width);
        }
    }
}
