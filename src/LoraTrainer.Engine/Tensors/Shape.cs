using System.Globalization;

namespace LoraTrainer.Engine.Tensors;

/// <summary>The extents of a row-major tensor of rank 1 to 3; the last one is contiguous.</summary>
public readonly record struct Shape
{
    private readonly long first;
    private readonly long second;
    private readonly long third;

    public Shape(long first)
        : this(1, first, 1, 1)
    {
    }

    public Shape(long first, long second)
        : this(2, first, second, 1)
    {
    }

    public Shape(long first, long second, long third)
        : this(3, first, second, third)
    {
    }

    private Shape(int rank, long first, long second, long third)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(first);
        ArgumentOutOfRangeException.ThrowIfNegative(second);
        ArgumentOutOfRangeException.ThrowIfNegative(third);
        Rank = rank;
        this.first = first;
        this.second = second;
        this.third = third;
        ElementCount = checked(first * second * third);
    }

    public int Rank { get; }

    public long ElementCount { get; }

    /// <summary>Extent of axis <paramref name="axis"/>, counted from the outermost.</summary>
    public long this[int axis] => axis switch
    {
        0 when Rank > 0 => first,
        1 when Rank > 1 => second,
        2 when Rank > 2 => third,
        _ => throw new ArgumentOutOfRangeException(nameof(axis), axis, $"the tensor has {Rank} axes"),
    };

    public override string ToString() => Rank switch
    {
        1 => string.Create(CultureInfo.InvariantCulture, $"({first})"),
        2 => string.Create(CultureInfo.InvariantCulture, $"({first}, {second})"),
        _ => string.Create(CultureInfo.InvariantCulture, $"({first}, {second}, {third})"),
    };
}
