using LoraTrainer.Data.ChatTemplates.Jinja;
using LoraTrainer.Data.Tokenizers;

namespace LoraTrainer.Data.ChatTemplates;

/// <summary>The tokens of a rendered conversation, with the place of each in its text.</summary>
internal sealed class TokenPlaces
{
    private readonly List<Token> tokens = [];
    private readonly List<Stretch> stretches = [];
    private readonly string text;
    private readonly Tokenizer tokenizer;

    private TokenPlaces(string text, Tokenizer tokenizer)
    {
        this.text = text;
        this.tokenizer = tokenizer;
    }

    /// <summary>Text between two added tokens: its tokens from <paramref name="First"/> on have its own place until one of its inner places is asked for.</summary>
    private readonly record struct Stretch(EncodedPiece Piece, int First);

    /// <summary>A token's characters as UTF-16 positions.</summary>
    /// <param name="Id">The id.</param>
    /// <param name="Start">Its first.</param>
    /// <param name="End">Behind its last.</param>
    /// <param name="IsMarker">An added token that is not white space; its place is without the white space that it swallows.</param>
    /// <param name="IsSpecial">A marker that the tokenizer calls special.</param>
    public readonly record struct Token(int Id, int Start, int End, bool IsMarker, bool IsSpecial);

    public int Count => tokens.Count;

    public Token this[int index] => tokens[index];

    /// <param name="text">As the template made it.</param>
    /// <param name="tokenizer">Of the model.</param>
    /// <param name="takeForeign">Whether special tokens in what comes from messages count.</param>
    /// <exception cref="TokenizerFormatException">Special tokens of the template and of messages cannot be told apart.</exception>
    public static TokenPlaces Encode(Text text, Tokenizer tokenizer, bool takeForeign)
    {
        string clean = Tokenizers.Unicode.UnicodeTables.HasLoneSurrogate(text.Value) ? Tokenizers.Unicode.UnicodeTables.ReplaceLoneSurrogates(text.Value) : text.Value;
        var result = new TokenPlaces(clean, tokenizer);
        foreach (EncodedPiece piece in tokenizer.EncodeInPieces(clean, (start, end) => takeForeign || !TouchesForeign(text, start, end)))
        {
            if (piece.Token is { } token)
            {
                int core = Math.Max(piece.Start, clean.IndexOf(token.Content, piece.Start, piece.End - piece.Start, StringComparison.Ordinal));
                result.tokens.Add(new Token(piece.Ids[0], core, Math.Min(piece.End, core + token.Content.Length), !string.IsNullOrWhiteSpace(token.Content), token.Special));
            }
            else
            {
                result.stretches.Add(new Stretch(piece, result.Count));
                result.tokens.AddRange(piece.Ids.Select(id => new Token(id, piece.Start, piece.End, IsMarker: false, IsSpecial: false)));
            }
        }

        return result;
    }

    public int[] Ids() => [.. tokens.Select(token => token.Id)];

    /// <summary>The tokens that have a character in [start, end): the first, and behind the last. A marker only where all of it is inside.</summary>
    public (int First, int End) Within(int start, int end)
    {
        Resolve(start);
        Resolve(end);
        int first = -1, last = -1;
        for (int i = LowerBound(start); i < tokens.Count && tokens[i].Start < end; i++)
        {
            Token token = tokens[i];
            if (token.IsMarker ? token.Start >= start && token.End <= end : token.End > start)
            {
                first = first < 0 ? i : first;
                last = i;
            }
        }

        return first < 0 ? (0, 0) : (first, last + 1);
    }

    /// <summary>The special tokens in [start, end), or where there is none, the other markers there.</summary>
    public int[] MarkersWithin(int start, int end)
    {
        int[] markers = [.. Enumerable.Range(LowerBound(start), tokens.Count - LowerBound(start)).TakeWhile(i => tokens[i].Start < end).Where(i => tokens[i].IsMarker && tokens[i].Start >= start && tokens[i].End <= end)];
        return Array.Exists(markers, i => tokens[i].IsSpecial) ? Array.FindAll(markers, i => tokens[i].IsSpecial) : markers;
    }

    private static bool TouchesForeign(Text text, int start, int end)
    {
        ReadOnlySpan<ForeignRange> ranges = text.Foreign;
        int low = 0, high = ranges.Length;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (ranges[middle].End <= start)
            {
                low = middle + 1;
            }
            else
            {
                high = middle;
            }
        }

        return low < ranges.Length && ranges[low].Start < end;
    }

    /// <summary>The first token that ends behind <paramref name="start"/>.</summary>
    private int LowerBound(int start)
    {
        int low = 0, high = tokens.Count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (tokens[middle].End <= start)
            {
                low = middle + 1;
            }
            else
            {
                high = middle;
            }
        }

        return low;
    }

    /// <summary>
    /// Finds the places of the tokens around <paramref name="at"/>, where that is inside text, by decoding: each token is where the text has grown by it. A
    /// token that completes no character yet is where that character will be.
    /// </summary>
    private void Resolve(int at)
    {
        int low = 0, high = stretches.Count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (stretches[middle].Piece.End <= at)
            {
                low = middle + 1;
            }
            else
            {
                high = middle;
            }
        }

        if (low == stretches.Count || stretches[low].Piece.Start >= at)
        {
            return;
        }

        (EncodedPiece piece, int first) = stretches[low];
        stretches.RemoveAt(low);
        StreamingDecoder decoder = tokenizer.StartDecoding(skipSpecialTokens: false);
        int[] ends = new int[piece.Ids.Length];
        var decoded = new System.Text.StringBuilder();
        for (int i = 0; i < ends.Length; i++)
        {
            decoded.Append(decoder.Add(piece.Ids[i]));
            ends[i] = decoded.Length;
        }

        decoded.Append(decoder.Finish());
        if (ends.Length > 0)
        {
            ends[^1] = decoded.Length;
        }

        Func<int, int> toText = Mapping(text[piece.Start..piece.End], decoded.ToString());
        int start = 0;
        for (int i = 0; i < ends.Length; i++)
        {
            int from = piece.Start + toText(start), to = piece.Start + toText(ends[i] > start ? ends[i] : Math.Min(start + 1, decoded.Length));
            tokens[first + i] = tokens[first + i] with { Start = from, End = to };
            start = ends[i];
        }
    }

    /// <summary>From places in what the tokens decode to, to places in the text: the same but where the tokenizer normalizes.</summary>
    private Func<int, int> Mapping(string piece, string decoded)
    {
        if (decoded == piece)
        {
            return place => place;
        }

        // A decoder takes away the space before the first word, which stands inside the text here.
        if (piece.Length == decoded.Length + 1 && piece[0] == ' ' && piece.AsSpan(1).SequenceEqual(decoded))
        {
            return place => place == 0 ? 0 : place + 1;
        }

        // Normalized: how long each beginning of the text becomes is found out by encoding and decoding it. Growing, so places are found by halving.
        var lengths = new Dictionary<int, int>();
        return place =>
        {
            int low = 0, high = piece.Length;
            while (low < high)
            {
                int middle = (low + high) / 2;
                if (Length(middle) < place)
                {
                    low = middle + 1;
                }
                else
                {
                    high = middle;
                }
            }

            return low;
        };

        int Length(int count)
        {
            if (!lengths.TryGetValue(count, out int length))
            {
                length = count == piece.Length ? decoded.Length : tokenizer.Decode(tokenizer.Encode(piece.AsSpan(0, count), addSpecialTokens: false, takeSpecialTokens: false), skipSpecialTokens: false).Length;
                lengths[count] = length;
            }

            return length;
        }
    }
}
