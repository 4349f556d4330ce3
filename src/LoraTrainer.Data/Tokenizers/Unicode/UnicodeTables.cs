using System.Buffers;
using System.Text;

namespace LoraTrainer.Data.Tokenizers.Unicode;

/// <summary>
/// Character properties of Unicode 16.0, embedded: the split patterns of tokenizers are defined over them, and a run time's own tables may be of
/// another version. Categories are numbered as in <see cref="System.Globalization.UnicodeCategory"/>.
/// </summary>
internal static partial class UnicodeTables
{
    private const byte CategoryBits = 31;
    private const byte WhiteSpaceBit = 32;
    private const byte WordBit = 64;

    /// <summary>The basic plane expanded; the other planes are looked up in the ranges.</summary>
    private static readonly byte[] Basic = ExpandBasicPlane();

    /// <summary>Bit mask over categories, by the names of <c>\p{...}</c>; null for a name that is not a general category.</summary>
    public static uint? CategoryMask(string name) => name switch
    {
        "L" => 0x1F, "Lu" => 1 << 0, "Ll" => 1 << 1, "Lt" => 1 << 2, "Lm" => 1 << 3, "Lo" => 1 << 4,
        "M" => 0xE0, "Mn" => 1 << 5, "Mc" => 1 << 6, "Me" => 1 << 7,
        "N" => 0x700, "Nd" => 1 << 8, "Nl" => 1 << 9, "No" => 1 << 10,
        "Z" => 0x3800, "Zs" => 1 << 11, "Zl" => 1 << 12, "Zp" => 1 << 13,
        "C" => 0x2003C000, "Cc" => 1 << 14, "Cf" => 1 << 15, "Cs" => 1 << 16, "Co" => 1 << 17, "Cn" => 1 << 29,
        "P" => 0x1FC0000, "Pc" => 1 << 18, "Pd" => 1 << 19, "Ps" => 1 << 20, "Pe" => 1 << 21, "Pi" => 1 << 22, "Pf" => 1 << 23, "Po" => 1 << 24,
        "S" => 0x1E000000, "Sm" => 1 << 25, "Sc" => 1 << 26, "Sk" => 1 << 27, "So" => 1 << 28,
        _ => null,
    };

    public static int Category(int scalar) => Properties(scalar) & CategoryBits;

    public static bool IsInCategories(int scalar, uint mask) => (mask >> Category(scalar) & 1) != 0;

    /// <summary>White_Space: 25 code points.</summary>
    public static bool IsWhiteSpace(int scalar) => (Properties(scalar) & WhiteSpaceBit) != 0;

    /// <summary>A word character of a regular expression: Alphabetic, marks, decimal digits, connector punctuation, join controls.</summary>
    public static bool IsWord(int scalar) => (Properties(scalar) & WordBit) != 0;

    public static bool IsNumeric(int scalar) => IsInCategories(scalar, 0x700);

    public static bool IsMark(int scalar) => IsInCategories(scalar, 0xE0);

    /// <summary>Unicode punctuation or ASCII punctuation (which has symbols such as $ and + too).</summary>
    public static bool IsPunctuation(int scalar)
        => scalar < 128 ? scalar is >= '!' and <= '/' or >= ':' and <= '@' or >= '[' and <= '`' or >= '{' and <= '~' : IsInCategories(scalar, 0x1FC0000);

    /// <summary>The scalar at <paramref name="index"/> of a text without lone surrogates, and its length in UTF-16 units.</summary>
    public static int ScalarAt(ReadOnlySpan<char> text, int index, out int length)
    {
        char unit = text[index];
        if (!char.IsHighSurrogate(unit) || index + 1 >= text.Length)
        {
            length = 1;
            return unit;
        }

        length = 2;
        return char.ConvertToUtf32(unit, text[index + 1]);
    }

    /// <summary>The scalar that ends just before <paramref name="end"/>, and its length.</summary>
    public static int ScalarBefore(ReadOnlySpan<char> text, int end, out int length)
    {
        if (end >= 2 && char.IsLowSurrogate(text[end - 1]) && char.IsHighSurrogate(text[end - 2]))
        {
            length = 2;
            return char.ConvertToUtf32(text[end - 2], text[end - 1]);
        }

        length = 1;
        return text[end - 1];
    }

    /// <summary>True where the text has a surrogate without its partner, which no UTF-8 text can have.</summary>
    public static bool HasLoneSurrogate(ReadOnlySpan<char> text)
    {
        int start = text.IndexOfAnyInRange('\uD800', '\uDFFF');
        for (int i = start; i >= 0 && i < text.Length; i++)
        {
            if (Rune.DecodeFromUtf16(text[i..], out _, out int length) != OperationStatus.Done)
            {
                return true;
            }

            i += length - 1;
        }

        return false;
    }

    /// <summary>Every surrogate without its partner becomes U+FFFD.</summary>
    public static string ReplaceLoneSurrogates(ReadOnlySpan<char> text)
    {
        var clean = new StringBuilder(text.Length);
        while (!text.IsEmpty)
        {
            Rune.DecodeFromUtf16(text, out Rune rune, out int length);
            clean.Append(rune.ToString());
            text = text[length..];
        }

        return clean.ToString();
    }

    private static byte Properties(int scalar) => scalar < 0x10000 ? Basic[scalar] : (byte)(Ranges[RangeOf(scalar)] >> 21);

    private static int RangeOf(int scalar)
    {
        ReadOnlySpan<uint> ranges = Ranges;
        int low = 0, high = ranges.Length - 1;
        while (low < high)
        {
            int middle = (low + high + 1) / 2;
            if ((ranges[middle] & 0x1FFFFF) <= (uint)scalar)
            {
                low = middle;
            }
            else
            {
                high = middle - 1;
            }
        }

        return low;
    }

    private static byte[] ExpandBasicPlane()
    {
        byte[] basic = new byte[0x10000];
        ReadOnlySpan<uint> ranges = Ranges;
        for (int i = 0; i < ranges.Length && (ranges[i] & 0x1FFFFF) < 0x10000; i++)
        {
            int start = (int)(ranges[i] & 0x1FFFFF);
            int end = i + 1 < ranges.Length ? Math.Min(0x10000, (int)(ranges[i + 1] & 0x1FFFFF)) : 0x10000;
            basic.AsSpan(start..end).Fill((byte)(ranges[i] >> 21));
        }

        return basic;
    }
}
