namespace LoraTrainer.Data.Tokenizers;

/// <summary>What becomes of a match and its neighbours, after "the-final--countdown" split at '-'.</summary>
internal enum SplitBehavior
{
    /// <summary>the, final, countdown</summary>
    Removed,

    /// <summary>the, -, final, -, -, countdown</summary>
    Isolated,

    /// <summary>the-, final-, -, countdown</summary>
    MergedWithPrevious,

    /// <summary>the, -final, -, -countdown</summary>
    MergedWithNext,

    /// <summary>the, -, final, --, countdown</summary>
    Contiguous,
}

/// <summary>A text and the ranges it has been cut into so far; steps cut the ranges further or rewrite the text. Reused by one thread.</summary>
internal sealed class PreTokenizedText
{
    private readonly SplitPattern.Scratch scratch = new();
    private readonly List<(int Start, int End, bool IsMatch)> pieces = [];
    private char[] text = new char[256], spareText = new char[256];
    private int length, originalLength;
    private List<(int Start, int End)> ranges = [], spareRanges = [];

    /// <summary>Whether the first character is the first of the whole text.</summary>
    public bool AtTextStart { get; private set; }

    public ReadOnlySpan<char> Text => text.AsSpan(0, length);

    public IReadOnlyList<(int Start, int End)> Ranges => ranges;

    public void Set(ReadOnlySpan<char> piece, bool atTextStart)
    {
        AtTextStart = atTextStart;
        length = originalLength = piece.Length;
        if (text.Length < length)
        {
            text = new char[length + (length / 2)];
        }

        piece.CopyTo(text);
        scratch.Refill(length);
        ranges.Clear();
        if (length > 0)
        {
            ranges.Add((0, length));
        }
    }

    /// <summary>Cuts every range at the matches of <paramref name="pattern"/>; <paramref name="invert"/> swaps matches and what lies between. Empty pieces are dropped.</summary>
    public void Split(TextPattern pattern, SplitBehavior behavior, bool invert)
    {
        spareRanges.Clear();
        foreach ((int from, int to) in ranges)
        {
            ReadOnlySpan<char> piece = text.AsSpan(from, to - from);
            pieces.Clear();
            int at = 0;
            while (at < piece.Length && pattern.Find(piece, at, scratch, out int start, out int end))
            {
                if (start > at)
                {
                    pieces.Add((from + at, from + start, invert));
                }

                pieces.Add((from + start, from + end, !invert));
                at = end;
            }

            if (at < piece.Length)
            {
                pieces.Add((from + at, to, invert));
            }

            Join(behavior);
        }

        (ranges, spareRanges) = (spareRanges, ranges);
    }

    /// <summary>Puts <paramref name="prefix"/> before every range where <paramref name="wanted"/> says so, and maps every range by <paramref name="map"/> (at most three characters for one).</summary>
    public void Rewrite(char prefix, PrefixRule wanted, CharMap? map)
    {
        spareRanges.Clear();
        int written = 0;
        int most = (3 * length) + (3 * ranges.Count);
        if (spareText.Length < most)
        {
            spareText = new char[most + (most / 2)];
        }

        Span<char> one = [prefix];
        foreach ((int from, int to) in ranges)
        {
            int start = written;
            if (wanted(text.AsSpan(from, to - from), from == 0 && AtTextStart))
            {
                written += Mapped(one, spareText.AsSpan(written));
            }

            written += Mapped(text.AsSpan(from, to - from), spareText.AsSpan(written));
            spareRanges.Add((start, written));
        }

        length = written;
        Normalizer.CheckGrowth(length, originalLength);
        (text, spareText) = (spareText, text);
        (ranges, spareRanges) = (spareRanges, ranges);

        int Mapped(ReadOnlySpan<char> source, Span<char> destination)
        {
            if (map is not null)
            {
                return map(source, destination);
            }

            source.CopyTo(destination);
            return source.Length;
        }
    }

    public delegate bool PrefixRule(ReadOnlySpan<char> piece, bool atTextStart);

    public delegate int CharMap(ReadOnlySpan<char> source, Span<char> destination);

    private void Join(SplitBehavior behavior)
    {
        int first = spareRanges.Count;
        bool previousIsMatch = false;
        switch (behavior)
        {
            case SplitBehavior.MergedWithNext:
                // From the back: a match takes what follows it.
                for (int i = pieces.Count - 1; i >= 0; i--)
                {
                    (int start, int end, bool isMatch) = pieces[i];
                    if (isMatch && !previousIsMatch && spareRanges.Count > first)
                    {
                        spareRanges[^1] = (start, spareRanges[^1].End);
                    }
                    else
                    {
                        spareRanges.Add((start, end));
                    }

                    previousIsMatch = isMatch;
                }

                spareRanges.Reverse(first, spareRanges.Count - first);
                break;

            default:
                foreach ((int start, int end, bool isMatch) in pieces)
                {
                    bool extends = behavior switch
                    {
                        SplitBehavior.Contiguous => isMatch == previousIsMatch,
                        SplitBehavior.MergedWithPrevious => isMatch && !previousIsMatch,
                        _ => false,
                    };
                    if (extends && spareRanges.Count > first)
                    {
                        spareRanges[^1] = (spareRanges[^1].Start, end);
                    }
                    else if (behavior != SplitBehavior.Removed || !isMatch)
                    {
                        spareRanges.Add((start, end));
                    }

                    previousIsMatch = isMatch;
                }

                break;
        }
    }
}

/// <summary>A step that cuts text into the words the model sees. Each kind is one record.</summary>
internal abstract record PreTokenizer
{
    public abstract void Apply(PreTokenizedText text);

    public sealed record Sequence(IReadOnlyList<PreTokenizer> Steps) : PreTokenizer
    {
        public override void Apply(PreTokenizedText text)
        {
            foreach (PreTokenizer step in Steps)
            {
                step.Apply(text);
            }
        }
    }

    public sealed record Split(TextPattern Pattern, SplitBehavior Behavior, bool Invert) : PreTokenizer
    {
        public override void Apply(PreTokenizedText text) => text.Split(Pattern, Behavior, Invert);
    }

    /// <summary>Optionally a leading space, optionally GPT-2's split, then one character per byte.</summary>
    public sealed record ByteLevel(bool AddPrefixSpace, bool UseRegex) : PreTokenizer
    {
        private static readonly TextPattern Words = new(SplitPattern.Parse(@"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"));

        public override void Apply(PreTokenizedText text)
        {
            if (AddPrefixSpace)
            {
                text.Rewrite(' ', static (piece, _) => piece[0] != ' ', map: null);
            }

            if (UseRegex)
            {
                text.Split(Words, SplitBehavior.Isolated, invert: false);
            }

            text.Rewrite(' ', static (_, _) => false, ByteAlphabet.Map);
        }
    }

    public enum PrependScheme
    {
        First,
        Never,
        Always,
    }

    /// <summary>Spaces become <paramref name="Replacement"/>, one is put in front, and words begin with it.</summary>
    public sealed record Metaspace(char Replacement, PrependScheme Prepend, bool Splits) : PreTokenizer
    {
        private readonly TextPattern separator = new(Replacement.ToString());

        public override void Apply(PreTokenizedText text)
        {
            char replacement = Replacement;
            PrependScheme prepend = Prepend;
            text.Rewrite(
                replacement,
                (piece, atTextStart) => piece[0] != ' ' && piece[0] != replacement && (prepend == PrependScheme.Always || (prepend == PrependScheme.First && atTextStart)),
                (source, destination) =>
                {
                    source.Replace(destination, ' ', replacement);
                    return source.Length;
                });
            if (Splits)
            {
                text.Split(separator, SplitBehavior.MergedWithNext, invert: false);
            }
        }
    }
}
