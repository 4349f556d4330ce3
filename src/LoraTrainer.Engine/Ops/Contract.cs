using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>The checks at an operation's border: done once, before any work; kernels trust them. Passing allocates nothing.</summary>
internal static class Contract
{
    public static void Expect(string op, Tensor tensor, DType dtype, long d0, [CallerArgumentExpression(nameof(tensor))] string name = "")
    {
        if (tensor.IsNone || tensor.DType != dtype || tensor.Shape.Rank != 1 || tensor.Shape[0] != d0)
        {
            ThrowMismatch(op, name, tensor, dtype, new Shape(d0));
        }
    }

    public static void Expect(string op, Tensor tensor, DType dtype, long d0, long d1, [CallerArgumentExpression(nameof(tensor))] string name = "")
    {
        if (tensor.IsNone || tensor.DType != dtype || tensor.Shape.Rank != 2 || tensor.Shape[0] != d0 || tensor.Shape[1] != d1)
        {
            ThrowMismatch(op, name, tensor, dtype, new Shape(d0, d1));
        }
    }

    /// <summary>As the other, for what may be columns of a wider matrix.</summary>
    public static void Expect(string op, MatrixColumns columns, DType dtype, long d0, long d1, [CallerArgumentExpression(nameof(columns))] string name = "")
    {
        if (columns.IsAll)
        {
            Expect(op, columns.Whole, dtype, d0, d1, name);
        }
        else if (columns.DType != dtype || columns.Rows != d0 || columns.Count != d1)
        {
            ThrowColumns(op, name, columns, dtype, new Shape(d0, d1));
        }
    }

    /// <summary>A matrix of the given type whose extents the operation takes from it.</summary>
    public static (long Rows, long Columns) ExpectMatrix(string op, Tensor tensor, DType dtype, [CallerArgumentExpression(nameof(tensor))] string name = "")
    {
        if (tensor.IsNone || tensor.DType != dtype || tensor.Shape.Rank != 2)
        {
            ThrowMismatch(op, name, tensor, dtype, null);
        }

        return (tensor.Shape[0], tensor.Shape[1]);
    }

    /// <summary>A matrix of activations, in the type that its device keeps them in; the operation takes the extents from it.</summary>
    public static (long Rows, long Columns) ExpectActivations(string op, Tensor tensor, [CallerArgumentExpression(nameof(tensor))] string name = "") =>
        ExpectMatrix(op, tensor, tensor.IsNone ? DType.F32 : tensor.Device.ActivationType, name);

    /// <summary>All tensors lie on one device; those that are not given are passed over.</summary>
    public static void ExpectSameDevice(string op, Tensor first, params ReadOnlySpan<Tensor> others)
    {
        foreach (Tensor other in others)
        {
            if (!other.IsNone && !ReferenceEquals(first.Device, other.Device))
            {
                ThrowDevices(op, first.Device, other.Device);
            }
        }
    }

    public static void ExpectNoAlias(string op, Tensor output, Tensor input, [CallerArgumentExpression(nameof(output))] string outputName = "", [CallerArgumentExpression(nameof(input))] string inputName = "")
    {
        if (output.Address < input.Address + (nint)input.SizeBytes && input.Address < output.Address + (nint)output.SizeBytes)
        {
            ThrowAlias(op, outputName, inputName);
        }
    }

    /// <summary>The device has no kernel for this operation.</summary>
    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static void ThrowNoKernel(string op, Device device) => throw new NotSupportedException($"{op} has no kernel for {device.Description}.");

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ThrowMismatch(string op, string name, Tensor tensor, DType dtype, Shape? shape)
    {
        string expected = shape is { } known ? $"{dtype} {known}" : $"a matrix of {dtype}";
        string actual = tensor.IsNone ? "nothing" : $"{tensor.DType} {tensor.Shape}";
        throw new ShapeMismatchException($"{op}: {name} must be {expected}, got {actual}.");
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ThrowColumns(string op, string name, MatrixColumns columns, DType dtype, Shape shape) => throw new ShapeMismatchException(
        $"{op}: {name} must be {dtype} {shape}, got {columns.Count} columns of {columns.DType} {columns.Whole.Shape}.");

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ThrowDevices(string op, Device first, Device second) => throw new ShapeMismatchException($"{op}: its tensors lie on two devices, {first.Description} and {second.Description}.");

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ThrowAlias(string op, string output, string input) => throw new ShapeMismatchException($"{op}: {output} may not share memory with {input}.");
}
