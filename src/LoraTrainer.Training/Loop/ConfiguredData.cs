using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Training.Config;
using RowFormat = LoraTrainer.Data.Datasets.DatasetFormat;

namespace LoraTrainer.Training.Loop;

/// <summary>
/// The rows that a config names: read as a stream, in the shape that it says or that the first row suggests, and cut into what is trained on and what is
/// held out. Files are read again for each use, so nothing but the held-out rows is kept in memory.
/// </summary>
public sealed class ConfiguredData
{
    private const int RowsBetweenReports = 1000;

    private readonly TrainingConfig config;
    private readonly Action<string> notice;
    private readonly RowEncoder encoder;
    private readonly RowFormat?[] formats, heldOutFormats;
    private readonly List<DatasetRow> heldOut = [];
    private int position;

    /// <param name="config">Data sets, lengths, masks.</param>
    /// <param name="tokenizer">Of the base model.</param>
    /// <param name="threads">That tokenize.</param>
    /// <param name="notice">Is told which shape was recognized.</param>
    public ConfiguredData(TrainingConfig config, Tokenizer tokenizer, int threads, Action<string> notice)
    {
        this.config = config;
        this.notice = notice;
        encoder = new RowEncoder(tokenizer, OptionsOf(config, threads));
        formats = [.. config.Data.Datasets.Select(FormatOf)];
        heldOutFormats = [.. config.Data.TestDatasets.Select(FormatOf)];
    }

    /// <summary>How the config wants rows to be encoded.</summary>
    public static TokenizationOptions OptionsOf(TrainingConfig config, int threads = 1) => new()
    {
        SequenceLength = config.Data.SequenceLen,
        TrainOnInputs = config.Data.TrainOnInputs,
        ExcessLength = config.Data.ExcessLength switch
        {
            Config.ExcessLength.Truncate => Data.Datasets.ExcessLength.Truncate,
            Config.ExcessLength.Raise => Data.Datasets.ExcessLength.Raise,
            _ => Data.Datasets.ExcessLength.Drop,
        },
        Threads = threads,
    };

    /// <summary>Encodes the rows to train on into a file, and looks at all on the way.</summary>
    /// <param name="folder">Where the file lies while it is used.</param>
    /// <param name="progress">Is told the rows read so far.</param>
    /// <param name="cancellation">Stops the reading.</param>
    /// <exception cref="DatasetException">A file is not as expected.</exception>
    public TokenizedDataset Tokenize(string folder, Action<int>? progress, CancellationToken cancellation)
    {
        using var writer = TokenizedDatasetWriter.Temporary(folder);
        var audit = new DatasetAudit(encoder.Options);
        Read(audit, (row, repeats) =>
        {
            for (int i = 0; i < repeats; i++)
            {
                writer.Add(row);
            }
        }, progress, cancellation);
        return writer.Finish(audit.Finish());
    }

    /// <summary>Looks at all rows and keeps none.</summary>
    /// <param name="listener">Is told every finding about a row; null: nobody.</param>
    /// <param name="progress">Is told the rows read so far.</param>
    /// <param name="cancellation">Stops the reading.</param>
    /// <exception cref="DatasetException">A file is not as expected.</exception>
    public AuditReport Audit(Action<RowFinding>? listener, Action<int>? progress, CancellationToken cancellation)
    {
        var audit = new DatasetAudit(encoder.Options, listener);
        Read(audit, (_, _) => { }, progress, cancellation);
        return audit.Finish();
    }

    /// <summary>The held-out rows that were met while the others were read, tokens and texts; at most eval_max_samples.</summary>
    public IReadOnlyList<HeldOutRow> EncodeHeldOut()
    {
        int limit = config.Evaluation.MaxSamples > 0 ? Math.Min(config.Evaluation.MaxSamples, heldOut.Count) : heldOut.Count;
        return [.. heldOut.Take(limit).Where(IsAnswerable).Select(row => HeldOutRow.From(row, encoder))];
    }

    /// <summary>The rows that are held out, faulty ones included: those of test_datasets, then those that val_set_size takes.</summary>
    public IReadOnlyList<DatasetRow> HeldOutRows()
    {
        HashSet<int> chosen = Begin();
        if (chosen.Count > 0)
        {
            // Walking over the others puts these aside.
            foreach (DatasetRow _ in Enumerable.Range(0, formats.Length).SelectMany(index => Trained(index, chosen)))
            {
            }
        }

        return heldOut;
    }

    /// <summary>All rows of the data sets, faulty ones included, in the order of their files.</summary>
    /// <param name="ofHeldOut">Those of test_datasets instead.</param>
    public IEnumerable<DatasetRow> AllRows(bool ofHeldOut) => Enumerable.Range(0, (ofHeldOut ? heldOutFormats : formats).Length).SelectMany(index => Rows(ofHeldOut, index));

    /// <summary>Rows of one file, in a format or in that which its first row suggests.</summary>
    public static IEnumerable<DatasetRow> Read(string path, RowFormat? format)
    {
        foreach (SourceRow row in RowReader.Read(path))
        {
            format ??= RowFormat.Recognize(row);
            yield return format.ConvertOrFault(row);
        }
    }

    /// <summary>The format that a data set's block names; null: its rows have to tell.</summary>
    public static RowFormat? FormatOf(DatasetOptions dataset) => dataset.Format.Kind switch
    {
        DatasetFormatKind.Auto => null,
        DatasetFormatKind.Completion => new RowFormat.RawText(dataset.Field),
        DatasetFormatKind.Alpaca => new RowFormat.Alpaca(),
        DatasetFormatKind.InputOutput => new RowFormat.InputOutput(),
        DatasetFormatKind.Custom when dataset.Format.Custom is { } custom => new RowFormat.Custom
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

    private void Read(DatasetAudit audit, Action<TokenizedRow, int> use, Action<int>? progress, CancellationToken cancellation)
    {
        HashSet<int> chosen = Begin();
        int read = 0;
        for (int index = 0; index < formats.Length; index++)
        {
            double weight = config.Data.Datasets[index].Weight;
            var lottery = new CounterRandom((ulong)config.Seed, RandomStreams.Mixture, (uint)index);
            ulong number = 0;
            foreach (EncodedRow row in EncodedRows.Of(Trained(index, chosen), encoder, cancellation))
            {
                audit.Add(row);
                bool hasExtra = lottery.Uniform(number++) < weight % 1;
                if (row.IsKept)
                {
                    use(row.Row, (int)weight + (hasExtra ? 1 : 0));
                }

                if (++read % RowsBetweenReports == 0)
                {
                    progress?.Invoke(read);
                }
            }
        }

        progress?.Invoke(read);
        foreach (EncodedRow row in EncodedRows.Of(heldOut, encoder, cancellation))
        {
            audit.AddHeldOut(row);
        }
    }

    /// <summary>Starts a pass over the data sets: what test_datasets holds, and which rows val_set_size takes, chosen by the seed.</summary>
    private HashSet<int> Begin()
    {
        heldOut.Clear();
        heldOut.AddRange(AllRows(ofHeldOut: true));
        position = 0;
        double size = config.Data.ValSetSize;
        if (size == 0)
        {
            return [];
        }

        int rows = AllRows(ofHeldOut: false).Count();
        int count = size < 1 ? (int)Math.Round(rows * size) : (int)size;
        if (count > 0 && count >= rows)
        {
            throw new TrainingSetupException($"val_set_size holds out {count} rows, but the data sets have only {rows}. Hold out fewer.");
        }

        int[] order = [.. Enumerable.Range(0, rows)];
        new CounterRandom((ulong)config.Seed, RandomStreams.Split, 0).Shuffle(order);
        return [.. order.Take(count)];
    }

    /// <summary>The rows of one data set that are trained on; those that are held out are put aside. Data sets have to be walked through in their order.</summary>
    private IEnumerable<DatasetRow> Trained(int index, HashSet<int> chosen)
    {
        foreach (DatasetRow row in Rows(ofHeldOut: false, index))
        {
            if (chosen.Contains(position++))
            {
                heldOut.Add(row);
            }
            else
            {
                yield return row;
            }
        }
    }

    private IEnumerable<DatasetRow> Rows(bool ofHeldOut, int index)
    {
        DatasetOptions dataset = (ofHeldOut ? config.Data.TestDatasets : config.Data.Datasets)[index];
        RowFormat?[] known = ofHeldOut ? heldOutFormats : formats;
        foreach (SourceRow row in RowReader.Read(dataset.Path))
        {
            if (known[index] is null)
            {
                known[index] = RowFormat.Recognize(row);
                notice($"{dataset.Path}: its rows look like {known[index]!.Name}, and are used so. Set type in the data set's block if they are something else.");
            }

            yield return known[index]!.ConvertOrFault(row);
        }
    }

    private static bool IsAnswerable(DatasetRow row) => row is DatasetRow.Answered { Completion.Length: > 0 } or DatasetRow.Segmented;
}
