using System.Runtime.Intrinsics;

namespace LoraTrainer.Engine.Quantization;

/// <summary>How the floating-point numbers of a source are stored.</summary>
internal enum FloatFormat
{
    F32,
    BF16,
    F16,
}

/// <summary>Runs of narrow elements to fp32. Each result is exact or rounded once, so every instruction set gives the same bits.</summary>
internal static unsafe class ElementConversions
{
    private const int Lanes = 8;

    /// <summary>Bytes of one element.</summary>
    public static int SizeOf(FloatFormat format) => format == FloatFormat.F32 ? sizeof(float) : sizeof(ushort);

    /// <summary>destination[i] = the value of source[i], exact.</summary>
    public static void ToF32(FloatFormat format, void* source, float* destination, int count)
    {
        switch (format)
        {
            case FloatFormat.F32:
                Buffer.MemoryCopy(source, destination, (long)count * sizeof(float), (long)count * sizeof(float));
                break;
            case FloatFormat.BF16:
                FromBF16((ushort*)source, destination, count);
                break;
            default:
                FromF16((ushort*)source, destination, count);
                break;
        }
    }

    /// <summary>destination[i] = the value of bfloat16 source[i], exact.</summary>
    public static void FromBF16(ushort* source, float* destination, int count)
    {
        int i = 0;
        for (; i <= count - Lanes; i += Lanes)
        {
            Vector256.ShiftLeft(Widen(source + i), 16).AsSingle().Store(destination + i);
        }

        for (; i < count; i++)
        {
            destination[i] = BitConverter.Int32BitsToSingle(source[i] << 16);
        }
    }

    /// <summary>destination[i] = the value of the half source[i], exact; what is not finite stays so.</summary>
    public static void FromF16(ushort* source, float* destination, int count)
    {
        int i = 0;
        for (; i <= count - Lanes; i += Lanes)
        {
            Vector256<uint> bits = Widen(source + i), magnitude = bits & Vector256.Create(0x7FFFu);
            // The half's exponent read as a float's is 112 too small, for subnormals too; a product with 2^112 is exact.
            Vector256<float> value = Vector256.ShiftLeft(magnitude, 13).AsSingle() * Vector256.Create(5.192296858534828e33f);
            Vector256<uint> notFinite = Vector256.GreaterThan(magnitude, Vector256.Create(0x7BFFu)) & Vector256.Create(0x7F800000u);
            (value.AsUInt32() | notFinite | Vector256.ShiftLeft(bits & Vector256.Create(0x8000u), 16)).AsSingle().Store(destination + i);
        }

        for (; i < count; i++)
        {
            destination[i] = (float)BitConverter.UInt16BitsToHalf(source[i]);
        }
    }

    /// <summary>destination[i] = fl32(source[i] * scale).</summary>
    public static void FromInt8(sbyte* source, float scale, float* destination, int count)
    {
        int i = 0;
        Vector256<float> scales = Vector256.Create(scale);
        for (; i <= count - Lanes; i += Lanes)
        {
            Vector128<short> wide = Vector128.WidenLower(Vector128.CreateScalarUnsafe(*(long*)(source + i)).AsSByte());
            (Vector256.ConvertToSingle(Vector256.WidenLower(wide.ToVector256Unsafe())) * scales).Store(destination + i);
        }

        for (; i < count; i++)
        {
            destination[i] = source[i] * scale;
        }
    }

    private static Vector256<uint> Widen(ushort* source) => Vector256.WidenLower(Vector128.Load(source).ToVector256Unsafe());
}
