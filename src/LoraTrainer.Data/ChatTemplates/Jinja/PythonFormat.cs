using System.Globalization;
using System.Numerics;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>The parts of Python's two ways to fill in a pattern that templates use: "%s" % value, and "{}".format(value).</summary>
internal static class PythonFormat
{
    /// <summary>"%s %d" % values: s, r, d, i, x, o, f, and %% ; with [-][0][width][.precision] before the letter, and %(name)s from a dictionary.</summary>
    public static Text Percent(Text format, object? values, RenderBudget budget)
    {
        var builder = new TextBuilder(budget);
        string pattern = format.Value;
        IReadOnlyList<object?> given = values is ListValue { IsTuple: true } tuple ? tuple.Items : [values];
        int used = 0;
        for (int at = 0; at < pattern.Length;)
        {
            int percent = pattern.IndexOf('%', at);
            if (percent < 0)
            {
                percent = pattern.Length;
            }

            builder.Append(format.Slice(at, percent, budget));
            at = percent;
            if (at == pattern.Length)
            {
                break;
            }

            at++;
            object? value = null;
            bool isNamed = at < pattern.Length && pattern[at] == '(';
            if (isNamed)
            {
                int close = pattern.IndexOf(')', at);
                string name = close < 0 ? throw Wrong("'%(' has no ')'") : pattern[(at + 1)..close];
                value = values is DictValue dict && dict.TryGet(name, out object? entry) ? entry : throw Wrong($"there is no value '{name}'");
                at = close + 1;
            }

            bool isLeft = false, isZero = false;
            for (; at < pattern.Length && pattern[at] is '-' or '0'; at++)
            {
                isLeft |= pattern[at] == '-';
                isZero |= pattern[at] == '0';
            }

            int width = Number(ref at) ?? 0;
            int? precision = null;
            if (at < pattern.Length && pattern[at] == '.')
            {
                at++;
                precision = Number(ref at) ?? 0;
            }

            char letter = at < pattern.Length ? pattern[at++] : throw Wrong("it ends in '%'");
            if (letter == '%')
            {
                builder.Append("%");
                continue;
            }

            if (!isNamed)
            {
                value = used < given.Count ? given[used++] : throw Wrong("it asks for more values than there are");
            }

            Text piece = Piece(letter, Operators.Defined(value), precision);
            int pad = width - piece.CodePoints;
            bool withZeros = isZero && !isLeft && letter is not ('s' or 'r');
            if (pad > 0 && withZeros && piece.Value.StartsWith('-'))
            {
                piece = Text.Own("-" + new string('0', pad) + piece.Value[1..]);
                pad = 0;
            }

            builder.Append(pad > 0 && !isLeft ? new string(withZeros ? '0' : ' ', pad) : "");
            builder.Append(piece);
            builder.Append(pad > 0 && isLeft ? new string(' ', pad) : "");
        }

        return used == given.Count || values is DictValue ? builder.ToText() : throw Wrong("there are more values than it asks for");

        int? Number(ref int at)
        {
            int begin = at;
            while (at < pattern.Length && char.IsAsciiDigit(pattern[at]))
            {
                at++;
            }

            return begin == at ? null
                : at - begin <= 3 ? int.Parse(pattern.AsSpan(begin..at), CultureInfo.InvariantCulture) : throw Wrong("a width or precision has more than three digits");
        }

        Text Piece(char letter, object? value, int? precision)
        {
            switch (letter)
            {
                case 's' or 'r':
                    Text text = letter == 's' ? Operators.ToText(value, budget) : Operators.Repr(value, budget);
                    return precision is { } most && most < text.CodePoints ? text.Slice(0, text.UnitOf(most), budget) : text;
                case 'd' or 'i' when Operators.TryNumber(value, out double real) && double.IsFinite(real):
                    return Text.Own(PythonText.Write(Operators.TryWhole(value, out BigInteger whole) ? whole : new BigInteger(Math.Truncate(real))));
                case 'x' when Operators.TryWhole(value, out BigInteger positive) && positive.Sign >= 0 && positive <= long.MaxValue:
                    return Text.Own(((long)positive).ToString("x", CultureInfo.InvariantCulture));
                case 'f' when Operators.TryNumber(value, out double number) && double.IsFinite(number):
                    return Text.Own(number.ToString(string.Create(CultureInfo.InvariantCulture, $"F{precision ?? 6}"), CultureInfo.InvariantCulture));
                default:
                    throw Wrong($"'%{letter}' is not supported for {Words.Of(value)}");
            }
        }

        JinjaException Wrong(string problem) => new($"the pattern \"{Shown(pattern)}\" of '%': {problem}");
    }

    /// <summary>"{} {0} {name}".format(...): values as they print; a format behind ':' is refused.</summary>
    public static Text Format(Text format, CallArguments arguments, RenderBudget budget)
    {
        var builder = new TextBuilder(budget);
        string pattern = format.Value;
        int next = 0;
        for (int at = 0; at < pattern.Length;)
        {
            int brace = pattern.AsSpan(at).IndexOfAny('{', '}');
            int end = brace < 0 ? pattern.Length : at + brace;
            builder.Append(format.Slice(at, end, budget));
            at = end;
            if (at == pattern.Length)
            {
                break;
            }

            if (at + 1 < pattern.Length && pattern[at + 1] == pattern[at])
            {
                builder.Append(format.Slice(at, at + 1, budget));
                at += 2;
                continue;
            }

            int close = pattern[at] == '{' ? pattern.IndexOf('}', at) : -1;
            string name = close < 0 ? throw Wrong("a brace has no partner") : pattern[(at + 1)..close];
            object? value;
            if (name.Length == 0 || (name.Length < 4 && name.All(char.IsAsciiDigit)))
            {
                int index = name.Length == 0 ? next++ : int.Parse(name, CultureInfo.InvariantCulture);
                value = index < arguments.Positional.Count ? arguments.Positional[index] : throw Wrong("it asks for more values than there are");
            }
            else if (!arguments.Keywords.TryGetValue(name, out value))
            {
                throw Wrong($"'{{{name}}}' is not supported, or there is no such value; plain names and numbers are");
            }

            builder.Append(Operators.ToText(Operators.Defined(value), budget));
            at = close + 1;
        }

        return builder.ToText();

        JinjaException Wrong(string problem) => new($"the pattern \"{Shown(pattern)}\" of format: {problem}");
    }

    private static string Shown(string pattern) => pattern.Length <= 60 ? pattern : pattern[..60] + "...";
}
