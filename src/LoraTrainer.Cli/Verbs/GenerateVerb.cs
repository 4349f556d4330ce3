using System.CommandLine;
using System.Diagnostics;
using System.Runtime.InteropServices;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Continues a text with a base model, with or without an adapter.</summary>
internal static class GenerateVerb
{
    private const string Examples = """
        Examples:
          lora-trainer generate outputs/quickstart --prompt "Message:\nHi, this is Ida. Two loaves for Friday at noon, please.\nRecord:\n"
          lora-trainer generate models/llama --adapter outputs/mine --load-in-4bit --prompt-file question.txt
          printf "Once upon a time" | lora-trainer generate models/llama --temperature 0.8 --top-p 0.95 --seed 7

        MODEL is a model folder, the output_dir of a run (its base, quantization and adapter are taken), or an adapter folder. In --prompt, \n is a
        line break. Without --temperature the most likely token is taken each time. The prompt is used as it is: no template is put around it.
        """;

    public static Verb Create()
    {
        Argument<string> model = new("MODEL") { Description = "A model folder, the output_dir of a run, one of its checkpoints, or an adapter folder." };
        Option<string?> adapter = new("--adapter") { Description = "A PEFT adapter folder for the model." };
        Option<string?> prompt = new("--prompt", "-p") { Description = "The text to continue." };
        Option<string?> promptFile = new("--prompt-file") { Description = "A file with the text to continue; without both, standard input is read." };
        Option<int> maxNewTokens = new("--max-new-tokens") { Description = "The most tokens to generate.", DefaultValueFactory = _ => 128 };
        Option<double> temperature = new("--temperature") { Description = "0 takes the most likely token; above, tokens are drawn.", DefaultValueFactory = _ => 0 };
        Option<int> topK = new("--top-k") { Description = "Draw from the so many most likely tokens; 0: from all.", DefaultValueFactory = _ => 0 };
        Option<double> topP = new("--top-p") { Description = "Draw from the most likely tokens that together have this probability.", DefaultValueFactory = _ => 1 };
        Option<ulong> seed = new("--seed") { Description = "Of the drawing.", DefaultValueFactory = _ => 42 };
        Option<bool> fourBit = new("--load-in-4bit") { Description = "Keep the base in NF4 with double quantization." };
        Option<string> device = new("--device") { Description = "Where to compute; auto takes a GPU if there is one.", HelpName = "auto|cpu|cuda", DefaultValueFactory = _ => "auto" };
        Option<int> threads = new("--threads") { Description = "Worker threads; 0: one for each core.", DefaultValueFactory = _ => 0 };
        return new Verb("generate", "Continue a text with a model, with or without an adapter.", Examples)
        {
            model, adapter, prompt, promptFile, maxNewTokens, temperature, topK, topP, seed, fourBit, device, threads,
        }.WithWork(context => Task.FromResult(Run(
            context,
            TextModelSource.From(context.Arguments.GetRequiredValue(model), context.Arguments.GetValue(adapter), context.Arguments.GetValue(fourBit), context.Terminal.Note, CancellationToken.None),
            PromptOf(context.Terminal, context.Arguments.GetValue(prompt), context.Arguments.GetValue(promptFile)),
            Checked(new SamplingOptions
            {
                MaxNewTokens = context.Arguments.GetValue(maxNewTokens),
                Temperature = context.Arguments.GetValue(temperature),
                TopK = context.Arguments.GetValue(topK),
                TopP = context.Arguments.GetValue(topP),
                Seed = context.Arguments.GetValue(seed),
            }),
            DeviceSelection.ForRun(DeviceWords.Parse(context.Arguments.GetRequiredValue(device), device.Name), context.Arguments.GetValue(threads), $"{device.Name} "))));
    }

    private static ExitCode Run(VerbContext context, TextModelSource source, string prompt, SamplingOptions options, DeviceSelection selection)
    {
        Tokenizer tokenizer = TextModel.LoadTokenizer(source);
        int[] tokens = [.. tokenizer.PrefixIds, .. tokenizer.Encode(prompt, addSpecialTokens: false)];
        if (tokens.Length == 0)
        {
            throw new TrainingSetupException("The prompt is empty and the tokenizer puts nothing before it, so there is nothing to continue. Give some text with --prompt.");
        }

        using TextModel model = TextModel.Load(source, selection, tokenizer, tokens.Length, options.MaxNewTokens, context.Terminal.Note);
        context.Terminal.Note(model.DeviceSentence);
        int positions = model.Model.Config.MaxPositionEmbeddings;
        if (tokens.Length + options.MaxNewTokens > positions)
        {
            context.Terminal.Warn($"The prompt has {Quantities.Count(tokens.Length, "token")} and up to {options.MaxNewTokens} more follow; the model was made for {positions} (max_position_embeddings). What lies beyond is likely to be poor.");
        }

        CancellationToken stop = context.Signals.Listen("What is generated so far is kept.");
        StreamingDecoder decoder = tokenizer.StartDecoding(skipSpecialTokens: true);
        long start = Stopwatch.GetTimestamp();
        List<int> generated = new TextGenerator(model.Model, model.StopTokens).Generate(tokens, options, token => context.Terminal.Stream(decoder.Add(token)), stop);
        double seconds = Stopwatch.GetElapsedTime(start).TotalSeconds;
        context.Terminal.Stream(decoder.Finish() + Environment.NewLine);
        context.Terminal.Json(json =>
        {
            json.WriteStartObject();
            json.WriteString("prompt", prompt);
            json.WriteString("text", tokenizer.Decode(CollectionsMarshal.AsSpan(generated), skipSpecialTokens: true));
            json.WriteNumber("prompt_tokens", tokens.Length);
            json.WriteNumber("generated_tokens", generated.Count);
            json.WriteNumber("tokens_per_second", Math.Round(generated.Count / seconds, 2));
            json.WriteEndObject();
        });
        return stop.IsCancellationRequested ? ExitCode.Interrupted : ExitCode.Done;
    }

    private static string PromptOf(Terminal terminal, string? prompt, string? file)
    {
        if (prompt is not null && file is not null)
        {
            throw new TrainingSetupException("--prompt and --prompt-file both give a prompt. Keep one.");
        }

        if (prompt is null && file is null && !Console.IsInputRedirected)
        {
            terminal.Note("The prompt is read from standard input; Ctrl-D ends it.");
        }

        return prompt is not null ? prompt.Replace("\\n", "\n", StringComparison.Ordinal)
            : file is not null ? PathTrouble.ReadText("--prompt-file", file)
            : Console.In.ReadToEnd();
    }

    internal static SamplingOptions Checked(SamplingOptions options)
    {
        string? wrong = options switch
        {
            { MaxNewTokens: < 1 } => $"--max-new-tokens must be at least 1, got {options.MaxNewTokens}.",
            { Temperature: not (>= 0 and < double.PositiveInfinity) } => $"--temperature must be 0 or more, got {options.Temperature}.",
            { TopK: < 0 } => $"--top-k must be 0 or more, got {options.TopK}.",
            { TopP: not (> 0 and <= 1) } => $"--top-p must be above 0 and at most 1, got {options.TopP}.",
            _ => null,
        };
        return wrong is null ? options : throw new TrainingSetupException(wrong);
    }
}
