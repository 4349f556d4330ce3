using System.Globalization;
using System.Numerics;
using System.Text;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

internal enum TokenKind
{
    /// <summary>Text between the tags.</summary>
    Data,
    PrintBegin,
    PrintEnd,
    BlockBegin,
    BlockEnd,
    Name,
    String,
    Integer,
    Float,
    Operator,
    End,
}

/// <summary>A piece of a template.</summary>
/// <param name="Kind">What it is.</param>
/// <param name="Text">Data, the name, the operator, or the text of a string without its quotes.</param>
/// <param name="Line">Where it begins, from 1.</param>
/// <param name="Number">Of an integer or a float.</param>
internal readonly record struct Token(TokenKind Kind, string Text, int Line, object? Number = null)
{
    public bool Is(TokenKind kind, string text) => Kind == kind && Text == text;

    public string Describe() => Kind switch
    {
        TokenKind.Data => "text",
        TokenKind.PrintBegin => "'{{'",
        TokenKind.PrintEnd => "'}}'",
        TokenKind.BlockBegin => "'{%'",
        TokenKind.BlockEnd => "'%}'",
        TokenKind.End => "the end of the template",
        TokenKind.String => "a string",
        _ => $"'{Text}'",
    };
}

/// <summary>
/// Cuts a template into tokens, with white space as transformers sets it: the newline behind a statement or a comment goes (trim_blocks), and so does
/// what stands before one on its line if that is only white space (lstrip_blocks); "-" takes all white space on its side, "+" leaves it. The last newline
/// of the template goes too.
/// </summary>
internal sealed class Lexer
{
    private static readonly string[] Operators = ["//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".", ":", "|", ",", ";"];

    private readonly string source;
    private readonly List<Token> tokens = [];
    private readonly Stack<char> closers = [];
    private int at, line = 1;
    private bool isLineStart = true;

    private Lexer(string source) => this.source = source;

    public static List<Token> Cut(string template)
    {
        string source = template.Replace("\r\n", "\n", StringComparison.Ordinal).Replace('\r', '\n');
        var lexer = new Lexer(source.EndsWith('\n') ? source[..^1] : source);
        lexer.Run();
        return lexer.tokens;
    }

    private void Run()
    {
        while (NextTag() is var tag && tag >= 0)
        {
            char kind = source[tag + 1];
            char sign = tag + 2 < source.Length && source[tag + 2] is '-' or '+' ? source[tag + 2] : ' ';
            AddData(tag, sign, isPrint: kind == '{');
            int tagLine = line;
            at += sign == ' ' ? 2 : 3;
            if (kind == '#')
            {
                SkipComment(tagLine);
            }
            else if (kind == '%' && IsRaw())
            {
                AddRaw(tagLine);
            }
            else
            {
                tokens.Add(new Token(kind == '{' ? TokenKind.PrintBegin : TokenKind.BlockBegin, "", tagLine));
                ReadTag(kind == '{' ? '}' : '%', tagLine);
            }
        }

        Add(source[at..]);
        tokens.Add(new Token(TokenKind.End, "", line));
    }

    private int NextTag()
    {
        for (int i = source.IndexOf('{', at); i >= 0 && i + 1 < source.Length; i = source.IndexOf('{', i + 1))
        {
            if (source[i + 1] is '{' or '%' or '#')
            {
                return i;
            }
        }

        return -1;
    }

    /// <summary>The text up to a tag; moves to the tag.</summary>
    private void AddData(int tag, char sign, bool isPrint)
    {
        ReadOnlySpan<char> data = source.AsSpan(at..tag);
        int end = data.Length;
        if (sign == '-')
        {
            while (end > 0 && PythonText.IsSpace(data[end - 1]))
            {
                end--;
            }
        }
        else if (sign != '+' && !isPrint)
        {
            int lineStart = data.LastIndexOf('\n') + 1;
            if ((lineStart > 0 || isLineStart) && PythonText.IsAllSpace(data[lineStart..]))
            {
                end = lineStart;
            }
        }

        Add(source[at..(at + end)]);
        line += data[end..].Count('\n');
        at = tag;
    }

    private void Add(string data)
    {
        if (data.Length > 0)
        {
            tokens.Add(new Token(TokenKind.Data, data, line));
            line += data.AsSpan().Count('\n');
        }
    }

    private void SkipComment(int tagLine)
    {
        int end = source.IndexOf("#}", at, StringComparison.Ordinal);
        if (end < 0)
        {
            throw new JinjaException("the comment that begins here has no end '#}'", tagLine);
        }

        char sign = end > at && source[end - 1] is '-' or '+' ? source[end - 1] : ' ';
        MoveBehind(end + 2, sign);
    }

    private bool IsRaw()
    {
        int i = SkipSpace(at);
        if (string.CompareOrdinal(source, i, "raw", 0, 3) != 0)
        {
            return false;
        }

        i = SkipSpace(i + 3);
        return string.CompareOrdinal(source, i, "%}", 0, 2) == 0 || string.CompareOrdinal(source, i, "-%}", 0, 3) == 0;
    }

    /// <summary>Text between raw and endraw, in which tags mean nothing.</summary>
    private void AddRaw(int tagLine)
    {
        int open = source.IndexOf("%}", at, StringComparison.Ordinal) + 2;
        int begin = source[open - 3] == '-' ? SkipSpace(open) : open;
        line += source.AsSpan(at..begin).Count('\n');
        at = begin;
        isLineStart = source[begin - 1] == '\n';
        for (int tag = source.IndexOf("{%", at, StringComparison.Ordinal); tag >= 0; tag = source.IndexOf("{%", tag + 2, StringComparison.Ordinal))
        {
            char sign = tag + 2 < source.Length && source[tag + 2] is '-' or '+' ? source[tag + 2] : ' ';
            int name = SkipSpace(sign == ' ' ? tag + 2 : tag + 3);
            int end = string.CompareOrdinal(source, name, "endraw", 0, 6) == 0 ? SkipSpace(name + 6) : source.Length;
            char endSign = end < source.Length && source[end] is '-' or '+' ? source[end] : ' ';
            end += endSign == ' ' ? 0 : 1;
            if (string.CompareOrdinal(source, end, "%}", 0, 2) == 0)
            {
                AddData(tag, sign, isPrint: false);
                MoveBehind(end + 2, endSign);
                return;
            }
        }

        throw new JinjaException("'raw' has no 'endraw'", tagLine);
    }

    /// <summary>Goes on behind the end of a statement or comment.</summary>
    private void MoveBehind(int end, char sign)
    {
        int next = sign == '-' ? SkipSpace(end) : sign == ' ' && end < source.Length && source[end] == '\n' ? end + 1 : end;
        line += source.AsSpan(at..next).Count('\n');
        at = next;
        isLineStart = source[next - 1] == '\n';
    }

    private int SkipSpace(int i)
    {
        while (i < source.Length && PythonText.IsSpace(source[i]))
        {
            i++;
        }

        return i;
    }

    private void ReadTag(char close, int tagLine)
    {
        while (true)
        {
            int next = SkipSpace(at);
            line += source.AsSpan(at..next).Count('\n');
            at = next;
            if (at >= source.Length)
            {
                throw new JinjaException(close == '}' ? "'{{' has no '}}'" : "'{%' has no '%}'", tagLine);
            }

            char sign = source[at] == '-' || (source[at] == '+' && close == '%') ? source[at] : ' ';
            int end = sign == ' ' ? at : at + 1;
            if (closers.Count == 0 && end + 1 < source.Length && source[end] == close && source[end + 1] == '}')
            {
                tokens.Add(new Token(close == '}' ? TokenKind.PrintEnd : TokenKind.BlockEnd, "", line));

                // The newline behind a print stays.
                MoveBehind(end + 2, close == '}' && sign == ' ' ? '+' : sign);
                return;
            }

            ReadToken();
        }
    }

    private void ReadToken()
    {
        char c = source[at];
        if (char.IsAsciiDigit(c))
        {
            ReadNumber();
        }
        else if (c == '_' || char.IsLetter(c))
        {
            int end = at + 1;
            while (end < source.Length && (source[end] == '_' || char.IsLetterOrDigit(source[end])))
            {
                end++;
            }

            tokens.Add(new Token(TokenKind.Name, source[at..end], line));
            at = end;
        }
        else if (c is '\'' or '"')
        {
            ReadString(c);
        }
        else
        {
            string found = Array.Find(Operators, word => string.CompareOrdinal(source, at, word, 0, word.Length) == 0)
                ?? throw new JinjaException($"'{c}' means nothing inside a tag", line);
            Balance(found[0]);
            tokens.Add(new Token(TokenKind.Operator, found, line));
            at += found.Length;
        }
    }

    /// <summary>Inside brackets "}}" ends no tag.</summary>
    private void Balance(char bracket)
    {
        if (bracket is '(' or '[' or '{')
        {
            closers.Push(bracket switch
            {
                '(' => ')',
                '[' => ']',
                _ => '}',
            });
        }
        else if (bracket is ')' or ']' or '}' && (!closers.TryPop(out char expected) || expected != bracket))
        {
            throw new JinjaException(expected == 0 ? $"'{bracket}' closes nothing" : $"'{bracket}' stands where '{expected}' is expected", line);
        }
    }

    private void ReadNumber()
    {
        int end = at;
        bool isOther = source[at] == '0' && at + 1 < source.Length && char.ToLowerInvariant(source[at + 1]) is 'x' or 'o' or 'b';
        if (isOther)
        {
            int radix = char.ToLowerInvariant(source[at + 1]) switch
            {
                'x' => 16,
                'o' => 8,
                _ => 2,
            };
            BigInteger value = 0;
            for (end = at + 2; end < source.Length && (char.IsAsciiHexDigit(source[end]) || source[end] == '_'); end++)
            {
                int digit = source[end] == '_' ? -1 : Convert.ToInt32(source[end].ToString(), 16);
                if (digit >= radix || end - at > 64)
                {
                    throw new JinjaException($"'{source[at..(end + 1)]}' is not a number", line);
                }

                value = digit < 0 ? value : (value * radix) + digit;
            }

            AddNumber(end, TokenKind.Integer, value);
            return;
        }

        end = Digits(at);
        bool isFloat = false;
        if (end + 1 < source.Length && source[end] == '.' && char.IsAsciiDigit(source[end + 1]) && !(at > 0 && source[at - 1] == '.'))
        {
            isFloat = true;
            end = Digits(end + 1);
        }

        if (end < source.Length && source[end] is 'e' or 'E')
        {
            int exponent = end + 1 < source.Length && source[end + 1] is '+' or '-' ? end + 2 : end + 1;
            if (exponent < source.Length && char.IsAsciiDigit(source[exponent]))
            {
                isFloat = true;
                end = Digits(exponent);
            }
        }

        string digits = source[at..end].Replace("_", "", StringComparison.Ordinal);
        if (digits.Length > 400)
        {
            throw new JinjaException("a number has more than 400 digits", line);
        }

        AddNumber(end, isFloat ? TokenKind.Float : TokenKind.Integer, isFloat
            ? double.Parse(digits, NumberStyles.Float, CultureInfo.InvariantCulture)
            : BigInteger.Parse(digits, CultureInfo.InvariantCulture));
    }

    private int Digits(int i)
    {
        while (i < source.Length && (char.IsAsciiDigit(source[i]) || (source[i] == '_' && i + 1 < source.Length && char.IsAsciiDigit(source[i + 1]))))
        {
            i++;
        }

        return i;
    }

    private void AddNumber(int end, TokenKind kind, object value)
    {
        tokens.Add(new Token(kind, source[at..end], line, value));
        at = end;
    }

    /// <summary>A string with Python's escapes.</summary>
    private void ReadString(char quote)
    {
        int end = at + 1;
        while (end < source.Length && source[end] != quote)
        {
            end += source[end] == '\\' ? 2 : 1;
        }

        if (end >= source.Length)
        {
            throw new JinjaException($"the string that begins with {quote} has no end", line);
        }

        int begin = line;
        line += source.AsSpan(at..end).Count('\n');
        tokens.Add(new Token(TokenKind.String, Unescape(source.AsSpan((at + 1)..end), begin), begin));
        at = end + 1;
    }

    /// <summary>Python escapes what is beyond ASCII before it looks for escapes, so that a backslash before such a character escapes the backslash of that.</summary>
    private static string Escaped(ReadOnlySpan<char> text, ref int i)
    {
        int scalar = i + 1 < text.Length && char.IsSurrogatePair(text[i], text[i + 1]) ? char.ConvertToUtf32(text[i], text[++i]) : text[i];
        return string.Create(CultureInfo.InvariantCulture, $"\\{(scalar < 0x100 ? $"x{scalar:x2}" : scalar < 0x10000 ? $"u{scalar:x4}" : $"U{scalar:x8}")}");
    }

    private static string Unescape(ReadOnlySpan<char> text, int line)
    {
        if (!text.Contains('\\'))
        {
            return text.ToString();
        }

        var result = new StringBuilder(text.Length);
        for (int i = 0; i < text.Length; i++)
        {
            if (text[i] != '\\' || i + 1 == text.Length)
            {
                result.Append(text[i]);
                continue;
            }

            char c = text[++i];
            int digits = c switch
            {
                'x' => 2,
                'u' => 4,
                'U' => 8,
                _ => 0,
            };
            if (digits > 0)
            {
                if (i + digits >= text.Length || !uint.TryParse(text.Slice(i + 1, digits), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out uint scalar) || scalar > 0x10FFFF)
                {
                    throw new JinjaException($"'\\{c}' needs {digits} hexadecimal digits of a character", line);
                }

                result.Append(scalar < 0x10000 ? ((char)scalar).ToString() : char.ConvertFromUtf32((int)scalar));
                i += digits;
                continue;
            }

            if (c is >= '0' and <= '7')
            {
                int value = 0, count = 0;
                for (; count < 3 && i + count < text.Length && text[i + count] is >= '0' and <= '7'; count++)
                {
                    value = (value * 8) + text[i + count] - '0';
                }

                result.Append((char)value);
                i += count - 1;
                continue;
            }

            result.Append(c switch
            {
                '\n' => "",
                '\\' or '\'' or '"' => c.ToString(),
                'a' => "\a",
                'b' => "\b",
                'f' => "\f",
                'n' => "\n",
                'r' => "\r",
                't' => "\t",
                'v' => "\v",
                >= '\u0080' => Escaped(text, ref i),
                'N' => throw new JinjaException("'\\N{...}' is not supported; write the character itself", line),
                _ => $"\\{c}",
            });
        }

        return result.ToString();
    }
}
