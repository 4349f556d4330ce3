using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Columns
{
    private static void MoveCuda(CudaDevice cuda, Tensor whole, Tensor chosen, long first, bool gather)
    {
        (int count, int width, int wholeWidth) = ((int)chosen.Shape[0], (int)chosen.Shape[1], (int)whole.Shape[1]);
        LaunchShape shape = LaunchShape.PerRow(count, width);
        if (gather)
        {
            cuda.Launch(CudaKernels.ColumnsGather, shape, chosen, whole, count, width, wholeWidth, (int)first);
        }
        else
        {
            cuda.Launch(CudaKernels.ColumnsScatter, shape, whole, chosen, count, width, wholeWidth, (int)first);
        }
    }
}
