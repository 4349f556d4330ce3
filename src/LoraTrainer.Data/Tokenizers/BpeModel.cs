using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// Byte-pair encoding of one word (pre-token): split into scalars, then merge the adjacent pair with the lowest rank, leftmost first, until none
/// can be merged. Rules as in the tokenizers library's models/bpe. Immutable; <see cref="Scratch"/> holds what a thread changes.
/// </summary>
internal sealed class BpeModel
{
    private const int LongestCachedWord = 128;
    private const int CachedWords = 1 << 15;

    /// <summary>Up to here a scan for the lowest rank beats a heap.</summary>
    private const int LongestScannedWord = 40;

    private readonly BpeOptions options;
    private readonly Dictionary<string, int> vocabulary;
    private readonly Dictionary<ulong, Merge> merges;
    private readonly int[] basicScalarIds = new int[0x10000];
    private readonly int[]? byteIds;
    private readonly int? unknownId;

    /// <exception cref="FormatException">A merge names an unknown token, or the unknown token is not in the vocabulary.</exception>
    public BpeModel(Dictionary<string, int> vocabulary, IReadOnlyList<(string Left, string Right)> mergeList, BpeOptions options)
    {
        this.options = options;
        this.vocabulary = vocabulary;
        merges = new Dictionary<ulong, Merge>(mergeList.Count);
        int prefixLength = options.ContinuingSubwordPrefix?.Length ?? 0;
        for (int rank = 0; rank < mergeList.Count; rank++)
        {
            (string left, string right) = mergeList[rank];
            if (right.Length < prefixLength)
            {
                throw new FormatException($"merge {rank} ('{left}' '{right}'): the right side is shorter than continuing_subword_prefix");
            }

            merges[Pair(Required(left, rank), Required(right, rank))] = new Merge(rank, Required(left + right[prefixLength..], rank));
        }

        Array.Fill(basicScalarIds, -1);
        foreach ((string token, int id) in vocabulary)
        {
            if (token.Length == 1)
            {
                basicScalarIds[token[0]] = id;
            }
        }

        if (options.UnknownToken is { } unknown)
        {
            // The library looks the token up only where it is needed; a file without it is broken all the same.
            unknownId = vocabulary.TryGetValue(unknown, out int id) ? id : throw new FormatException($"unk_token '{unknown}' is not in the vocabulary");
        }

        if (options.ByteFallback)
        {
            byteIds = new int[256];
            for (int b = 0; b < 256; b++)
            {
                byteIds[b] = vocabulary.TryGetValue(string.Create(CultureInfo.InvariantCulture, $"<0x{b:X2}>"), out int id) ? id : -1;
            }
        }

        int Required(string token, int rank) => vocabulary.TryGetValue(token, out int id)
            ? id
            : throw new FormatException($"merge {rank} names '{token}', which is not in the vocabulary");
    }

    private readonly record struct Merge(int Rank, int Id);

    /// <summary>Working memory and the words seen before; one per thread.</summary>
    public sealed class Scratch
    {
        internal readonly Dictionary<string, int[]> Cache = [];
        internal readonly Dictionary<string, int[]>.AlternateLookup<ReadOnlySpan<char>> CacheBySpan;
        internal readonly List<int> Symbols = [];
        internal readonly PriorityQueue<(int Position, int Id), ulong> Queue = new();
        internal int[] Next = [], Previous = [];

        /// <summary>Candidate merges put into the heap so far: the measure of its work.</summary>
        internal long Candidates;

        public Scratch() => CacheBySpan = Cache.GetAlternateLookup<ReadOnlySpan<char>>();
    }

    /// <summary>Adds the ids of <paramref name="word"/>, which has no lone surrogates.</summary>
    public void Encode(ReadOnlySpan<char> word, Scratch scratch, List<int> destination)
    {
        if (word.Length == 1 && basicScalarIds[word[0]] is >= 0 and var single && (options.IgnoreMerges || (options.ContinuingSubwordPrefix is null && options.EndOfWordSuffix is null)))
        {
            destination.Add(single);
            return;
        }

        if (word.Length <= LongestCachedWord && scratch.CacheBySpan.TryGetValue(word, out int[]? known))
        {
            destination.AddRange(known);
            return;
        }

        if (options.IgnoreMerges && vocabulary.GetAlternateLookup<ReadOnlySpan<char>>().TryGetValue(word, out int whole))
        {
            scratch.Symbols.Clear();
            scratch.Symbols.Add(whole);
        }
        else
        {
            SplitIntoSymbols(word, scratch.Symbols);
            if (scratch.Symbols.Count <= LongestScannedWord)
            {
                MergeByScan(scratch);
            }
            else
            {
                MergeByHeap(scratch);
            }
        }

        destination.AddRange(scratch.Symbols);
        if (word.Length <= LongestCachedWord)
        {
            if (scratch.Cache.Count >= CachedWords)
            {
                scratch.Cache.Clear();
            }

            scratch.Cache[word.ToString()] = [.. scratch.Symbols];
        }
    }

    private static ulong Pair(int left, int right) => ((ulong)(uint)left << 32) | (uint)right;

    /// <summary>One id per scalar; bytes, the unknown token (fused where the file says so) or nothing for one that is not in the vocabulary.</summary>
    private void SplitIntoSymbols(ReadOnlySpan<char> word, List<int> symbols)
    {
        symbols.Clear();
        Dictionary<string, int>.AlternateLookup<ReadOnlySpan<char>> lookup = vocabulary.GetAlternateLookup<ReadOnlySpan<char>>();
        bool plain = options.ContinuingSubwordPrefix is null && options.EndOfWordSuffix is null;
        bool pendingUnknown = false;
        Span<byte> bytes = stackalloc byte[4];
        for (int i = 0; i < word.Length;)
        {
            int length = char.IsHighSurrogate(word[i]) && i + 1 < word.Length ? 2 : 1;
            ReadOnlySpan<char> scalar = word.Slice(i, length);
            bool first = i == 0;
            i += length;
            int id;
            string? decorated = null;
            if (plain)
            {
                id = length == 1 ? basicScalarIds[scalar[0]] : lookup.TryGetValue(scalar, out int astral) ? astral : -1;
            }
            else
            {
                decorated = (first ? "" : options.ContinuingSubwordPrefix) + scalar.ToString() + (i == word.Length ? options.EndOfWordSuffix : "");
                id = vocabulary.TryGetValue(decorated, out int found) ? found : -1;
            }

            if (id >= 0)
            {
                if (pendingUnknown)
                {
                    symbols.Add(unknownId!.Value);
                    pendingUnknown = false;
                }

                symbols.Add(id);
                continue;
            }

            if (byteIds is not null)
            {
                ReadOnlySpan<byte> utf8 = decorated is null ? bytes[..Encoding.UTF8.GetBytes(scalar, bytes)] : Encoding.UTF8.GetBytes(decorated);
                bool complete = true;
                foreach (byte b in utf8)
                {
                    complete &= byteIds[b] >= 0;
                }

                if (complete)
                {
                    foreach (byte b in utf8)
                    {
                        symbols.Add(byteIds[b]);
                    }

                    continue;
                }
            }

            if (unknownId is { } unknown)
            {
                if (pendingUnknown && !options.FuseUnknown)
                {
                    symbols.Add(unknown);
                }

                pendingUnknown = true;
            }
        }

        if (pendingUnknown)
        {
            symbols.Add(unknownId!.Value);
        }
    }

    /// <summary>Short words: look for the lowest rank again after each merge.</summary>
    private void MergeByScan(Scratch scratch)
    {
        Span<int> symbols = CollectionsMarshal.AsSpan(scratch.Symbols);
        Span<int> ranks = stackalloc int[LongestScannedWord];
        int count = symbols.Length;
        for (int i = 0; i + 1 < count; i++)
        {
            ranks[i] = RankOf(symbols[i], symbols[i + 1]);
        }

        while (count > 1)
        {
            int best = 0;
            for (int i = 1; i < count - 1; i++)
            {
                if (ranks[i] < ranks[best])
                {
                    best = i;
                }
            }

            if (ranks[best] == int.MaxValue)
            {
                break;
            }

            symbols[best] = merges[Pair(symbols[best], symbols[best + 1])].Id;
            symbols[(best + 2)..count].CopyTo(symbols[(best + 1)..]);
            count--;
            if (best + 1 < count)
            {
                ranks[(best + 2)..count].CopyTo(ranks[(best + 1)..]);
                ranks[best] = RankOf(symbols[best], symbols[best + 1]);
            }

            if (best > 0)
            {
                ranks[best - 1] = RankOf(symbols[best - 1], symbols[best]);
            }
        }

        scratch.Symbols.RemoveRange(count, scratch.Symbols.Count - count);
    }

    private int RankOf(int left, int right) => merges.TryGetValue(Pair(left, right), out Merge merge) ? merge.Rank : int.MaxValue;

    /// <summary>Long words: a heap of candidate merges over a linked list, n log n. An entry is stale unless the pair at its place still merges to the same token.</summary>
    private void MergeByHeap(Scratch scratch)
    {
        Span<int> symbols = CollectionsMarshal.AsSpan(scratch.Symbols);
        int count = symbols.Length;
        if (scratch.Next.Length < count)
        {
            scratch.Next = new int[count + (count / 2)];
            scratch.Previous = new int[count + (count / 2)];
        }

        Span<int> next = scratch.Next.AsSpan(0, count), previous = scratch.Previous.AsSpan(0, count);
        PriorityQueue<(int Position, int Id), ulong> queue = scratch.Queue;
        queue.Clear();
        for (int i = 0; i < count; i++)
        {
            next[i] = i + 1;
            previous[i] = i - 1;
            if (i + 1 < count)
            {
                Propose(scratch, symbols[i], symbols[i + 1], i);
            }
        }

        const int gone = -1;
        while (queue.TryDequeue(out (int Position, int Id) top, out _))
        {
            int left = top.Position;
            if (symbols[left] == gone || next[left] >= count)
            {
                continue;
            }

            int right = next[left];
            if (!merges.TryGetValue(Pair(symbols[left], symbols[right]), out Merge merge) || merge.Id != top.Id)
            {
                continue;
            }

            symbols[left] = merge.Id;
            symbols[right] = gone;
            next[left] = next[right];
            if (next[left] < count)
            {
                previous[next[left]] = left;
                Propose(scratch, merge.Id, symbols[next[left]], left);
            }

            if (previous[left] >= 0)
            {
                Propose(scratch, symbols[previous[left]], merge.Id, previous[left]);
            }
        }

        int written = 0;
        foreach (int symbol in symbols)
        {
            if (symbol != gone)
            {
                symbols[written++] = symbol;
            }
        }

        scratch.Symbols.RemoveRange(written, count - written);
    }

    private void Propose(Scratch scratch, int left, int right, int position)
    {
        if (merges.TryGetValue(Pair(left, right), out Merge merge))
        {
            scratch.Candidates++;
            scratch.Queue.Enqueue((position, merge.Id), ((ulong)(uint)merge.Rank << 32) | (uint)position);
        }
    }
}

/// <summary>The switches of a BPE model in tokenizer.json.</summary>
internal sealed record BpeOptions
{
    public string? UnknownToken { get; init; }

    public string? ContinuingSubwordPrefix { get; init; }

    public string? EndOfWordSuffix { get; init; }

    public bool FuseUnknown { get; init; }

    public bool ByteFallback { get; init; }

    public bool IgnoreMerges { get; init; }
}
