using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Packing;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Loop;

/// <summary>The rows of a run as tokens, the held-out rows with their texts, and the order of the steps.</summary>
public sealed class TrainingData
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

    /// <summary>Reads, formats and tokenizes what the config names. Rows that were dropped or cut are told as notices.</summary>
    /// <param name="config">Data sets, lengths, batch sizes.</param>
    /// <param name="tokenizer">Of the base model.</param>
    /// <param name="vocabularySize">Of the base model: no token may lie outside.</param>
    /// <param name="threads">That tokenize.</param>
    /// <param name="observer">Is told progress and findings.</param>
    /// <param name="cancellation">Stops the reading.</param>
    /// <exception cref="DatasetException">A file or a row is not as expected, or nothing is left to train on.</exception>
    public static TrainingData Load(TrainingConfig config, Tokenizer tokenizer, int vocabularySize, int threads, ITrainingObserver observer, CancellationToken cancellation)
    {
        if (tokenizer.VocabularySize > vocabularySize)
        {
            throw new TrainingSetupException(
                $"{tokenizer.SourcePath}: the tokenizer has {tokenizer.VocabularySize} tokens, the model only {vocabularySize} embeddings. They do not belong together; take both from the same place.");
        }

        var options = new TokenizationOptions
        {
            SequenceLength = config.Data.SequenceLen,
            TrainOnInputs = config.Data.TrainOnInputs,
            ExcessLength = config.Data.ExcessLength == Config.ExcessLength.Truncate ? Data.Datasets.ExcessLength.Truncate : Data.Datasets.ExcessLength.Drop,
            Threads = threads,
        };
        List<DatasetRow> rows = [.. config.Data.Datasets.SelectMany(Read)];
        List<DatasetRow> heldOutRows = [.. config.Data.TestDatasets.SelectMany(Read)];
        heldOutRows.AddRange(TakeHeldOut(rows, config.Data.ValSetSize, (ulong)config.Seed));
        TokenizedDataset train = TokenizedDataset.Build(
            rows, tokenizer, options, count => observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Tokenizing, Fraction = (double)count / rows.Count }), cancellation);
        TellFindings(train, config, observer);
        int limit = config.Evaluation.MaxSamples > 0 ? Math.Min(config.Evaluation.MaxSamples, heldOutRows.Count) : heldOutRows.Count;
        HeldOutRow[] heldOut = [.. heldOutRows.Take(limit).Select(row => HeldOutRow.From(row, tokenizer, options)).Where(row => row.Tokens.Length <= config.Data.SequenceLen)];
        if (heldOut.Length < limit)
        {
            observer.OnNotice($"{limit - heldOut.Length} of {limit} held-out rows are longer than sequence_len {config.Data.SequenceLen} and are not evaluated.");
        }

        int[] lengths = [.. Enumerable.Range(0, train.RowCount).Select(train.Length)];
        Func<int[], int[][]>? pack = config.Data.SamplePacking ? ordered => BinPacking.BestFitDecreasing(ordered, config.Data.SequenceLen) : null;
        var order = new DataOrder(lengths, pack, (ulong)config.Seed, checked((int)config.Batch.GlobalBatchSize), config.Batch.NumEpochs, config.Batch.MaxSteps);
        return new TrainingData(train, heldOut, order);
    }

    /// <summary>The rows of one data set, in the order of its file.</summary>
    internal static IEnumerable<DatasetRow> Read(DatasetOptions dataset)
    {
        Data.Datasets.DatasetFormat format = FormatOf(dataset);
        return RowReader.Read(dataset.Path).Select(format.Convert);
    }

    internal static Data.Datasets.DatasetFormat FormatOf(DatasetOptions dataset) => dataset.Format.Kind switch
    {
        DatasetFormatKind.Completion => new Data.Datasets.DatasetFormat.RawText(dataset.Field),
        DatasetFormatKind.Alpaca => new Data.Datasets.DatasetFormat.Alpaca(),
        DatasetFormatKind.Custom when dataset.Format.Custom is { } custom => new Data.Datasets.DatasetFormat.Custom
        {
            SystemPrompt = custom.SystemPrompt,
            FieldSystem = custom.FieldSystem,
            FieldInstruction = custom.FieldInstruction,
            FieldInput = custom.FieldInput,
            FieldOutput = custom.FieldOutput,
            Format = custom.Format,
            NoInputFormat = custom.NoInputFormat ?? custom.Format,
            SystemFormat = custom.SystemFormat,
        },
        _ => throw new TrainingSetupException($"The data set format {dataset.Format.Kind} is not supported yet. Use alpaca, completion or a custom block."),
    };

    /// <summary>Moves the held-out share of the rows, chosen by the seed, out of <paramref name="rows"/>.</summary>
    internal static List<DatasetRow> TakeHeldOut(List<DatasetRow> rows, double size, ulong seed)
    {
        int count = size < 1 ? (int)Math.Round(rows.Count * size) : (int)size;
        if (count == 0)
        {
            return [];
        }

        if (count >= rows.Count)
        {
            throw new TrainingSetupException($"val_set_size holds out {count} rows, but the data sets have only {rows.Count}. Hold out fewer.");
        }

        int[] order = [.. Enumerable.Range(0, rows.Count)];
        new CounterRandom(seed, RandomStreams.Split, 0).Shuffle(order);
        var chosen = order.Take(count).ToHashSet();
        List<DatasetRow> taken = [.. rows.Where((_, index) => chosen.Contains(index))];
        List<DatasetRow> kept = [.. rows.Where((_, index) => !chosen.Contains(index))];
        rows.Clear();
        rows.AddRange(kept);
        return taken;
    }

    private static void TellFindings(TokenizedDataset data, TrainingConfig config, ITrainingObserver observer)
    {
        foreach (IGrouping<RowFindingKind, RowFinding> group in data.Findings.GroupBy(finding => finding.Kind))
        {
            string examples = string.Join(", ", group.Take(3).Select(finding => finding.Source.ToString()));
            string what = group.Key switch
            {
                RowFindingKind.DroppedTooLong => $"longer than sequence_len {config.Data.SequenceLen} and left out (excess_length_strategy: drop)",
                RowFindingKind.Truncated => $"longer than sequence_len {config.Data.SequenceLen} and cut (excess_length_strategy: truncate)",
                RowFindingKind.DroppedEmpty => "empty and left out",
                RowFindingKind.DroppedEmptyCompletion => "without an answer to learn and left out",
                RowFindingKind.DroppedNothingScored => $"left out: cut to sequence_len {config.Data.SequenceLen}, nothing of their answer remains",
                RowFindingKind.DoubleBos => "beginning with the BOS token that the tokenizer adds anyway; they will have it twice",
                _ => throw new InvalidOperationException($"There is no sentence for {group.Key}."),
            };
            int count = group.Count();
            observer.OnWarning($"{count} of {data.RowCount + data.Findings.Count(IsDropped)} rows are {what}: {examples}{(count > 3 ? ", ..." : string.Empty)}.");
        }
    }

    private static bool IsDropped(RowFinding finding) => finding.Kind is not (RowFindingKind.Truncated or RowFindingKind.DoubleBos);
}

/// <summary>A row that is evaluated: its tokens for the loss, its texts for exact match.</summary>
/// <param name="Prompt">The text that is given.</param>
/// <param name="Completion">The text that is expected.</param>
/// <param name="PromptTokens">What generation starts from.</param>
/// <param name="Tokens">The whole row.</param>
/// <param name="IsSupervised">Which tokens count for the loss.</param>
public sealed record HeldOutRow(string Prompt, string Completion, int[] PromptTokens, int[] Tokens, bool[] IsSupervised)
{
    internal static HeldOutRow From(DatasetRow row, Tokenizer tokenizer, TokenizationOptions options)
    {
        TokenizedRow encoded = TokenizedRow.Encode(row, tokenizer, options);
        int[] prompt = [.. tokenizer.PrefixIds, .. tokenizer.Encode(row.Prompt, addSpecialTokens: false)];
        return new HeldOutRow(row.Prompt, row.Completion, prompt, encoded.Tokens, encoded.IsSupervised);
    }
}
