using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Quantization;

public sealed partial class FourBitQuantizer
{
    private void AddCuda(CudaDevice cuda, ReadOnlySpan<float> values)
    {
        cuda.Upload(piece, MemoryMarshal.AsBytes(values));
        Tensor codes = matrix.Packed.Slice(position / 2, new Shape((values.Length + 1) / 2));
        Tensor scales = absmax.Slice(position / BlockwiseFourBit.Blocksize, new Shape((values.Length + BlockwiseFourBit.Blocksize - 1) / BlockwiseFourBit.Blocksize));
        CudaKernel kernel = matrix.Code == FourBitCode.Nf4 ? CudaKernels.Nf4Quantize : CudaKernels.Fp4Quantize;
        cuda.Launch(kernel, LaunchShape.EightEach(values.Length), codes, scales, piece, (long)values.Length);
    }

    private float NestCuda(CudaDevice cuda)
    {
        long blocks = absmax.ElementCount;
        cuda.Launch(CudaKernels.SumValues, LaunchShape.OneBlock, sum, absmax, blocks);
        double total = 0;
        cuda.Download(sum, MemoryMarshal.AsBytes(new Span<double>(ref total)));
        float offset = (float)(total / blocks);
        cuda.Upload(matrix.NestedMap, MemoryMarshal.AsBytes(DynamicMap.Signed.AsSpan()));
        cuda.Launch(
            CudaKernels.QuantizeAbsmax, LaunchShape.Blocks(LaunchShape.Ceiling(blocks, FourBitBlocks.NestedBlocksize), FourBitBlocks.NestedBlocksize),
            matrix.AbsmaxCodes, matrix.NestedAbsmax, absmax, matrix.NestedMap, offset, blocks);
        return offset;
    }
}
