using System.Runtime.InteropServices;
using LoraTrainer.Engine.Numerics;

namespace LoraTrainer.Models.Formats;

/// <summary>Between the floating-point types of files and f32.</summary>
public static class FloatConversion
{
    /// <summary>Widens F32, BF16 or F16 elements (little-endian, as files have them) to f32; exact.</summary>
    /// <exception cref="ModelFormatException">another type</exception>
    public static void ToSingle(SafetensorsDType dtype, ReadOnlySpan<byte> source, Span<float> destination)
    {
        switch (dtype)
        {
            case SafetensorsDType.F32:
                MemoryMarshal.Cast<byte, float>(source)[..destination.Length].CopyTo(destination);
                break;
            case SafetensorsDType.BF16:
                ReadOnlySpan<ushort> brain = MemoryMarshal.Cast<byte, ushort>(source);
                for (int i = 0; i < destination.Length; i++)
                {
                    destination[i] = BitConverter.UInt32BitsToSingle((uint)brain[i] << 16);
                }

                break;
            case SafetensorsDType.F16:
                ReadOnlySpan<Half> half = MemoryMarshal.Cast<byte, Half>(source);
                for (int i = 0; i < destination.Length; i++)
                {
                    destination[i] = (float)half[i];
                }

                break;
            default:
                throw new ModelFormatException($"Weights of type {dtype.Name()} are not supported; expected F32, BF16 or F16. Convert the checkpoint to one of these.");
        }
    }

    /// <summary>Stores f32 elements as F32, BF16 or F16 (little-endian, as files have them), rounded to nearest with ties to even.</summary>
    /// <exception cref="ModelFormatException">another type</exception>
    public static void FromSingle(SafetensorsDType dtype, ReadOnlySpan<float> source, Span<byte> destination)
    {
        switch (dtype)
        {
            case SafetensorsDType.F32:
                MemoryMarshal.AsBytes(source).CopyTo(destination);
                break;
            case SafetensorsDType.BF16:
                Span<ushort> brain = MemoryMarshal.Cast<byte, ushort>(destination);
                for (int i = 0; i < source.Length; i++)
                {
                    brain[i] = BrainFloat.FromSingle(source[i]);
                }

                break;
            case SafetensorsDType.F16:
                Span<Half> half = MemoryMarshal.Cast<byte, Half>(destination);
                for (int i = 0; i < source.Length; i++)
                {
                    half[i] = (Half)source[i];
                }

                break;
            default:
                throw new ModelFormatException($"Weights of type {dtype.Name()} are not supported; expected F32, BF16 or F16.");
        }
    }
}
