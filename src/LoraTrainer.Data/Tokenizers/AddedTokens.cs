using System.Buffers;
using LoraTrainer.Data.Tokenizers.Unicode;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>A token that is looked for in text before anything else, with its switches.</summary>
/// <param name="Id">The token's id.</param>
/// <param name="Content">As written in the file.</param>
/// <param name="Text">The content, normalized where <paramref name="Normalized"/>: what is looked for in normalized text, and what decoding yields.</param>
/// <param name="SingleWord">No match beside a word character.</param>
/// <param name="StripLeft">A match swallows the white space before it.</param>
/// <param name="StripRight">A match swallows the white space after it.</param>
/// <param name="Normalized">Whether it is looked for in normalized text instead of the raw text.</param>
/// <param name="Special">Left out by a decoder that skips special tokens.</param>
internal sealed record AddedToken(int Id, string Content, string Text, bool SingleWord, bool StripLeft, bool StripRight, bool Normalized, bool Special);

/// <summary>Finds added tokens in a text: leftmost, longest first, without overlap.</summary>
internal sealed class AddedTokenMatcher
{
    /// <summary>At each place of a text the longest token is walked to, so its length counts.</summary>
    public const int LongestToken = 1024;

    private readonly AddedToken[] tokens;
    private readonly PieceTrie trie;
    private readonly SearchValues<char> firstChars;

    public AddedTokenMatcher(IEnumerable<AddedToken> all, bool normalized)
    {
        tokens = [.. all.Where(token => token.Normalized == normalized && token.Text.Length > 0)];
        trie = new PieceTrie([.. tokens.Select((token, index) => (token.Text, index))]);
        firstChars = SearchValues.Create([.. tokens.Select(token => token.Text[0]).Distinct()]);
    }

    /// <summary>A stretch of text, or the added token found there.</summary>
    public readonly record struct Piece(int Start, int End, AddedToken? Token);

    /// <summary>Adds the pieces of <paramref name="text"/>. Without <paramref name="takeSpecial"/> special tokens written in it are text, as untrusted text has to be read.</summary>
    /// <param name="text">Raw or normalized.</param>
    /// <param name="takeSpecial">Whether special tokens count at all.</param>
    /// <param name="pieces">Get the pieces.</param>
    /// <param name="mayTake">Whether a special token counts that stands from the first place to before the second; null: each does.</param>
    public void Split(ReadOnlySpan<char> text, bool takeSpecial, List<Piece> pieces, Func<int, int, bool>? mayTake = null)
    {
        int done = 0, whiteUntil = 0;
        for (int at = 0; Find(text, at, out int start, out AddedToken? token);)
        {
            int end = start + token!.Text.Length;
            at = end;
            if ((token.Special && !(takeSpecial && mayTake?.Invoke(start, end) is not false)) || (token.SingleWord && (TouchesWordBefore(text, start) || TouchesWordAfter(text, end))))
            {
                continue;
            }

            if (token.StripLeft)
            {
                // Never left of the previous match, which may have swallowed the same white space.
                while (start > done && UnicodeTables.IsWhiteSpace(text[start - 1]))
                {
                    start--;
                }
            }

            if (token.StripRight)
            {
                // Tokens of white space that swallow what follows them find the same run again.
                end = Math.Max(end, whiteUntil);
                while (end < text.Length && UnicodeTables.IsWhiteSpace(text[end]))
                {
                    end++;
                }

                whiteUntil = end;
            }

            if (start > done)
            {
                pieces.Add(new Piece(done, start, null));
            }

            pieces.Add(new Piece(start, end, token));
            done = end;
        }

        if (done < text.Length)
        {
            pieces.Add(new Piece(done, text.Length, null));
        }
    }

    private static bool TouchesWordBefore(ReadOnlySpan<char> text, int start) => start > 0 && UnicodeTables.IsWord(UnicodeTables.ScalarBefore(text, start, out _));

    private static bool TouchesWordAfter(ReadOnlySpan<char> text, int end) => end < text.Length && UnicodeTables.IsWord(UnicodeTables.ScalarAt(text, end, out _));

    private bool Find(ReadOnlySpan<char> text, int from, out int start, out AddedToken? token)
    {
        for (start = from; ; start++)
        {
            int skip = text[start..].IndexOfAny(firstChars);
            if (skip < 0)
            {
                token = null;
                return false;
            }

            start += skip;
            if (trie.Longest(text[start..], out _) is >= 0 and var found)
            {
                token = tokens[found];
                return true;
            }
        }
    }
}
