using System.Text;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>A step from token texts to text: it rewrites the list of texts, which are joined at the end. Each kind is one record.</summary>
internal abstract record Decoder
{
    public abstract List<string> Apply(List<string> tokens);

    private static int Length(List<string> tokens)
    {
        long length = 0;
        foreach (string token in tokens)
        {
            length += token.Length;
        }

        return (int)Math.Min(length, int.MaxValue);
    }

    public sealed record Sequence(IReadOnlyList<Decoder> Steps) : Decoder
    {
        public override List<string> Apply(List<string> tokens)
        {
            int original = Length(tokens);
            foreach (Decoder step in Steps)
            {
                tokens = step.Apply(tokens);
                Normalizer.CheckGrowth(Length(tokens), original);
            }

            return tokens;
        }
    }

    public sealed record Replace(TextPattern Pattern, string Content) : Decoder
    {
        public override List<string> Apply(List<string> tokens)
        {
            int original = Length(tokens);
            long total = 0;
            return tokens.ConvertAll(token =>
            {
                string replaced = Pattern.Replace(token, Content);
                Normalizer.CheckGrowth(total += replaced.Length, original);
                return replaced;
            });
        }
    }

    public sealed record Fuse : Decoder
    {
        public override List<string> Apply(List<string> tokens) => [string.Concat(tokens)];
    }

    /// <summary>Takes up to that many of one character off the ends of every text.</summary>
    public sealed record Strip(char Content, int Start, int Stop) : Decoder
    {
        public override List<string> Apply(List<string> tokens) => tokens.ConvertAll(token =>
        {
            int start = 0, end = token.Length;
            while (start < Start && start < end && token[start] == Content)
            {
                start++;
            }

            while (token.Length - end < Stop && end > start && token[end - 1] == Content)
            {
                end--;
            }

            return token[start..end];
        });
    }

    /// <summary>A maximal run of tokens like &lt;0x0A&gt; is their text where it is valid UTF-8, else one U+FFFD per byte.</summary>
    public sealed record ByteFallback : Decoder
    {
        private static readonly UTF8Encoding Strict = new(encoderShouldEmitUTF8Identifier: false, throwOnInvalidBytes: true);

        public override List<string> Apply(List<string> tokens)
        {
            var texts = new List<string>(tokens.Count);
            var run = new List<byte>();
            foreach (string token in tokens)
            {
                if (ByteTokens.ByteOf(token) is { } value)
                {
                    run.Add(value);
                    continue;
                }

                Flush();
                texts.Add(token);
            }

            Flush();
            return texts;

            void Flush()
            {
                if (run.Count > 0)
                {
                    byte[] bytes = [.. run];
                    texts.Add(System.Text.Unicode.Utf8.IsValid(bytes) ? Strict.GetString(bytes) : new string('\uFFFD', bytes.Length));
                    run.Clear();
                }
            }
        }
    }

    /// <summary>The byte-level alphabet back to bytes over the whole list, then UTF-8 with U+FFFD per maximal invalid part.</summary>
    public sealed record ByteLevel : Decoder
    {
        public override List<string> Apply(List<string> tokens)
        {
            var bytes = new List<byte>();
            foreach (string token in tokens)
            {
                ByteAlphabet.Unmap(token, bytes);
            }

            return [Encoding.UTF8.GetString(System.Runtime.InteropServices.CollectionsMarshal.AsSpan(bytes))];
        }
    }

    /// <summary>SentencePiece's own. Byte pieces are bytes, with one U+FFFD per byte that is part of no character.</summary>
    /// <param name="Unknown">The piece of what has none.</param>
    /// <param name="UnknownSurface">What it is written as.</param>
    /// <param name="Bytes">The pieces that are bytes.</param>
    /// <param name="DropsFirstSpace">Whether a space at the very beginning is taken off.</param>
    /// <param name="DropsAllFirstSpaces">Whether that goes on as long as there is no text.</param>
    public sealed record SentencePiece(string Unknown, string UnknownSurface, HashSet<string> Bytes, bool DropsFirstSpace, bool DropsAllFirstSpaces) : Decoder
    {
        public override List<string> Apply(List<string> tokens)
        {
            var text = new StringBuilder();
            var run = new List<byte>();
            bool atStart = DropsFirstSpace;
            foreach (string token in tokens)
            {
                if (Bytes.Contains(token) && ByteTokens.ByteOf(token) is { } value)
                {
                    run.Add(value);
                    continue;
                }

                Flush();
                atStart &= text.Length == 0;
                if (token == Unknown)
                {
                    text.Append(UnknownSurface);
                    continue;
                }

                bool drops = atStart && token.StartsWith(SafeCuts.Space);
                atStart &= !drops || DropsAllFirstSpaces;
                text.Append(token, drops ? 1 : 0, token.Length - (drops ? 1 : 0)).Replace(SafeCuts.Space, ' ', text.Length - token.Length + (drops ? 1 : 0), token.Length - (drops ? 1 : 0));
            }

            Flush();
            return [text.ToString()];

            void Flush()
            {
                ReadOnlySpan<byte> bytes = System.Runtime.InteropServices.CollectionsMarshal.AsSpan(run);
                Span<char> units = stackalloc char[2];
                while (!bytes.IsEmpty)
                {
                    bool isCharacter = Rune.DecodeFromUtf8(bytes, out Rune rune, out int length) == System.Buffers.OperationStatus.Done;
                    text.Append(units[..rune.EncodeToUtf16(units)]);
                    bytes = bytes[(isCharacter ? length : 1)..];
                }

                run.Clear();
            }
        }
    }

    /// <summary>The replacement becomes a space, and nothing in the first token, where a prefix had been put.</summary>
    public sealed record Metaspace(char Replacement, PreTokenizer.PrependScheme Prepend) : Decoder
    {
        public override List<string> Apply(List<string> tokens)
        {
            var texts = new List<string>(tokens.Count);
            for (int i = 0; i < tokens.Count; i++)
            {
                texts.Add(i == 0 && Prepend != PreTokenizer.PrependScheme.Never
                    ? tokens[i].Replace(Replacement.ToString(), "", StringComparison.Ordinal)
                    : tokens[i].Replace(Replacement, ' '));
            }

            return texts;
        }
    }
}
