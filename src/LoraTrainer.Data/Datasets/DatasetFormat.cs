using System.Text;
using System.Text.Json;

namespace LoraTrainer.Data.Datasets;

/// <summary>How the fields of a row become prompt and completion. The wording follows axolotl (prompters.py, prompt_strategies/user_defined.py).</summary>
public abstract record DatasetFormat
{
    private static readonly string[] PromptFields = ["prompt", "context", "question", "instruction", "query", "input"];
    private static readonly string[] CompletionFields = ["completion", "target", "response", "answer", "output"];

    /// <summary>How it is named to people.</summary>
    public abstract string Name { get; }

    /// <summary>The row in this format.</summary>
    /// <exception cref="DatasetException">It lacks a field, or one is not what it has to be.</exception>
    public abstract DatasetRow Convert(SourceRow row);

    /// <summary>The row in this format; one that lacks something is faulty.</summary>
    public DatasetRow ConvertOrFault(SourceRow row)
    {
        if (row.Fault is { } fault)
        {
            return new DatasetRow.Faulty(row.Source, fault);
        }

        try
        {
            return Convert(row);
        }
        catch (DatasetException exception) when (exception.Reason is { } reason)
        {
            return new DatasetRow.Faulty(row.Source, reason);
        }
        catch (InvalidOperationException)
        {
            return new DatasetRow.Faulty(row.Source, "a text in it is not valid Unicode (a surrogate without its partner)");
        }
        catch (JsonException)
        {
            // JSON in a text of the JSON: each is no deeper than the parser takes, and one in the other is.
            return new DatasetRow.Faulty(row.Source, "the lists and objects in it are nested too deeply");
        }
    }

    /// <summary>Where a config names the format of its rows.</summary>
    public const string TypeAdvice = "Set type in the data set's block";

    /// <summary>The format that the fields of a row suggest; used where the config names none. Fields that it does not need are ignored.</summary>
    /// <param name="row">The first that can be read.</param>
    /// <param name="advice">What to do where it suggests none: without a config there is no block to write into.</param>
    /// <exception cref="DatasetException">They suggest none.</exception>
    public static DatasetFormat Recognize(SourceRow row, string advice = TypeAdvice)
    {
        if (row.Has("chosen") && row.Has("rejected"))
        {
            throw new DatasetException(row.Source, "these are preference pairs (chosen, rejected), which train a model in another way than this program does. Make rows of prompt and completion of the chosen answers.");
        }

        if (row.Has("instruction") && row.Has("output"))
        {
            return new Alpaca();
        }

        // Dolly's rows: the prompt is in two fields, as alpaca's is.
        if (row.Has("instruction") && row.Has("context") && row.Has("response"))
        {
            return new Alpaca("context", "response");
        }

        if (ConversationFormat.Fits(row))
        {
            return new ConversationFormat();
        }

        if (row.Has("segments"))
        {
            return new InputOutput();
        }

        string? prompt = Array.Find(PromptFields, row.Has), completion = Array.Find(CompletionFields, row.Has);
        if (prompt is not null && completion is not null)
        {
            return new PromptCompletion(prompt, completion);
        }

        if (row.Has("text"))
        {
            return new RawText();
        }

        string known = $"Known are instruction, input, output (alpaca); one of {string.Join(", ", PromptFields)} with one of {string.Join(", ", CompletionFields)}; messages or conversations; segments; and text. {advice}.";
        throw new DatasetException(row.Source, $"the fields {row.FieldNames} do not tell what a row is. {ConversationFormat.AdviceOn(row) ?? known}");
    }

    /// <summary>axolotl's <c>type: completion</c>: one field, all of it scored.</summary>
    public sealed record RawText(string Field = "text") : DatasetFormat
    {
        public override string Name => $"text (field {Field}, all of it learned)";

        public override DatasetRow Convert(SourceRow row) => new DatasetRow.Answered(row.Source, "", row.Text(Field));
    }

    /// <summary>Two fields as they are, nothing between them.</summary>
    public sealed record PromptCompletion(string PromptField, string CompletionField) : DatasetFormat
    {
        public override string Name => $"prompt and completion (fields {PromptField}, {CompletionField})";

        public override DatasetRow Convert(SourceRow row) => new DatasetRow.Answered(row.Source, row.Text(PromptField), row.Text(CompletionField));
    }

    /// <summary>axolotl's <c>type: alpaca</c>: the Stanford Alpaca prompt; the wording depends on whether there is an input.</summary>
    public sealed record Alpaca(string InputField = "input", string OutputField = "output") : DatasetFormat
    {
        private const string WithInput =
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n";

        private const string WithoutInput =
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n";

        public override string Name => $"alpaca (fields instruction, {InputField}, {OutputField})";

        public override DatasetRow Convert(SourceRow row)
        {
            string instruction = row.Text("instruction"), input = row.OptionalText(InputField);
            string prompt = input.Length > 0
                ? $"{WithInput}### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
                : $"{WithoutInput}### Instruction:\n{instruction}\n\n### Response:\n";
            return new DatasetRow.Answered(row.Source, prompt, row.Text(OutputField));
        }
    }

    /// <summary>axolotl's <c>type: input_output</c>: segments of text with a label each, which says whether the segment is learned. Nothing is added to them, so they hold their own BOS and EOS.</summary>
    public sealed record InputOutput : DatasetFormat
    {
        public override string Name => "segments (field segments: text, label)";

        public override DatasetRow Convert(SourceRow row)
        {
            JsonElement segments = row.Fields.TryGetProperty("segments", out JsonElement found) && found.ValueKind == JsonValueKind.Array
                ? found
                : throw new DatasetException(row.Source, $"no list 'segments'; the row has: {row.FieldNames}");
            var pieces = new List<TextPiece>();
            foreach (JsonElement segment in segments.EnumerateArray())
            {
                if (segment.ValueKind != JsonValueKind.Object || !segment.TryGetProperty("text", out _) || !segment.TryGetProperty("label", out JsonElement label)
                    || label.ValueKind is not (JsonValueKind.True or JsonValueKind.False))
                {
                    throw new DatasetException(row.Source, $"segment {pieces.Count + 1} is not {{\"label\": true or false, \"text\": \"...\"}}");
                }

                pieces.Add(new TextPiece(new SourceRow(row.Source, segment).Text("text"), label.GetBoolean()));
            }

            return new DatasetRow.Segmented(row.Source, pieces);
        }
    }

    /// <summary>
    /// axolotl's block of fields and formats. The prompt is system_format (where there is a system text) followed by format, or by no_input_format
    /// where the row has no input. A row's own system field goes before <see cref="SystemPrompt"/>.
    /// </summary>
    public sealed record Custom : DatasetFormat
    {
        private readonly string format = "{instruction} {input}";
        private readonly string? noInputFormat;
        private readonly string systemFormat = "{system}";

        public string SystemPrompt { get; init; } = "";

        public string? FieldSystem { get; init; } = "system";

        public string FieldInstruction { get; init; } = "instruction";

        public string? FieldInput { get; init; } = "input";

        public string FieldOutput { get; init; } = "output";

        /// <summary>Placeholders {instruction} and {input}; a literal brace is written twice.</summary>
        public string Format
        {
            get => format;
            init => format = Checked(value, "format", "instruction", "input");
        }

        /// <summary>Absent: <see cref="Format"/> with an empty input.</summary>
        public string? NoInputFormat
        {
            get => noInputFormat;
            init => noInputFormat = value is null ? null : Checked(value, "no_input_format", "instruction", "input");
        }

        public string SystemFormat
        {
            get => systemFormat;
            init => systemFormat = Checked(value, "system_format", "system");
        }

        public override string Name => $"a block of its own (fields {FieldInstruction}, {FieldOutput})";

        public override DatasetRow Convert(SourceRow row)
        {
            string instruction = row.Text(FieldInstruction), input = row.OptionalText(FieldInput);
            string system = FieldSystem is not null && row.Has(FieldSystem) ? row.OptionalText(FieldSystem) : SystemPrompt;
            string turn = input.Length > 0 ? Format : NoInputFormat ?? Format;
            string prompt = (system.Length > 0 ? Fill(SystemFormat, [("system", system)]) : "") + Fill(turn, [("instruction", instruction), ("input", input)]);
            return new DatasetRow.Answered(row.Source, prompt, row.Text(FieldOutput));
        }

        private static string Checked(string pattern, string key, params string[] names)
        {
            try
            {
                Fill(pattern, [.. names.Select(name => (name, ""))]);
            }
            catch (FormatException exception)
            {
                throw new DatasetException($"{key}: {exception.Message} in \"{pattern}\"; known here: {string.Join(", ", names.Select(name => $"{{{name}}}"))}", exception);
            }

            return pattern;
        }

        /// <summary>Python's str.format for plain names: {name} is replaced, {{ and }} are braces. What is put in is not looked at again.</summary>
        private static string Fill(string pattern, ReadOnlySpan<(string Name, string Value)> values)
        {
            var text = new StringBuilder();
            for (int i = 0; i < pattern.Length; i++)
            {
                char c = pattern[i];
                if (c is '{' or '}' && i + 1 < pattern.Length && pattern[i + 1] == c)
                {
                    text.Append(c);
                    i++;
                    continue;
                }

                if (c is not ('{' or '}'))
                {
                    text.Append(c);
                    continue;
                }

                int close = c == '{' ? pattern.IndexOf('}', i) : -1;
                string name = close < 0 ? throw new FormatException($"the brace at character {i + 1} has no partner") : pattern[(i + 1)..close];
                int known = -1;
                for (int k = 0; k < values.Length; k++)
                {
                    known = values[k].Name == name ? k : known;
                }

                text.Append(known >= 0 ? values[known].Value : throw new FormatException($"the placeholder {{{name}}} is not known"));
                i = close;
            }

            return text.ToString();
        }
    }
}
