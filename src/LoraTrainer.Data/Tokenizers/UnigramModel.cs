using System.Globalization;
using System.Numerics;
using System.Runtime.InteropServices;
using System.Text;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// The best way to cut a text into pieces: the one with the largest sum of scores, found from left to right. Of equal sums the one whose last piece begins first
/// is kept. Sums are formed in the type of the scores, as the libraries form them (SentencePiece in float, tokenizers in double).
/// </summary>
/// <param name="pieces">The pieces; their values count from 0.</param>
/// <param name="scores">By value.</param>
/// <param name="unknown">The value of a character with which no piece of that one character begins.</param>
/// <param name="unknownScore">What such a character counts.</param>
internal sealed class UnigramLattice<T>(PieceTrie pieces, T[] scores, int unknown, T unknownScore)
    where T : struct, IFloatingPointIeee754<T>
{
    /// <summary>Working memory; one per thread.</summary>
    public sealed class Scratch
    {
        internal T[] Best = [];
        internal int[] Starts = [], Values = [];
    }

    /// <param name="text">Without lone surrogates.</param>
    /// <param name="scratch">Working memory.</param>
    /// <param name="path">Gets start, end and value of the pieces, from left to right.</param>
    public void Cut(ReadOnlySpan<char> text, Scratch scratch, List<(int Start, int End, int Value)> path)
    {
        int length = text.Length;
        if (scratch.Best.Length <= length)
        {
            int capacity = length + (length / 2) + 1;
            (scratch.Best, scratch.Starts, scratch.Values) = (new T[capacity], new int[capacity], new int[capacity]);
        }

        Span<T> best = scratch.Best.AsSpan(0, length + 1);
        Span<int> starts = scratch.Starts.AsSpan(0, length + 1), values = scratch.Values.AsSpan(0, length + 1);
        starts.Fill(-1);
        best[0] = T.Zero;
        for (int start = 0; start < length;)
        {
            int character = char.IsHighSurrogate(text[start]) ? 2 : 1;
            bool hasCharacter = false;
            int node = PieceTrie.Root;
            for (int end = start; end < length && (node = pieces.Child(node, text[end])) >= 0;)
            {
                end++;
                if (pieces.ValueAt(node) is >= 0 and var value)
                {
                    Offer(best, starts, values, start, end, value, best[start] + scores[value]);
                    hasCharacter |= end - start == character;
                }
            }

            if (!hasCharacter)
            {
                Offer(best, starts, values, start, start + character, unknown, best[start] + unknownScore);
            }

            start += character;
        }

        path.Clear();
        for (int end = length; end > 0; end = starts[end])
        {
            path.Add((starts[end], end, values[end]));
        }

        path.Reverse();
    }

    private static void Offer(Span<T> best, Span<int> starts, Span<int> values, int start, int end, int value, T sum)
    {
        if (starts[end] < 0 || sum > best[end])
        {
            (best[end], starts[end], values[end]) = (sum, start, value);
        }
    }
}

/// <summary>A unigram language model over pieces: a text is cut into those with the largest sum of scores.</summary>
/// <typeparam name="T">The type that sums are formed in.</typeparam>
internal sealed class UnigramModel<T> : TokenModel
    where T : struct, IFloatingPointIeee754<T>
{
    /// <summary>How far an unknown character is below the worst piece.</summary>
    private const double UnknownPenalty = 10;

    private readonly PieceTrie trie;
    private readonly UnigramLattice<T> lattice;

    /// <summary>Negative where the vocabulary has no unknown token.</summary>
    private readonly int unknownId;

    private readonly int[]? byteIds;
    private readonly bool looksUpUnknown;

    /// <param name="pieces">What a text may be cut into. Ids count from 0.</param>
    /// <param name="worst">The smallest score of an ordinary piece.</param>
    /// <param name="unknownId">Of what has no piece; one for each unbroken run of it. Null: a text with such characters is refused.</param>
    /// <param name="byteIds">The ids of the 256 bytes (-1: there is none), where unknown characters are written in bytes; else null.</param>
    /// <param name="looksUpUnknown">Whether a run of unknown characters that is a piece itself is that piece, as tokenizer.json has it.</param>
    public UnigramModel(IReadOnlyList<(string Text, int Id, T Score)> pieces, T worst, int? unknownId, int[]? byteIds, bool looksUpUnknown)
    {
        this.unknownId = unknownId ?? -1;
        this.byteIds = byteIds;
        this.looksUpUnknown = looksUpUnknown;
        trie = new PieceTrie([.. pieces.Select(piece => (piece.Text, piece.Id))]);
        var scores = new T[Math.Max(this.unknownId, pieces.Select(piece => piece.Id).DefaultIfEmpty(0).Max()) + 1];
        foreach ((_, int id, T score) in pieces)
        {
            scores[id] = score;
        }

        lattice = new UnigramLattice<T>(trie, scores, this.unknownId, worst - T.CreateChecked(UnknownPenalty));
    }

    public override void Encode(ReadOnlySpan<char> word, Scratch scratch, List<int> destination)
    {
        if (AddKnown(word, scratch, destination))
        {
            return;
        }

        int before = destination.Count;
        lattice.Cut(word, LatticeOf(scratch), scratch.Path);
        List<(int Start, int End, int Value)> path = scratch.Path;
        for (int i = 0; i < path.Count; i++)
        {
            (int start, int end, int value) = path[i];
            if (value != unknownId)
            {
                destination.Add(value);
                continue;
            }

            while (i + 1 < path.Count && path[i + 1].Value == unknownId)
            {
                end = path[++i].End;
            }

            AddUnknown(word[start..end], destination);
        }

        Remember(word, CollectionsMarshal.AsSpan(destination)[before..], scratch);
    }

    private static UnigramLattice<T>.Scratch LatticeOf(Scratch scratch)
        => (UnigramLattice<T>.Scratch)(object)(typeof(T) == typeof(float) ? scratch.SingleLattice : scratch.DoubleLattice);

    private void AddUnknown(ReadOnlySpan<char> run, List<int> destination)
    {
        if (unknownId < 0)
        {
            throw new FormatException($"no piece of its vocabulary is '{run[..Math.Min(run.Length, 20)]}', and it has no unk_id");
        }

        if (looksUpUnknown && trie.Longest(run, out int length) is >= 0 and var whole && length == run.Length)
        {
            destination.Add(whole);
        }
        else if (byteIds is null || !ByteTokens.TryAdd(run, byteIds, destination))
        {
            destination.Add(unknownId);
        }
    }
}

/// <summary>Characters without a token of their own, written as tokens &lt;0x00&gt; to &lt;0xFF&gt;.</summary>
internal static class ByteTokens
{
    /// <summary>The ids of the 256 byte tokens; -1 where the vocabulary has none.</summary>
    public static int[] IdsIn(IReadOnlyDictionary<string, int> vocabulary)
    {
        int[] ids = new int[256];
        for (int b = 0; b < 256; b++)
        {
            ids[b] = vocabulary.TryGetValue(string.Create(CultureInfo.InvariantCulture, $"<0x{b:X2}>"), out int id) ? id : -1;
        }

        return ids;
    }

    /// <summary>Adds one id per UTF-8 byte of <paramref name="text"/>.</summary>
    /// <returns>False, and nothing added, where a byte has no token.</returns>
    public static bool TryAdd(ReadOnlySpan<char> text, int[] byteIds, List<int> destination)
    {
        int before = destination.Count;
        Span<byte> bytes = stackalloc byte[4];
        foreach (Rune rune in text.EnumerateRunes())
        {
            foreach (byte b in bytes[..rune.EncodeToUtf8(bytes)])
            {
                if (byteIds[b] < 0)
                {
                    destination.RemoveRange(before, destination.Count - before);
                    return false;
                }

                destination.Add(byteIds[b]);
            }
        }

        return true;
    }

    /// <summary>The byte that a token stands for; null for another token.</summary>
    public static byte? ByteOf(string token)
        => token.Length == 6 && token.StartsWith("<0x", StringComparison.Ordinal) && token[5] == '>'
            && byte.TryParse(token.AsSpan(token[3] == '+' ? 4 : 3, token[3] == '+' ? 1 : 2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out byte value)
            ? value
            : null;
}
