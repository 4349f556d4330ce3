using System.Collections.Frozen;
using System.Text;

namespace LoraTrainer.Data.Tokenizers.Unicode;

internal enum NormalForm
{
    C,
    D,
    KC,
    KD,
}

/// <summary>
/// The four normalization forms of Unicode TR15, over embedded tables. <see cref="string.Normalize(NormalizationForm)"/> leaves text as it is
/// when the program runs without the platform's globalization library, as this one does, so it cannot be used.
/// </summary>
internal static partial class UnicodeNormalization
{
    private const int HangulBase = 0xAC00, LeadBase = 0x1100, VowelBase = 0x1161, TrailBase = 0x11A7;
    private const int VowelCount = 21, TrailCount = 28, HangulCount = 19 * VowelCount * TrailCount;

    private static readonly FrozenDictionary<int, int> Canonical = IndexDecompositions(compatibility: false);
    private static readonly FrozenDictionary<int, int> Compatible = IndexDecompositions(compatibility: true);
    private static readonly FrozenDictionary<long, int> Compositions = IndexComposites();
    private static readonly FrozenDictionary<int, byte> Classes = IndexClasses();

    public static string Normalize(ReadOnlySpan<char> text, NormalForm form)
    {
        // All four forms leave ASCII as it is; the composed canonical form leaves everything below the first combining mark (U+0300).
        if (text.IndexOfAnyExceptInRange('\0', form == NormalForm.C ? '\u02FF' : '\x7F') < 0)
        {
            return text.ToString();
        }

        bool compatible = form is NormalForm.KC or NormalForm.KD;
        var scalars = new List<int>(text.Length);
        foreach (Rune rune in text.EnumerateRunes())
        {
            Decompose(rune.Value, compatible, scalars);
        }

        OrderMarks(scalars);
        if (form is NormalForm.C or NormalForm.KC)
        {
            Compose(scalars);
        }

        var result = new StringBuilder(text.Length);
        Span<char> units = stackalloc char[2];
        foreach (int scalar in scalars)
        {
            result.Append(units[..new Rune(scalar).EncodeToUtf16(units)]);
        }

        return result.ToString();
    }

    private static void Decompose(int scalar, bool compatible, List<int> destination)
    {
        if (scalar < 0x80)
        {
            destination.Add(scalar);
            return;
        }

        if (scalar - HangulBase is >= 0 and < HangulCount)
        {
            int index = scalar - HangulBase;
            destination.Add(LeadBase + (index / (VowelCount * TrailCount)));
            destination.Add(VowelBase + (index % (VowelCount * TrailCount) / TrailCount));
            if (index % TrailCount != 0)
            {
                destination.Add(TrailBase + (index % TrailCount));
            }

            return;
        }

        if ((compatible && Compatible.TryGetValue(scalar, out int entry)) || Canonical.TryGetValue(scalar, out entry))
        {
            int length = (int)(Decompositions[entry] >> 21 & 0x3FF);
            foreach (uint part in Decompositions.Slice(entry + 1, length))
            {
                destination.Add((int)part);
            }

            return;
        }

        destination.Add(scalar);
    }

    private static int CombiningClass(int scalar) => Classes.TryGetValue(scalar, out byte value) ? value : 0;

    /// <summary>Sorts every run of marks by combining class, stably.</summary>
    private static void OrderMarks(List<int> scalars)
    {
        for (int start = 0; start < scalars.Count; start++)
        {
            if (CombiningClass(scalars[start]) == 0)
            {
                continue;
            }

            int end = start + 1;
            while (end < scalars.Count && CombiningClass(scalars[end]) != 0)
            {
                end++;
            }

            if (end - start > 1)
            {
                int[] ordered = [.. scalars.GetRange(start, end - start).OrderBy(CombiningClass)];
                for (int i = 0; i < ordered.Length; i++)
                {
                    scalars[start + i] = ordered[i];
                }
            }

            start = end;
        }
    }

    /// <summary>Replaces a starter and the first unblocked following character by their primary composite, as often as there is one.</summary>
    private static void Compose(List<int> scalars)
    {
        int starter = -1, written = 0, lastClass = 0;
        for (int read = 0; read < scalars.Count; read++)
        {
            int scalar = scalars[read];
            int combiningClass = CombiningClass(scalar);
            bool adjacent = starter >= 0 && starter == written - 1;
            if (starter >= 0 && (adjacent || (lastClass != 0 && lastClass < combiningClass)) && TryCompose(scalars[starter], scalar) is { } composite)
            {
                scalars[starter] = composite;
                continue;
            }

            if (combiningClass == 0)
            {
                starter = written;
            }

            lastClass = combiningClass;
            scalars[written++] = scalar;
        }

        scalars.RemoveRange(written, scalars.Count - written);
    }

    private static int? TryCompose(int first, int second)
    {
        if (first - LeadBase is >= 0 and < 19 && second - VowelBase is >= 0 and < VowelCount)
        {
            return HangulBase + ((((first - LeadBase) * VowelCount) + second - VowelBase) * TrailCount);
        }

        if (first - HangulBase is >= 0 and < HangulCount && (first - HangulBase) % TrailCount == 0 && second - TrailBase is > 0 and < TrailCount)
        {
            return first + second - TrailBase;
        }

        return Compositions.TryGetValue(((long)first << 32) | (uint)second, out int composite) ? composite : null;
    }

    private static FrozenDictionary<int, int> IndexDecompositions(bool compatibility)
    {
        var index = new Dictionary<int, int>();
        ReadOnlySpan<uint> table = Decompositions;
        for (int i = 0; i < table.Length; i += 1 + (int)(table[i] >> 21 & 0x3FF))
        {
            if (table[i] >> 31 != 0 == compatibility)
            {
                index.Add((int)(table[i] & 0x1FFFFF), i);
            }
        }

        return index.ToFrozenDictionary();
    }

    private static FrozenDictionary<long, int> IndexComposites()
    {
        var index = new Dictionary<long, int>();
        ReadOnlySpan<uint> table = Composites;
        for (int i = 0; i < table.Length; i += 3)
        {
            index.Add(((long)table[i] << 32) | table[i + 1], (int)table[i + 2]);
        }

        return index.ToFrozenDictionary();
    }

    private static FrozenDictionary<int, byte> IndexClasses()
    {
        var index = new Dictionary<int, byte>();
        ReadOnlySpan<uint> table = CombiningClasses;
        for (int i = 0; i + 1 < table.Length; i++)
        {
            byte value = (byte)(table[i] >> 21);
            for (uint scalar = table[i] & 0x1FFFFF; value != 0 && scalar < (table[i + 1] & 0x1FFFFF); scalar++)
            {
                index.Add((int)scalar, value);
            }
        }

        return index.ToFrozenDictionary();
    }
}
