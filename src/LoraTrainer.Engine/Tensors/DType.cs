namespace LoraTrainer.Engine.Tensors;

/// <summary>Element types of a <see cref="Tensor"/>.</summary>
public enum DType : byte
{
    /// <summary>IEEE single precision: activations on the CPU, everything that is trained, all statistics.</summary>
    F32,

    /// <summary>Brain floating point: the upper half of an F32; frozen weights, and activations on a GPU.</summary>
    BF16,

    /// <summary>IEEE half precision: read from files only.</summary>
    F16,

    /// <summary>Signed byte: codes of row-wise 8-bit weights.</summary>
    I8,

    /// <summary>Byte: packed 4-bit codes, 8-bit block-wise codes, raw workspace.</summary>
    U8,

    /// <summary>32-bit integer: token ids, positions, targets, document offsets.</summary>
    I32,

    /// <summary>64-bit integer.</summary>
    I64,

    /// <summary>IEEE double precision: the few sums that a step reports, and their parts.</summary>
    F64,
}

/// <summary>Sizes of element types.</summary>
public static class DTypes
{
    /// <summary>Bytes of one element.</summary>
    public static int SizeBytes(this DType dtype) => dtype switch
    {
        DType.F32 or DType.I32 => 4,
        DType.BF16 or DType.F16 => 2,
        DType.I8 or DType.U8 => 1,
        DType.I64 or DType.F64 => 8,
        _ => throw new ArgumentOutOfRangeException(nameof(dtype), dtype, "not an element type"),
    };
}
