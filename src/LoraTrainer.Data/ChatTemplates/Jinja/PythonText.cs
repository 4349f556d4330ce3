using System.Globalization;
using System.Numerics;
using System.Text;
using LoraTrainer.Data.Tokenizers.Unicode;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>Texts as Python sees, searches and writes them.</summary>
internal static class PythonText
{
    /// <summary>Categories that Python does not print in a repr: controls, formats, surrogates, private use, unassigned, separators.</summary>
    private static readonly uint NotPrintable = UnicodeTables.CategoryMask("C")!.Value | UnicodeTables.CategoryMask("Z")!.Value;

    /// <summary>White space of str.strip and of regular expressions.</summary>
    public static bool IsSpace(char c) => c is >= '\u001C' and <= '\u001F' || UnicodeTables.IsWhiteSpace(c);

    public static bool IsAllSpace(ReadOnlySpan<char> text)
    {
        foreach (char c in text)
        {
            if (!IsSpace(c))
            {
                return false;
            }
        }

        return true;
    }

    /// <summary>
    /// The first place of <paramref name="part"/> at or behind <paramref name="from"/>; -1 for none. Linear in the sum of the lengths also for texts that are
    /// made to be slow.
    /// </summary>
    public static int Find(string text, string part, int from, RenderBudget budget)
    {
        budget.Look(text.Length - from + part.Length);
        if (part.Length <= 32)
        {
            int found = text.AsSpan(from).IndexOf(part, StringComparison.Ordinal);
            return found < 0 ? -1 : found + from;
        }

        // Knuth, Morris and Pratt: how much of the part is matched is never forgotten.
        int[] fallback = new int[part.Length];
        for (int i = 1, matched = 0; i < part.Length; i++)
        {
            while (matched > 0 && part[i] != part[matched])
            {
                matched = fallback[matched - 1];
            }

            matched += part[i] == part[matched] ? 1 : 0;
            fallback[i] = matched;
        }

        for (int i = from, matched = 0; i < text.Length; i++)
        {
            while (matched > 0 && text[i] != part[matched])
            {
                matched = fallback[matched - 1];
            }

            matched += text[i] == part[matched] ? 1 : 0;
            if (matched == part.Length)
            {
                return i - part.Length + 1;
            }
        }

        return -1;
    }

    /// <summary>Every place of <paramref name="part"/>, which is not empty, without overlap.</summary>
    public static IEnumerable<int> FindAll(string text, string part, RenderBudget budget)
    {
        for (int at = Find(text, part, 0, budget); at >= 0; at = at + part.Length <= text.Length ? Find(text, part, at + part.Length, budget) : -1)
        {
            yield return at;
        }
    }

    /// <summary>The last place of <paramref name="part"/> that ends at or before <paramref name="end"/>; -1 for none.</summary>
    public static int FindLast(string text, string part, int end, RenderBudget budget)
    {
        if (part.Length <= 32)
        {
            budget.Look(end + part.Length);
            return text.AsSpan(0, end).LastIndexOf(part, StringComparison.Ordinal);
        }

        string reversedText = Reverse(text[..end]), reversedPart = Reverse(part);
        int found = Find(reversedText, reversedPart, 0, budget);
        return found < 0 ? -1 : end - found - part.Length;
    }

    /// <summary>By code points, as Python orders texts.</summary>
    public static int Compare(string left, string right)
    {
        int common = left.AsSpan().CommonPrefixLength(right);
        if (common == left.Length || common == right.Length)
        {
            return left.Length.CompareTo(right.Length);
        }

        char a = left[common], b = right[common];
        return char.IsSurrogate(a) == char.IsSurrogate(b) ? a.CompareTo(b) : char.IsSurrogate(a) ? 1 : -1;
    }

    /// <summary>Upper case, one character for one; "ß" and the ligatures of Latin become several, as in Python.</summary>
    public static string Upper(string text)
    {
        string upper = text.ToUpperInvariant();
        return upper.AsSpan().ContainsAny('ß', 'ŉ') || upper.AsSpan().ContainsAnyInRange('ﬀ', 'ﬆ')
            ? upper.Replace("ß", "SS", StringComparison.Ordinal).Replace("ŉ", "ʼN", StringComparison.Ordinal).Replace("ﬀ", "FF", StringComparison.Ordinal)
                .Replace("ﬁ", "FI", StringComparison.Ordinal).Replace("ﬂ", "FL", StringComparison.Ordinal).Replace("ﬃ", "FFI", StringComparison.Ordinal)
                .Replace("ﬄ", "FFL", StringComparison.Ordinal).Replace("ﬅ", "ST", StringComparison.Ordinal).Replace("ﬆ", "ST", StringComparison.Ordinal)
            : upper;
    }

    public static string Lower(string text) => text.ToLowerInvariant();

    public static string Capitalize(string text)
    {
        int first = text.Length > 1 && char.IsHighSurrogate(text[0]) ? 2 : Math.Min(1, text.Length);
        return Upper(text[..first]) + Lower(text[first..]);
    }

    /// <summary>Each letter behind something that is none is upper case, each other letter lower.</summary>
    /// <param name="text">Any.</param>
    /// <param name="isWordStart">Whether a letter behind this character starts a word.</param>
    public static string Title(string text, Func<char, bool> isWordStart)
    {
        char[] result = text.ToCharArray();
        bool starts = true;
        for (int i = 0; i < result.Length; i++)
        {
            char c = result[i];
            result[i] = starts ? char.ToUpperInvariant(c) : char.ToLowerInvariant(c);
            starts = isWordStart(c);
        }

        return new string(result);
    }

    /// <summary>The shortest digits that give the number again, in Python's notation.</summary>
    public static string Write(double number)
    {
        if (!double.IsFinite(number))
        {
            return double.IsNaN(number) ? "nan" : number > 0 ? "inf" : "-inf";
        }

        if (number == 0)
        {
            return double.IsNegative(number) ? "-0.0" : "0.0";
        }

        // Digits without sign, point and zeros around them, and the power of ten of the first.
        string shortest = Math.Abs(number).ToString("R", CultureInfo.InvariantCulture);
        int mark = shortest.IndexOf('E', StringComparison.Ordinal);
        string mantissa = mark < 0 ? shortest : shortest[..mark];
        int point = mantissa.IndexOf('.', StringComparison.Ordinal) is var found && found < 0 ? mantissa.Length : found;
        int first = mantissa.AsSpan().IndexOfAnyInRange('1', '9');
        int exponent = (first < point ? point - first - 1 : point - first) + (mark < 0 ? 0 : int.Parse(shortest.AsSpan(mark + 1), NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture));
        string plain = mantissa.Replace(".", "", StringComparison.Ordinal).Trim('0');
        string sign = number < 0 ? "-" : "";
        if (exponent is < -4 or >= 16)
        {
            string digits = plain.Length > 1 ? $"{plain[0]}.{plain[1..]}" : plain;
            return string.Create(CultureInfo.InvariantCulture, $"{sign}{digits}e{(exponent < 0 ? '-' : '+')}{Math.Abs(exponent):00}");
        }

        if (exponent < 0)
        {
            return $"{sign}0.{new string('0', -exponent - 1)}{plain}";
        }

        return plain.Length <= exponent + 1
            ? $"{sign}{plain.PadRight(exponent + 1, '0')}.0"
            : $"{sign}{plain[..(exponent + 1)]}.{plain[(exponent + 1)..]}";
    }

    /// <summary>A text in quotes with escapes, as repr writes it.</summary>
    public static void Quote(string text, StringBuilder to)
    {
        char quote = text.Contains('\'', StringComparison.Ordinal) && !text.Contains('"', StringComparison.Ordinal) ? '"' : '\'';
        to.Append(quote);
        for (int i = 0; i < text.Length;)
        {
            int scalar = UnicodeTables.ScalarAt(text, i, out int length);
            if (scalar == quote || scalar == '\\')
            {
                to.Append('\\').Append((char)scalar);
            }
            else if (scalar is '\n' or '\r' or '\t')
            {
                to.Append('\\').Append(scalar == '\n' ? 'n' : scalar == '\r' ? 'r' : 't');
            }
            else if (scalar != ' ' && UnicodeTables.IsInCategories(scalar, NotPrintable))
            {
                to.Append(CultureInfo.InvariantCulture, $"\\{(scalar < 0x100 ? $"x{scalar:x2}" : scalar < 0x10000 ? $"u{scalar:x4}" : $"U{scalar:x8}")}");
            }
            else
            {
                to.Append(text.AsSpan(i, length));
            }

            i += length;
        }

        to.Append(quote);
    }

    public static string Write(BigInteger number) => number.ToString(CultureInfo.InvariantCulture);

    private static string Reverse(string text)
    {
        char[] units = text.ToCharArray();
        Array.Reverse(units);
        return new string(units);
    }
}
