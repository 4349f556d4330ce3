using System.Diagnostics.CodeAnalysis;
using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;

namespace LoraTrainer.Engine.Quantization;

/// <summary>
/// Four bits an element: blocks of 64 consecutive elements of the flattened tensor share absmax = max |w|, and the code of w is that of
/// x = fl32(w * fl32(1 / absmax)) in a <see cref="FourBitCode"/>. Element 2i has the high nibble of byte i, element 2i+1 the low one. Equal to bitsandbytes bit for
/// bit, except that a block of zeros gets the code of zero, where its GPU kernel stores code 0: in NF4 with double quantization that would decode to numbers
/// other than zero.
/// </summary>
internal static unsafe class BlockwiseFourBit
{
    public const int Blocksize = 64;

    private const int Lanes = 8;

    /// <summary>Elements a part of the parallel work takes: 64 blocks.</summary>
    private const int PartElements = 4096;

    /// <summary>Below this 1 / absmax overflows; it also gives a block of zeros the code of zero.</summary>
    private const float SmallestAbsmax = 1e-38f;

    /// <summary>Bytes of the packed codes of <paramref name="count"/> elements.</summary>
    public static long PackedBytes(long count) => (count + 1) / 2;

    /// <summary>Number of scales of <paramref name="count"/> elements.</summary>
    public static long Blocks(long count) => (count + Blocksize - 1) / Blocksize;

    /// <summary>Quantizes a tensor, or a piece of one: every piece but the last is a multiple of 64 elements.</summary>
    /// <param name="pool">threads that share the blocks</param>
    /// <param name="code">what the codes stand for</param>
    /// <param name="source">(count) elements of the flattened tensor</param>
    /// <param name="format">how they are stored</param>
    /// <param name="count">number of them</param>
    /// <param name="packed">(<see cref="PackedBytes"/>) overwritten; an odd count is filled up with the code of zero</param>
    /// <param name="absmax">(<see cref="Blocks"/>) overwritten</param>
    /// <param name="firstElement">index of the piece's first element in the tensor, for the error message</param>
    /// <exception cref="NonFiniteWeightException">an element is NaN or infinite; it names the first one</exception>
    public static void Quantize(WorkerPool pool, FourBitCode code, void* source, FloatFormat format, long count, byte* packed, float* absmax, long firstElement = 0)
    {
        bool isBad = false;
        var work = new QuantizeWork
        {
            Thresholds = code.Thresholds, Flips = code.Flips, Lowest = code.Lowest, Source = (byte*)source, Format = format, Count = count, Packed = packed, Absmax = absmax, IsBad = &isBad,
        };
        pool.Run(checked((int)((count + PartElements - 1) / PartElements)), ref work);
        GC.KeepAlive(code);
        if (isBad)
        {
            ThrowAtFirstBad((byte*)source, format, firstElement);
        }
    }

    /// <summary>Looks for the first element that is not finite, whichever thread met one.</summary>
    [DoesNotReturn]
    private static void ThrowAtFirstBad(byte* source, FloatFormat format, long firstElement)
    {
        for (long i = 0; ; i++)
        {
            float value;
            ElementConversions.ToF32(format, source + i * ElementConversions.SizeOf(format), &value, 1);
            if (!float.IsFinite(value))
            {
                throw new NonFiniteWeightException(firstElement + i, value);
            }
        }
    }

    /// <summary>max |values| of 64 floats as bits: above every finite number when one of them is not finite.</summary>
    private static uint AbsmaxBits(float* values)
    {
        Vector256<uint> most = Vector256<uint>.Zero, mask = Vector256.Create(0x7FFFFFFFu);
        for (int i = 0; i < Blocksize; i += Lanes)
        {
            most = Vector256.Max(most, Vector256.Load((uint*)values + i) & mask);
        }

        uint result = 0;
        for (int i = 0; i < Lanes; i++)
        {
            result = Math.Max(result, most[i]);
        }

        return result;
    }

    private struct QuantizeWork : IParallelWork
    {
        public float* Thresholds;
        public uint* Flips;
        public uint Lowest;
        public byte* Source;
        public FloatFormat Format;
        public long Count;
        public byte* Packed;
        public float* Absmax;
        public bool* IsBad;

        public readonly void Execute(int part, int worker)
        {
            float* values = stackalloc float[Blocksize];
            byte* lastBytes = stackalloc byte[Blocksize / 2];
            long end = Math.Min(Count, (part + 1L) * PartElements);
            for (long first = (long)part * PartElements; first < end; first += Blocksize)
            {
                int count = (int)Math.Min(Blocksize, end - first);
                new Span<float>(values + count, Blocksize - count).Clear();
                ElementConversions.ToF32(Format, Source + first * ElementConversions.SizeOf(Format), values, count);
                uint bits = AbsmaxBits(values);
                if (bits >= 0x7F800000)
                {
                    Volatile.Write(ref *IsBad, true);
                    return;
                }

                float absmax = BitConverter.UInt32BitsToSingle(bits);
                Absmax[first / Blocksize] = absmax;
                byte* packed = Packed + first / 2;
                EncodeBlock(values, absmax, count == Blocksize ? packed : lastBytes);
                if (count < Blocksize)
                {
                    new ReadOnlySpan<byte>(lastBytes, (count + 1) / 2).CopyTo(new Span<byte>(packed, (count + 1) / 2));
                }
            }
        }

        /// <summary>One block of 64 floats to 32 bytes.</summary>
        private readonly void EncodeBlock(float* values, float absmax, byte* packed)
        {
            Vector256<float> inverse = Vector256.Create(1 / Math.Max(absmax, SmallestAbsmax));
            // The nibble positions of eight elements in four bytes, as factors.
            Vector256<uint> places = Vector256.Create(1u << 4, 1u, 1u << 12, 1u << 8, 1u << 20, 1u << 16, 1u << 28, 1u << 24);
            for (int i = 0; i < Blocksize; i += Lanes)
            {
                Vector256<float> x = Vector256.Load(values + i) * inverse;
                Vector256<uint> codes = Vector256.Create(Lowest);
                for (int t = 0; t < FourBitCode.Borders; t++)
                {
                    codes ^= Vector256.GreaterThan(x, Vector256.Create(Thresholds[t])).AsUInt32() & Vector256.Create(Flips[t]);
                }

                *(uint*)(packed + i / 2) = Vector256.Sum(codes * places);
            }
        }
    }
}
