using System.CommandLine;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli.Verbs;

/// <summary>A conversation in the terminal.</summary>
internal static class ChatVerb
{
    private const string Examples = """
        Examples:
          lora-trainer chat outputs/mine
          lora-trainer chat models/llama --adapter outputs/mine --format alpaca --temperature 0.7
          printf 'Hello\n/adapter off\nHello\n' | lora-trainer chat outputs/mine --single-turn

        A line is a message. Several lines at once: paste them, or put them between two lines of three quotation marks.
          /reset           forget what was said
          /system TEXT     the system text of what follows; without TEXT: none
          /adapter on|off  answer with the adapter, or as the base alone
          /help, /exit     Ctrl-D ends too; Ctrl-C ends an answer that comes
          //...            a message that starts with /

        A message becomes a prompt as the rows of the run's training did, or as --format says: plain, alpaca, or template, the chat template of the run or the
        model, which is also used where nothing else is known. Earlier turns stand before it as they were, unless --single-turn has each message answered
        alone, as rows of single turns are in training.
        """;

    private const int LongestAnswer = 256;
    private const string Block = "\"\"\"";

    // A pasted text comes in one go; fingers are slower.
    private static readonly TimeSpan PastePause = TimeSpan.FromMilliseconds(30);

    public static Verb Create()
    {
        Argument<string> model = new("MODEL") { Description = "A model folder, the output_dir of a run, one of its checkpoints, or an adapter folder." };
        Option<string?> adapter = new("--adapter") { Description = "A PEFT adapter folder for the model." };
        Option<string?> format = new("--format") { Description = "How a message becomes a prompt. Without it: as in the run's training, else by the model's chat template, else plain.", HelpName = string.Join('|', ChatFormat.Words) };
        Option<string> system = new("--system") { Description = "The system text.", DefaultValueFactory = _ => "" };
        Option<bool> singleTurn = new("--single-turn") { Description = "Answer each message alone." };
        Option<int> context = new("--context") { Description = "The most tokens of a conversation; older turns are forgotten.", DefaultValueFactory = _ => 2048 };
        Option<int?> maxNewTokens = new("--max-new-tokens") { Description = "The longest answer. Without it: 256, or half the conversation where that is shorter." };
        Option<double> temperature = new("--temperature") { Description = "0 takes the most likely token; above, tokens are drawn.", DefaultValueFactory = _ => 0 };
        Option<int> topK = new("--top-k") { Description = "Draw from the so many most likely tokens; 0: from all.", DefaultValueFactory = _ => 0 };
        Option<double> topP = new("--top-p") { Description = "Draw from the most likely tokens that together have this probability.", DefaultValueFactory = _ => 1 };
        Option<ulong> seed = new("--seed") { Description = "Of the drawing.", DefaultValueFactory = _ => 42 };
        Option<bool> fourBit = new("--load-in-4bit") { Description = "Keep the base in NF4 with double quantization." };
        Option<string> device = new("--device") { Description = "Where to compute; auto takes a GPU if there is one.", HelpName = "auto|cpu|cuda", DefaultValueFactory = _ => "auto" };
        Option<int> threads = new("--threads") { Description = "Worker threads; 0: one for each core.", DefaultValueFactory = _ => 0 };
        return new Verb("chat", "Talk with a model, with or without an adapter.", Examples)
        {
            model, adapter, format, system, singleTurn, context, maxNewTokens, temperature, topK, topP, seed, fourBit, device, threads,
        }.WithWork(given =>
        {
            ParseResult arguments = given.Arguments;
            TextModelSource source = TextModelSource.From(arguments.GetRequiredValue(model), arguments.GetValue(adapter), arguments.GetValue(fourBit), given.Terminal.Note, CancellationToken.None);
            int positions = ModelConfig.Parse(source.BaseFolder).MaxPositionEmbeddings, limit = Math.Min(arguments.GetValue(context), positions);
            SamplingOptions options = GenerateVerb.Checked(new SamplingOptions
            {
                MaxNewTokens = arguments.GetValue(maxNewTokens) ?? Math.Clamp(limit / 2, 1, LongestAnswer),
                Temperature = arguments.GetValue(temperature),
                TopK = arguments.GetValue(topK),
                TopP = arguments.GetValue(topP),
                Seed = arguments.GetValue(seed),
            });
            ChatFormat chosen = arguments.GetValue(format) is { } word ? ChatFormat.Parse(word, format.Name, FoldersOf(source)) : FormatOf(source);
            if (limit <= options.MaxNewTokens)
            {
                throw new TrainingSetupException($"A conversation of {Quantities.Count(limit, "token")} has no room for answers of up to {options.MaxNewTokens}. Use a larger {context.Name} (the model was made for {positions}) or a smaller {maxNewTokens.Name}.");
            }

            if (arguments.GetValue(system) is { Length: > 0 } && !chosen.TakesSystem)
            {
                throw new TrainingSetupException($"{NoSystemIn(chosen)} Leave {system.Name} out, or put the text into the message.");
            }

            DeviceSelection selection = DeviceSelection.ForRun(DeviceWords.Parse(arguments.GetRequiredValue(device), device.Name), arguments.GetValue(threads), $"{device.Name} ");
            Tokenizer tokenizer = TextModel.LoadTokenizer(source);
            var loading = new ProgressLine(given.Terminal, "loading");
            using TextModel loaded = TextModel.Load(
                source, selection, tokenizer, measured => Conversation.Measure(measured, limit), "Less is needed with --load-in-4bit or a smaller --context.", given.Terminal.Note, loading.Tell);
            Greet(given.Terminal, loaded, source, chosen);
            return Task.FromResult(new Talk(given.Terminal, loaded, chosen, options, new Conversation(loaded, chosen, limit), arguments.GetValue(singleTurn), arguments.GetRequiredValue(system)).Run());
        });
    }

    private static string NoSystemIn(ChatFormat format) => $"There is no place for a system text, since messages become prompts {format.Name}.";

    private static ChatFormat FormatOf(TextModelSource source) => FoldersOf(source).Select(RunFolder.ConfigFileOf).FirstOrDefault(file => file is not null) is { } run
        ? ChatFormat.OfRun(ConfigurationLoader.LoadFile(run, []).Require(), FoldersOf(source))
        : ChatFormat.OfModel(FoldersOf(source));

    /// <summary>Where a format and a chat template are looked for: what was trained before what it was trained on.</summary>
    private static string[] FoldersOf(TextModelSource source) => [.. new[] { source.AdapterFolder, source.BaseFolder }.OfType<string>()];

    private static void Greet(Terminal terminal, TextModel model, TextModelSource source, ChatFormat format)
    {
        terminal.Note(model.DeviceSentence);
        terminal.Note($"{source.BaseFolder}{(source.AdapterFolder is null ? ", no adapter" : $" with the adapter {source.AdapterFolder}")}. Messages become prompts {format.Name}.");

        if (!Console.IsInputRedirected)
        {
            terminal.Note("/help lists what can be asked for; Ctrl-D ends.");
        }
    }

    /// <summary>The turns of one conversation.</summary>
    private sealed class Talk(Terminal terminal, TextModel model, ChatFormat format, SamplingOptions options, Conversation conversation, bool isSingleTurn, string firstSystem)
    {
        private readonly List<(string User, string Answer, int Tokens, bool HasAdapter)> turns = [];
        private string system = firstSystem;
        private bool hasAdapter = model.Adapters is not null;

        public ExitCode Run()
        {
            while (Next() is { } message)
            {
                if (message.StartsWith('/') && !message.StartsWith("//", StringComparison.Ordinal))
                {
                    if (!Command(message.TrimEnd()))
                    {
                        break;
                    }
                }
                else if (message.Trim().Length > 0)
                {
                    Answer(message.StartsWith("//", StringComparison.Ordinal) ? message[1..] : message);
                }
            }

            terminal.Json(json =>
            {
                json.WriteStartObject();
                json.WriteStartArray("turns");
                foreach ((string user, string answer, int tokens, bool adapter) in turns)
                {
                    json.WriteStartObject();
                    json.WriteString("user", user);
                    json.WriteString("assistant", answer);
                    json.WriteNumber("generated_tokens", tokens);
                    json.WriteBoolean("adapter", adapter);
                    json.WriteEndObject();
                }

                json.WriteEndArray();
                json.WriteEndObject();
            });
            return ExitCode.Done;
        }

        private void Answer(string message)
        {
            if (isSingleTurn)
            {
                conversation.Reset();
            }

            using var giveUp = new CancellationTokenSource();
            using PosixSignalRegistration interrupt = StopSignals.OnInterrupt(giveUp.Cancel);
            try
            {
                (string text, int tokens) = conversation.Say(
                    message, system, options, terminal.Stream,
                    forgotten => terminal.Note(string.Create(CultureInfo.InvariantCulture, $"The conversation is full ({Quantities.Count(conversation.LimitTokens, "token")}): its {(forgotten == 1 ? "oldest turn is" : $"{forgotten} oldest turns are")} forgotten.")), giveUp.Token);
                turns.Add((message, text, tokens, hasAdapter));
                terminal.Stream(Environment.NewLine);
                if (giveUp.IsCancellationRequested)
                {
                    terminal.Note("The answer was given up; what came of it counts.");
                }
                else if (tokens == options.MaxNewTokens)
                {
                    terminal.Note($"The answer ends here, after {Quantities.Count(tokens, "token")} (--max-new-tokens).");
                }
            }
            catch (TrainingSetupException refusal)
            {
                // A message that is too long ends no conversation.
                terminal.Error(refusal.Message);
            }
        }

        /// <summary>False: the conversation is over.</summary>
        private bool Command(string line)
        {
            string[] parts = line.Split(' ', 2, StringSplitOptions.TrimEntries);
            string rest = parts.Length > 1 ? parts[1] : "";
            switch (parts[0])
            {
                case "/exit" or "/quit" or "/bye":
                    return false;
                case "/reset":
                    conversation.Reset();
                    terminal.Note("Everything that was said is forgotten.");
                    break;
                case "/system" when !format.TakesSystem:
                    terminal.Error($"{NoSystemIn(format)} Put it into the message.");
                    break;
                case "/system":
                    system = rest;
                    conversation.Reset();
                    terminal.Note(rest.Length > 0 ? "The system text is set, and what was said is forgotten." : "There is no system text any more, and what was said is forgotten.");
                    break;
                case "/adapter" when model.Adapters is null:
                    terminal.Error("There is no adapter: the model is a base alone. Start with a run, or with --adapter.");
                    break;
                case "/adapter" when rest is "on" or "off":
                    hasAdapter = rest == "on";
                    model.Adapters.SetActive(hasAdapter);
                    conversation.Reread();
                    terminal.Note(hasAdapter ? "Answers come with the adapter." : "Answers come from the base alone.");
                    break;
                case "/adapter":
                    terminal.Error($"/adapter on or /adapter off; it is {(hasAdapter ? "on" : "off")}.");
                    break;
                case "/help":
                    terminal.Say("/reset, /system TEXT, /adapter on|off, /exit. Several lines: between lines of \"\"\". A message that starts with /: write //.");
                    break;
                default:
                    terminal.Error($"There is no command {parts[0]}; /help lists them. For a message that starts with / write //.");
                    break;
            }

            return true;
        }

        /// <summary>The next message; null at the end of the input.</summary>
        private string? Next()
        {
            bool isTyped = !Console.IsInputRedirected;
            if (isTyped && !terminal.IsJson)
            {
                terminal.Stream("> ");
            }

            if (Console.In.ReadLine() is not { } first)
            {
                if (isTyped)
                {
                    terminal.Stream(Environment.NewLine);
                }

                return null;
            }

            var message = new StringBuilder();
            if (first.Trim() == Block)
            {
                while (Console.In.ReadLine() is { } line && line.Trim() != Block)
                {
                    message.Append(message.Length > 0 ? "\n" : "").Append(line);
                }

                return message.ToString();
            }

            message.Append(first);
            while (isTyped && IsPasted() && Console.In.ReadLine() is { } more)
            {
                message.Append('\n').Append(more);
            }

            return message.ToString();
        }

        private static bool IsPasted()
        {
            Thread.Sleep(PastePause);
            return Console.KeyAvailable;
        }
    }
}
