using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace LoraTrainer.Engine.Quantization;

/// <summary>
/// The 256 ascending values of an 8-bit code, and the rule that finds the nearest: neighbours a, b part at fl32(fl32(a + b) / 2), and a tie goes to
/// the even code. NaN has code 0; numbers beyond the ends have the end's code.
/// </summary>
internal sealed unsafe class DynamicMap
{
    public const int Entries = 256;

    private const int Lanes = 8;

    private static readonly float[] PowersOfTen = [1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1f];

    // Pinned, because work on other threads holds their addresses.
    private readonly float[] values = GC.AllocateUninitializedArray<float>(Entries, pinned: true);
    private readonly float[] thresholds = GC.AllocateUninitializedArray<float>(Entries, pinned: true);

    /// <param name="values">(256) ascending; a checkpoint's own map must be used for its codes</param>
    public DynamicMap(ReadOnlySpan<float> values)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(values.Length, Entries);
        values.CopyTo(this.values);
        for (int i = 0; i < Entries - 1; i++)
        {
            // Code = number of thresholds below x. An odd code's upper midpoint belongs to the even code above it: it too must count as below.
            float middle = (values[i] + values[i + 1]) * 0.5f;
            thresholds[i] = i % 2 == 1 ? MathF.BitDecrement(middle) : middle;
        }

        // Never looked at: eight halvings of 256 codes end at the last threshold but one.
        thresholds[Entries - 1] = float.PositiveInfinity;
    }

    /// <summary>bitsandbytes' signed dynamic map of eight bits: -0.993 .. 1.</summary>
    public static DynamicMap Signed { get; } = new(Create(signed: true));

    /// <summary>bitsandbytes' unsigned dynamic map of eight bits: 0 .. 1.</summary>
    public static DynamicMap Unsigned { get; } = new(Create(signed: false));

    /// <summary>The entries in ascending order.</summary>
    public ReadOnlySpan<float> AsSpan() => values;

    /// <summary>(256) ascending; the memory does not move while this object lives.</summary>
    public float* Values => (float*)Marshal.UnsafeAddrOfPinnedArrayElement(values, 0);

    /// <summary>(256) what <see cref="Nearest"/> compares with; the memory does not move while this object lives.</summary>
    public float* Thresholds => (float*)Marshal.UnsafeAddrOfPinnedArrayElement(thresholds, 0);

    /// <summary>codes[i] = the code of fl32(source[i] * factor).</summary>
    /// <param name="thresholds">(256) of the map</param>
    /// <param name="source">(count)</param>
    /// <param name="factor">usually 1 / absmax</param>
    /// <param name="count">number of elements</param>
    /// <param name="codes">(count) overwritten</param>
    public static void Nearest(float* thresholds, float* source, float factor, int count, byte* codes)
    {
        int i = 0;
        if (Avx2.IsSupported)
        {
            for (; i <= count - Lanes; i += Lanes)
            {
                Vector256<float> x = Vector256.Load(source + i) * Vector256.Create(factor);
                Vector256<int> code = Vector256<int>.Zero;
                for (int step = Entries / 2; step > 0; step >>= 1)
                {
                    Vector256<float> threshold = Avx2.GatherVector256(thresholds + step - 1, code, sizeof(float));
                    code += Vector256.GreaterThan(x, threshold).AsInt32() & Vector256.Create(step);
                }

                Vector128<short> narrow = Vector128.Narrow(code.GetLower(), code.GetUpper());
                *(long*)(codes + i) = Vector128.Narrow(narrow, narrow).AsInt64().ToScalar();
            }
        }

        for (; i < count; i++)
        {
            float x = source[i] * factor;
            int code = 0;
            for (int step = Entries / 2; step > 0; step >>= 1)
            {
                code += x > thresholds[code + step - 1] ? step : 0;
            }

            codes[i] = (byte)code;
        }
    }

    /// <summary>
    /// For each power of ten 10^-6 .. 1 the midpoints of 1, 2, 4 .. 64 (unsigned: 2 .. 128) equal intervals of [0.1, 1], their negatives, 0 and 1.
    /// </summary>
    private static float[] Create(bool signed)
    {
        var entries = new List<float>(Entries) { 0, 1 };
        for (int i = 0; i < PowersOfTen.Length; i++)
        {
            int intervals = 1 << (signed ? i : i + 1);
            for (int j = 0; j < intervals; j++)
            {
                float mean = (Boundary(j, intervals) + Boundary(j + 1, intervals)) / 2;
                entries.Add(PowersOfTen[i] * mean);
                if (signed)
                {
                    entries.Add(-(PowersOfTen[i] * mean));
                }
            }
        }

        entries.Sort();
        return [.. entries];
    }

    /// <summary>Point j of linspace(0.1, 1, intervals + 1) as torch's CPU code makes it: from the nearer end, with one rounding.</summary>
    private static float Boundary(int j, int intervals)
    {
        const float start = 0.1f, end = 1;
        float step = (end - start) / intervals;
        return j < (intervals + 1) / 2 ? MathF.FusedMultiplyAdd(step, j, start) : MathF.FusedMultiplyAdd(-step, intervals - j, end);
    }
}
