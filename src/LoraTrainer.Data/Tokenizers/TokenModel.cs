namespace LoraTrainer.Data.Tokenizers;

/// <summary>The part of a tokenizer that turns one word (or one stretch of text, where nothing cuts it into words) into ids. Immutable; what a thread changes is in <see cref="Scratch"/>.</summary>
internal abstract class TokenModel
{
    private const int LongestCachedWord = 128;
    private const int CachedWords = 1 << 15;

    /// <summary>Working memory and the words seen before; one per thread, and of one model.</summary>
    public sealed class Scratch
    {
        internal readonly Dictionary<string, int[]> Cache = [];
        internal readonly Dictionary<string, int[]>.AlternateLookup<ReadOnlySpan<char>> CacheBySpan;
        internal readonly List<int> Symbols = [];
        internal readonly List<(int Start, int End, int Value)> Path = [];
        internal readonly BpeMerges.Scratch Merging = new();
        internal readonly UnigramLattice<float>.Scratch SingleLattice = new();
        internal readonly UnigramLattice<double>.Scratch DoubleLattice = new();

        public Scratch() => CacheBySpan = Cache.GetAlternateLookup<ReadOnlySpan<char>>();
    }

    /// <summary>Adds the ids of <paramref name="word"/>, which has no lone surrogates.</summary>
    public abstract void Encode(ReadOnlySpan<char> word, Scratch scratch, List<int> destination);

    /// <summary>Adds the ids of a word that was seen before.</summary>
    /// <returns>False: it was not, or not lately.</returns>
    protected static bool AddKnown(ReadOnlySpan<char> word, Scratch scratch, List<int> destination)
    {
        if (word.Length <= LongestCachedWord && scratch.CacheBySpan.TryGetValue(word, out int[]? known))
        {
            destination.AddRange(known.AsSpan());
            return true;
        }

        return false;
    }

    protected static void Remember(ReadOnlySpan<char> word, ReadOnlySpan<int> ids, Scratch scratch)
    {
        if (word.Length > LongestCachedWord)
        {
            return;
        }

        if (scratch.Cache.Count >= CachedWords)
        {
            scratch.Cache.Clear();
        }

        scratch.Cache[word.ToString()] = ids.ToArray();
    }
}
