using LoraTrainer.Data.Tokenizers;

namespace LoraTrainer.Data.Datasets;

/// <summary>What becomes of a row that is longer than <see cref="TokenizationOptions.SequenceLength"/>.</summary>
public enum ExcessLength
{
    /// <summary>Left out, and reported.</summary>
    Drop,

    /// <summary>Its first tokens are kept, and it is reported; one that keeps no scored token is left out.</summary>
    Truncate,

    /// <summary>An error.</summary>
    Raise,
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

/// <summary>A row after encoding: what is kept of it, and what is worth telling.</summary>
/// <param name="Row">The tokens that are used; default where none are.</param>
/// <param name="Finding">The first thing worth telling, or null.</param>
/// <param name="Source">Where the row stands.</param>
public readonly record struct EncodedRow(TokenizedRow Row, RowFinding? Finding, RowSource Source)
{
    public bool IsKept => Row.Tokens is not null;
}

/// <summary>
/// Turns rows into tokens. A prompt and its completion: prefix (BOS, where the tokenizer puts one) + prompt + completion + EOS. Prompt and completion are
/// encoded apart and joined, so that the border between what is given and what is scored is a border of tokens and inference on the prompt alone sees the
/// same ids; the joined text encoded at once can give other ids at the border. The completion gets no BOS of its own. EOS is appended unless the completion
/// already ends in it, and is scored: it is what teaches the model to stop. Prefix and prompt are not scored unless TrainOnInputs says so. All this as
/// axolotl's InstructionPromptTokenizingStrategy has it, except that a tokenizer which puts an EOS after every text does not get one into the prompt.
/// Segments: each encoded apart, nothing added (axolotl's input_output). May be used from several threads at once.
/// </summary>
/// <param name="tokenizer">Of the base model.</param>
/// <param name="options">Lengths and masks.</param>
public sealed class RowEncoder(Tokenizer tokenizer, TokenizationOptions options)
{
    public Tokenizer Tokenizer => tokenizer;

    public TokenizationOptions Options => options;

    /// <summary>The row as it is used: too long ones dropped or cut, as the options say.</summary>
    /// <exception cref="DatasetException">Nothing could be encoded with this tokenizer, or a long row is an error.</exception>
    public EncodedRow Encode(DatasetRow row)
    {
        switch (row)
        {
            case DatasetRow.Faulty faulty:
                return Dropped(RowFindingKind.Faulty, 0, faulty.Reason);
            case DatasetRow.Answered { Prompt.Length: 0, Completion.Length: 0 }:
                return Dropped(RowFindingKind.Empty, 0);
            case DatasetRow.Segmented segmented when segmented.Pieces.All(piece => piece.Text.Length == 0):
                return Dropped(RowFindingKind.Empty, 0);
        }

        TokenizedRow whole = EncodeWhole(row);
        int length = whole.Tokens.Length;
        if (row is DatasetRow.Answered { Completion.Length: 0 } || whole.TargetCount == 0)
        {
            return Dropped(RowFindingKind.NothingToLearn, length);
        }

        if (length > options.SequenceLength)
        {
            switch (options.ExcessLength)
            {
                case ExcessLength.Drop:
                    return Dropped(RowFindingKind.TooLong, length);
                case ExcessLength.Raise:
                    throw new DatasetException($"{row.Source}: the row has {length} tokens, sequence_len is {options.SequenceLength}. Raise it, or set excess_length_strategy to drop or truncate.");
            }

            TokenizedRow cut = whole.Truncate(options.SequenceLength);
            return cut.TargetCount == 0 ? Dropped(RowFindingKind.CutToNothing, length) : Kept(cut, RowFindingKind.Truncated, length);
        }

        if (length > 1 && whole.Tokens[0] == whole.Tokens[1] && (whole.Tokens[0] == tokenizer.BosId || tokenizer.PrefixIds.Contains(whole.Tokens[0])))
        {
            return Kept(whole, RowFindingKind.DoubleBos, length);
        }

        return EndIsLearned(whole) ? new EncodedRow(whole, null, row.Source) : Kept(whole, RowFindingKind.EndNotLearned, length);

        EncodedRow Dropped(RowFindingKind kind, int tokens, string? detail = null) => new(default, new RowFinding(kind, row.Source, tokens, detail), row.Source);
        EncodedRow Kept(TokenizedRow kept, RowFindingKind kind, int tokens) => new(kept, new RowFinding(kind, row.Source, tokens), row.Source);
    }

    /// <summary>All tokens of a row, however long it is.</summary>
    /// <exception cref="DatasetException">The row is faulty, or the tokenizer has no end.</exception>
    public TokenizedRow EncodeWhole(DatasetRow row) => row switch
    {
        DatasetRow.Answered answered => EncodeAnswered(answered),
        DatasetRow.Segmented segmented => EncodeSegmented(segmented),
        DatasetRow.Faulty faulty => throw new DatasetException($"{row.Source}: {faulty.Reason}"),
        _ => throw new NotSupportedException($"There is no encoding for {row.GetType().Name}."),
    };

    /// <summary>What a model is asked and should answer: the text given, the text expected, and the tokens given.</summary>
    /// <exception cref="DatasetException">The row is faulty.</exception>
    public (string Prompt, string Completion, int[] PromptTokens) Question(DatasetRow row)
    {
        switch (row)
        {
            case DatasetRow.Answered answered:
                return (answered.Prompt, answered.Completion, [.. tokenizer.PrefixIds, .. tokenizer.Encode(answered.Prompt, addSpecialTokens: false)]);
            case DatasetRow.Segmented segmented:
                int last = segmented.Pieces.Count - 1;
                while (last > 0 && !segmented.Pieces[last].IsSupervised)
                {
                    last--;
                }

                int[] given = [.. segmented.Pieces.Take(last).SelectMany(piece => tokenizer.Encode(piece.Text, addSpecialTokens: false))];
                return (string.Concat(segmented.Pieces.Take(last).Select(piece => piece.Text)), segmented.Pieces[last].Text, given);
            case DatasetRow.Faulty faulty:
                throw new DatasetException($"{row.Source}: {faulty.Reason}");
            default:
                throw new NotSupportedException($"There is no question in {row.GetType().Name}.");
        }
    }

    private TokenizedRow EncodeAnswered(DatasetRow.Answered row)
    {
        int eos = Eos();
        int[] prompt = tokenizer.Encode(row.Prompt, addSpecialTokens: false);
        int[] completion = tokenizer.Encode(row.Completion, addSpecialTokens: false);
        bool append = completion.Length == 0 || completion[^1] != eos;
        int[] tokens = [.. tokenizer.PrefixIds, .. prompt, .. completion, .. append ? (ReadOnlySpan<int>)[eos] : []];
        bool[] supervised = new bool[tokens.Length];
        int given = options.TrainOnInputs ? 0 : tokenizer.PrefixIds.Count + prompt.Length;
        supervised.AsSpan(Math.Max(given, 1)).Fill(true);
        return new TokenizedRow(tokens, supervised, row.Source);
    }

    private TokenizedRow EncodeSegmented(DatasetRow.Segmented row)
    {
        var tokens = new List<int>();
        var supervised = new List<bool>();
        foreach (TextPiece piece in row.Pieces)
        {
            int[] ids = tokenizer.Encode(piece.Text, addSpecialTokens: false);
            tokens.AddRange(ids);
            supervised.AddRange(Enumerable.Repeat(piece.IsSupervised || options.TrainOnInputs, ids.Length));
        }

        if (supervised.Count > 0)
        {
            supervised[0] = false;
        }

        return new TokenizedRow([.. tokens], [.. supervised], row.Source);
    }

    /// <summary>Whether the last scored token ends an answer.</summary>
    private bool EndIsLearned(in TokenizedRow row)
    {
        int last = Array.LastIndexOf(row.IsSupervised, true);
        return row.Tokens[last] == (options.EosId ?? tokenizer.EosId);
    }

    private int Eos() => options.EosId ?? tokenizer.EosId
        ?? throw new DatasetException($"{tokenizer.SourcePath}: the tokenizer names no EOS token, so nothing would teach the model to stop. Add \"eos_token\" to the tokenizer_config.json beside it.");
}
