using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Says what a run will need. Opens no device.</summary>
internal static class PlanVerb
{
    private const string Examples = """
        Examples:
          lora-trainer plan my.yaml
          lora-trainer plan my.yaml --set load_in_4bit=false --set adapter=lora
          lora-trainer plan my.yaml --set base_model=shapes/8b      a folder with nothing but config.json is enough

        The memory is that of the arena of a real run, to the byte: the same code lays it out. Without data or tokenizer, tokens and steps are not known.
        Exit code: 0 also where the plan does not fit this machine.
        """;

    public static Verb Create()
    {
        Argument<string> config = new("CONFIG") { Description = "The configuration, a YAML file." };
        return new Verb("plan", "Tell memory, work, tokens and steps of a run before it starts.", Examples) { config, CommandLine.Set }
            .WithWork(context => Task.FromResult(Run(context, context.Arguments.GetRequiredValue(config))));
    }

    private static ExitCode Run(VerbContext context, string path)
    {
        Terminal terminal = context.Terminal;
        ConfigurationResult result = ConfigurationLoader.LoadFile(path, context.Settings);
        terminal.Remarks(result);

        // What this build cannot run yet can be planned all the same.
        foreach (ConfigurationIssue issue in result.Errors.Where(issue => issue.Kind == ConfigurationIssueKind.NotSupportedYet))
        {
            terminal.Warn(issue.Message);
        }

        bool plannable = result.Config is not null && result.Errors.All(issue => issue.Kind == ConfigurationIssueKind.NotSupportedYet);
        TrainingConfig config = plannable ? result.Config! : result.Require();
        RunPlan plan = RunPlan.Of(config, new PlanObserver(terminal), context.Signals.Listen("Planning stops."));
        foreach (string notice in plan.Notices)
        {
            terminal.Note(notice);
        }

        terminal.Result(Words(plan, config));
        terminal.Json(json => Write(json, plan));
        return ExitCode.Done;
    }

    private static string Words(RunPlan plan, TrainingConfig config)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        MemoryPlan memory = plan.Memory;
        var lines = new List<(string Name, string Value)>
        {
            ("parameters", string.Create(culture, $"{memory.Parameters:#,0}{(config.Adapter.Kind == AdapterKind.None ? ", all of them trained" : $", frozen; {memory.TrainableParameters:#,0} more are trained")}")),
            ("memory", $"{Quantities.Bytes(memory.ArenaBytes)} for micro-batches of {plan.MicroBatchTokens.ToString("#,0", culture)} tokens"),
        };
        lines.AddRange(memory.ByKind.Where(item => item.Value > 0).Select(item => ($"  {Name(item.Key)}", Quantities.Bytes(item.Value))));
        lines.Add(("this machine", config.Device.Choice == DeviceChoice.Cuda ? "not compared: the memory is that of a GPU" : Fits(memory.ArenaBytes + plan.HostBytes)));
        lines.Add(("work", string.Create(culture, $"{memory.FlopsPerToken / 1e9:0.00} GFLOP a token, forward and backward")));
        lines.Add(("tokens", plan.Tokens is { } tokens ? tokens.ToString("#,0", culture) : "not known"));
        lines.Add(("steps", plan.Steps is { } steps ? steps.ToString("#,0", culture) : "not known"));
        int width = lines.Max(line => line.Name.Length) + 2;
        return string.Join(Environment.NewLine, lines.Select(line => line.Name.PadRight(width) + line.Value));
    }

    private static string Fits(long bytes)
    {
        long available = GC.GetGCMemoryInfo().TotalAvailableMemoryBytes;
        return bytes <= available
            ? $"fits: it has {Quantities.Bytes(available)}"
            : $"too small: it has {Quantities.Bytes(available)}. Try gradient_checkpointing: true, a smaller micro_batch_size or sequence_len, or load_in_4bit: true";
    }

    private static string Name(MemoryKind kind) => kind switch
    {
        MemoryKind.Weights => "frozen weights",
        MemoryKind.Parameters => "trained numbers",
        MemoryKind.KeyValueCache => "keys and values",
        _ => kind.ToString().ToLowerInvariant(),
    };

    private static void Write(Utf8JsonWriter json, RunPlan plan)
    {
        json.WriteStartObject();
        json.WriteNumber("parameters", plan.Memory.Parameters);
        json.WriteNumber("trainable_parameters", plan.Memory.TrainableParameters);
        json.WriteStartObject("memory");
        json.WriteNumber("device_bytes", plan.Memory.ArenaBytes);
        json.WriteNumber("host_bytes", plan.HostBytes);
        RunSummary.WriteByKind(json, plan.Memory.ByKind);
        json.WriteEndObject();
        json.WriteNumber("flops_per_token", plan.Memory.FlopsPerToken);
        WriteOrNull("tokens", plan.Tokens);
        WriteOrNull("steps", plan.Steps);
        json.WriteEndObject();

        void WriteOrNull(string name, long? value)
        {
            if (value is { } number)
            {
                json.WriteNumber(name, number);
            }
            else
            {
                json.WriteNull(name);
            }
        }
    }

    /// <summary>Passes on what the data tell; progress is not shown.</summary>
    private sealed class PlanObserver(Terminal terminal) : Training.Loop.ITrainingObserver
    {
        public void OnProgress(in Training.Loop.TrainingProgress progress)
        {
        }

        public void OnNotice(string sentence) => terminal.Note(sentence);

        public void OnWarning(string sentence) => terminal.Warn(sentence);

        public void OnSample(string prompt, string expected, string generated)
        {
        }
    }
}
