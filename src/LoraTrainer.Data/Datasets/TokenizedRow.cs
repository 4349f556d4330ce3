using LoraTrainer.Data.Tokenizers;

namespace LoraTrainer.Data.Datasets;

/// <summary>What becomes of a row that is longer than <see cref="TokenizationOptions.SequenceLength"/>.</summary>
public enum ExcessLength
{
    /// <summary>Left out, and reported.</summary>
    Drop,

    /// <summary>Its first tokens are kept, and it is reported; one that keeps no scored token is left out.</summary>
    Truncate,
}

public sealed record TokenizationOptions
{
    /// <summary>The most tokens a row may have.</summary>
    public required int SequenceLength { get; init; }

    /// <summary>Whether prompts are scored too.</summary>
    public bool TrainOnInputs { get; init; }

    public ExcessLength ExcessLength { get; init; } = ExcessLength.Drop;

    /// <summary>The token that ends a document; null: the tokenizer's own.</summary>
    public int? EosId { get; init; }

    public int Threads { get; init; } = 1;
}

/// <summary>
/// A row as token ids: prefix (BOS, where the tokenizer puts one) + prompt + completion + EOS. Prompt and completion are encoded apart and joined, so
/// that the border between what is given and what is scored is a border of tokens and inference on the prompt alone sees the same ids; the joined text
/// encoded at once can give other ids at the border. The completion gets no BOS of its own. EOS is appended unless the completion already ends in it,
/// and is scored: it is what teaches the model to stop. Prefix and prompt are not scored unless TrainOnInputs says so. All this as axolotl's
/// InstructionPromptTokenizingStrategy has it, except that a tokenizer which puts an EOS after every text does not get one into the prompt.
/// </summary>
/// <param name="Tokens">The ids.</param>
/// <param name="IsSupervised">Per token, whether it is scored; the first token of a row never is, as nothing predicts it.</param>
/// <param name="Source">Where the row stands.</param>
public readonly record struct TokenizedRow(int[] Tokens, bool[] IsSupervised, RowSource Source)
{
    /// <summary>Tokens that are predicted and scored.</summary>
    public int TargetCount => IsSupervised.AsSpan().Count(true);

    public static TokenizedRow Encode(DatasetRow row, Tokenizer tokenizer, TokenizationOptions options)
    {
        int eos = options.EosId ?? tokenizer.EosId
            ?? throw new DatasetException($"{tokenizer.SourcePath}: the tokenizer names no EOS token, so nothing would teach the model to stop. Add \"eos_token\" to the tokenizer_config.json beside it.");
        int[] prompt = tokenizer.Encode(row.Prompt, addSpecialTokens: false);
        int[] completion = tokenizer.Encode(row.Completion, addSpecialTokens: false);
        bool append = completion.Length == 0 || completion[^1] != eos;
        int[] tokens = [.. tokenizer.PrefixIds, .. prompt, .. completion, .. append ? (ReadOnlySpan<int>)[eos] : []];
        bool[] supervised = new bool[tokens.Length];
        int given = options.TrainOnInputs ? 0 : tokenizer.PrefixIds.Count + prompt.Length;
        supervised.AsSpan(Math.Max(given, 1)).Fill(true);
        return new TokenizedRow(tokens, supervised, row.Source);
    }

    /// <summary>The row cut to its first <paramref name="length"/> tokens.</summary>
    public TokenizedRow Truncate(int length) => new(Tokens[..length], IsSupervised[..length], Source);
}
