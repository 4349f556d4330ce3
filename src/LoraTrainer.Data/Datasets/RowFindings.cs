namespace LoraTrainer.Data.Datasets;

/// <summary>What is worth telling about a row.</summary>
public enum RowFindingKind
{
    /// <summary>Not readable, or without what its shape needs: left out.</summary>
    Faulty,

    /// <summary>Longer than the sequence length: left out.</summary>
    TooLong,

    /// <summary>Longer than the sequence length: cut.</summary>
    Truncated,

    /// <summary>No text at all: left out.</summary>
    Empty,

    /// <summary>There is a prompt but nothing to learn: left out.</summary>
    NothingToLearn,

    /// <summary>Cut so short that no scored token is left: left out.</summary>
    CutToNothing,

    /// <summary>The text begins with the BOS that the tokenizer or the template puts before it anyway.</summary>
    DoubleBos,

    /// <summary>What is learned does not end in a token that ends an answer, so the model would not learn to stop.</summary>
    EndNotLearned,

    /// <summary>A turn ends in a text that is learned, but that is not a token, so what generates has to look for it.</summary>
    EndIsText,

    /// <summary>Messages say something of which the chat template shows nothing.</summary>
    MessageNotShown,

    /// <summary>The same tokens and scores as an earlier row's.</summary>
    Duplicate,

    /// <summary>A row to evaluate that is trained on, too.</summary>
    HeldOutIsTrained,

    /// <summary>More than <see cref="DatasetAudit.ExtremeFactor"/> times as long as the median.</summary>
    ExtremelyLong,
}

/// <summary>One row and what is worth telling about it.</summary>
/// <param name="Kind">What.</param>
/// <param name="Source">Where the row stands.</param>
/// <param name="Tokens">Its length before it was cut; 0 where it never became tokens.</param>
/// <param name="Detail">More about it, where the kind does not say all; null otherwise.</param>
public readonly record struct RowFinding(RowFindingKind Kind, RowSource Source, int Tokens, string? Detail = null)
{
    /// <summary>Whether the row is one that is only evaluated.</summary>
    public bool IsHeldOut { get; init; }

    /// <summary>Whether the row is not used.</summary>
    public bool IsDropped => Kind is RowFindingKind.Faulty or RowFindingKind.TooLong or RowFindingKind.Empty or RowFindingKind.NothingToLearn or RowFindingKind.CutToNothing;
}

/// <summary>Findings of one kind in one file, either of rows that are trained on or of those that are held out: how many, and the first few.</summary>
public sealed class RowFindingGroup
{
    internal RowFindingGroup(RowFindingKind kind, string file, bool isHeldOut)
    {
        Kind = kind;
        File = file;
        IsHeldOut = isHeldOut;
    }

    public RowFindingKind Kind { get; }

    public string File { get; }

    public bool IsHeldOut { get; }

    public int Count { get; private set; }

    /// <summary>The first <see cref="RowFindings.Kept"/>, in the order of the rows.</summary>
    public IReadOnlyList<RowFinding> First => first;

    private readonly List<RowFinding> first = [];

    internal void Add(in RowFinding finding)
    {
        Count++;
        if (first.Count < RowFindings.Kept)
        {
            first.Add(finding);
        }
    }
}

/// <summary>What was found, counted by kind and file, held-out rows apart. Data sets can have millions of bad rows, so only the first of each are kept; a listener sees all.</summary>
/// <param name="listener">Is told each one; null: nobody.</param>
public sealed class RowFindings(Action<RowFinding>? listener = null)
{
    /// <summary>Findings of one kind in one file that are kept.</summary>
    public const int Kept = 20;

    private readonly Dictionary<(RowFindingKind Kind, string File, bool IsHeldOut), RowFindingGroup> groups = [];

    /// <summary>By kind, then in the order in which the files were read.</summary>
    public IReadOnlyList<RowFindingGroup> Groups => [.. groups.Values.OrderBy(group => group.Kind)];

    public int Count(RowFindingKind kind) => groups.Values.Where(group => group.Kind == kind).Sum(group => group.Count);

    public void Add(in RowFinding finding)
    {
        (RowFindingKind Kind, string File, bool IsHeldOut) key = (finding.Kind, finding.Source.File ?? "", finding.IsHeldOut);
        if (!groups.TryGetValue(key, out RowFindingGroup? group))
        {
            groups.Add(key, group = new RowFindingGroup(key.Kind, key.File, key.IsHeldOut));
        }

        group.Add(finding);
        listener?.Invoke(finding);
    }
}
