using System.Runtime.InteropServices;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// Byte-pair encoding of one word (pre-token): split into scalars, then merge the adjacent pair with the lowest rank, leftmost first, until none
/// can be merged. Rules as in the tokenizers library's models/bpe.
/// </summary>
internal sealed class BpeModel : TokenModel
{
    private readonly BpeOptions options;
    private readonly Dictionary<string, int> vocabulary;
    private readonly BpeMerges merges;
    private readonly int[] basicScalarIds = new int[0x10000];
    private readonly int[]? byteIds;
    private readonly int? unknownId;
    private readonly SafeCuts? cuts;

    /// <exception cref="FormatException">A merge names an unknown token, or the unknown token is not in the vocabulary.</exception>
    public BpeModel(Dictionary<string, int> vocabulary, IReadOnlyList<(string Left, string Right)> mergeList, BpeOptions options)
        : this(vocabulary, Resolve(vocabulary, mergeList, options), options)
    {
    }

    /// <exception cref="FormatException">The unknown token is not in the vocabulary.</exception>
    public BpeModel(Dictionary<string, int> vocabulary, BpeMerges merges, BpeOptions options)
    {
        this.options = options;
        this.vocabulary = vocabulary;
        this.merges = merges;
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
            byteIds = ByteTokens.IdsIn(vocabulary);
        }

        // An unknown U+2581 could be fused with what is unknown before it, and where unknown characters vanish others become neighbours.
        bool nothingVanishes = unknownId is not null || (byteIds is not null && byteIds.All(id => id >= 0));
        if (!options.IgnoreMerges && IsPlain && basicScalarIds[SafeCuts.Space] >= 0 && nothingVanishes)
        {
            cuts = new SafeCuts(vocabulary.Keys);
        }
    }

    /// <summary>Whether a scalar is looked up as it is.</summary>
    private bool IsPlain => options.ContinuingSubwordPrefix is null && options.EndOfWordSuffix is null;

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
        if (word.Length == 1 && basicScalarIds[word[0]] is >= 0 and var single && (options.IgnoreMerges || IsPlain))
        {
            destination.Add(single);
            return;
        }

        if (AddKnown(word, scratch, destination))
        {
            return;
        }

        List<int> symbols = scratch.Symbols;
        if (options.IgnoreMerges && vocabulary.GetAlternateLookup<ReadOnlySpan<char>>().TryGetValue(word, out int whole))
        {
            symbols.Clear();
            symbols.Add(whole);
        }
        else
        {
            SplitIntoSymbols(word, symbols);
            int left = merges.Apply(CollectionsMarshal.AsSpan(symbols), scratch.Merging);
            symbols.RemoveRange(left, symbols.Count - left);
        }

        destination.AddRange(CollectionsMarshal.AsSpan(symbols));
        Remember(word, CollectionsMarshal.AsSpan(symbols), scratch);
    }

    private static BpeMerges Resolve(Dictionary<string, int> vocabulary, IReadOnlyList<(string Left, string Right)> mergeList, BpeOptions options)
    {
        var merges = new List<BpeMerges.Merge>(mergeList.Count);
        int prefixLength = options.ContinuingSubwordPrefix?.Length ?? 0;
        for (int rank = 0; rank < mergeList.Count; rank++)
        {
            (string left, string right) = mergeList[rank];
            if (right.Length < prefixLength)
            {
                throw new FormatException($"merge {rank} ('{left}' '{right}'): the right side is shorter than continuing_subword_prefix");
            }

            merges.Add(new BpeMerges.Merge(Required(left, rank), Required(right, rank), rank, Required(left + right[prefixLength..], rank)));
        }

        return new BpeMerges(merges);

        int Required(string token, int rank) => vocabulary.TryGetValue(token, out int id)
            ? id
            : throw new FormatException($"merge {rank} names '{token}', which is not in the vocabulary");
    }

    /// <summary>One id per scalar; bytes, the unknown token (fused where the file says so) or nothing for one that is not in the vocabulary.</summary>
    private void SplitIntoSymbols(ReadOnlySpan<char> word, List<int> symbols)
    {
        symbols.Clear();
        Dictionary<string, int>.AlternateLookup<ReadOnlySpan<char>> lookup = vocabulary.GetAlternateLookup<ReadOnlySpan<char>>();
        bool plain = IsPlain;
        bool pendingUnknown = false;
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

            if (byteIds is not null && ByteTokens.TryAdd(decorated is null ? scalar : decorated, byteIds, symbols))
            {
                continue;
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
