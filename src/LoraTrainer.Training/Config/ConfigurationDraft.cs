using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Config;

/// <summary>What is trained.</summary>
public enum DraftMethod
{
    Lora,
    Qlora,
    Dora,

    /// <summary>All parameters.</summary>
    Full,
}

/// <summary>A configuration as it is to be written.</summary>
/// <param name="Yaml">The file.</param>
/// <param name="Obstacle">What has to be done to it before it can train, a sentence; null: nothing.</param>
public sealed record DraftedFile(string Yaml, string? Obstacle);

/// <summary>
/// A first configuration for a base and a data file, with comments that say what each line does. What can be seen of the two, such as the fields of the rows and the
/// length of the longest, is looked at; what is not here is left for later.
/// </summary>
public sealed partial record ConfigurationDraft
{
    private const int RowsRead = 1000;
    private const int LengthStep = 128;
    private const int LongestGuess = 2048;

    public required string BaseModel { get; init; }

    /// <summary>Where the rows are: a file, a folder, a pattern, or what the run fetches.</summary>
    public required string Data { get; init; }

    public required DraftMethod Method { get; init; }

    public required string OutputDir { get; init; }

    /// <summary>Null: what the machine has.</summary>
    public DeviceChoice? Device { get; init; }

    /// <summary>The words of the methods, in the order in which they are shown.</summary>
    public static IReadOnlyList<(string Word, DraftMethod Method, string About)> Methods { get; } =
    [
        ("lora", DraftMethod.Lora, "a small adapter; the base stays as it is"),
        ("qlora", DraftMethod.Qlora, "the same over a base in 4 bits: a quarter of its memory"),
        ("dora", DraftMethod.Dora, "LoRA with a length for each row: closer to full training, slower"),
        ("full", DraftMethod.Full, "every parameter: the most memory by far"),
    ];

    /// <summary>Whether there is something on this machine that a data set's path of this text names.</summary>
    public static bool IsDataHere(string path)
    {
        try
        {
            return Path.Exists(path) || DataFiles.Of(path).Count > 0;
        }
        catch (DatasetException)
        {
            return false;
        }
    }

    /// <summary>The file.</summary>
    /// <param name="name">What it will be called, for the command in its first line.</param>
    /// <param name="notice">Is told what could not be looked at, and what is not understood.</param>
    public DraftedFile Write(string name, Action<string> notice)
    {
        var text = new StringBuilder();
        Line($"# lora-trainer train {Quoted(name)}", null);
        Line("#", null);
        Line("# All keys: docs/configuration.md. What is wrong with this file: lora-trainer validate.", null);
        Line("# What a run will need: lora-trainer plan. Another value for one run: --set key=value.", null);
        Line("", null);
        Line($"base_model: {Quoted(BaseModel)}", "a folder: config.json, tokenizer.json, safetensors weights");
        Line($"output_dir: {Quoted(OutputDir)}", "result, log and checkpoints; a new run needs a new one");
        Line("", null);
        AddMethod(Line);
        Line("", null);
        string? obstacle = AddData(Line, name, notice);
        Line("", null);
        Line("micro_batch_size: 1", "rows at a time: more is faster, and takes memory");
        Line("gradient_accumulation_steps: 8", "times micro_batch_size = rows of a step; costs no memory");
        Line("num_epochs: 3", "how often each row is seen; too often: learned by heart");
        Line($"learning_rate: {(Method == DraftMethod.Full ? "2e-5" : "2e-4")}", "too high: the loss jumps; too low: it hardly falls");
        Line("lr_scheduler: cosine", "falls towards 0 at the end");
        Line("warmup_ratio: 0.03", "the share of the steps in which the rate rises from 0");
        Line("", null);
        Line("checkpoint:", null);
        Line("  every_minutes: 10", "all that an interrupted run loses: lora-trainer resume");
        Line("seed: 42", "the same seed gives the same result, byte for byte");
        if (Device is { } device)
        {
            Line($"device: {DeviceWords.All.First(item => item.Meaning == device).Word}", null);
        }

        Line("", null);
        Line("# cost: {rate: 1.29, currency: USD, budget: 25}  # price of an hour; stops before more is spent", null);
        return new DraftedFile(text.ToString(), obstacle);

        void Line(string line, string? comment)
        {
            const int column = 34;
            text.Append(comment is null ? line : $"{line.PadRight(Math.Max(column, line.Length + 2))}# {comment}").Append('\n');
        }
    }

    private void AddMethod(Action<string, string?> line)
    {
        switch (Method)
        {
            case DraftMethod.Full:
                line("adapter:", "empty: every parameter is trained");
                return;
            case DraftMethod.Qlora:
                line("adapter: qlora", "the base is kept in 4 bits; only the adapter learns");
                break;
            default:
                line("adapter: lora", "the base stays as it is; only the adapter learns");
                break;
        }

        line("lora_r: 16", "the rank: how much the adapter can hold, and how large it is");
        line("lora_alpha: 32", "scales the adapter by lora_alpha / lora_r");
        line("lora_target_linear: true", "an adapter on every linear layer; fewer layers learn less");
        line("lora_dropout: 0.05", "drops inputs at random in training: helps small data sets");
        if (Method == DraftMethod.Dora)
        {
            line("peft_use_dora: true", "the length of each row of the weights is trained apart");
        }
    }

    /// <summary>The rows as a run would read them, none too long.</summary>
    private TrainingConfig Reading => new() { BaseModel = BaseModel, Data = new DataOptions { Datasets = [new DatasetOptions { Path = Data }], SequenceLen = int.MaxValue } };

    /// <returns>Why the rows cannot be trained on as it is written; null: they can, or are not here.</returns>
    private string? AddData(Action<string, string?> line, string name, Action<string> notice)
    {
        (DatasetFormat? format, string? obstacle) = Look(name, notice);
        line("datasets:", null);
        line($"  - path: {Quoted(Data)}", "relative to where the program is started");
        switch (format)
        {
            case DatasetFormat.RawText raw:
                line("    type: completion", "each row is one text, and all of it is learned");
                line($"    field: {Quoted(raw.Field)}", null);
                break;
            case DatasetFormat.PromptCompletion pair:
                line("    type:", "the fields of a row, and the text around them");
                line($"      field_instruction: {Quoted(pair.PromptField)}", "given, not learned");
                line($"      field_output: {Quoted(pair.CompletionField)}", "the answer that is learned");
                line("      format: \"{instruction}\"", "the prompt; text may stand around the field");
                break;
            case ConversationFormat:
                line("    type: chat_template", "rows of messages; the assistant's are learned");
                break;
            case DatasetFormat.InputOutput:
                line("    type: input_output", "rows of segments; each says whether it is learned");
                break;
            case DatasetFormat.Alpaca { InputField: not "input" } alpaca:
                line($"    # without type: alpaca's prompt of instruction, {alpaca.InputField} and {alpaca.OutputField}", null);
                break;
            default:
                line("    type: alpaca", obstacle is null ? "rows of instruction, input (may be empty) and output" : "to be set: the rows are not understood (docs/data.md)");
                break;
        }

        if (format is ConversationFormat && Directory.Exists(BaseModel))
        {
            string? fallback = ChatTemplates.Of(Reading, new ConversationOptions()).Fallback;
            line($"chat_template: {fallback ?? ChatTemplates.OfModel}", fallback is null ? "the model's own" : "the model has none; what runs it later must use this one");
        }

        line("val_set_size: 0.05", "held out: measured before and after, never trained on");
        (int length, string why) = Length(format);
        line($"sequence_len: {length.ToString(CultureInfo.InvariantCulture)}", why);
        line("sample_packing: true", "several rows fill one sequence, none sees another: faster");
        return obstacle;
    }

    /// <summary>What the rows are, as training would take them.</summary>
    /// <returns>Their format; without one, why they cannot be trained on, or null where they are not here.</returns>
    private (DatasetFormat? Format, string? Obstacle) Look(string name, Action<string> notice)
    {
        if (!IsDataHere(Data))
        {
            notice($"{Data} is not here: its rows are taken for alpaca's (instruction, input, output). Change type if they are others.");
            return (null, null);
        }

        SourceRow[] rows;
        try
        {
            rows = [.. ConfiguredData.SourceRows(Reading, Reading.Data.Datasets[0]).Take(RowsRead)];
        }
        catch (Exception exception) when (exception is DatasetException or TrainingSetupException)
        {
            notice(exception.Message.EndsWith('.') ? exception.Message : exception.Message + ".");
            return (null, $"put {Data} right: it cannot be read as data.");
        }

        if (Array.FindIndex(rows, row => row.Fault is null) is var usable && usable < 0)
        {
            notice(rows.Length > 0 ? $"{rows[0].Source}: {rows[0].Fault}." : $"{Data} has no rows.");
            return (null, $"put {Data} right: none of its first rows can be read.");
        }

        try
        {
            return (DatasetFormat.Recognize(rows[usable]), null);
        }
        catch (DatasetException exception)
        {
            notice($"{exception.Message} Until then it says alpaca.");
            return (null, $"set type in {name}, which train needs: it says alpaca, and the rows have the fields {rows[usable].FieldNames} (docs/data.md).");
        }
    }

    /// <summary>Room for the longest row that was looked at, or a usual length; never more than the base has positions.</summary>
    private (int Length, string Why) Length(DatasetFormat? format)
    {
        int positions = File.Exists(Path.Combine(BaseModel, "config.json")) ? ModelConfig.Parse(BaseModel).MaxPositionEmbeddings : int.MaxValue;
        (int rows, int longest) = format is null || positions == int.MaxValue || !Tokenizer.IsIn(BaseModel) ? (0, 0) : Longest();
        return longest == 0
            ? (Math.Min(positions, LongestGuess), "longer rows are left out; memory grows with it")
            : (Math.Min(positions, Math.Max(4 * LengthStep, (longest + LengthStep - 1) / LengthStep * LengthStep)), string.Create(CultureInfo.InvariantCulture, $"the longest of the first {rows} rows has {longest} tokens"));
    }

    /// <summary>Of the first rows that can be used: how many they are, and the tokens of the longest.</summary>
    private (int Rows, int Longest) Longest()
    {
        Tokenizer tokenizer = Tokenizer.Load(BaseModel);
        if (tokenizer.EosId is null)
        {
            return (0, 0);
        }

        int rows = 0, longest = 0;
        foreach ((DatasetRow row, RowEncoder encoder) in new ConfiguredData(Reading, tokenizer, 1, _ => { }).AllRows().Take(RowsRead))
        {
            // What cannot be used is left out of a run too, and what has no length.
            EncodedRow encoded = encoder.Encode(row);
            rows += encoded.IsKept ? 1 : 0;
            longest = Math.Max(longest, encoded.IsKept ? encoded.Row.Tokens.Length : 0);
        }

        return (rows, longest);
    }

    /// <summary>A text as YAML takes it: as it is where nothing in it means anything else.</summary>
    private static string Quoted(string text) => PlainText().IsMatch(text) ? text : JsonSerializer.Serialize(text, RelaxedText);

    private static readonly JsonSerializerOptions RelaxedText = new() { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    [GeneratedRegex("^[A-Za-z_./][A-Za-z0-9_./-]*$")]
    private static partial Regex PlainText();
}
