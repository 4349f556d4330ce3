using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace LoraTrainer.Engine.Quantization;

/// <summary>
/// A flattened tensor of four-bit codes in memory that someone else owns. Element i has the high nibble of byte i/2 when i is even, the low one
/// when it is odd, and the scale absmax[i / blocksize]; its value is fl32(code[nibble] * absmax). With double quantization
/// absmax = fl32(fl32(nestedCode[q] * nestedAbsmax[block / 256]) + offset), two roundings, no FMA.
/// </summary>
internal readonly unsafe struct FourBitBlocks
{
    public const int NestedBlocksize = 256;

    private readonly byte* packed;
    private readonly float* code;
    private readonly float* absmax;
    private readonly byte* absmaxCodes;
    private readonly float* nestedAbsmax;
    private readonly float* nestedCode;
    private readonly float offset;
    private readonly int blockShift;

    /// <summary>Scales stored in fp32.</summary>
    /// <param name="packed">(ceil(n / 2)) codes, two a byte</param>
    /// <param name="code">(16) values of the codes</param>
    /// <param name="absmax">(ceil(n / blocksize)) scales</param>
    /// <param name="blocksize">elements a scale; a power of two, at least 32</param>
    public FourBitBlocks(byte* packed, float* code, float* absmax, int blocksize = BlockwiseFourBit.Blocksize)
    {
        this.packed = packed;
        this.code = code;
        this.absmax = absmax;
        blockShift = BitOperations.Log2((uint)blocksize);
    }

    /// <summary>Scales stored as 8-bit codes (double quantization).</summary>
    /// <param name="packed">(ceil(n / 2)) codes, two a byte</param>
    /// <param name="code">(16) values of the codes</param>
    /// <param name="absmaxCodes">(nb) with nb = ceil(n / blocksize): codes of the scales</param>
    /// <param name="nestedAbsmax">(ceil(nb / 256)) scales of the scales</param>
    /// <param name="nestedCode">(256) values of the scales' codes</param>
    /// <param name="offset">added to every scale</param>
    /// <param name="blocksize">elements a scale; a power of two, at least 32</param>
    public FourBitBlocks(
        byte* packed, float* code, byte* absmaxCodes, float* nestedAbsmax, float* nestedCode, float offset, int blocksize = BlockwiseFourBit.Blocksize)
        : this(packed, code, null, blocksize)
    {
        this.absmaxCodes = absmaxCodes;
        this.nestedAbsmax = nestedAbsmax;
        this.nestedCode = nestedCode;
        this.offset = offset;
    }

    /// <summary>Elements a scale.</summary>
    public int Blocksize => 1 << blockShift;

    /// <summary>Two codes a byte.</summary>
    public byte* Packed => packed;

    /// <summary>(16) values of the codes.</summary>
    public float* Code => code;

    /// <summary>Double quantization: the scales are codes.</summary>
    public bool HasNestedScales => absmax == null;

    /// <summary>Double quantization: the codes of the scales.</summary>
    public byte* AbsmaxCodes => absmaxCodes;

    /// <summary>Double quantization: (256) values of those.</summary>
    public float* NestedCode => nestedCode;

    /// <summary>The scales, without double quantization.</summary>
    public float* PlainAbsmax => absmax;

    /// <summary>The scale of block <paramref name="block"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Absmax(long block)
    {
        if (absmax != null)
        {
            return absmax[block];
        }

        // A product and a sum as two statements of fp32: the JIT never contracts them.
        float product = nestedCode[absmaxCodes[block]] * nestedAbsmax[block / NestedBlocksize];
        return product + offset;
    }

    /// <summary>With double quantization: what the codes of the scales of some blocks stand for, before <see cref="FinishScales"/>.</summary>
    /// <param name="block">The first.</param>
    /// <param name="count">Of blocks.</param>
    /// <param name="values">(count); overwritten.</param>
    public void LookUpScales(long block, int count, float* values)
    {
        for (int i = 0; i < count; i++)
        {
            values[i] = nestedCode[absmaxCodes[block + i]];
        }
    }

    /// <summary>Makes scales of them, as <see cref="Absmax"/> does. Vectors go on past the end of what has one factor; what follows is written after it.</summary>
    /// <param name="block">The first.</param>
    /// <param name="count">Of blocks.</param>
    /// <param name="values">(count) from <see cref="LookUpScales"/>; up to 15 more are read.</param>
    /// <param name="scales">(count); overwritten, and up to 15 more.</param>
    public void FinishScales(long block, int count, float* values, float* scales)
    {
        for (int i = 0; i < count;)
        {
            long nested = (block + i) / NestedBlocksize;
            int end = (int)Math.Min(count, (nested + 1) * NestedBlocksize - block);
            var factor = Vector512.Create(nestedAbsmax[nested]);
            for (; i < end; i += Vector512<float>.Count)
            {
                Vector512<float> product = Vector512.Load(values + i) * factor;
                (product + Vector512.Create(offset)).Store(scales + i);
            }

            i = end;
        }
    }

    /// <summary>Writes the values of elements first .. first+count-1.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public void Dequantize(long first, int count, float* destination)
    {
        long i = first, end = first + count;
        if (Avx2.IsSupported)
        {
            // Groups of eight that start at a multiple of eight share four whole bytes and one block.
            for (; i < end && (i & 7) != 0; i++)
            {
                *destination++ = Value(i);
            }

            Vector256<float> low = Vector256.Load(code), high = Vector256.Load(code + 8);
            Vector256<uint> shifts = Vector256.Create(4u, 0, 12, 8, 20, 16, 28, 24);
            while (i <= end - 8)
            {
                Vector256<float> scale = Vector256.Create(Absmax(i >> blockShift));
                long blockEnd = Math.Min(((i >> blockShift) + 1) << blockShift, end - 7);
                for (; i < blockEnd; i += 8, destination += 8)
                {
                    Vector256<uint> indices = Avx2.ShiftRightLogicalVariable(Vector256.Create(*(uint*)(packed + (i >> 1))), shifts);
                    (Lookup(low, high, indices) * scale).Store(destination);
                }
            }
        }

        for (; i < end; i++)
        {
            *destination++ = Value(i);
        }
    }

    /// <summary>The entries of a table of sixteen at the low four bits of each index.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> Lookup(Vector256<float> low, Vector256<float> high, Vector256<uint> indices)
    {
        if (Avx512F.VL.IsSupported)
        {
            return Avx512F.VL.PermuteVar8x32x2(low, indices.AsInt32(), high);
        }

        // Bit 3 chooses the half: moved to the sign bit, where the blend looks.
        Vector256<float> half = Vector256.ShiftLeft(indices, 28).AsSingle();
        return Avx.BlendVariable(Avx2.PermuteVar8x32(low, indices.AsInt32()), Avx2.PermuteVar8x32(high, indices.AsInt32()), half);
    }

    /// <summary>As the other, of sixteen indices; bits above the low four do not matter.</summary>
    /// <param name="table">(16)</param>
    /// <param name="indices">Sixteen.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static Vector512<float> Lookup(Vector512<float> table, Vector512<uint> indices)
    {
        if (Avx512F.IsSupported)
        {
            return Avx512F.PermuteVar16x32(table, indices.AsInt32());
        }

        return Avx2.IsSupported
            ? Vector512.Create(Lookup(table.GetLower(), table.GetUpper(), indices.GetLower()), Lookup(table.GetLower(), table.GetUpper(), indices.GetUpper()))
            : Vector512.Shuffle(table, (indices & Vector512.Create(15u)).AsInt32());
    }

    private float Value(long i)
    {
        int shift = (i & 1) == 0 ? 4 : 0;
        return code[(packed[i >> 1] >> shift) & 15] * Absmax(i >> blockShift);
    }
}
