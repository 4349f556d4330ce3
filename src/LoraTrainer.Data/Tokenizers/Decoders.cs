using System.Globalization;
using System.Text;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>A step from token texts to text: it rewrites the list of texts, which are joined at the end. Each kind is one record.</summary>
internal abstract record Decoder
{
    public abstract List<string> Apply(List<string> tokens);

    public sealed record Sequence(IReadOnlyList<Decoder> Steps) : Decoder
    {
        public override List<string> Apply(List<string> tokens) => Steps.Aggregate(tokens, (current, step) => step.Apply(current));
    }

    public sealed record Replace(TextPattern Pattern, string Content) : Decoder
    {
        public override List<string> Apply(List<string> tokens) => tokens.ConvertAll(token => Pattern.Replace(token, Content));
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
                if (ByteOf(token) is { } value)
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

        private static byte? ByteOf(string token)
            => token.Length == 6 && token.StartsWith("<0x", StringComparison.Ordinal) && token[5] == '>'
                && byte.TryParse(token.AsSpan(token[3] == '+' ? 4 : 3, token[3] == '+' ? 1 : 2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out byte value)
                ? value
                : null;
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
