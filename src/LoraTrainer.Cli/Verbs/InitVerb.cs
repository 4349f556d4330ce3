using System.CommandLine;
using System.Text;
using LoraTrainer.Storage;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Sources;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Writes a first configuration with comments.</summary>
internal static class InitVerb
{
    private const string Examples = """
        Examples:
          lora-trainer init                                             asks, and writes my.yaml
          lora-trainer init orders.yaml --base-model models/llama --data data/orders.jsonl --adapter qlora

        What is not given on the command line is asked for on a terminal; Enter takes what stands in brackets. Rows and tokenizer are looked at where they are here: the
        fields decide the format, the longest row sequence_len. What is written passes validate.
        """;

    public static Verb Create()
    {
        Argument<string> output = new("OUT") { Description = "The file to write.", DefaultValueFactory = _ => "my.yaml" };
        Option<string?> baseModel = new("--base-model") { Description = "The model to start from, a folder.", HelpName = "FOLDER" };
        Option<string?> data = new("--data") { Description = "The rows to train on: a file, a folder, or a pattern in quotes.", HelpName = "PATH" };
        Option<string?> adapter = new("--adapter") { Description = "What is trained.", HelpName = string.Join('|', ConfigurationDraft.Methods.Select(method => method.Word)) };
        Option<string?> outputDir = new("--output-dir") { Description = "Where the result goes. Without it: outputs/ and the file's name.", HelpName = "FOLDER" };
        Option<string?> device = new("--device") { Description = "Where to compute. Without it the key is left out, and the machine decides.", HelpName = "auto|cpu|cuda" };
        Option<bool> force = new("--force") { Description = "Write over a file of that name." };
        return new Verb("init", "Write a first configuration, with comments.", Examples) { output, baseModel, data, adapter, outputDir, device, force }.WithWork(context =>
        {
            ParseResult given = context.Arguments;
            string path = given.GetRequiredValue(output);
            if (Path.Exists(path) && (!given.GetValue(force) || Directory.Exists(path)))
            {
                throw new TrainingSetupException(Directory.Exists(path) ? $"{path} is a folder. Give the name of a file, such as my.yaml." : $"{path} is there already. Choose another name, or --force, which writes over it.");
            }

            if (Path.GetDirectoryName(Path.GetFullPath(path)) is { } folder && !Directory.Exists(folder))
            {
                throw new TrainingSetupException($"{path}: there is no folder {folder}. Make it first.");
            }

            var answers = new Questions(context.Terminal, baseModel.Name, data.Name);
            string usualOutput = Path.Combine("outputs", Path.GetFileNameWithoutExtension(path));
            var draft = new ConfigurationDraft
            {
                BaseModel = answers.Ask(given.GetValue(baseModel), "Base model, a folder", null, baseModel.Name, folder => Directory.Exists(folder) || FetchedSources.IsHubName(folder) ? null : $"{folder} is not here."),
                Data = answers.Ask(given.GetValue(data), "Training data, a file or a folder", null, data.Name, rows => IsData(rows) ? null : $"{rows} is not here."),
                Method = Method(answers, given.GetValue(adapter), adapter.Name),
                OutputDir = answers.Ask(given.GetValue(outputDir), "Output folder", usualOutput, outputDir.Name, _ => null),
                Device = given.GetValue(device) is { } word ? DeviceWords.Parse(word, device.Name) : null,
            };
            return Task.FromResult(Run(context.Terminal, path, draft));
        });
    }

    private static ExitCode Run(Terminal terminal, string path, ConfigurationDraft draft)
    {
        (string yaml, string? obstacle) = draft.Write(path, terminal.Note);
        ConfigurationResult result = ConfigurationLoader.LoadText(yaml, path, []);
        TrainingConfig config = result.Require();
        PathTrouble.Write("OUT", path, () => AtomicFile.WriteAllBytes(path, Encoding.UTF8.GetBytes(yaml)));
        foreach (string missing in new[] { (draft.BaseModel, Directory.Exists(draft.BaseModel) || FetchedSources.IsHubName(draft.BaseModel)), (draft.Data, IsData(draft.Data)) }.Where(item => !item.Item2).Select(item => item.Item1))
        {
            terminal.Warn($"{missing} is not here. Relative paths start at {Directory.GetCurrentDirectory()}.");
        }

        terminal.Remarks(result);
        terminal.Say($"{path} is written: {ValidateVerb.Summary(config)}");
        string next = obstacle is null
            ? $"read it; lora-trainer plan {path} says what it will need, lora-trainer train {path} runs it."
            : $"{obstacle} lora-trainer audit {path} then says whether the rows can be trained on.";
        terminal.Say($"Next: {next}");
        terminal.Json(json =>
        {
            json.WriteStartObject();
            json.WriteString("path", path);
            json.WriteString("hash", config.Hash);
            json.WritePropertyName("config");
            config.WriteJson(json);
            json.WriteString("next", next);
            json.WriteEndObject();
        });
        return ExitCode.Done;
    }

    /// <summary>Whether a run would find rows by this text, here or elsewhere.</summary>
    private static bool IsData(string path) => FetchedSources.IsElsewhere(new DatasetOptions { Path = path }) || ConfigurationDraft.IsDataHere(path);

    private static DraftMethod Method(Questions answers, string? given, string option)
    {
        string about = string.Join(Environment.NewLine, ConfigurationDraft.Methods.Select(method => $"  {method.Word,-6} {method.About}"));
        string word = answers.Ask(given, $"What is trained?{Environment.NewLine}{about}{Environment.NewLine}Method", "qlora", option, choice => Find(choice) is null ? $"'{choice}' is none of them." : null);
        return Find(word) ?? throw new TrainingSetupException(WrongCommandLine.NoSuchWord(option, word, [.. ConfigurationDraft.Methods.Select(method => method.Word)]));
    }

    private static DraftMethod? Find(string word)
    {
        foreach ((string known, DraftMethod method, _) in ConfigurationDraft.Methods)
        {
            if (known == word)
            {
                return method;
            }
        }

        return null;
    }

    /// <summary>What the command line does not say, asked for where somebody can answer.</summary>
    private sealed class Questions(Terminal terminal, params string[] needed)
    {
        private bool CanAsk => !Console.IsInputRedirected && !Console.IsOutputRedirected && !terminal.IsJson && !terminal.IsQuiet;

        /// <summary>What was given, else the answer, else the usual one.</summary>
        /// <param name="given">On the command line; null: not.</param>
        /// <param name="question">Without its end.</param>
        /// <param name="usual">What Enter means, and where nobody can answer; null: something must be said.</param>
        /// <param name="option">That says it without a question.</param>
        /// <param name="doubt">What is wrong with an answer, a sentence; null: nothing. It is asked once more, and then believed.</param>
        public string Ask(string? given, string question, string? usual, string option, Func<string, string?> doubt)
        {
            if (given is not null)
            {
                return given.Trim().Length > 0 ? given : throw new TrainingSetupException($"{option} is empty.");
            }

            if (!CanAsk)
            {
                return usual ?? throw new TrainingSetupException($"There is no terminal to ask at: {string.Join(" and ", needed)} must be given.");
            }

            string? refused = null;
            while (true)
            {
                terminal.Stream($"{question}{(usual is null ? "" : $" [{usual}]")}: ");
                string line = Console.In.ReadLine() ?? throw new TrainingSetupException("The questions were not answered; nothing is written.");
                string answer = line.Trim().Length > 0 ? line.Trim() : usual ?? "";
                if (answer.Length > 0 && (doubt(answer) is not { } wrong || answer == refused))
                {
                    return answer;
                }

                terminal.Say(answer.Length == 0 ? "Something must be said here." : $"{doubt(answer)} Say it again to keep it.");
                refused = answer;
            }
        }
    }
}
