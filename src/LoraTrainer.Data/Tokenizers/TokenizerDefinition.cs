namespace LoraTrainer.Data.Tokenizers;

/// <summary>Everything a tokenizer's files say, in the form the pipeline runs.</summary>
internal sealed record TokenizerDefinition
{
    public required TokenModel Model { get; init; }

    public required Dictionary<string, int> Vocabulary { get; init; }

    /// <summary>The ids of the vocabulary.</summary>
    public HashSet<int> Ids => field ??= [.. Vocabulary.Values];

    public required IReadOnlyList<AddedToken> AddedTokens { get; init; }

    public Normalizer? Normalizer { get; init; }

    public PreTokenizer? PreTokenizer { get; init; }

    public Decoder? Decoder { get; init; }

    /// <summary>Ids put before a single sequence.</summary>
    public required IReadOnlyList<int> Prefix { get; init; }

    /// <summary>Ids put after it.</summary>
    public required IReadOnlyList<int> Suffix { get; init; }

    /// <summary>What is odd in the file without being wrong; one sentence each.</summary>
    public required IReadOnlyList<string> Notices { get; init; }

    /// <summary>The roles of tokens that the file itself names; tokenizer.json names none.</summary>
    public SpecialTokens Roles { get; init; } = new();
}
