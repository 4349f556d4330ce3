using System.CommandLine;
using System.Globalization;
using System.Text;
using System.Text.Json;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Sources;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Measures a base and its adapter on held-out rows, side by side.</summary>
internal static class EvaluateVerb
{
    private const string Examples = """
        Examples:
          lora-trainer evaluate outputs/quickstart
          lora-trainer evaluate my.yaml --data data/test.jsonl --limit 100
          lora-trainer evaluate models/llama --adapter outputs/mine --data data/test.jsonl --type alpaca
          lora-trainer evaluate outputs/mine --data reviews.jsonl --labels positive,negative

        WHAT is a configuration, the output_dir of a run, a model folder or an adapter folder. Without --data the rows are those that the configuration holds
        out (test_datasets, else the rows that val_set_size took out of the training). Rows become prompts and answers exactly as in training.

        loss         mean negative log-likelihood of an answer's token (its EOS included), over all tokens of all rows
        perplexity   e to the power of the loss
        exact match  share of the rows whose generated answer, the most likely token each time, is the expected one; white space at the ends aside
        accuracy     where the expected answers are few labels, or --labels names them: share of the rows whose most likely label is the expected one. A
                     label's likelihood is that of exactly this answer, EOS included: the sum over its tokens. Nothing is generated.
        """;

    private const int TokensPerBatch = 2048;
    private const int LongestPrompt = 300;

    private static readonly string[] LabelHeader = ["label", "rows", "chosen", "correct"];

    public static Verb Create()
    {
        Argument<string> what = new("WHAT") { Description = "A configuration, the output_dir of a run, a model folder or an adapter folder." };
        Option<string?> adapter = new("--adapter") { Description = "A PEFT adapter folder for the model." };
        Option<string?> data = new("--data") { Description = "The rows to evaluate on.", HelpName = "FILE" };
        Option<string?> type = new("--type") { Description = "What a row of --data looks like. Without it: as the configuration says, else as the fields suggest.", HelpName = "alpaca|completion|input_output|chat_template" };
        Option<int> limit = new("--limit") { Description = "At most so many rows; 0: all.", DefaultValueFactory = _ => 0 };
        Option<ulong?> seed = new("--seed") { Description = "Draw the rows of --limit by this seed instead of taking the first." };
        Option<string?> labels = new("--labels") { Description = "The labels to choose from, apart by commas; none: no choosing.", HelpName = "A,B,..." };
        Option<int?> maxNewTokens = new("--max-new-tokens") { Description = "The longest answer that is generated; 0: no exact match. Without it: eval_max_new_tokens." };
        Option<bool> adapterOnly = new("--adapter-only") { Description = "Leave the base out: half the time." };
        Option<bool> fourBit = new("--load-in-4bit") { Description = "Keep the base in NF4 with double quantization, whatever its configuration says." };
        Option<string?> device = new("--device") { Description = "Where to compute. Without it: as the configuration says, else auto.", HelpName = "auto|cpu|cuda" };
        Option<int?> threads = new("--threads") { Description = "Worker threads; 0: one for each core." };
        return new Verb("evaluate", "Measure base and adapter on held-out rows: loss, exact match, accuracy.", Examples)
        {
            what, adapter, data, type, limit, seed, labels, maxNewTokens, adapterOnly, fourBit, device, threads, CommandLine.Set,
        }.WithWork(context =>
        {
            ParseResult given = context.Arguments;
            Subject subject = SubjectOf(given.GetRequiredValue(what), given.GetValue(adapter), given.GetValue(fourBit), given.GetValue(data) is null, context);
            TrainingConfig config = subject.Config;
            if (given.GetValue(maxNewTokens) is { } tokens)
            {
                config = config with { Evaluation = config.Evaluation with { MaxNewTokens = tokens >= 0 ? tokens : throw new TrainingSetupException($"{maxNewTokens.Name} must be 0 or more, got {tokens}.") } };
            }

            DeviceChoice choice = given.GetValue(device) is { } word ? DeviceWords.Parse(word, device.Name) : config.Device.Choice;
            DeviceSelection selection = DeviceSelection.ForRun(choice, given.GetValue(threads) ?? config.Device.Threads, given.GetValue(device) is null ? DeviceSelection.ConfigSetting : $"{device.Name} ");
            Tokenizer tokenizer = TextModel.LoadTokenizer(subject.Source);
            int rows = given.GetValue(limit);
            EvaluationData read = EvaluationData.Load(
                config, given.GetValue(data), given.GetValue(type) is { } name ? EvaluationData.Format(name, type.Name) : null, tokenizer,
                rows >= 0 ? rows : throw new TrainingSetupException($"{limit.Name} must be 0 or more, got {rows}."), given.GetValue(seed), selection.Threads, context.Terminal.Note);
            if (given.GetValue(type) is not null && given.GetValue(data) is null)
            {
                throw new TrainingSetupException($"{type.Name} says what the rows of {data.Name} look like, and there is no {data.Name}.");
            }

            return Task.FromResult(Run(context, subject.Source, config, tokenizer, read, LabelsOf(context.Terminal, given.GetValue(labels), read, labels.Name), selection, given.GetValue(adapterOnly)));
        });
    }

    private static ExitCode Run(
        VerbContext context, TextModelSource source, TrainingConfig config, Tokenizer tokenizer, EvaluationData data, IReadOnlyList<string>? labels, DeviceSelection selection, bool adapterOnly)
    {
        Terminal terminal = context.Terminal;
        CancellationToken stop = context.Signals.Listen("The evaluation is given up.");
        int maxNewTokens = data.Rows.All(row => row.Prompt.Length > 0 && row.PromptTokens.Length > 0) ? config.Evaluation.MaxNewTokens : 0;
        var loading = new ProgressLine(terminal, "loading");
        using TextModel model = TextModel.Load(
            source, selection, tokenizer,
            measured =>
            {
                Evaluator.Measure(measured, data.Rows, maxNewTokens, TokensPerBatch);
                if (labels is not null)
                {
                    LabelScorer.Measure(measured, data, labels, tokenizer, TokensPerBatch);
                }
            },
            "Less is needed with --load-in-4bit, a lower --max-new-tokens or shorter rows.", terminal.Note, loading.Tell);
        terminal.Note(model.DeviceSentence);
        Column? alone = adapterOnly && model.Adapters is not null ? null : Measure(model.Adapters is null ? "model" : "base", active: false);
        Column? adapted = model.Adapters is null ? null : Measure("adapter", active: true);
        Column[] columns = [.. new[] { alone, adapted }.OfType<Column>()];
        string heading = $"{Quantities.Count(data.Rows.Count, "row")} of {string.Join(", ", data.Files)}";
        terminal.Result($"{heading}{Environment.NewLine}{Environment.NewLine}{Table(columns)}{Labels(columns[^1])}{Samples(columns, terminal.Width)}");
        terminal.Json(json => WriteJson(json, source, data, labels, columns));
        return ExitCode.Done;

        Column Measure(string name, bool active)
        {
            model.Adapters?.SetActive(active);
            var display = new EvaluationDisplay(terminal, $"evaluating the {name}");
            EvaluationResult result = new Evaluator(model.Model, data.Rows, tokenizer, maxNewTokens, TokensPerBatch).Evaluate(display, stop);
            LabelResult? choice = labels is null ? null : new LabelScorer(model.Model, data, labels, tokenizer, TokensPerBatch).Score(display, stop);
            return new Column(name, result, choice, display.Samples);
        }
    }

    /// <summary>What is measured, and how its rows are made.</summary>
    private sealed record Subject(TextModelSource Source, TrainingConfig Config);

    private sealed record Column(string Name, EvaluationResult Result, LabelResult? Labels, IReadOnlyList<(string Prompt, string Expected, string Generated)> Samples)
    {
        public double Perplexity => Math.Exp(Result.Loss);
    }

    private static Subject SubjectOf(string path, string? adapter, bool fourBit, bool needsData, VerbContext context)
    {
        path = RunFolder.Completed(path);
        string? resolved = RunFolder.ConfigFileOf(path);
        if (resolved is null && !File.Exists(path))
        {
            if (context.Settings.Count > 0)
            {
                throw new TrainingSetupException($"{path} is no configuration: --set would set nothing. Leave it out, or give a configuration or a run.");
            }

            TextModelSource source = TextModelSource.From(path, adapter, fourBit, context.Terminal.Note, CancellationToken.None);
            int positions = ModelConfig.Parse(source.BaseFolder).MaxPositionEmbeddings;
            var config = new TrainingConfig();
            return new Subject(source, config with { BaseModel = source.BaseFolder, Data = config.Data with { SequenceLen = Math.Min(positions, 8192) } });
        }

        if (adapter is not null)
        {
            // The base of a run can be measured with another adapter, whatever has become of the run's own.
            adapter = RunFolder.ModelOf(adapter);
        }
        else if (resolved is not null)
        {
            path = RunFolder.ModelOf(path);
        }

        ConfigurationResult loaded = ConfigurationLoader.LoadFile(resolved ?? path, context.Settings);
        context.Terminal.Remarks(loaded);
        TrainingConfig run = FetchedSources.Fetch(loaded.Require(), SourceNeeds.Weights | (needsData ? SourceNeeds.Data : SourceNeeds.None), context.Terminal.Note, CancellationToken.None);
        string result = resolved is not null ? path : run.OutputDir;
        if (adapter is null && run.Adapter.Kind == AdapterKind.None)
        {
            bool isWritten = File.Exists(Path.Combine(result, "config.json"));
            context.Terminal.Note(isWritten ? $"The model is {result}, which was trained as a whole." : $"{result} holds no trained model yet: the model is the base, {run.BaseModel}.");
            return new Subject(new TextModelSource(isWritten ? result : run.BaseFolder, null, fourBit ? BaseFormat.Nf4DoubleQuantized : BaseFormat.AsStored), run);
        }

        if (adapter is null && File.Exists(Path.Combine(result, AdapterConfig.FileName)))
        {
            adapter = result;
        }
        else if (adapter is null)
        {
            context.Terminal.Note($"{result} holds no adapter yet: only the base is evaluated.");
        }

        return new Subject(TextModelSource.Of(run, adapter, fourBit), run);
    }

    private static IReadOnlyList<string>? LabelsOf(Terminal terminal, string? given, EvaluationData data, string option)
    {
        if (given is not null)
        {
            string[] labels = [.. given.Split(',').Select(label => label.Trim())];
            return given == "none" ? null
                : labels.Length >= 2 && labels.All(label => label.Length > 0) && labels.Distinct(StringComparer.Ordinal).Count() == labels.Length ? labels
                : throw new TrainingSetupException($"{option} must be at least two different labels, apart by commas, or none; got '{given}'.");
        }

        IReadOnlyList<string>? found = LabelScorer.Recognize(data.Rows);
        if (found is not null)
        {
            terminal.Note($"The expected answers are {found.Count} labels ({string.Join(", ", found)}): the most likely of them is chosen for each row too. {option} none leaves that out.");
        }

        return found;
    }

    private static string Table(Column[] columns)
    {
        var rows = new List<string[]> { Row("", column => column.Name), Row("loss", column => Number(column.Result.Loss, "0.0000")), Row("perplexity", column => Number(column.Perplexity, column.Perplexity < 1e5 ? "0.00" : "0.00e+0")) };
        if (columns[0].Result.ExactMatch is not null)
        {
            rows.Add(Row("exact match", column => Share(column.Result.ExactMatch!.Value)));
        }

        if (columns[0].Labels is not null)
        {
            rows.Add(Row("accuracy", column => Share(column.Labels!.Accuracy)));
        }

        return Columns.Align(rows, column => column > 0);

        string[] Row(string name, Func<Column, string> cell) => [name, .. columns.Select(cell)];
    }

    private static string Labels(Column column)
    {
        if (column.Labels is not { } labels)
        {
            return "";
        }

        var rows = new List<string[]> { LabelHeader };
        rows.AddRange(labels.Counts.Select(count => new[] { count.Label, Count(count.Expected), Count(count.Chosen), Count(count.Correct) }));
        return $"{Environment.NewLine}{Environment.NewLine}Labels, by the {column.Name} (always the most frequent one: {Share(labels.MajorityShare)}):{Environment.NewLine}{Columns.Align(rows, index => index > 0)}";

        static string Count(int number) => number.ToString(CultureInfo.InvariantCulture);
    }

    private static string Samples(Column[] columns, int? width)
    {
        var text = new StringBuilder();
        for (int i = 0; i < columns[0].Samples.Count; i++)
        {
            text.AppendLine().AppendLine();
            Append("prompt", columns[0].Samples[i].Prompt);
            Append("expected", columns[0].Samples[i].Expected);
            foreach (Column column in columns)
            {
                Append(column.Name, column.Samples[i].Generated);
            }

            text.Length -= Environment.NewLine.Length;
        }

        return text.ToString();

        void Append(string name, string value)
        {
            string line = string.Join(' ', value.Split([' ', '\n', '\r', '\t'], StringSplitOptions.RemoveEmptyEntries));
            int room = Math.Min(LongestPrompt, Math.Max(20, (width ?? int.MaxValue) - 10));
            text.Append(name.PadRight(10)).AppendLine(line.Length <= room ? line : name == "prompt" ? "…" + line[^(room - 1)..] : line[..(room - 1)] + "…");
        }
    }

    private static string Number(double value, string format) => value.ToString(format, CultureInfo.InvariantCulture);

    private static string Share(double value) => string.Create(CultureInfo.InvariantCulture, $"{value * 100:0.0} %");

    private static void WriteJson(Utf8JsonWriter json, TextModelSource source, EvaluationData data, IReadOnlyList<string>? labels, Column[] columns)
    {
        json.WriteStartObject();
        json.WriteString("base_model", source.BaseFolder);
        json.WriteString("adapter_path", source.AdapterFolder);
        Texts("data", data.Files);
        json.WriteNumber("rows", data.Rows.Count);
        if (labels is not null)
        {
            Texts("labels", labels);
        }

        foreach (Column column in columns)
        {
            json.WriteStartObject(column.Name);
            Write("loss", column.Result.Loss);
            Write("perplexity", column.Perplexity);
            if (column.Result.ExactMatch is { } match)
            {
                json.WriteNumber("exact_match", match);
            }

            if (column.Labels is { } result)
            {
                json.WriteNumber("accuracy", result.Accuracy);
                json.WriteNumber("majority_share", result.MajorityShare);
                json.WriteStartArray("by_label");
                foreach (LabelCount count in result.Counts)
                {
                    json.WriteStartObject();
                    json.WriteString("label", count.Label);
                    json.WriteNumber("rows", count.Expected);
                    json.WriteNumber("chosen", count.Chosen);
                    json.WriteNumber("correct", count.Correct);
                    json.WriteEndObject();
                }

                json.WriteEndArray();
            }

            json.WriteEndObject();
        }

        json.WriteStartArray("samples");
        for (int i = 0; i < columns[0].Samples.Count; i++)
        {
            json.WriteStartObject();
            json.WriteString("prompt", columns[0].Samples[i].Prompt);
            json.WriteString("expected", columns[0].Samples[i].Expected);
            foreach (Column column in columns)
            {
                json.WriteString(column.Name, column.Samples[i].Generated);
            }

            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WriteEndObject();

        void Texts(string name, IEnumerable<string> values)
        {
            json.WriteStartArray(name);
            foreach (string value in values)
            {
                json.WriteStringValue(value);
            }

            json.WriteEndArray();
        }

        void Write(string name, double value)
        {
            if (double.IsFinite(value))
            {
                json.WriteNumber(name, value);
            }
            else
            {
                json.WriteNull(name);
            }
        }
    }
}
