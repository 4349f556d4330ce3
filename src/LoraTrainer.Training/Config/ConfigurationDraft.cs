using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models.Architectures;

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

    /// <summary>The file with the rows.</summary>
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

    /// <summary>The file.</summary>
    /// <param name="name">What it will be called, for the command in its first line.</param>
    /// <param name="notice">Is told what could not be looked at.</param>
    public string ToYaml(string name, Action<string> notice)
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
        AddData(Line, notice);
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
        return text.ToString();

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

    private void AddData(Action<string, string?> line, Action<string> notice)
    {
        List<SourceRow> rows = Rows(notice);
        DatasetFormat? format = rows.Count > 0 ? Recognized(rows[0], notice) : null;
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
            default:
                line("    type: alpaca", "rows of instruction, input (may be empty) and output");
                break;
        }

        line("val_set_size: 0.05", "held out: measured before and after, never trained on");
        (int length, string why) = Length(rows, format);
        line($"sequence_len: {length.ToString(CultureInfo.InvariantCulture)}", why);
        line("sample_packing: true", "several rows fill one sequence, none sees another: faster");
    }

    private List<SourceRow> Rows(Action<string> notice)
    {
        if (File.Exists(Data))
        {
            return [.. RowReader.Read(Data).Where(row => row.Fault is null).Take(RowsRead)];
        }

        notice($"{Data} is not here: its rows are taken for alpaca's (instruction, input, output). Change type if they are others.");
        return [];
    }

    private static DatasetFormat? Recognized(SourceRow row, Action<string> notice)
    {
        try
        {
            return DatasetFormat.Recognize(row);
        }
        catch (DatasetException exception)
        {
            notice($"{exception.Message} Until then it says alpaca.");
            return null;
        }
    }

    /// <summary>Room for the longest row that was looked at, or a usual length.</summary>
    private (int Length, string Why) Length(List<SourceRow> rows, DatasetFormat? format)
    {
        const string usual = "longer rows are left out; memory grows with it";
        if (rows.Count == 0 || format is null || !Tokenizer.IsIn(BaseModel) || !File.Exists(Path.Combine(BaseModel, "config.json")))
        {
            return (LongestGuess, usual);
        }

        Tokenizer tokenizer = Tokenizer.Load(BaseModel);
        int positions = ModelConfig.Parse(BaseModel).MaxPositionEmbeddings;
        int longest = tokenizer.EosId is null ? 0 : rows.Max(row => new RowEncoder(tokenizer, new TokenizationOptions { SequenceLength = int.MaxValue }).EncodeWhole(format.Convert(row)).Tokens.Length);
        int length = Math.Min(positions, Math.Max(4 * LengthStep, (longest + LengthStep - 1) / LengthStep * LengthStep));
        return longest == 0 ? (Math.Min(positions, LongestGuess), usual)
            : (length, string.Create(CultureInfo.InvariantCulture, $"the longest of the first {rows.Count} rows has {longest} tokens"));
    }

    /// <summary>A text as YAML takes it: as it is where nothing in it means anything else.</summary>
    private static string Quoted(string text) => PlainText().IsMatch(text) ? text : JsonSerializer.Serialize(text, RelaxedText);

    private static readonly JsonSerializerOptions RelaxedText = new() { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    [GeneratedRegex("^[A-Za-z_./][A-Za-z0-9_./-]*$")]
    private static partial Regex PlainText();
}
