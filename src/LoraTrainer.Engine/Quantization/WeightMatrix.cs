using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Quantization;

/// <summary>
/// A weight matrix W of shape (Out, In) as <see cref="Ops.Linear"/> multiplies with it: y = x W^T. How its elements are stored is this type's
/// business alone; 4-bit and 8-bit matrices are dequantized while the GEMM packs them and never exist expanded.
/// </summary>
public abstract class WeightMatrix
{
    private protected WeightMatrix(int outFeatures, int inFeatures)
    {
        Out = outFeatures;
        In = inFeatures;
    }

    /// <summary>Rows: output features.</summary>
    public int Out { get; }

    /// <summary>Columns: input features.</summary>
    public int In { get; }

    /// <summary>Bytes that the matrix occupies on its device, padding not counted.</summary>
    public abstract long SizeBytes { get; }
}

/// <summary>A matrix stored element by element, f32 or bf16.</summary>
public sealed class DenseMatrix : WeightMatrix
{
    /// <param name="values">(Out, In) f32 or bf16</param>
    public DenseMatrix(Tensor values)
        : base(checked((int)values.Shape[0]), checked((int)values.Shape[1]))
    {
        if (values.DType is not (DType.F32 or DType.BF16))
        {
            throw new ShapeMismatchException($"A dense matrix holds F32 or BF16, got {values.DType}.");
        }

        Values = values;
    }

    public Tensor Values { get; }

    public override long SizeBytes => Values.SizeBytes;
}

/// <summary>
/// A matrix in NF4 or FP4 as bitsandbytes lays it out: blocks of 64 consecutive elements across row ends, two codes a byte with the
/// even element in the high nibble, one absmax per block, kept as f32 or quantized again in blocks of 256 around an offset.
/// </summary>
public sealed class FourBitMatrix : WeightMatrix
{
    /// <summary>Single quantization.</summary>
    /// <param name="code">What the codes stand for.</param>
    /// <param name="outFeatures">Out</param>
    /// <param name="inFeatures">In</param>
    /// <param name="packed">(ceil(Out*In/2)) u8</param>
    /// <param name="absmax">(ceil(Out*In/64)) f32</param>
    public FourBitMatrix(FourBitCode code, int outFeatures, int inFeatures, Tensor packed, Tensor absmax)
        : base(outFeatures, inFeatures)
    {
        Code = code;
        Packed = packed;
        Absmax = absmax;
    }

    /// <summary>Double quantization.</summary>
    /// <param name="code">What the codes stand for.</param>
    /// <param name="outFeatures">Out</param>
    /// <param name="inFeatures">In</param>
    /// <param name="packed">(ceil(Out*In/2)) u8</param>
    /// <param name="absmaxCodes">(blocks) u8: entries of the 8-bit dynamic map.</param>
    /// <param name="nestedAbsmax">(ceil(blocks/256)) f32</param>
    /// <param name="nestedMap">(256) f32: the dynamic map that the codes refer to.</param>
    /// <param name="offset">Added back to every reconstructed absmax.</param>
    public FourBitMatrix(FourBitCode code, int outFeatures, int inFeatures, Tensor packed, Tensor absmaxCodes, Tensor nestedAbsmax, Tensor nestedMap, float offset)
        : base(outFeatures, inFeatures)
    {
        Code = code;
        Packed = packed;
        AbsmaxCodes = absmaxCodes;
        NestedAbsmax = nestedAbsmax;
        NestedMap = nestedMap;
        Offset = offset;
    }

    /// <summary>A matrix whose content is still to be filled in.</summary>
    /// <param name="device">Where it lives.</param>
    /// <param name="code">What the codes stand for.</param>
    /// <param name="outFeatures">Out</param>
    /// <param name="inFeatures">In</param>
    /// <param name="isDoubleQuantized">The scales are quantized too.</param>
    /// <param name="offset">Added back to every reconstructed absmax; means something with double quantization only.</param>
    public static FourBitMatrix Allocate(Device device, FourBitCode code, int outFeatures, int inFeatures, bool isDoubleQuantized, float offset)
    {
        long elements = (long)outFeatures * inFeatures, blocks = BlockwiseFourBit.Blocks(elements);
        Tensor packed = device.Arena.Allocate(MemoryKind.Weights, DType.U8, new Shape(BlockwiseFourBit.PackedBytes(elements)));
        if (!isDoubleQuantized)
        {
            return new FourBitMatrix(code, outFeatures, inFeatures, packed, device.Arena.Allocate(MemoryKind.Weights, DType.F32, new Shape(blocks)));
        }

        Tensor absmaxCodes = device.Arena.Allocate(MemoryKind.Weights, DType.U8, new Shape(blocks));
        Tensor nestedAbsmax = device.Arena.Allocate(MemoryKind.Weights, DType.F32, new Shape(DoubleQuantization.NestedBlocks(blocks)));
        Tensor nestedMap = device.Arena.Allocate(MemoryKind.Weights, DType.F32, new Shape(FourBitBlocks.NestedBlocksize));
        return new FourBitMatrix(code, outFeatures, inFeatures, packed, absmaxCodes, nestedAbsmax, nestedMap, offset);
    }

    public FourBitCode Code { get; }

    public Tensor Packed { get; }

    /// <summary>Set without double quantization.</summary>
    public Tensor Absmax { get; }

    /// <summary>Set with double quantization, like the three that follow.</summary>
    public Tensor AbsmaxCodes { get; }

    public Tensor NestedAbsmax { get; }

    public Tensor NestedMap { get; }

    public float Offset { get; }

    public bool IsDoubleQuantized => Absmax.IsNone;

    /// <summary>The codes and scales as CPU kernels read them.</summary>
    internal unsafe FourBitBlocks Blocks => IsDoubleQuantized
        ? new FourBitBlocks(Packed.U8, Code.Values, AbsmaxCodes.U8, NestedAbsmax.F32, NestedMap.F32, Offset)
        : new FourBitBlocks(Packed.U8, Code.Values, Absmax.F32);

    public override long SizeBytes => Packed.SizeBytes + (IsDoubleQuantized ? AbsmaxCodes.SizeBytes + NestedAbsmax.SizeBytes + sizeof(float) : Absmax.SizeBytes);
}

/// <summary>A matrix of signed bytes with one scale a row: w = fl32(q * scale), as bitsandbytes' 8-bit layers hold it (their SCB is 127 scales).</summary>
public sealed class Int8Matrix : WeightMatrix
{
    /// <param name="codes">(Out, In) i8</param>
    /// <param name="scales">(Out) f32</param>
    public Int8Matrix(Tensor codes, Tensor scales)
        : base(checked((int)codes.Shape[0]), checked((int)codes.Shape[1]))
    {
        Codes = codes;
        Scales = scales;
    }

    /// <summary>A matrix whose content is still to be filled in.</summary>
    /// <param name="device">Where it lives.</param>
    /// <param name="outFeatures">Out</param>
    /// <param name="inFeatures">In</param>
    public static Int8Matrix Allocate(Device device, int outFeatures, int inFeatures) => new(
        device.Arena.Allocate(MemoryKind.Weights, DType.I8, new Shape(outFeatures, inFeatures)), device.Arena.Allocate(MemoryKind.Weights, DType.F32, new Shape(outFeatures)));

    public Tensor Codes { get; }

    public Tensor Scales { get; }

    /// <summary>Some of its rows, in their place.</summary>
    /// <param name="first">The first of them.</param>
    /// <param name="count">How many.</param>
    public Int8Matrix Rows(long first, long count) => new(Codes.Rows(first, count), Scales.Slice(first, new Shape(count)));

    public override long SizeBytes => Codes.SizeBytes + Scales.SizeBytes;
}
