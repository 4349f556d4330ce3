using LoraTrainer.Engine.Devices;

namespace LoraTrainer.Engine.Quantization;

/// <summary>
/// The scales of a 4-bit tensor in eight bits: code = signed dynamic map, blocks of 256, of fl32(absmax - offset), where offset is the mean of all scales.
/// <see cref="FourBitBlocks.Absmax"/> turns them back.
/// </summary>
internal static unsafe class DoubleQuantization
{
    /// <summary>Number of nested scales of <paramref name="blocks"/> scales.</summary>
    public static long NestedBlocks(long blocks) => BlockwiseDynamic8.Blocks(blocks, FourBitBlocks.NestedBlocksize);

    /// <summary>The mean of (blocks) scales, summed in fp64 in their order and rounded once.</summary>
    public static float Offset(float* absmax, long blocks)
    {
        double sum = 0;
        for (long i = 0; i < blocks; i++)
        {
            sum += absmax[i];
        }

        return (float)(sum / blocks);
    }

    /// <param name="pool">threads that share the blocks</param>
    /// <param name="absmax">(blocks) scales of the whole tensor; overwritten with fl32(absmax - offset)</param>
    /// <param name="blocks">number of them</param>
    /// <param name="offset">see <see cref="Offset"/></param>
    /// <param name="codes">(blocks) overwritten</param>
    /// <param name="nestedAbsmax">(<see cref="NestedBlocks"/>) overwritten</param>
    public static void Quantize(WorkerPool pool, float* absmax, long blocks, float offset, byte* codes, float* nestedAbsmax)
    {
        for (long i = 0; i < blocks; i++)
        {
            absmax[i] -= offset;
        }

        BlockwiseDynamic8.Quantize(pool, DynamicMap.Signed, absmax, blocks, FourBitBlocks.NestedBlocksize, codes, nestedAbsmax);
    }
}
