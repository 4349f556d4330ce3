namespace LoraTrainer.Data.ChatTemplates;

/// <summary>Which tokens that end a turn are scored; axolotl's train_on_eos.</summary>
public enum EndOfTurnTraining
{
    /// <summary>That of each turn that is trained: the model learns to stop.</summary>
    Turn,

    /// <summary>That of every turn, whoever speaks.</summary>
    All,

    /// <summary>That of the last turn only.</summary>
    Last,

    /// <summary>None. The model does not learn to stop.</summary>
    None,
}

/// <summary>What of a conversation is scored.</summary>
public sealed record ChatEncodingOptions
{
    /// <summary>What the template is given besides the messages. A prompt to generate from is not asked for here.</summary>
    public ChatTemplateOptions Template { get; init; } = new();

    /// <summary>Who is to be imitated.</summary>
    public IReadOnlySet<string> RolesToTrain { get; init; } = new HashSet<string>(StringComparer.Ordinal) { "assistant" };

    /// <summary>Whether everything is scored, whoever says it.</summary>
    public bool TrainOnInputs { get; init; }

    public EndOfTurnTraining TrainOnEndOfTurn { get; init; } = EndOfTurnTraining.Turn;

    /// <summary>Whether only the last of the turns that would be trained is.</summary>
    public bool LastTurnOnly { get; init; }

    /// <summary>
    /// Whether special tokens count that are written out in messages, as transformers takes them. Without it they are text: nobody who writes a message
    /// can end a turn or begin one.
    /// </summary>
    public bool TakeSpecialTokensInMessages { get; init; }
}

/// <summary>A turn in the tokens of a conversation.</summary>
/// <param name="Message">Which message it is, from 0.</param>
/// <param name="Start">Its first token that the speaker says (behind the header).</param>
/// <param name="End">Behind its last, the end of the turn included.</param>
/// <param name="EndOfTurn">The first token that ends the turn; null where nothing does.</param>
/// <param name="IsTrained">Whether it is scored.</param>
public readonly record struct EncodedTurn(int Message, int Start, int End, int? EndOfTurn, bool IsTrained);

/// <summary>A conversation as tokens.</summary>
/// <param name="Text">What the template made of it.</param>
/// <param name="Tokens">The ids; the template alone puts BOS and EOS.</param>
/// <param name="IsSupervised">Per token, whether it is scored; the first never is, as nothing predicts it.</param>
/// <param name="Turns">The turns that were found, in the order of the text.</param>
/// <param name="MissingMessages">Messages that say something of which the template shows nothing.</param>
public sealed record EncodedChat(string Text, int[] Tokens, bool[] IsSupervised, IReadOnlyList<EncodedTurn> Turns, IReadOnlyList<int> MissingMessages)
{
    /// <summary>Tokens that are predicted and scored.</summary>
    public int TargetCount => IsSupervised.AsSpan().Count(true);

    /// <summary>Messages that are trained without a token that ends their turn: a model that learns them does not learn to stop.</summary>
    public IEnumerable<int> TurnsWithoutEnd => Turns.Where(turn => turn.IsTrained && turn.EndOfTurn is null).Select(turn => turn.Message);
}
