using System.Runtime.InteropServices;
using LoraTrainer.Data.Tokenizers.Unicode;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// Byte-pair encoding as SentencePiece does it: any two neighbours that make a piece merge, the highest score first, the leftmost of equal ones. User-defined pieces
/// are found first and stay whole. A merge may make an unused piece, which is taken apart again at the end. What is no piece then is written in bytes or is unknown.
/// </summary>
internal sealed class SentencePieceBpe : TokenModel
{
    /// <summary>Symbols from here on are user-defined pieces found in the text; below are pieces by id, then characters that are no pieces.</summary>
    private const int Frozen = 1 << 30;

    private readonly BpeMerges merges;
    private readonly int pieceCount;
    private readonly int[] basicIds = new int[0x10000];
    private readonly Dictionary<int, int> astralIds = [];
    private readonly PieceTrie? userDefined;
    private readonly HashSet<int>? unused;
    private readonly SafeCuts? cuts;
    private readonly int unknownId;
    private readonly int[]? byteIds;

    /// <param name="pieces">All of the file, by id.</param>
    /// <param name="unknownId">Of what has no piece; one for each unbroken run of it.</param>
    /// <param name="byteIds">The ids of the 256 bytes where the file says so; else null.</param>
    public SentencePieceBpe(IReadOnlyList<SentencePiece> pieces, int unknownId, int[]? byteIds)
    {
        this.unknownId = unknownId;
        this.byteIds = byteIds;
        pieceCount = pieces.Count;
        Array.Fill(basicIds, -1);
        Dictionary<float, int> ranks = pieces.Select(piece => piece.Score).Distinct().OrderDescending().Select((score, rank) => (score, rank)).ToDictionary(item => item.score, item => item.rank);
        var mergeable = new Dictionary<string, (int Symbol, int Rank)>(StringComparer.Ordinal);
        var unusedIds = new HashSet<int>();
        for (int id = 0; id < pieces.Count; id++)
        {
            SentencePiece piece = pieces[id];
            if (piece.Kind is not (PieceKind.Normal or PieceKind.UserDefined or PieceKind.Unused))
            {
                continue;
            }

            mergeable.Add(piece.Text, (id, ranks[piece.Score]));
            if (piece.Kind == PieceKind.Unused)
            {
                unusedIds.Add(id);
            }

            int scalar = UnicodeTables.ScalarAt(piece.Text, 0, out int length);
            if (length == piece.Text.Length)
            {
                if (scalar < basicIds.Length)
                {
                    basicIds[scalar] = id;
                }
                else
                {
                    astralIds[scalar] = id;
                }
            }
        }

        merges = BpeMerges.OfPieces(mergeable, character => pieceCount + UnicodeTables.ScalarAt(character, 0, out _));
        (string, int)[] users = [.. pieces.Select((piece, id) => (piece, id)).Where(item => item.piece.Kind == PieceKind.UserDefined).Select(item => (item.piece.Text, item.id))];
        userDefined = users.Length > 0 ? new PieceTrie(users) : null;
        unused = unusedIds.Count > 0 ? unusedIds : null;

        // How an unused piece is taken apart depends on all merges of the text; an unknown U+2581 could be one with what is unknown before it.
        if (unused is null && (basicIds[SafeCuts.Space] >= 0 || byteIds is not null))
        {
            cuts = new SafeCuts(mergeable.Keys);
        }
    }

    public override void Encode(ReadOnlySpan<char> word, Scratch scratch, List<int> destination)
    {
        while (cuts is not null && cuts.FirstWord(word) is var length && length < word.Length)
        {
            EncodeWord(word[..length], scratch, destination);
            word = word[length..];
        }

        EncodeWord(word, scratch, destination);
    }

    private void EncodeWord(ReadOnlySpan<char> word, Scratch scratch, List<int> destination)
    {
        if (AddKnown(word, scratch, destination))
        {
            return;
        }

        List<int> symbols = scratch.Symbols;
        symbols.Clear();
        for (int i = 0; i < word.Length;)
        {
            if (userDefined is not null && userDefined.Longest(word[i..], out int length) is >= 0 and var user)
            {
                symbols.Add(Frozen + user);
            }
            else
            {
                int scalar = UnicodeTables.ScalarAt(word, i, out length);
                int id = scalar < basicIds.Length ? basicIds[scalar] : astralIds.GetValueOrDefault(scalar, -1);
                symbols.Add(id >= 0 ? id : pieceCount + scalar);
            }

            i += length;
        }

        int count = merges.Apply(CollectionsMarshal.AsSpan(symbols), scratch.Merging, unused);
        int before = destination.Count;
        bool afterUnknown = false;
        for (int i = 0; i < count; i++)
        {
            AddParts(symbols[i], scratch.Merging, destination, ref afterUnknown);
        }

        Remember(word, CollectionsMarshal.AsSpan(destination)[before..], scratch);
    }

    private void AddParts(int symbol, BpeMerges.Scratch merging, List<int> destination, ref bool afterUnknown)
    {
        if (unused is null || !unused.Contains(symbol))
        {
            Add(symbol, destination, ref afterUnknown);
            return;
        }

        // Parts are shorter than the whole, so this ends; a stack of our own, because a file may nest them as deep as it likes.
        var open = new Stack<int>([symbol]);
        while (open.TryPop(out int top))
        {
            if (unused.Contains(top) && merging.LastSplits.TryGetValue(top, out (int Left, int Right) parts))
            {
                open.Push(parts.Right);
                open.Push(parts.Left);
            }
            else
            {
                Add(top, destination, ref afterUnknown);
            }
        }
    }

    private void Add(int symbol, List<int> destination, ref bool afterUnknown)
    {
        bool isUnknown = false;
        if (symbol >= Frozen || symbol < pieceCount)
        {
            destination.Add(symbol & ~Frozen);
        }
        else if (byteIds is not null)
        {
            Span<char> units = stackalloc char[2];
            ByteTokens.TryAdd(units[..new System.Text.Rune(symbol - pieceCount).EncodeToUtf16(units)], byteIds, destination);
        }
        else
        {
            isUnknown = true;
            if (!afterUnknown)
            {
                destination.Add(unknownId);
            }
        }

        afterUnknown = isUnknown;
    }
}
