using System.Runtime.InteropServices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Devices;

/// <summary>How a kernel takes a parameter.</summary>
internal enum KernelParameterKind : byte
{
    /// <summary>An address of device memory; may be null where the kernel says so.</summary>
    Pointer,
    Int32,
    UInt32,
    Int64,
    UInt64,
    Float32,
    Float64,

    /// <summary>A struct by value, with C's layout.</summary>
    Struct,
}

/// <summary>
/// One argument of a launch, made from the value itself. Its kind is checked against the kernel's declaration, so that an int never fills a
/// float's place, nor half of a 64-bit count.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly unsafe struct KernelArgument
{
    // The value, or for a struct its address.
    private readonly ulong bits;

    private KernelArgument(ulong bits, KernelParameterKind kind, int sizeBytes)
    {
        this.bits = bits;
        Kind = kind;
        SizeBytes = sizeBytes;
    }

    public KernelParameterKind Kind { get; }

    public int SizeBytes { get; }

    /// <summary>A tensor's address; null for <see cref="Tensor.None"/>.</summary>
    public static implicit operator KernelArgument(Tensor tensor) => tensor.Address;

    /// <summary>A device address.</summary>
    public static implicit operator KernelArgument(nint address) => new((ulong)address, KernelParameterKind.Pointer, sizeof(ulong));

    public static implicit operator KernelArgument(int value) => new((uint)value, KernelParameterKind.Int32, sizeof(int));

    public static implicit operator KernelArgument(uint value) => new(value, KernelParameterKind.UInt32, sizeof(uint));

    public static implicit operator KernelArgument(long value) => new((ulong)value, KernelParameterKind.Int64, sizeof(long));

    public static implicit operator KernelArgument(ulong value) => new(value, KernelParameterKind.UInt64, sizeof(ulong));

    public static implicit operator KernelArgument(float value) => new(BitConverter.SingleToUInt32Bits(value), KernelParameterKind.Float32, sizeof(float));

    public static implicit operator KernelArgument(double value) => new(BitConverter.DoubleToUInt64Bits(value), KernelParameterKind.Float64, sizeof(double));

    /// <summary>A struct by value. Only its address is kept: it must be a local variable, or pinned, until the launch has returned.</summary>
    public static KernelArgument Struct<T>(T* value)
        where T : unmanaged
        => new((ulong)value, KernelParameterKind.Struct, sizeof(T));

    /// <summary>Where the driver reads the value from.</summary>
    /// <param name="argument">An argument that does not move until the launch has returned.</param>
    public static void* Location(KernelArgument* argument) => argument->Kind == KernelParameterKind.Struct ? (void*)argument->bits : &argument->bits;
}
