using System.Globalization;
using System.Runtime.InteropServices;
using System.Security.Cryptography;

namespace LoraTrainer.Data.Datasets;

/// <summary>
/// Looks at every encoded row once, as it goes by: counts, lengths, and everything that would make a training worse than its data need be. Holds a few bytes
/// per row, however long the rows are.
/// </summary>
/// <param name="options">Of the encoding.</param>
/// <param name="listener">Is told every finding about a row; null: nobody.</param>
public sealed class DatasetAudit(TokenizationOptions options, Action<RowFinding>? listener = null)
{
    /// <summary>A row so many times as long as the median is worth a look.</summary>
    public const int ExtremeFactor = 20;

    private const int PlacesInASentence = 3;

    private readonly RowFindings findings = new(listener);
    private readonly List<AuditFinding> notes = [];
    private readonly SortedDictionary<int, int> rowsOfLength = [];
    private readonly FingerprintSet seen = new();
    private readonly Dictionary<string, int> keptOf = new(StringComparer.Ordinal);
    private readonly PriorityQueue<RowSource, int> longest = new();
    private int rows, kept, truncated, heldOut;
    private long tokens, supervised;
    private EpochSize epoch;

    /// <summary>Rows so far that are trained on.</summary>
    public int Kept => kept;

    /// <summary>Counts a row that is trained on.</summary>
    /// <param name="row">As it is encoded.</param>
    /// <param name="times">How often an epoch has it, as the weight of its data set says.</param>
    public void Add(in EncodedRow row, int times = 1)
    {
        rows++;
        foreach (RowFinding finding in row.Findings)
        {
            findings.Add(finding);
        }

        if (!row.IsKept)
        {
            return;
        }

        int length = row.Row.Tokens.Length;
        rowsOfLength[length] = rowsOfLength.GetValueOrDefault(length) + 1;
        kept++;
        truncated += row.Has(RowFindingKind.Truncated) ? 1 : 0;
        tokens += length;
        supervised += row.Row.TargetCount;
        epoch = new EpochSize(epoch.Rows + times, epoch.Tokens + ((long)times * length), epoch.SupervisedTokens + ((long)times * row.Row.TargetCount));
        CollectionsMarshal.GetValueRefOrAddDefault(keptOf, row.Source.File ?? "", out _)++;
        longest.Enqueue(row.Source, length);
        if (longest.Count > RowFindings.Kept)
        {
            longest.Dequeue();
        }

        if (!seen.Add(Fingerprint(row.Row)))
        {
            findings.Add(new RowFinding(RowFindingKind.Duplicate, row.Source, length));
        }
    }

    /// <summary>Looks at a row that is only evaluated. To be called after all rows that are trained on.</summary>
    public void AddHeldOut(in EncodedRow row)
    {
        heldOut++;
        if (row.WhyLeftOut is { Kind: RowFindingKind.Faulty or RowFindingKind.Empty or RowFindingKind.NothingToLearn } reason)
        {
            findings.Add(reason with { IsHeldOut = true });
        }

        if (row.IsKept && seen.Contains(Fingerprint(row.Row)))
        {
            findings.Add(new RowFinding(RowFindingKind.HeldOutIsTrained, row.Source, row.Row.Tokens.Length) { IsHeldOut = true });
        }
    }

    /// <summary>Something that is not about single rows.</summary>
    public void Note(AuditSeverity severity, string code, string message) => notes.Add(new AuditFinding(severity, code, message, null, 0, []));

    /// <summary>The sum of it.</summary>
    public AuditReport Finish()
    {
        int At(double share)
        {
            int place = Math.Min(kept - 1, (int)(share * kept)), seenSoFar = 0;
            return rowsOfLength.FirstOrDefault(pair => (seenSoFar += pair.Value) > place).Key;
        }

        AddExtremes(At(0.5));
        if (rows == 0)
        {
            Note(AuditSeverity.Error, "no_rows", "The data set is empty: no row was read.");
        }
        else if (kept == 0)
        {
            Note(AuditSeverity.Error, "no_row_left", $"No row is left of {Count(rows)}: {Reasons()}.");
        }

        return new AuditReport
        {
            Rows = rows,
            Kept = kept,
            Truncated = truncated,
            Tokens = tokens,
            SupervisedTokens = supervised,
            Epoch = epoch,
            HeldOut = heldOut,
            Lengths = new LengthPercentiles(At(0), At(0.5), At(0.9), At(0.99), At(1)),
            Findings = [.. notes.Concat(findings.Groups.Select(Describe)).OrderByDescending(finding => finding.Severity)],
        };
    }

    private void AddExtremes(int median)
    {
        int limit = checked(ExtremeFactor * median);
        foreach ((RowSource source, int length) in longest.UnorderedItems.Where(item => item.Priority > limit).OrderByDescending(item => item.Priority))
        {
            findings.Add(new RowFinding(RowFindingKind.ExtremelyLong, source, length));
        }
    }

    private string Reasons()
    {
        RowFindingGroup[] dropped = [.. findings.Groups.Where(group => !group.IsHeldOut && group.First[0].IsDropped)];
        return string.Join(", ", dropped.GroupBy(group => group.Kind).Select(kind => $"{Count(kind.Sum(group => group.Count))} {Words(kind.Key)}")) + $"; the first is {Place(dropped[0].First[0])}";
    }

    private AuditFinding Describe(RowFindingGroup group)
    {
        bool isAll = keptOf.GetValueOrDefault(group.File) == group.Count;
        AuditSeverity severity = group.Kind switch
        {
            RowFindingKind.DoubleBos => AuditSeverity.Error,
            RowFindingKind.EndNotLearned when isAll => AuditSeverity.Error,
            RowFindingKind.ExtremelyLong => AuditSeverity.Notice,
            _ => AuditSeverity.Warning,
        };
        int all = group.IsHeldOut ? heldOut : rows;
        string of = $"{Count(all)} {(group.IsHeldOut ? "held-out " : "")}{(all == 1 ? "row" : "rows")}";
        string message = $"{Count(group.Count)} of {of} {(group.Count == 1 ? "is" : "are")} {Words(group.Kind)}:{Places(group)}{Advice(group.Kind)}";
        return new AuditFinding(severity, CodeOf(group.Kind), message, group.File, group.Count, [.. group.First.Select(finding => finding.Source.Row)]);
    }

    /// <summary>The first few: on one line, or on one each where each has its own reason.</summary>
    private static string Places(RowFindingGroup group)
    {
        string[] places = [.. group.First.Take(PlacesInASentence).Select(Place)];
        bool isMore = group.Count > PlacesInASentence;
        return places.Length > 1 && group.First[0].Detail is not null
            ? string.Concat(places.Select(place => "\n  " + place)) + (isMore ? "\n  ..." : "")
            : $" {string.Join(", ", places)}{(isMore ? ", ..." : ".")}";
    }

    /// <summary>The word for scripts.</summary>
    public static string CodeOf(RowFindingKind kind) => kind switch
    {
        RowFindingKind.Faulty => "faulty_row",
        RowFindingKind.TooLong => "too_long",
        RowFindingKind.Truncated => "truncated",
        RowFindingKind.Empty => "empty",
        RowFindingKind.NothingToLearn => "nothing_to_learn",
        RowFindingKind.CutToNothing => "cut_to_nothing",
        RowFindingKind.DoubleBos => "double_bos",
        RowFindingKind.EndNotLearned => "end_not_learned",
        RowFindingKind.EndIsText => "end_is_text",
        RowFindingKind.MessageNotShown => "message_not_shown",
        RowFindingKind.Duplicate => "duplicate",
        RowFindingKind.HeldOutIsTrained => "held_out_is_trained",
        RowFindingKind.ExtremelyLong => "extremely_long",
        _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "there is no word for it"),
    };

    private string Words(RowFindingKind kind) => kind switch
    {
        RowFindingKind.Faulty => "not usable and left out",
        RowFindingKind.TooLong => $"longer than sequence_len {options.SequenceLength} and left out (excess_length_strategy: drop)",
        RowFindingKind.Truncated => $"longer than sequence_len {options.SequenceLength} and cut (excess_length_strategy: truncate)",
        RowFindingKind.Empty => "empty and left out",
        RowFindingKind.NothingToLearn => "without an answer to learn and left out",
        RowFindingKind.CutToNothing => $"left out, since after the cut to sequence_len {options.SequenceLength} nothing of the answer remains",
        RowFindingKind.DoubleBos => "beginning with the BOS token twice",
        RowFindingKind.EndNotLearned => "not ending in a learned end token",
        RowFindingKind.EndIsText => "ending in a text that the tokenizer does not know as one token",
        RowFindingKind.MessageNotShown => "with something that the chat template does not show",
        RowFindingKind.Duplicate => "the same as an earlier one",
        RowFindingKind.HeldOutIsTrained => "evaluated, but trained on as well",
        _ => $"more than {ExtremeFactor} times as long as the median row",
    };

    private static string Advice(RowFindingKind kind) => kind switch
    {
        RowFindingKind.DoubleBos => " The tokenizer or the template adds it: take it out of the texts or the format.",
        RowFindingKind.EndNotLearned => " A model trained on them does not learn to stop: end the answers with the tokenizer's EOS.",
        RowFindingKind.EndIsText => " It is learned, but what generates must look for that text to stop: make it a token (tokens), or name a chat_template of the model.",
        RowFindingKind.HeldOutIsTrained => " What is measured on them says nothing: take them out of one of the two.",
        _ => "",
    };

    private static string Place(RowFinding finding) => finding.Detail is { } detail ? $"{finding.Source}, {detail}"
        : finding.Kind is RowFindingKind.TooLong or RowFindingKind.Truncated or RowFindingKind.CutToNothing or RowFindingKind.ExtremelyLong ? $"{finding.Source} with {Count(finding.Tokens)} {(finding.Tokens == 1 ? "token" : "tokens")}" : finding.Source.ToString();

    private static string Count(int number) => number.ToString("#,0", CultureInfo.InvariantCulture);

    private static ulong Fingerprint(in TokenizedRow row)
    {
        Span<byte> hash = stackalloc byte[SHA256.HashSizeInBytes];
        using var sha = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        sha.AppendData(MemoryMarshal.AsBytes(row.Tokens.AsSpan()));
        sha.AppendData(MemoryMarshal.AsBytes(row.IsSupervised.AsSpan()));
        sha.GetHashAndReset(hash);
        return MemoryMarshal.Read<ulong>(hash);
    }
}
