using LoraTrainer.Engine.Devices;

namespace LoraTrainer.Engine.Tensors;

/// <summary>
/// A contiguous row-major block of a device's memory. A value: copying it copies no data, and it owns nothing (an <see cref="Arena"/> does).
/// The default value is "no tensor"; operations that take an optional tensor test <see cref="IsNone"/>.
/// </summary>
public readonly struct Tensor
{
    private readonly Device? device;

    internal Tensor(Device device, nint address, Shape shape, DType dtype)
    {
        this.device = device;
        Address = address;
        Shape = shape;
        DType = dtype;
    }

    /// <summary>No tensor: an optional argument that is not given.</summary>
    public static Tensor None => default;

    public bool IsNone => device is null;

    public Device Device => device ?? throw new InvalidOperationException("There is no tensor here: an operation used an optional tensor that was not given.");

    public Shape Shape { get; }

    public DType DType { get; }

    public long ElementCount => Shape.ElementCount;

    public long SizeBytes => Shape.ElementCount * DType.SizeBytes();

    /// <summary>Address in the device's own address space; meaningless to other devices.</summary>
    internal nint Address { get; }

    /// <summary>The same elements under another shape of equal size.</summary>
    public Tensor Reshape(Shape shape) => shape.ElementCount == ElementCount
        ? new Tensor(Device, Address, shape, DType)
        : throw new ShapeMismatchException($"Reshape: {Shape} has {ElementCount} elements and {shape} has {shape.ElementCount}.");

    /// <summary>The elements from <paramref name="offset"/> on, under <paramref name="shape"/>.</summary>
    public Tensor Slice(long offset, Shape shape) => offset >= 0 && offset + shape.ElementCount <= ElementCount
        ? new Tensor(Device, Address + (nint)(offset * DType.SizeBytes()), shape, DType)
        : throw new ShapeMismatchException($"Slice: elements {offset} to {offset + shape.ElementCount} lie outside a tensor of {ElementCount}.");

    /// <summary>The rows <paramref name="start"/> to <paramref name="start"/> + <paramref name="count"/> of a matrix (rank 2).</summary>
    public Tensor Rows(long start, long count) => Slice(start * Shape[1], new Shape(count, Shape[1]));

    internal unsafe float* F32 => (float*)Typed(DType.F32);

    internal unsafe double* F64 => (double*)Typed(DType.F64);

    internal unsafe int* I32 => (int*)Typed(DType.I32);

    internal unsafe sbyte* I8 => (sbyte*)Typed(DType.I8);

    internal unsafe byte* U8 => (byte*)Typed(DType.U8);

    internal unsafe ushort* BF16 => (ushort*)Typed(DType.BF16);

    private nint Typed(DType expected) => DType == expected
        ? Address
        : throw new ShapeMismatchException($"A tensor of {DType} was used as {expected}.");
}

/// <summary>An operation was given a tensor whose shape, element type or device it cannot work with. A defect of the caller, never of a user's input.</summary>
public sealed class ShapeMismatchException(string message) : InvalidOperationException(message);
