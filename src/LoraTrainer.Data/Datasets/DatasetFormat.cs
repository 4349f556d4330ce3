using System.Text;

namespace LoraTrainer.Data.Datasets;

/// <summary>A row as training sees it: what the model is given and what it has to say.</summary>
/// <param name="Source">Where it stands.</param>
/// <param name="Prompt">Not scored unless asked for; empty for raw text.</param>
/// <param name="Completion">Scored.</param>
public readonly record struct DatasetRow(RowSource Source, string Prompt, string Completion);

/// <summary>How the fields of a row become prompt and completion. The wording follows axolotl (prompters.py, prompt_strategies/user_defined.py).</summary>
public abstract record DatasetFormat
{
    private static readonly (string Prompt, string Completion)[] KnownPairs =
    [
        ("prompt", "completion"), ("context", "target"), ("question", "answer"), ("prompt", "response"), ("query", "response"), ("input", "output"),
    ];

    public abstract DatasetRow Convert(SourceRow row);

    /// <summary>The format that the fields of a row suggest; used where the config names none.</summary>
    /// <exception cref="DatasetException">They suggest none.</exception>
    public static DatasetFormat Recognize(SourceRow row)
    {
        if (row.Has("instruction") && row.Has("output"))
        {
            return new Alpaca();
        }

        foreach ((string prompt, string completion) in KnownPairs)
        {
            if (row.Has(prompt) && row.Has(completion))
            {
                return new PromptCompletion(prompt, completion);
            }
        }

        return row.Has("text")
            ? new RawText()
            : throw new DatasetException($"{row.Source}: the fields {row.FieldNames} do not tell the format; known are instruction/input/output, "
                + $"{string.Join(", ", KnownPairs.Select(pair => $"{pair.Prompt}/{pair.Completion}"))} and text. Set type in the data set's block.");
    }

    /// <summary>axolotl's <c>type: completion</c>: one field, all of it scored.</summary>
    public sealed record RawText(string Field = "text") : DatasetFormat
    {
        public override DatasetRow Convert(SourceRow row) => new(row.Source, "", row.Text(Field));
    }

    /// <summary>Two fields as they are, nothing between them.</summary>
    public sealed record PromptCompletion(string PromptField, string CompletionField) : DatasetFormat
    {
        public override DatasetRow Convert(SourceRow row) => new(row.Source, row.Text(PromptField), row.Text(CompletionField));
    }

    /// <summary>axolotl's <c>type: alpaca</c>: the Stanford Alpaca prompt; the wording depends on whether there is an input.</summary>
    public sealed record Alpaca : DatasetFormat
    {
        private const string WithInput =
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n";

        private const string WithoutInput =
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n";

        public override DatasetRow Convert(SourceRow row)
        {
            string instruction = row.Text("instruction"), input = row.OptionalText("input");
            string prompt = input.Length > 0
                ? $"{WithInput}### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
                : $"{WithoutInput}### Instruction:\n{instruction}\n\n### Response:\n";
            return new DatasetRow(row.Source, prompt, row.Text("output"));
        }
    }

    /// <summary>
    /// axolotl's block of fields and formats. The prompt is system_format (where there is a system text) followed by format, or by no_input_format
    /// where the row has no input. A row's own system field goes before <see cref="SystemPrompt"/>.
    /// </summary>
    public sealed record Custom : DatasetFormat
    {
        private readonly string format = "{instruction} {input} ";
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

        public override DatasetRow Convert(SourceRow row)
        {
            string instruction = row.Text(FieldInstruction), input = row.OptionalText(FieldInput);
            string system = FieldSystem is not null && row.Has(FieldSystem) ? row.OptionalText(FieldSystem) : SystemPrompt;
            string turn = input.Length > 0 ? Format : NoInputFormat ?? Format;
            string prompt = (system.Length > 0 ? Fill(SystemFormat, [("system", system)]) : "") + Fill(turn, [("instruction", instruction), ("input", input)]);
            return new DatasetRow(row.Source, prompt, row.Text(FieldOutput));
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
