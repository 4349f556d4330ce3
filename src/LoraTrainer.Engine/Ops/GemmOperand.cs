using LoraTrainer.Engine.Quantization;

namespace LoraTrainer.Engine.Ops;

/// <summary>How the elements of a <see cref="GemmOperand"/> are stored.</summary>
internal enum GemmElement
{
    F32,
    BF16,

    /// <summary>Four-bit codes with block-wise scales: NF4 and FP4 differ in their code table only.</summary>
    FourBit,

    /// <summary>Signed bytes with one fp32 scale a stored row: value = fl32(q * scale[row]).</summary>
    Int8,
}

/// <summary>
/// A row-major matrix in memory and whether the product takes it or its transpose. It owns nothing. Every element is made fp32 exactly
/// (F32, BF16) or by one rounding (quantized kinds) before it is multiplied.
/// </summary>
internal readonly unsafe struct GemmOperand
{
    private readonly void* data;
    private readonly long leadingDimension;
    private readonly float* rowScales;
    private readonly FourBitBlocks blocks;

    private GemmOperand(GemmElement element, void* data, long leadingDimension, bool transposed, float* rowScales, in FourBitBlocks blocks)
    {
        Element = element;
        Transposed = transposed;
        this.data = data;
        this.leadingDimension = leadingDimension;
        this.rowScales = rowScales;
        this.blocks = blocks;
    }

    public GemmElement Element { get; }

    /// <summary>True: op(X) = X^T of what is stored.</summary>
    public bool Transposed { get; }

    /// <param name="data">fp32, row-major</param>
    /// <param name="leadingDimension">elements from one stored row to the next</param>
    /// <param name="transposed">the product takes the transpose of what is stored</param>
    public static GemmOperand F32(float* data, long leadingDimension, bool transposed = false)
        => new(GemmElement.F32, data, leadingDimension, transposed, null, default);

    /// <param name="data">bfloat16, row-major</param>
    /// <param name="leadingDimension">elements from one stored row to the next</param>
    /// <param name="transposed">the product takes the transpose of what is stored</param>
    public static GemmOperand BF16(ushort* data, long leadingDimension, bool transposed = false)
        => new(GemmElement.BF16, data, leadingDimension, transposed, null, default);

    /// <param name="blocks">the codes and scales of the flattened matrix</param>
    /// <param name="columns">columns of the stored matrix; rows follow each other without a gap, and blocks run across row ends</param>
    /// <param name="transposed">the product takes the transpose of what is stored</param>
    public static GemmOperand FourBit(in FourBitBlocks blocks, long columns, bool transposed = false)
        => new(GemmElement.FourBit, null, columns, transposed, null, blocks);

    /// <param name="data">signed bytes, row-major</param>
    /// <param name="rowScales">fp32, one a stored row</param>
    /// <param name="leadingDimension">elements from one stored row to the next</param>
    /// <param name="transposed">the product takes the transpose of what is stored</param>
    public static GemmOperand Int8(sbyte* data, float* rowScales, long leadingDimension, bool transposed = false)
        => new(GemmElement.Int8, data, leadingDimension, transposed, rowScales, default);

    /// <summary>The same matrix, taken the other way round.</summary>
    internal GemmOperand Flip() => new(Element, data, leadingDimension, !Transposed, rowScales, blocks);

    /// <summary>Address of stored element (row, column) of an F32 operand.</summary>
    internal float* F32At(long row, long column) => (float*)data + row * leadingDimension + column;

    /// <summary>Elements from one stored row to the next.</summary>
    internal long LeadingDimension => leadingDimension;

    /// <summary>The codes and scales of a four-bit operand.</summary>
    internal FourBitBlocks Blocks => blocks;

    /// <summary>The factors of an operand of bytes, one a stored row.</summary>
    internal float* RowScales => rowScales;

    /// <summary>Where a stored row begins; of four-bit codes, where rows are of even length.</summary>
    internal void* StoredAt(long row) => Element switch
    {
        GemmElement.F32 => (float*)data + row * leadingDimension,
        GemmElement.BF16 => (ushort*)data + row * leadingDimension,
        GemmElement.FourBit => blocks.Packed + row * leadingDimension / 2,
        _ => (sbyte*)data + row * leadingDimension,
    };

    /// <summary>Writes the stored elements (row, column .. column+count-1) as fp32.</summary>
    internal void Load(long row, long column, int count, float* destination)
    {
        long first = row * leadingDimension + column;
        switch (Element)
        {
            case GemmElement.F32:
                Buffer.MemoryCopy((float*)data + first, destination, (long)count * sizeof(float), (long)count * sizeof(float));
                break;
            case GemmElement.BF16:
                ElementConversions.FromBF16((ushort*)data + first, destination, count);
                break;
            case GemmElement.FourBit:
                blocks.Dequantize(first, count, destination);
                break;
            default:
                ElementConversions.FromInt8((sbyte*)data + first, rowScales[row], destination, count);
                break;
        }
    }
}
