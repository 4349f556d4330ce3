using LoraTrainer.Costs.Reports;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Evaluation;

/// <summary>The rows that a model is measured on, made as those of a training are.</summary>
/// <param name="Rows">At least one, each with an answer.</param>
/// <param name="Sources">Where each stands.</param>
/// <param name="Files">Where they were read.</param>
public sealed record EvaluationData(IReadOnlyList<HeldOutRow> Rows, IReadOnlyList<RowSource> Sources, IReadOnlyList<string> Files)
{
    private const string FormatWords = "alpaca, completion, input_output or chat_template";

    /// <summary>Of a format that has no such word.</summary>
    private const string WithAConfig = "a config with the format: lora-trainer evaluate CONFIG --data FILE";

    private const string TypeAdvice = $"Give --type {FormatWords}, or {WithAConfig}";

    /// <summary>A format by the word of a command line, as <c>type</c> has it in a config.</summary>
    /// <param name="word">alpaca, completion, input_output or chat_template.</param>
    /// <param name="option">Where it was written, for the sentence.</param>
    public static DatasetFormat Format(string word, string option) => word switch
    {
        "alpaca" => new DatasetFormat.Alpaca(),
        "completion" => new DatasetFormat.RawText(),
        "input_output" => new DatasetFormat.InputOutput(),
        "chat_template" => new ConversationFormat(),
        _ => throw new TrainingSetupException($"{option} must be {FormatWords}, got '{word}'. Or give {WithAConfig}."),
    };

    /// <summary>Reads a file, or what the config holds out.</summary>
    /// <param name="config">Its test_datasets, else val_set_size of its datasets; lengths and masks.</param>
    /// <param name="file">Measured on this file instead; null: what the config holds out.</param>
    /// <param name="format">Of the file; null: as the config's first held-out or training set, and without one as the fields of its first row suggest.</param>
    /// <param name="tokenizer">Of the model.</param>
    /// <param name="limit">At most so many rows; 0: all.</param>
    /// <param name="seed">Chooses the rows of a limit; null: the first ones.</param>
    /// <param name="threads">That tokenize.</param>
    /// <param name="notice">Is told what was left out.</param>
    /// <exception cref="DatasetException">A file or a row is not as expected.</exception>
    /// <exception cref="TrainingSetupException">Nothing is held out, or nothing is left.</exception>
    public static EvaluationData Load(
        TrainingConfig config, string? file, DatasetFormat? format, Tokenizer tokenizer, int limit, ulong? seed, int threads, Action<string> notice)
    {
        var data = new ConfiguredData(config, tokenizer, threads, notice);
        (List<(DatasetRow Row, RowEncoder Encoder)> rows, string[] files) = file is null ? HeldOut(config, data) : (ReadFile(data, file, format), [file]);
        if (limit > 0 && limit < rows.Count)
        {
            rows = seed is { } number ? Chosen(rows, limit, number) : rows[..limit];
        }

        int given = rows.Count;
        rows.RemoveAll(item => item.Row is DatasetRow.Answered { Completion.Length: 0 });
        if (rows.Count < given)
        {
            notice(given - rows.Count == 1 ? "1 row has no answer and is left out." : $"{given - rows.Count} rows have no answer and are left out.");
        }

        (HeldOutRow? Row, RowSource Source)[] usable = [.. EncodedRows.InOrder(rows, threads, item => (HeldOutRow.From(item.Row, item.Encoder), item.Row.Source))];
        int unusable = usable.Count(item => item.Row is null);
        if (unusable > 0)
        {
            (DatasetRow row, RowEncoder with) = rows[Array.FindIndex(usable, item => item.Row is null)];
            string why = with.Encode(row).WhyLeftOut?.Detail ?? "nothing in it is asked and answered";
            notice($"{(unusable == 1 ? "1 row cannot be used and is" : $"{unusable} rows cannot be used and are")} left out: {row.Source}, {why}{(unusable > 1 ? ", ..." : ".")}");
        }

        (HeldOutRow Row, RowSource Source)[] encoded = [.. usable.Where(item => item.Row?.Tokens.Length <= config.Data.SequenceLen).Select(item => (item.Row!, item.Source))];
        int tooLong = usable.Length - unusable - encoded.Length;
        if (tooLong > 0)
        {
            notice($"{tooLong} of {ReportText.Count(rows.Count, "row")} {(tooLong == 1 ? "is" : "are")} longer than sequence_len {config.Data.SequenceLen} and left out.");
        }

        return encoded.Length > 0
            ? new EvaluationData([.. encoded.Select(item => item.Row)], [.. encoded.Select(item => item.Source)], files)
            : throw new TrainingSetupException($"{string.Join(", ", files)}: no row is left to evaluate. Rows need an answer and at most {config.Data.SequenceLen} tokens.");
    }

    /// <summary>The same rows as in training: the seed chose them.</summary>
    private static (List<(DatasetRow Row, RowEncoder Encoder)> Rows, string[] Files) HeldOut(TrainingConfig config, ConfiguredData data) =>
        config.Data.TestDatasets.Count == 0 && config.Data.ValSetSize == 0
            ? throw new TrainingSetupException("There is nothing to evaluate on: the configuration holds nothing out (test_datasets, val_set_size). Give a file with --data.")
            : ([.. data.HeldOutRows()], [.. config.Data.TestDatasets.Concat(config.Data.ValSetSize > 0 ? config.Data.Datasets : []).Select(dataset => dataset.Path)]);

    private static List<(DatasetRow Row, RowEncoder Encoder)> ReadFile(ConfiguredData data, string file, DatasetFormat? format)
    {
        List<(DatasetRow Row, RowEncoder Encoder)> rows = [.. data.RowsOf(file, format, TypeAdvice)];
        return rows.Count > 0 ? rows : throw new DatasetException($"{file}: the file has no rows");
    }

    /// <summary>Rows drawn without repetition, in the order of the file.</summary>
    private static List<(DatasetRow Row, RowEncoder Encoder)> Chosen(List<(DatasetRow Row, RowEncoder Encoder)> rows, int limit, ulong seed)
    {
        int[] order = [.. Enumerable.Range(0, rows.Count)];
        new CounterRandom(seed, RandomStreams.Split, 0).Shuffle(order);
        return [.. order.Take(limit).Order().Select(index => rows[index])];
    }
}
