using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Quantization;

public sealed partial class Nf4Quantizer
{
    private void AddCuda(CudaDevice cuda, ReadOnlySpan<float> values)
    {
        cuda.Upload(piece, MemoryMarshal.AsBytes(values));
        cuda.Launch(
            CudaKernels.Nf4Quantize, CudaGrid.Of(values.Length, CudaGrid.QuantizedPerBlock), CudaGrid.Block,
            [packed.Slice(position / 2, new Shape((values.Length + 1) / 2)).Address, absmax.Slice(position / Nf4.Blocksize, new Shape(1)).Address, piece.Address, (long)values.Length]);
    }

    private float NestCuda(CudaDevice cuda)
    {
        long blocks = absmax.ElementCount;
        cuda.Launch(CudaKernels.SumInOrder, 1, CudaGrid.Block, [sum.Address, absmax.Address, blocks]);
        double total = 0;
        cuda.Download(sum, MemoryMarshal.AsBytes(new Span<double>(ref total)));
        float offset = (float)(total / blocks);
        cuda.Upload(nestedMap, MemoryMarshal.AsBytes(DynamicMap.Signed.AsSpan()));
        cuda.Launch(
            CudaKernels.QuantizeAbsmax, CudaGrid.Of(blocks, FourBitBlocks.NestedBlocksize), FourBitBlocks.NestedBlocksize,
            [absmaxCodes.Address, nestedAbsmax.Address, absmax.Address, nestedMap.Address, offset, blocks]);
        return offset;
    }
}
