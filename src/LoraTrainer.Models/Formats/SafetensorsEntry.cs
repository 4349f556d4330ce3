using System.Globalization;

namespace LoraTrainer.Models.Formats;

/// <summary>One tensor of a weight file: what the file says about it, checked. In a safetensors file its elements lie in C order, little-endian, without gaps.</summary>
public sealed class SafetensorsEntry
{
    private readonly long[] shape;

    internal SafetensorsEntry(string name, SafetensorsDType dtype, long[] shape, long byteOffset, long byteLength)
    {
        Name = name;
        DType = dtype;
        this.shape = shape;
        ByteOffset = byteOffset;
        ByteLength = byteLength;
    }

    public string Name { get; }

    public SafetensorsDType DType { get; }

    /// <summary>Empty for a scalar.</summary>
    public ReadOnlySpan<long> Shape => shape;

    /// <summary>Where the first byte lies: in a safetensors file counted from the end of the header, in one of torch.save from the file's start.</summary>
    public long ByteOffset { get; }

    public long ByteLength { get; }

    /// <summary>For messages: <c>F32 (64, 128)</c>.</summary>
    public override string ToString() => Describe(DType, shape);

    internal static string Describe(SafetensorsDType dtype, ReadOnlySpan<long> shape) => $"{dtype.Name()} {DescribeShape(shape)}";

    internal static string DescribeShape(ReadOnlySpan<long> shape)
    {
        // A damaged header may give a shape many axes; a message shows the first few.
        const int Shown = 8;
        IEnumerable<string> axes = shape[..Math.Min(shape.Length, Shown)].ToArray().Select(axis => axis.ToString(CultureInfo.InvariantCulture));
        return $"({string.Join(", ", axes)}{(shape.Length > Shown ? $", ... {shape.Length} axes" : "")})";
    }

    /// <summary>The bytes that a tensor of this type and shape fills; null where the number does not fit 63 bits or is not a whole number of bytes.</summary>
    internal static long? SizeOf(SafetensorsDType dtype, ReadOnlySpan<long> shape)
    {
        try
        {
            long elements = 1;
            foreach (long axis in shape)
            {
                elements = checked(elements * axis);
            }

            long bits = checked(elements * dtype.Bits());
            return bits % 8 == 0 ? bits / 8 : null;
        }
        catch (OverflowException)
        {
            return null;
        }
    }
}
