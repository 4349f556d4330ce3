using System.Runtime.InteropServices;

namespace LoraTrainer.Engine.Quantization;

/// <summary>
/// The sixteen values that four bits stand for, and where two neighbours part. A number x in [-1, 1] has the code of the value whose interval it lies in;
/// the value of a code is what is multiplied with a block's scale.
/// </summary>
public sealed unsafe class FourBitCode
{
    /// <summary>Borders between sixteen values.</summary>
    internal const int Borders = 15;

    private const int Entries = 16;

    // Pinned, because work on other threads holds their addresses.
    private readonly float[] values = GC.AllocateUninitializedArray<float>(Entries, pinned: true);
    private readonly float[] thresholds = GC.AllocateUninitializedArray<float>(Borders, pinned: true);
    private readonly uint[] flips = GC.AllocateUninitializedArray<uint>(Borders, pinned: true);

    private FourBitCode(string name, ReadOnlySpan<float> values, ReadOnlySpan<float> thresholds, ReadOnlySpan<byte> ascending)
    {
        Name = name;
        values.CopyTo(this.values);
        thresholds.CopyTo(this.thresholds);
        Lowest = ascending[0];
        for (int i = 0; i < Borders; i++)
        {
            flips[i] = (uint)(ascending[i] ^ ascending[i + 1]);
        }
    }

    /// <summary>
    /// NormalFloat 4: quantiles of a normal distribution, ascending with the code. A threshold is the fp32 midpoint of two neighbours, and a tie takes the lower
    /// code.
    /// </summary>
    public static FourBitCode Nf4 { get; } = CreateNf4();

    /// <summary>
    /// A floating-point number of four bits: bit 3 is the sign, the rest one of the magnitudes 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4. |x| is compared with the
    /// literals of bitsandbytes' GPU kernels, which are not quite the midpoints; a tie takes the smaller magnitude. Codes 0 and 8 are both +0.
    /// </summary>
    public static FourBitCode Fp4 { get; } = CreateFp4();

    /// <summary>As in files and configs: nf4, fp4.</summary>
    public string Name { get; }

    /// <summary>(16) values of the codes.</summary>
    public ReadOnlySpan<float> Table => values;

    /// <summary>(16) values of the codes; the memory does not move while this object lives.</summary>
    internal float* Values => (float*)Marshal.UnsafeAddrOfPinnedArrayElement(values, 0);

    /// <summary>(15) ascending. With each that is below x, <see cref="Lowest"/> is changed by the entry of <see cref="Flips"/>.</summary>
    internal float* Thresholds => (float*)Marshal.UnsafeAddrOfPinnedArrayElement(thresholds, 0);

    /// <summary>(15) the bits by which the codes on both sides of a threshold differ.</summary>
    internal uint* Flips => (uint*)Marshal.UnsafeAddrOfPinnedArrayElement(flips, 0);

    /// <summary>The code of the smallest value.</summary>
    internal uint Lowest { get; }

    private static FourBitCode CreateNf4()
    {
        ReadOnlySpan<float> values =
        [
            -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
            0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
        ];
        Span<float> thresholds = stackalloc float[Borders];
        Span<byte> ascending = stackalloc byte[Entries];
        for (int i = 0; i < Entries; i++)
        {
            ascending[i] = (byte)i;
        }

        for (int i = 0; i < Borders; i++)
        {
            thresholds[i] = (values[i] + values[i + 1]) * 0.5f;
        }

        return new FourBitCode("nf4", values, thresholds, ascending);
    }

    private static FourBitCode CreateFp4()
    {
        ReadOnlySpan<float> magnitudes = [0, 1 / 192f, 2 / 3f, 1, 1 / 3f, 1 / 2f, 1 / 6f, 1 / 4f];
        ReadOnlySpan<byte> smallestFirst = [0, 1, 6, 7, 4, 5, 2, 3];
        ReadOnlySpan<float> above = [0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f];
        Span<float> values = stackalloc float[Entries], thresholds = stackalloc float[Borders];
        Span<byte> ascending = stackalloc byte[Entries];
        const int half = Entries / 2, sign = 8;
        for (int i = 0; i < half; i++)
        {
            values[i] = magnitudes[i];
            values[i | sign] = i == 0 ? 0 : -magnitudes[i];
            ascending[half + i] = smallestFirst[i];
            ascending[half - 1 - i] = (byte)(smallestFirst[i] | sign);
        }

        // Minus a threshold itself still has the smaller magnitude, and zero no sign: both must count as above.
        thresholds[half - 1] = MathF.BitDecrement(0);
        for (int i = 0; i < above.Length; i++)
        {
            thresholds[half + i] = above[i];
            thresholds[half - 2 - i] = MathF.BitDecrement(-above[i]);
        }

        return new FourBitCode("fp4", values, thresholds, ascending);
    }
}
