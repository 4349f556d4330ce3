using System.Globalization;
using System.Text;
using LoraTrainer.Data.Tokenizers.Unicode;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>A step that rewrites text before it is split. Each kind is one record; its parameters are those of the tokenizer.json object.</summary>
internal abstract record Normalizer
{
    /// <summary>No normal form makes text so much longer, and steps of a hostile file that double it must not fill the memory.</summary>
    private const int MostGrowth = 32, AlwaysAllowed = 1 << 20;

    /// <exception cref="FormatException">Steps of a file made text much longer than any normal form does.</exception>
    internal static void CheckGrowth(long length, int original)
    {
        if (length > AlwaysAllowed + ((long)MostGrowth * original))
        {
            throw new FormatException(string.Create(CultureInfo.InvariantCulture, $"its steps make a text of {original} characters longer than {MostGrowth} times that; such a file is taken for damaged"));
        }
    }

    /// <param name="text">A piece between two added tokens; without lone surrogates.</param>
    /// <param name="atTextStart">Whether the piece begins where the whole text does; cleared by a step that takes something off its front.</param>
    public abstract string Apply(string text, ref bool atTextStart);

    public string Apply(string text)
    {
        bool ignored = true;
        return Apply(text, ref ignored);
    }

    public sealed record Sequence(IReadOnlyList<Normalizer> Steps) : Normalizer
    {
        public override string Apply(string text, ref bool atTextStart)
        {
            int original = text.Length;
            foreach (Normalizer step in Steps)
            {
                text = step.Apply(text, ref atTextStart);
                CheckGrowth(text.Length, original);
            }

            return text;
        }
    }

    public sealed record Form(NormalForm Target) : Normalizer
    {
        public override string Apply(string text, ref bool atTextStart) => UnicodeNormalization.Normalize(text, Target);
    }

    /// <summary>Scalar by scalar, without context; only U+0130 becomes two.</summary>
    public sealed record Lowercase : Normalizer
    {
        public override string Apply(string text, ref bool atTextStart) => text.ToLowerInvariant().Replace("\u0130", "i\u0307", StringComparison.Ordinal);
    }

    /// <summary>Removes all marks; usually after NFD.</summary>
    public sealed record StripAccents : Normalizer
    {
        public override string Apply(string text, ref bool atTextStart)
        {
            var kept = new StringBuilder(text.Length);
            bool first = true;
            foreach (Rune rune in text.EnumerateRunes())
            {
                if (!UnicodeTables.IsMark(rune.Value))
                {
                    kept.Append(rune.ToString());
                }
                else if (first)
                {
                    atTextStart = false;
                }

                first = false;
            }

            return kept.ToString();
        }
    }

    public sealed record Strip(bool Left, bool Right) : Normalizer
    {
        public override string Apply(string text, ref bool atTextStart)
        {
            int start = 0, end = text.Length;
            while (Left && start < end && UnicodeTables.IsWhiteSpace(text[start]))
            {
                start++;
            }

            while (Right && end > start && UnicodeTables.IsWhiteSpace(text[end - 1]))
            {
                end--;
            }

            atTextStart &= start == 0;
            return text[start..end];
        }
    }

    public sealed record Prepend(string Text) : Normalizer
    {
        public override string Apply(string text, ref bool atTextStart) => text.Length == 0 ? text : Text + text;
    }

    public sealed record Replace(TextPattern Pattern, string Content) : Normalizer
    {
        public override string Apply(string text, ref bool atTextStart) => Pattern.Replace(text, Content);
    }

    /// <summary>The byte-level alphabet, as a normalizer.</summary>
    public sealed record ByteLevel : Normalizer
    {
        public override string Apply(string text, ref bool atTextStart)
        {
            char[] mapped = new char[3 * text.Length];
            return new string(mapped, 0, ByteAlphabet.Map(text, mapped));
        }
    }

    /// <summary>
    /// SentencePiece's map of characters as the tokenizers library applies it: to each grapheme of fewer than 6 bytes as a whole, else character by character, and
    /// what begins with an entry (the shortest one) is replaced as a whole.
    /// </summary>
    public sealed record Precompiled(CharacterMap Map) : Normalizer
    {
        private const int LongestGrapheme = 5;

        public override string Apply(string text, ref bool atTextStart)
        {
            var result = new StringBuilder(text.Length);
            for (int at = 0; at < text.Length;)
            {
                ReadOnlySpan<char> grapheme = text.AsSpan(at, StringInfo.GetNextTextElementLength(text.AsSpan(at)));
                at += grapheme.Length;
                if (Encoding.UTF8.GetByteCount(grapheme) <= LongestGrapheme && Map.Shortest(grapheme, out _, out ReadOnlySpan<byte> whole))
                {
                    result.Append(Encoding.UTF8.GetString(whole));
                    continue;
                }

                for (int i = 0; i < grapheme.Length;)
                {
                    int length = char.IsHighSurrogate(grapheme[i]) ? 2 : 1;
                    ReadOnlySpan<char> scalar = grapheme.Slice(i, length);
                    i += length;
                    if (Map.Shortest(scalar, out _, out ReadOnlySpan<byte> replacement))
                    {
                        result.Append(Encoding.UTF8.GetString(replacement));
                    }
                    else
                    {
                        result.Append(scalar);
                    }
                }

                CheckGrowth(result.Length, text.Length);
            }

            return result.ToString();
        }
    }

    /// <summary>Takes control characters out and makes a space of every kind of space.</summary>
    public sealed record Nmt : Normalizer
    {
        public override string Apply(string text, ref bool atTextStart)
        {
            var result = new StringBuilder(text.Length);
            foreach (char c in text)
            {
                if (c is (>= '\u0001' and <= '\u0008') or '\u000B' or (>= '\u000E' and <= '\u001F') or '\u007F' or '\u008F' or '\u009F')
                {
                    continue;
                }

                result.Append(c is '\t' or '\n' or '\f' or '\r' or '\u1680' or (>= '\u200B' and <= '\u200F') or '\u2028' or '\u2029' or '\u2581' or '\uFEFF' or '\uFFFD' ? ' ' : c);
            }

            return result.ToString();
        }
    }

    /// <summary>BERT's: controls out, white space to spaces, spaces around Chinese characters, marks off, lower case.</summary>
    public sealed record Bert(bool CleanText, bool SeparatesChinese, bool StripsAccents, bool Lowercases) : Normalizer
    {
        private static readonly Form Decompose = new(NormalForm.D);
        private static readonly Lowercase Lower = new();

        public override string Apply(string text, ref bool atTextStart)
        {
            string result = Rewrite(text, (scalar, destination) =>
            {
                // What is in the category C, but for tab, line feed and carriage return, which are white space here.
                bool isSpace = UnicodeTables.IsWhiteSpace(scalar) || scalar is '\t' or '\n' or '\r';
                if (CleanText && (scalar is 0 or 0xFFFD || (UnicodeTables.IsInCategories(scalar, UnicodeTables.CategoryMask("C")!.Value) && scalar is not ('\t' or '\n' or '\r'))))
                {
                    return;
                }

                bool isSeparated = SeparatesChinese && IsChinese(scalar);
                destination.Append(isSeparated ? " " : "").Append(CleanText && isSpace ? " " : new Rune(scalar).ToString()).Append(isSeparated ? " " : "");
            });
            if (StripsAccents)
            {
                result = Rewrite(Decompose.Apply(result), static (scalar, destination) =>
                {
                    if (!UnicodeTables.IsInCategories(scalar, UnicodeTables.CategoryMask("Mn")!.Value))
                    {
                        destination.Append(new Rune(scalar).ToString());
                    }
                });
            }

            return Lowercases ? Lower.Apply(result) : result;
        }

        private static string Rewrite(string text, Action<int, StringBuilder> rewrite)
        {
            var result = new StringBuilder(text.Length);
            foreach (Rune rune in text.EnumerateRunes())
            {
                rewrite(rune.Value, result);
            }

            return result.ToString();
        }

        private static bool IsChinese(int scalar)
            => scalar is (>= 0x4E00 and <= 0x9FFF) or (>= 0x3400 and <= 0x4DBF) or (>= 0x20000 and <= 0x2A6DF) or (>= 0x2A700 and <= 0x2B73F)
                or (>= 0x2B740 and <= 0x2B81F) or (>= 0x2B920 and <= 0x2CEAF) or (>= 0xF900 and <= 0xFAFF) or (>= 0x2F800 and <= 0x2FA1F);
    }

    /// <summary>
    /// SentencePiece's own: user-defined pieces stay as they are, the map of characters rewrites the rest, spaces become U+2581, one is put before the text (or behind
    /// it), and extra ones are taken out where the file says so.
    /// </summary>
    /// <param name="Map">Null: every character stays.</param>
    /// <param name="UserDefined">Pieces that the map does not touch; null where there are none.</param>
    /// <param name="AddDummyPrefix">Whether a space is put before a text (or behind it).</param>
    /// <param name="RemoveExtraWhitespaces">Whether spaces at the ends and repeated ones are taken out.</param>
    /// <param name="EscapeWhitespaces">Whether spaces become U+2581.</param>
    /// <param name="WhitespaceAsSuffix">Whether the space is put behind the text.</param>
    /// <param name="PrefixOnlyAtStart">Whether it is put only where the whole text begins, and not again after each added token.</param>
    public sealed record SentencePiece(
        CharacterMap? Map, PieceTrie? UserDefined, bool AddDummyPrefix, bool RemoveExtraWhitespaces, bool EscapeWhitespaces, bool WhitespaceAsSuffix, bool PrefixOnlyAtStart) : Normalizer
    {
        private const int LongestStep = 1024;

        public override string Apply(string text, ref bool atTextStart)
        {
            bool prefixes = AddDummyPrefix && (atTextStart || !PrefixOnlyAtStart);
            char space = EscapeWhitespaces ? SafeCuts.Space : ' ';
            if (text.Length == 0)
            {
                return text;
            }

            if (Map is null && UserDefined is null && !RemoveExtraWhitespaces)
            {
                string escaped = text.Replace(' ', space);
                return !prefixes ? escaped : WhitespaceAsSuffix ? escaped + space : space + escaped;
            }

            Span<char> buffer = stackalloc char[LongestStep];
            int at = 0;
            while (RemoveExtraWhitespaces && at < text.Length && Step(text.AsSpan(at), buffer, out int length) is " ")
            {
                at += length;
            }

            if (at == text.Length)
            {
                return "";
            }

            var result = new StringBuilder(text.Length + 1);
            if (prefixes && !WhitespaceAsSuffix)
            {
                result.Append(space);
            }

            bool afterSpace = RemoveExtraWhitespaces;
            while (at < text.Length)
            {
                ReadOnlySpan<char> step = Step(text.AsSpan(at), buffer, out int length);
                at += length;
                if (afterSpace)
                {
                    step = step.TrimStart(' ');
                }

                foreach (char c in step)
                {
                    result.Append(c == ' ' ? space : c);
                }

                if (step.Length > 0)
                {
                    afterSpace = RemoveExtraWhitespaces && step[^1] == ' ';
                    CheckGrowth(result.Length, text.Length);
                }
            }

            while (RemoveExtraWhitespaces && result.Length > 0 && result[^1] == space)
            {
                result.Length--;
            }

            if (prefixes && WhitespaceAsSuffix)
            {
                result.Append(space);
            }

            return result.ToString();
        }

        /// <summary>What becomes of the beginning of <paramref name="text"/>, and how long that is.</summary>
        private ReadOnlySpan<char> Step(ReadOnlySpan<char> text, Span<char> buffer, out int length)
        {
            if (UserDefined is not null && UserDefined.Longest(text, out length) >= 0)
            {
                return text[..length];
            }

            if (Map is not null && Map.Longest(text, out length, out ReadOnlySpan<byte> replacement))
            {
                return buffer[..Encoding.UTF8.GetChars(replacement, buffer)];
            }

            length = char.IsHighSurrogate(text[0]) && text.Length > 1 ? 2 : 1;
            return text[..length];
        }
    }
}

/// <summary>What a Split or Replace looks for: a literal text or a regular expression.</summary>
internal sealed class TextPattern
{
    private readonly string? literal;
    private readonly SplitPattern? expression;

    public TextPattern(string literal) => this.literal = literal;

    public TextPattern(SplitPattern expression) => this.expression = expression;

    /// <summary>The leftmost match at or after <paramref name="from"/>. An empty literal matches nowhere.</summary>
    public bool Find(ReadOnlySpan<char> text, int from, SplitPattern.Scratch scratch, out int start, out int end)
    {
        if (expression is not null)
        {
            return expression.Find(text, from, scratch, out start, out end);
        }

        int at = literal!.Length == 0 ? -1 : text[from..].IndexOf(literal, StringComparison.Ordinal);
        start = from + at;
        end = start + literal.Length;
        return at >= 0;
    }

    public string Replace(string text, string content)
    {
        if (literal is not null)
        {
            if (literal.Length == 0)
            {
                return text;
            }

            if (content.Length > literal.Length)
            {
                Normalizer.CheckGrowth(text.Length + ((long)text.AsSpan().Count(literal) * (content.Length - literal.Length)), text.Length);
            }

            return text.Replace(literal, content, StringComparison.Ordinal);
        }

        var scratch = new SplitPattern.Scratch();
        scratch.Refill(text.Length);
        var result = new StringBuilder(text.Length);
        int at = 0;
        while (Find(text, at, scratch, out int start, out int end))
        {
            result.Append(text, at, start - at).Append(content);
            Normalizer.CheckGrowth(result.Length, text.Length);
            at = end;
        }

        return result.Append(text, at, text.Length - at).ToString();
    }
}
