using LoraTrainer.Engine.Devices;

namespace LoraTrainer.Engine.Tensors;

/// <summary>Neighbouring columns of a matrix where they lie, which a product can read or write without a copy. A tensor stands for all of its columns.</summary>
public readonly struct MatrixColumns
{
    /// <param name="whole">(N, W)</param>
    /// <param name="first">The first of the columns.</param>
    /// <param name="count">How many.</param>
    /// <exception cref="ShapeMismatchException">There are no such columns.</exception>
    public MatrixColumns(Tensor whole, long first, long count)
        : this(whole)
    {
        if (whole.Shape.Rank != 2 || first < 0 || count < 0 || first + count > whole.Shape[1])
        {
            throw new ShapeMismatchException($"Columns {first} to {first + count} lie outside a tensor of {whole.Shape}.");
        }

        First = first;
        Count = count;
    }

    private MatrixColumns(Tensor whole)
    {
        Whole = whole;
        Count = RowStride;
    }

    /// <summary>The matrix that they are part of. A tensor of another rank than 2, or none, is carried to the contract, which refuses it.</summary>
    public Tensor Whole { get; }

    public long First { get; }

    public long Count { get; }

    public bool IsAll => Count == RowStride;

    public Device Device => Whole.Device;

    public DType DType => Whole.DType;

    public long Rows => Whole.Shape[0];

    public long SizeBytes => Rows * Count * DType.SizeBytes();

    /// <summary>Elements from one row to the next.</summary>
    internal long RowStride => Whole.Shape.Rank == 2 ? Whole.Shape[1] : 0;

    internal nint Address => Whole.Address + (nint)(First * DType.SizeBytes());

    internal unsafe float* F32 => Whole.F32 + First;

    public static implicit operator MatrixColumns(Tensor whole) => new(whole);
}
