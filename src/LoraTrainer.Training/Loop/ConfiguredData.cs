using LoraTrainer.Data.ChatTemplates;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Training.Config;

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
    private readonly Tokenizer tokenizer;
    private readonly TokenizationOptions options;
    private readonly Source[] trained, tested;
    private readonly List<(DatasetRow Row, RowEncoder Encoder)> heldOut = [];
    private readonly List<(AuditSeverity Severity, string Code, string Message)> notes = [];
    private int position;

    /// <param name="config">Data sets, lengths, masks.</param>
    /// <param name="tokenizer">Of the base model.</param>
    /// <param name="threads">That tokenize.</param>
    /// <param name="notice">Is told which shape was recognized.</param>
    public ConfiguredData(TrainingConfig config, Tokenizer tokenizer, int threads, Action<string> notice)
    {
        this.config = config;
        this.notice = notice;
        options = OptionsOf(config, threads);
        this.tokenizer = tokenizer;
        trained = [.. config.Data.Datasets.Select(SourceOf)];
        tested = [.. config.Data.TestDatasets.Select(SourceOf)];
    }

    /// <summary>The chat template that the rows go through; null where they are no conversations. Looks at the first row of each data set that does not say what it is.</summary>
    public ChatTemplate? Template
    {
        get
        {
            foreach (Source source in trained)
            {
                if (source.Format is null)
                {
                    _ = Rows(source).FirstOrDefault(row => row is not DatasetRow.Faulty);
                }

                if (source.Format is ConversationFormat)
                {
                    return source.Encoder.Conversations!.Encoder.Template;
                }
            }

            return null;
        }
    }

    /// <summary>How the config wants rows to be encoded.</summary>
    public static TokenizationOptions OptionsOf(TrainingConfig config, int threads = 1) => new()
    {
        SequenceLength = config.Data.SequenceLen,
        TrainOnInputs = config.Data.TrainOnInputs,
        ExcessLength = config.Data.ExcessLength,
        Threads = threads,
    };

    /// <summary>Encodes the rows to train on into a file, and looks at all on the way; or takes what was kept of an earlier start (dataset_prepared_path).</summary>
    /// <param name="folder">Where the file lies while it is used, unless it is to be kept.</param>
    /// <param name="progress">Is told the rows read so far.</param>
    /// <param name="cancellation">Stops the reading.</param>
    /// <exception cref="DatasetException">A file is not as expected.</exception>
    public TokenizedDataset Tokenize(string folder, Action<int>? progress, CancellationToken cancellation)
    {
        string? kept = null;
        if (config.Data.PreparedFolder is { } prepared)
        {
            PathTrouble.MakeFolder("dataset_prepared_path", prepared);
            kept = PreparedData.PathOf(config, prepared, cancellation);
            if (File.Exists(kept))
            {
                _ = HeldOutRows();
                if (Kept(kept) is { } found)
                {
                    return found;
                }
            }
        }

        using TokenizedDatasetWriter writer = kept is null ? TokenizedDatasetWriter.Temporary(folder) : TokenizedDatasetWriter.At(kept);
        AuditReport report = Read(null, (row, repeats) =>
        {
            for (int i = 0; i < repeats; i++)
            {
                writer.Add(row);
            }
        }, progress, cancellation);
        return writer.Finish(report);
    }

    /// <summary>What an earlier start has kept; null where it is damaged.</summary>
    private TokenizedDataset? Kept(string path)
    {
        try
        {
            TokenizedDataset found = TokenizedDataset.Open(path);
            notice($"The data was read as it was tokenized before, from {path}.");
            return found;
        }
        catch (DatasetException exception)
        {
            notice($"{exception.Message}; it is made again.");
            return null;
        }
    }

    /// <summary>Looks at all rows and keeps none.</summary>
    /// <param name="listener">Is told every finding about a row; null: nobody.</param>
    /// <param name="progress">Is told the rows read so far.</param>
    /// <param name="cancellation">Stops the reading.</param>
    /// <exception cref="DatasetException">A file is not as expected.</exception>
    public AuditReport Audit(Action<RowFinding>? listener, Action<int>? progress, CancellationToken cancellation) => Read(listener, (_, _) => { }, progress, cancellation);

    /// <summary>The held-out rows that were met while the others were read, tokens and texts, those left out that cannot be used; at most eval_max_samples.</summary>
    public IReadOnlyList<HeldOutRow> EncodeHeldOut()
    {
        int limit = config.Evaluation.MaxSamples > 0 ? Math.Min(config.Evaluation.MaxSamples, heldOut.Count) : heldOut.Count;
        return [.. EncodedRows.InOrder(heldOut.Take(limit), options.Threads, item => HeldOutRow.From(item.Row, item.Encoder)).OfType<HeldOutRow>()];
    }

    /// <summary>The rows that are held out, faulty ones included, with what encodes them: those of test_datasets, then those that val_set_size takes.</summary>
    public IReadOnlyList<(DatasetRow Row, RowEncoder Encoder)> HeldOutRows()
    {
        HashSet<int> chosen = Begin();
        if (chosen.Count > 0)
        {
            // Walking over the others puts these aside.
            foreach (DatasetRow _ in trained.SelectMany(source => Trained(source, chosen)))
            {
            }
        }

        return heldOut;
    }

    /// <summary>All rows of the data sets, faulty ones included, in the order of their files, with what encodes them.</summary>
    public IEnumerable<(DatasetRow Row, RowEncoder Encoder)> AllRows() => AllRows(trained);

    private IEnumerable<(DatasetRow Row, RowEncoder Encoder)> AllRows(Source[] sources) => sources.SelectMany(source => Rows(source).Select(row => (row, source.Encoder)));

    /// <summary>Rows of another file than the config's data sets, with what encodes them.</summary>
    /// <param name="path">The file.</param>
    /// <param name="format">Of its rows; null: as the first held-out or training set, and without one as the first row suggests.</param>
    /// <param name="advice">How its format is named, where the rows do not tell.</param>
    public IEnumerable<(DatasetRow Row, RowEncoder Encoder)> RowsOf(string path, DatasetFormat? format, string advice)
    {
        Source source = SourceOf((tested.Concat(trained).FirstOrDefault()?.Dataset ?? new DatasetOptions()) with { Path = path, Split = DataSplits.Train, Name = null, DataFiles = [] });
        source.Format = format ?? source.Format;
        source.Advice = advice;
        return Rows(source).Select(row => (row, source.Encoder));
    }

    /// <summary>The format that a data set's block names; null: its rows have to tell.</summary>
    public static DatasetFormat? FormatOf(DatasetOptions dataset) => dataset.Format.Kind switch
    {
        DatasetFormatKind.Auto => null,
        DatasetFormatKind.Completion => new DatasetFormat.RawText(dataset.Field),
        DatasetFormatKind.Alpaca => new DatasetFormat.Alpaca(),
        DatasetFormatKind.InputOutput => new DatasetFormat.InputOutput(),
        DatasetFormatKind.ChatTemplate => ConversationFormatOf(dataset.Conversation),
        DatasetFormatKind.Custom when dataset.Format.Custom is { } custom => new DatasetFormat.Custom
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
        _ => throw new InvalidOperationException($"There is no shape for {dataset.Format.Kind}."),
    };

    private static ConversationFormat ConversationFormatOf(ConversationOptions given) => new()
    {
        FieldMessages = given.FieldMessages,
        FieldRole = given.PropertyMappings.FirstOrDefault(pair => pair.Key == "role").Value,
        FieldContent = given.PropertyMappings.FirstOrDefault(pair => pair.Key == "content").Value,
        FieldTraining = given.FieldTraining,
        FieldTools = given.FieldTools,
        FieldSystem = given.FieldSystem,
        DropsSystem = given.DropsSystem,
        Roles = given.Roles.ToDictionary(pair => pair.Key, pair => (IReadOnlyList<string>)[.. pair.Value]),
    };

    private Source SourceOf(DatasetOptions dataset) =>
        new(dataset, new RowEncoder(tokenizer, options, new Lazy<ConversationEncoding>(() => ConversationEncodingOf(dataset)))) { Format = FormatOf(dataset) };

    /// <summary>The template that a data set's conversations go through, and what of them is learned.</summary>
    private ConversationEncoding ConversationEncodingOf(DatasetOptions dataset)
    {
        ConversationOptions given = dataset.Conversation;
        (ChatTemplate template, string? fallback) = ChatTemplates.Of(config, given);
        if (fallback is not null)
        {
            notes.Add((AuditSeverity.Warning, "template_fallback",
                $"{config.BaseModel} has no chat template; {dataset.Path} goes through {fallback}. Whatever runs the model later must do the same: set chat_template to say so."));
        }

        return new ConversationEncoding(
            new ChatEncoder(template, tokenizer),
            new ChatEncodingOptions { RolesToTrain = given.RolesToTrain.ToHashSet(StringComparer.Ordinal), LastTurnOnly = config.Data.MaskHistory, TrainOnEndOfTurn = given.TrainOnEos });
    }

    private AuditReport Read(Action<RowFinding>? listener, Action<TokenizedRow, int> use, Action<int>? progress, CancellationToken cancellation)
    {
        var audit = new DatasetAudit(options, listener);
        HashSet<int> chosen = Begin();
        int read = 0;
        long used = 0;
        for (int index = 0; index < trained.Length; index++)
        {
            double weight = trained[index].Dataset.Weight;

            // Evenly over the rows, from a start that the seed chooses: their number is right to within one.
            double share = weight % 1, due = new CounterRandom((ulong)config.Seed, RandomStreams.Mixture, (uint)index).Uniform(0);
            foreach (EncodedRow row in EncodedRows.Of(Trained(trained[index], chosen), trained[index].Encoder, cancellation))
            {
                int times = 0;
                if (row.IsKept)
                {
                    due += share;
                    int extra = due >= 1 ? 1 : 0;
                    due -= extra;
                    times = (int)weight + extra;
                    used += times;
                    use(row.Row, times);
                }

                audit.Add(row, times);

                if (++read % RowsBetweenReports == 0)
                {
                    progress?.Invoke(read);
                }
            }
        }

        progress?.Invoke(read);
        int usable = 0;
        foreach (EncodedRow encoded in EncodedRows.InOrder(heldOut, options.Threads, item => item.Encoder.Encode(item.Row), cancellation))
        {
            usable += encoded.IsKept ? 1 : 0;
            audit.AddHeldOut(encoded);
        }

        if (audit.Kept > 0 && used == 0)
        {
            audit.Note(AuditSeverity.Error, "no_row_left", "The weights of the data sets leave no row to train on. Give larger ones.");
        }

        if (usable == 0 && (tested.Length > 0 || config.Data.ValSetSize > 0))
        {
            audit.Note(AuditSeverity.Warning, "nothing_held_out", heldOut.Count == 0
                ? "Nothing is held out although the configuration asks for it (test_datasets, val_set_size): there will be no evaluation."
                : $"None of the {heldOut.Count} held-out rows can be used: there will be no evaluation.");
        }

        foreach ((AuditSeverity severity, string code, string message) in notes)
        {
            audit.Note(severity, code, message);
        }

        if (tokenizer.PadId is not null && tokenizer.PadId == tokenizer.EosId)
        {
            audit.Note(AuditSeverity.Notice, "pad_is_eos", "The tokenizer's padding token is its EOS. There is no padding here, so every EOS that is learned stays learned.");
        }

        if (File.Exists(Path.Combine(config.BaseFolder, "config.json")) && ModelConfig.Parse(config.BaseFolder).MaxPositionEmbeddings is var positions && config.Data.SequenceLen > positions)
        {
            audit.Note(AuditSeverity.Warning, "beyond_positions",
                $"sequence_len {config.Data.SequenceLen} is more than the {positions} positions that {config.BaseModel} was made for: what it says beyond them is not to be relied on. Set sequence_len to {positions} at most.");
        }

        return audit.Finish();
    }

    /// <summary>Starts a pass over the data sets: what test_datasets holds, and which rows val_set_size takes, chosen by the seed.</summary>
    private HashSet<int> Begin()
    {
        heldOut.Clear();
        heldOut.AddRange(AllRows(tested));
        position = 0;
        double size = config.Data.ValSetSize;
        if (size == 0)
        {
            return [];
        }

        int rows = AllRows().Count();
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
    private IEnumerable<DatasetRow> Trained(Source source, HashSet<int> chosen)
    {
        foreach (DatasetRow row in Rows(source))
        {
            if (chosen.Contains(position++))
            {
                heldOut.Add((row, source.Encoder));
            }
            else
            {
                yield return row;
            }
        }
    }

    private IEnumerable<DatasetRow> Rows(Source source)
    {
        foreach (SourceRow row in SourceRows(config, source.Dataset))
        {
            if (source.Format is null && row.Fault is null)
            {
                DatasetFormat found = DatasetFormat.Recognize(row, source.Advice);
                source.Format = found is ConversationFormat ? ConversationFormatOf(source.Dataset.Conversation) : found;
                notice($"{source.Dataset.Path}: its rows look like {source.Format.Name}, and are used so. If they are something else, {char.ToLowerInvariant(source.Advice[0])}{source.Advice[1..]}.");
            }

            yield return source.Format?.ConvertOrFault(row) ?? new DatasetRow.Faulty(row.Source, row.Fault!);
        }
    }

    /// <summary>The rows of a data set as they stand in its files.</summary>
    internal static IEnumerable<SourceRow> SourceRows(TrainingConfig config, DatasetOptions dataset) => config.Fetched.FilesOf(dataset).SelectMany(file => RowReader.Read(file, KindOf(dataset.FileType)));

    private static DataFileKind? KindOf(DatasetFileType type) => type switch
    {
        DatasetFileType.Json => DataFileKind.Json,
        DatasetFileType.Csv => DataFileKind.Csv,
        DatasetFileType.Text => DataFileKind.Paragraphs,
        DatasetFileType.Parquet => DataFileKind.Parquet,
        _ => null,
    };

    /// <summary>A data set of the config.</summary>
    private sealed class Source(DatasetOptions dataset, RowEncoder encoder)
    {
        public DatasetOptions Dataset => dataset;

        public RowEncoder Encoder => encoder;

        /// <summary>Null until the first row has told.</summary>
        public DatasetFormat? Format { get; set; }

        /// <summary>How another format is named.</summary>
        public string Advice { get; set; } = DatasetFormat.TypeAdvice;
    }
}
