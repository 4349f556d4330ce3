using System.Text;
using LoraTrainer.Data.Tokenizers.Unicode;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>A step that rewrites text before it is split. Each kind is one record; its parameters are those of the tokenizer.json object.</summary>
internal abstract record Normalizer
{
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
            foreach (Normalizer step in Steps)
            {
                text = step.Apply(text, ref atTextStart);
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
            return literal.Length == 0 ? text : text.Replace(literal, content, StringComparison.Ordinal);
        }

        var scratch = new SplitPattern.Scratch();
        var result = new StringBuilder(text.Length);
        int at = 0;
        while (Find(text, at, scratch, out int start, out int end))
        {
            result.Append(text, at, start - at).Append(content);
            at = end;
        }

        return result.Append(text, at, text.Length - at).ToString();
    }
}
