namespace LoraTrainer.Engine.Numerics;

/// <summary>bf16, the upper half of an f32.</summary>
public static class BrainFloat
{
    /// <summary>Rounds to nearest with ties to even; NaN stays NaN (quiet).</summary>
    public static ushort FromSingle(float value)
    {
        uint bits = BitConverter.SingleToUInt32Bits(value);
        return float.IsNaN(value) ? (ushort)((bits >> 16) | 0x40) : (ushort)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    }

    /// <summary>Exact.</summary>
    public static float ToSingle(ushort bits) => BitConverter.UInt32BitsToSingle((uint)bits << 16);

    /// <summary>The nearest value that bf16 can hold.</summary>
    public static float Round(float value) => ToSingle(FromSingle(value));
}
