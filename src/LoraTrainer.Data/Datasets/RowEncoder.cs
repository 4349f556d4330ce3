using LoraTrainer.Data.ChatTemplates;
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

/// <summary>How conversations become tokens.</summary>
/// <param name="Encoder">The template with the tokenizer.</param>
/// <param name="Options">What is scored.</param>
public sealed record ConversationEncoding(ChatEncoder Encoder, ChatEncodingOptions Options);

/// <summary>What a model is asked, and what it should answer.</summary>
/// <param name="Prompt">The text given.</param>
/// <param name="Completion">The text expected.</param>
/// <param name="PromptTokens">The text given as tokens.</param>
/// <param name="Stop">The token that ends the answer, where it is another than the tokenizer's EOS; null otherwise.</param>
public readonly record struct RowQuestion(string Prompt, string Completion, int[] PromptTokens, int? Stop)
{
    /// <summary>A text that ends the answer, where no token does; empty otherwise.</summary>
    public string StopText { get; init; } = "";
}

/// <summary>A row after encoding: what is kept of it, and what is worth telling.</summary>
/// <param name="Row">The tokens that are used; default where none are.</param>
/// <param name="Findings">Of a row that is left out, why it is; of one that is kept, all that is worth telling.</param>
/// <param name="Source">Where the row stands.</param>
public readonly record struct EncodedRow(TokenizedRow Row, IReadOnlyList<RowFinding> Findings, RowSource Source)
{
    public bool IsKept => Row.Tokens is not null;

    /// <summary>Why the row is left out; null where it is kept.</summary>
    public RowFinding? WhyLeftOut => IsKept ? null : Findings[0];

    public bool Has(RowFindingKind kind) => Findings.Any(finding => finding.Kind == kind);
}

/// <summary>
/// Turns rows into tokens. A prompt and its completion: prefix (BOS, where the tokenizer puts one) + prompt + completion + EOS. Prompt and completion are
/// encoded apart and joined, so that the border between what is given and what is scored is a border of tokens and inference on the prompt alone sees the
/// same ids; the joined text encoded at once can give other ids at the border. The completion gets no BOS of its own. EOS is appended unless the completion
/// already ends in it, and is scored: it is what teaches the model to stop. Prefix and prompt are not scored unless TrainOnInputs says so. All this as
/// axolotl's InstructionPromptTokenizingStrategy has it, except that a tokenizer which puts an EOS after every text does not get one into the prompt.
/// Segments: each encoded apart, nothing added (axolotl's input_output). Conversations: as their chat template has them. May be used from several threads
/// at once.
/// </summary>
/// <param name="tokenizer">Of the base model.</param>
/// <param name="options">Lengths and masks.</param>
/// <param name="conversations">How conversations become tokens; asked for when the first one comes. Null: there are none.</param>
public sealed class RowEncoder(Tokenizer tokenizer, TokenizationOptions options, Lazy<ConversationEncoding>? conversations = null)
{
    public Tokenizer Tokenizer => tokenizer;

    public TokenizationOptions Options => options;

    /// <summary>How conversations become tokens; null: there are none.</summary>
    public ConversationEncoding? Conversations => conversations?.Value;

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

        EncodedChat? chat = null;
        TokenizedRow whole;
        try
        {
            chat = row is DatasetRow.Conversed conversed ? EncodeChat(conversed) : null;
            whole = chat is null ? EncodeWhole(row) : new TokenizedRow(chat.Tokens, chat.IsSupervised, row.Source);
        }
        catch (DatasetException exception) when (exception.Reason is { } reason)
        {
            return Dropped(RowFindingKind.Faulty, 0, reason);
        }

        int length = whole.Tokens.Length;
        if (row is DatasetRow.Answered { Completion.Length: 0 } || whole.TargetCount == 0)
        {
            return Dropped(RowFindingKind.NothingToLearn, length);
        }

        TokenizedRow used = whole;
        List<RowFinding>? findings = null;
        bool isCut = length > options.SequenceLength;
        if (isCut)
        {
            switch (options.ExcessLength)
            {
                case ExcessLength.Drop:
                    return Dropped(RowFindingKind.TooLong, length);
                case ExcessLength.Raise:
                    throw new DatasetException($"{row.Source}: the row has {length} tokens, sequence_len is {options.SequenceLength}. Raise it, or set excess_length_strategy to drop or truncate.");
            }

            used = whole.Truncate(options.SequenceLength);
            if (used.TargetCount == 0)
            {
                return Dropped(RowFindingKind.CutToNothing, length);
            }

            Tell(RowFindingKind.Truncated);
        }

        if (length > 1 && whole.Tokens[0] == whole.Tokens[1] && (whole.Tokens[0] == tokenizer.BosId || tokenizer.PrefixIds.Contains(whole.Tokens[0])))
        {
            Tell(RowFindingKind.DoubleBos);
        }

        bool hidesMessages = chat?.MissingMessages.Count > 0;
        bool hidesTools = row is DatasetRow.Conversed { Tools: not null } called && !Required(called).Encoder.Template.Source.Contains("tools", StringComparison.Ordinal);
        if (hidesMessages || hidesTools)
        {
            Tell(RowFindingKind.MessageNotShown, !hidesTools ? null : hidesMessages ? "the template shows neither all of its messages nor its tools" : "the template does not show its tools");
        }

        // Where the row is cut, its end is not what it teaches.
        if (!isCut && EndFinding() is { } end)
        {
            Tell(end);
        }

        return new EncodedRow(used, findings ?? (IReadOnlyList<RowFinding>)[], row.Source);

        EncodedRow Dropped(RowFindingKind kind, int tokens, string? detail = null) => new(default, [new RowFinding(kind, row.Source, tokens, detail)], row.Source);
        void Tell(RowFindingKind kind, string? detail = null) => (findings ??= []).Add(new RowFinding(kind, row.Source, length, detail));

        RowFindingKind? EndFinding()
        {
            if (chat is null)
            {
                return EndIsLearned(whole) ? null : RowFindingKind.EndNotLearned;
            }

            if (!chat.TurnsWithoutEnd.Any())
            {
                return null;
            }

            // Of several, the last that is learned says how a conversation ends.
            EncodedTurn open = chat.Turns.Last(turn => turn is { IsTrained: true, EndOfTurn: null });
            return ClosingText(chat, open, Messages((DatasetRow.Conversed)row)).Length > 0 ? RowFindingKind.EndIsText
                : conversations!.Value.Options.TrainOnEndOfTurn is EndOfTurnTraining.Turn or EndOfTurnTraining.All ? RowFindingKind.EndNotLearned
                : null;
        }
    }

    /// <summary>All tokens of a row, however long it is.</summary>
    /// <exception cref="DatasetException">The row is faulty, or the tokenizer has no end.</exception>
    public TokenizedRow EncodeWhole(DatasetRow row) => row switch
    {
        DatasetRow.Answered answered => EncodeAnswered(answered),
        DatasetRow.Segmented segmented => EncodeSegmented(segmented),
        DatasetRow.Conversed conversed when EncodeChat(conversed) is var chat => new TokenizedRow(chat.Tokens, chat.IsSupervised, row.Source),
        DatasetRow.Faulty faulty => throw new DatasetException($"{row.Source}: {faulty.Reason}"),
        _ => throw new NotSupportedException($"There is no encoding for {row.GetType().Name}."),
    };

    /// <summary>What a model is asked and should answer; of a conversation that is the last answer. Null where nothing is asked or answered.</summary>
    /// <exception cref="DatasetException">The row is faulty.</exception>
    public RowQuestion? Question(DatasetRow row)
    {
        switch (row)
        {
            case DatasetRow.Answered answered:
                return new RowQuestion(answered.Prompt, answered.Completion, [.. tokenizer.PrefixIds, .. tokenizer.Encode(answered.Prompt, addSpecialTokens: false)], null);
            case DatasetRow.Segmented { Pieces.Count: 0 }:
                return null;
            case DatasetRow.Segmented segmented:
                int last = segmented.Pieces.Count - 1;
                while (last > 0 && !segmented.Pieces[last].IsSupervised)
                {
                    last--;
                }

                int[] given = [.. segmented.Pieces.Take(last).SelectMany(piece => tokenizer.Encode(piece.Text, addSpecialTokens: false))];
                return new RowQuestion(string.Concat(segmented.Pieces.Take(last).Select(piece => piece.Text)), segmented.Pieces[last].Text, given, null);
            case DatasetRow.Conversed conversed:
                return QuestionOf(conversed);
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

    private EncodedChat EncodeChat(DatasetRow.Conversed row)
    {
        ConversationEncoding how = Required(row);
        try
        {
            return how.Encoder.Encode(Messages(row), OptionsFor(row, how));
        }
        catch (ChatTemplateException exception)
        {
            throw new DatasetException(row.Source, exception.Message, exception);
        }
    }

    private RowQuestion? QuestionOf(DatasetRow.Conversed row)
    {
        ConversationEncoding how = Required(row);
        ChatMessages messages = Messages(row);
        int last = messages.Count - 1;
        while (last >= 0 && !how.Options.RolesToTrain.Contains(messages.Role(last)))
        {
            last--;
        }

        if (last <= 0)
        {
            return null;
        }

        try
        {
            ChatEncodingOptions options = OptionsFor(row, how);
            (string prompt, int[] tokens) = how.Encoder.EncodePrompt(messages.First(last), options.Template);
            EncodedChat whole = how.Encoder.Encode(messages.First(last + 1), options);
            EncodedTurn? turn = whole.Turns.Count > 0 ? whole.Turns[^1] : null;
            int? end = turn?.EndOfTurn is { } place ? whole.Tokens[place] : null;

            // Only a special token can be told from what an answer may hold.
            int? stop = end is { } token && tokenizer.Decode([token], skipSpecialTokens: true).Length == 0 ? end : null;
            return new RowQuestion(prompt, messages.TextOf(last), tokens, stop) { StopText = turn is { EndOfTurn: null } open ? ClosingText(whole, open, messages) : "" };
        }
        catch (ChatTemplateException exception)
        {
            throw new DatasetException(row.Source, exception.Message, exception);
        }
    }

    /// <summary>What the template puts behind what a message says, as text.</summary>
    private string ClosingText(EncodedChat chat, EncodedTurn turn, ChatMessages messages)
    {
        string said = tokenizer.Decode(chat.Tokens.AsSpan(turn.Start..turn.End), skipSpecialTokens: true), content = messages.TextOf(turn.Message);
        int at = said.LastIndexOf(content, StringComparison.Ordinal);
        return at < 0 ? "" : said[(at + content.Length)..].Trim();
    }

    private ConversationEncoding Required(DatasetRow.Conversed row) => conversations?.Value ?? throw new DatasetException($"{row.Source}: messages of a chat need a chat template, and none is set.");

    private ChatMessages Messages(DatasetRow.Conversed row) => ChatMessages.FromJson(
        Required(row).Encoder.Template.Source.Contains("tool_calls", StringComparison.Ordinal) ? row.Messages : ConversationFormat.WithCallsAsText(row.Messages), "the conversation");

    private ChatEncodingOptions OptionsFor(DatasetRow.Conversed row, ConversationEncoding how) =>
        how.Options with { TrainOnInputs = options.TrainOnInputs, Template = how.Options.Template with { Tools = row.Tools } };

    /// <summary>Whether the last scored token ends an answer.</summary>
    private bool EndIsLearned(in TokenizedRow row)
    {
        int last = Array.LastIndexOf(row.IsSupervised, true);
        return row.Tokens[last] == (options.EosId ?? tokenizer.EosId);
    }

    private int Eos() => options.EosId ?? tokenizer.EosId
        ?? throw new DatasetException($"{tokenizer.SourcePath}: the tokenizer names no EOS token, so nothing would teach the model to stop. Add \"eos_token\" to the tokenizer_config.json beside it.");
}
