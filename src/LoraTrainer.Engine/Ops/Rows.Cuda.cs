using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Rows
{
    private static void MoveCuda(CudaDevice cuda, Tensor whole, Tensor chosen, Tensor rows, bool gather)
    {
        int count = (int)rows.ElementCount, width = (int)whole.Shape[1];
        if (gather)
        {
            cuda.Launch(CudaKernels.RowsGather, (uint)count, CudaGrid.Block, [chosen.Address, whole.Address, rows.Address, count, width]);
        }
        else
        {
            cuda.Launch(CudaKernels.RowsScatter, (uint)count, CudaGrid.Block, [whole.Address, chosen.Address, rows.Address, count, width]);
        }
    }
}
