using System.Globalization;
using LoraTrainer.Data.ChatTemplates;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Packing;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Loop;

/// <summary>The rows of a run as tokens, the held-out rows with their texts, and the order of the steps.</summary>
public sealed class TrainingData : IDisposable
{
    private TrainingData(TokenizedDataset train, IReadOnlyList<HeldOutRow> heldOut, DataOrder order)
    {
        Train = train;
        HeldOut = heldOut;
        Order = order;
    }

    public TokenizedDataset Train { get; }

    /// <summary>What the run is evaluated on; may be empty.</summary>
    public IReadOnlyList<HeldOutRow> HeldOut { get; }

    public DataOrder Order { get; }

    /// <summary>The chat template that the rows went through; null where they are no conversations.</summary>
    public ChatTemplate? Template { get; private init; }

    public void Dispose() => Train.Dispose();

    /// <summary>Reads, formats and tokenizes what the config names. What is dubious is told as the audit has it.</summary>
    /// <param name="config">Data sets, lengths, batch sizes.</param>
    /// <param name="tokenizer">Of the base model.</param>
    /// <param name="vocabularySize">Of the base model: no token may lie outside.</param>
    /// <param name="threads">That tokenize.</param>
    /// <param name="folder">Where the tokens lie while they are used; it must exist.</param>
    /// <param name="observer">Is told progress and findings.</param>
    /// <param name="cancellation">Stops the reading.</param>
    /// <exception cref="DatasetException">A file is not as expected, the audit found errors, or nothing is left to train on.</exception>
    public static TrainingData Load(TrainingConfig config, Tokenizer tokenizer, int vocabularySize, int threads, string folder, ITrainingObserver observer, CancellationToken cancellation)
    {
        _ = Vocabulary.Fitting(tokenizer, vocabularySize);
        var source = new ConfiguredData(config, tokenizer, threads, observer.OnNotice);
        TokenizedDataset train = source.Tokenize(
            folder, count => observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Tokenizing, Message = string.Create(CultureInfo.InvariantCulture, $"{count:#,0} rows") }), cancellation);
        foreach (AuditFinding finding in train.Audit.Findings)
        {
            Tell(finding, observer);
        }

        if (train.Audit.Findings.FirstOrDefault(finding => finding.Severity == AuditSeverity.Error) is { } error)
        {
            train.Dispose();
            throw new DatasetException($"{error.Message} lora-trainer audit shows all that was found.");
        }

        IReadOnlyList<HeldOutRow> all = source.EncodeHeldOut();
        HeldOutRow[] heldOut = [.. all.Where(row => row.Tokens.Length <= config.Data.SequenceLen)];
        if (heldOut.Length < all.Count)
        {
            observer.OnNotice($"{all.Count - heldOut.Length} of {all.Count} held-out rows are longer than sequence_len {config.Data.SequenceLen} and are not evaluated.");
        }

        int[] lengths = [.. Enumerable.Range(0, train.RowCount).Select(train.Length)];
        Func<int[], int[][]>? pack = config.Data.SamplePacking ? ordered => BinPacking.BestFitDecreasing(ordered, config.Data.SequenceLen) : null;
        var order = new DataOrder(lengths, pack, (ulong)config.Seed, checked((int)config.Batch.GlobalBatchSize), config.Batch.NumEpochs, config.Batch.MaxSteps);
        return new TrainingData(train, heldOut, order) { Template = source.Template };
    }

    private static void Tell(AuditFinding finding, ITrainingObserver observer)
    {
        switch (finding.Severity)
        {
            case AuditSeverity.Notice:
                observer.OnNotice(finding.Message);
                break;
            case AuditSeverity.Warning:
                observer.OnWarning(finding.Message);
                break;
        }
    }
}

/// <summary>A row that is evaluated: its tokens for the loss, its texts for exact match.</summary>
/// <param name="Prompt">The text that is given.</param>
/// <param name="Completion">The text that is expected.</param>
/// <param name="PromptTokens">What generation starts from.</param>
/// <param name="Tokens">The whole row.</param>
/// <param name="IsSupervised">Which tokens count for the loss.</param>
public sealed record HeldOutRow(string Prompt, string Completion, int[] PromptTokens, int[] Tokens, bool[] IsSupervised)
{
    /// <summary>A token that ends the answer besides the model's own; null: there is none.</summary>
    public int? Stop { get; init; }

    /// <summary>A text that ends the answer, where no token does; empty otherwise.</summary>
    public string StopText { get; init; } = "";

    /// <summary>Null where the row cannot be used, or asks nothing.</summary>
    internal static HeldOutRow? From(DatasetRow row, RowEncoder encoder)
    {
        EncodedRow used = encoder.Encode(row);
        if (used.WhyLeftOut is { Kind: RowFindingKind.Faulty or RowFindingKind.Empty or RowFindingKind.NothingToLearn } || encoder.Question(row) is not { } question)
        {
            return null;
        }

        // A row that was dropped or cut for its length is measured whole, or not at all.
        TokenizedRow encoded = used.IsKept && !used.Has(RowFindingKind.Truncated) ? used.Row : encoder.EncodeWhole(row);
        return new HeldOutRow(question.Prompt, question.Completion, question.PromptTokens, encoded.Tokens, encoded.IsSupervised) { Stop = question.Stop, StopText = question.StopText };
    }
}
