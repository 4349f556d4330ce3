using System.Numerics;
using LoraTrainer.Engine.Devices;

namespace LoraTrainer.Engine.Quantization;

/// <summary>
/// Eight bits an element in blocks that share absmax = max |x|: code = nearest map entry of fl32(x * fl32(1 / absmax)), value = fl32(map[code] * absmax).
/// A block of zeros gets the code nearest to zero.
/// </summary>
internal static unsafe class BlockwiseDynamic8
{
    /// <summary>Below this 1 / absmax overflows; it also gives a block of zeros the code of zero.</summary>
    private const float SmallestAbsmax = 1e-38f;

    private const int PartElements = 1 << 14;

    /// <summary>Number of scales of <paramref name="count"/> elements.</summary>
    public static long Blocks(long count, int blocksize) => (count + blocksize - 1) / blocksize;

    /// <param name="pool">threads that share the blocks</param>
    /// <param name="map">values of the codes</param>
    /// <param name="source">(count) finite</param>
    /// <param name="count">number of elements</param>
    /// <param name="blocksize">elements a scale, a power of two up to 4096</param>
    /// <param name="codes">(count) overwritten</param>
    /// <param name="absmax">(<see cref="Blocks"/>) overwritten</param>
    public static void Quantize(WorkerPool pool, DynamicMap map, float* source, long count, int blocksize, byte* codes, float* absmax)
    {
        var work = new QuantizeWork
        {
            Thresholds = map.Thresholds, Source = source, Count = count, Blocksize = blocksize, Codes = codes, Absmax = absmax,
        };
        pool.Run(checked((int)((count + PartElements - 1) / PartElements)), ref work);
        GC.KeepAlive(map);
    }

    /// <param name="map">values of the codes</param>
    /// <param name="codes">(count)</param>
    /// <param name="absmax">(<see cref="Blocks"/>)</param>
    /// <param name="count">number of elements</param>
    /// <param name="blocksize">elements a scale</param>
    /// <param name="destination">(count) overwritten</param>
    public static void Dequantize(DynamicMap map, byte* codes, float* absmax, long count, int blocksize, float* destination)
    {
        float* values = map.Values;
        int shift = BitOperations.Log2((uint)blocksize);
        for (long i = 0; i < count; i++)
        {
            destination[i] = values[codes[i]] * absmax[i >> shift];
        }

        GC.KeepAlive(map);
    }

    private struct QuantizeWork : IParallelWork
    {
        public float* Thresholds, Source, Absmax;
        public byte* Codes;
        public long Count;
        public int Blocksize;

        public readonly void Execute(int part, int worker)
        {
            long end = Math.Min(Count, (part + 1L) * PartElements);
            for (long first = (long)part * PartElements; first < end; first += Blocksize)
            {
                int count = (int)Math.Min(Blocksize, end - first);
                float absmax = 0;
                for (int i = 0; i < count; i++)
                {
                    absmax = Math.Max(absmax, Math.Abs(Source[first + i]));
                }

                Absmax[first / Blocksize] = absmax;
                DynamicMap.Nearest(Thresholds, Source + first, 1 / Math.Max(absmax, SmallestAbsmax), count, Codes + first);
            }
        }
    }
}
