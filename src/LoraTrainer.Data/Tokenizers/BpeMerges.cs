using System.Numerics;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// Which adjacent symbols merge to which, and the merging: again and again the pair with the lowest rank, the leftmost of equal ones, until none can be
/// merged. Short words are scanned, long ones go through a heap over a linked list. Immutable.
/// </summary>
internal sealed class BpeMerges
{
    /// <summary>Up to here a scan for the lowest rank beats a heap.</summary>
    private const int LongestScannedWord = 40;

    /// <summary>No symbol is negative.</summary>
    private const int Gone = -1;

    private readonly Entry[] entries;
    private readonly int shift;

    /// <param name="merges">Later ones replace earlier ones of the same pair.</param>
    public BpeMerges(IReadOnlyCollection<Merge> merges)
    {
        entries = new Entry[Math.Max(16, (int)BitOperations.RoundUpToPowerOf2((uint)(2 * merges.Count) + 1))];
        shift = 64 - BitOperations.Log2((uint)entries.Length);
        Array.Fill(entries, new Entry(ulong.MaxValue, NoRank, Gone));
        foreach (Merge merge in merges)
        {
            ulong key = Key(merge.Left, merge.Right);
            entries[SlotOf(key)] = new Entry(key, merge.Rank, merge.Result);
        }
    }

    private const int NoRank = int.MaxValue;

    /// <summary>The symbols <paramref name="Left"/> and <paramref name="Right"/> become <paramref name="Result"/>; the lowest rank goes first.</summary>
    public readonly record struct Merge(int Left, int Right, int Rank, int Result);

    private readonly record struct Entry(ulong Key, int Rank, int Result);

    /// <summary>Working memory; one per thread.</summary>
    public sealed class Scratch
    {
        internal readonly PriorityQueue<(int Position, int Result), ulong> Queue = new();
        internal int[] Next = [], Previous = [];

        /// <summary>Candidate merges put into the heap so far: the measure of its work.</summary>
        public long Candidates { get; internal set; }

        /// <summary>The two symbols that each result was last proposed from, where the caller asked to remember them.</summary>
        public Dictionary<int, (int Left, int Right)> LastSplits { get; } = [];
    }

    /// <summary>
    /// All pairs of symbols that make a piece: a piece merges from any two parts that are themselves pieces or single characters. This is how vocabularies without a
    /// list of merges are read (SentencePiece, tiktoken).
    /// </summary>
    /// <param name="pieces">By text: the symbol, and its rank (equal ranks go leftmost first).</param>
    /// <param name="symbolOf">The symbol of a single character; null for one that is none.</param>
    public static BpeMerges OfPieces(Dictionary<string, (int Symbol, int Rank)> pieces, Func<string, int?> symbolOf)
    {
        var merges = new List<Merge>(2 * pieces.Count);
        Dictionary<string, (int Symbol, int Rank)>.AlternateLookup<ReadOnlySpan<char>> lookup = pieces.GetAlternateLookup<ReadOnlySpan<char>>();
        foreach ((string text, (int symbol, int rank)) in pieces)
        {
            for (int cut = 1; cut < text.Length; cut++)
            {
                if (!char.IsLowSurrogate(text[cut]) && Symbol(text.AsSpan(0, cut)) is { } left && Symbol(text.AsSpan(cut)) is { } right)
                {
                    merges.Add(new Merge(left, right, rank, symbol));
                }
            }
        }

        return new BpeMerges(merges);

        int? Symbol(ReadOnlySpan<char> part)
            => lookup.TryGetValue(part, out (int Symbol, int Rank) piece) ? piece.Symbol
                : part.Length == 1 || (part.Length == 2 && char.IsHighSurrogate(part[0])) ? symbolOf(part.ToString())
                : null;
    }

    /// <summary>Merges in place.</summary>
    /// <param name="symbols">None negative; what is left of them stands at the front afterwards.</param>
    /// <param name="scratch">Working memory.</param>
    /// <param name="remembers">For a vocabulary with pieces that are taken apart again: for which results the last proposed parts are kept; they depend on the order of the proposals.</param>
    /// <returns>How many symbols are left.</returns>
    public int Apply(Span<int> symbols, Scratch scratch, HashSet<int>? remembers = null)
        => symbols.Length <= LongestScannedWord && remembers is null ? Scan(symbols) : Heap(symbols, scratch, remembers);

    private static ulong Key(int left, int right) => ((ulong)(uint)left << 32) | (uint)right;

    private int SlotOf(ulong key)
    {
        int slot = (int)((key * 0x9E3779B97F4A7C15) >> shift);
        while (entries[slot].Key != key && entries[slot].Key != ulong.MaxValue)
        {
            slot = (slot + 1) & (entries.Length - 1);
        }

        return slot;
    }

    /// <summary>Short words: look for the lowest rank again after each merge.</summary>
    private int Scan(Span<int> symbols)
    {
        Span<int> ranks = stackalloc int[LongestScannedWord], results = stackalloc int[LongestScannedWord];
        int count = symbols.Length;
        for (int i = 0; i + 1 < count; i++)
        {
            ref readonly Entry entry = ref entries[SlotOf(Key(symbols[i], symbols[i + 1]))];
            (ranks[i], results[i]) = (entry.Rank, entry.Result);
        }

        while (count > 1)
        {
            int best = 0, bestRank = ranks[0];
            for (int i = 1; i < count - 1; i++)
            {
                if (ranks[i] < bestRank)
                {
                    (best, bestRank) = (i, ranks[i]);
                }
            }

            if (bestRank == NoRank)
            {
                break;
            }

            symbols[best] = results[best];
            count--;
            for (int i = best + 1; i < count; i++)
            {
                symbols[i] = symbols[i + 1];
                ranks[i] = ranks[i + 1];
                results[i] = results[i + 1];
            }

            if (best + 1 < count)
            {
                ref readonly Entry entry = ref entries[SlotOf(Key(symbols[best], symbols[best + 1]))];
                (ranks[best], results[best]) = (entry.Rank, entry.Result);
            }

            if (best > 0)
            {
                ref readonly Entry entry = ref entries[SlotOf(Key(symbols[best - 1], symbols[best]))];
                (ranks[best - 1], results[best - 1]) = (entry.Rank, entry.Result);
            }
        }

        return count;
    }

    /// <summary>Long words: n log n. An entry of the heap is stale unless the pair at its place still merges to the same symbol.</summary>
    private int Heap(Span<int> symbols, Scratch scratch, HashSet<int>? remembers)
    {
        int count = symbols.Length;
        if (scratch.Next.Length < count)
        {
            scratch.Next = new int[count + (count / 2)];
            scratch.Previous = new int[count + (count / 2)];
        }

        Span<int> next = scratch.Next.AsSpan(0, count), previous = scratch.Previous.AsSpan(0, count);
        PriorityQueue<(int Position, int Result), ulong> queue = scratch.Queue;
        queue.Clear();
        scratch.LastSplits.Clear();
        for (int i = 0; i < count; i++)
        {
            next[i] = i + 1;
            previous[i] = i - 1;
            if (i + 1 < count)
            {
                Propose(scratch, remembers, symbols[i], symbols[i + 1], i);
            }
        }

        while (queue.TryDequeue(out (int Position, int Result) top, out _))
        {
            int left = top.Position;
            if (symbols[left] == Gone || next[left] >= count)
            {
                continue;
            }

            int right = next[left];
            if (entries[SlotOf(Key(symbols[left], symbols[right]))].Result != top.Result)
            {
                continue;
            }

            symbols[left] = top.Result;
            symbols[right] = Gone;
            next[left] = next[right];
            if (previous[left] >= 0)
            {
                Propose(scratch, remembers, symbols[previous[left]], top.Result, previous[left]);
            }

            if (next[left] < count)
            {
                previous[next[left]] = left;
                Propose(scratch, remembers, top.Result, symbols[next[left]], left);
            }
        }

        int written = 0;
        foreach (int symbol in symbols)
        {
            if (symbol != Gone)
            {
                symbols[written++] = symbol;
            }
        }

        return written;
    }

    private void Propose(Scratch scratch, HashSet<int>? remembers, int left, int right, int position)
    {
        ref readonly Entry entry = ref entries[SlotOf(Key(left, right))];
        if (entry.Rank == NoRank)
        {
            return;
        }

        scratch.Candidates++;
        scratch.Queue.Enqueue((position, entry.Result), ((ulong)(uint)entry.Rank << 32) | (uint)position);
        if (remembers is not null && remembers.Contains(entry.Result))
        {
            scratch.LastSplits[entry.Result] = (left, right);
        }
    }
}

/// <summary>
/// Where a text may be cut before a U+2581 without changing its ids: no token has the character before it followed by a U+2581, so no merge can reach across. The
/// words between can then be kept in a cache, also where a tokenizer takes a whole text for one word.
/// </summary>
internal sealed class SafeCuts
{
    /// <summary>SentencePiece's mark of a space.</summary>
    public const char Space = '\u2581';

    private readonly HashSet<char> joined = [];

    /// <param name="tokens">All that merges can make.</param>
    public SafeCuts(IEnumerable<string> tokens)
    {
        foreach (string token in tokens)
        {
            for (int at = token.IndexOf(Space, StringComparison.Ordinal); at >= 0; at = token.IndexOf(Space, at + 1))
            {
                if (at > 0)
                {
                    joined.Add(token[at - 1]);
                }
            }
        }
    }

    /// <summary>The length of the first word of <paramref name="text"/>: up to the first place where it may be cut.</summary>
    public int FirstWord(ReadOnlySpan<char> text)
    {
        for (int at = 1; at < text.Length; at++)
        {
            int found = text[at..].IndexOf(Space);
            if (found < 0)
            {
                break;
            }

            at += found;
            if (!joined.Contains(text[at - 1]))
            {
                return at;
            }
        }

        return text.Length;
    }
}
