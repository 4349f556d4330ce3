using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Says what a run will need. Opens no device; a GPU is asked for its free memory.</summary>
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

        long? available = AvailableBytes(plan.Device.Platform);
        terminal.Result(Words(plan, config, available));
        terminal.Json(json => Write(json, plan, available));
        return ExitCode.Done;
    }

    /// <summary>The memory that this machine has for the plan; null where there is no such device, or it does not tell.</summary>
    private static long? AvailableBytes(DevicePlatform platform) =>
        platform == DevicePlatform.Cuda ? CudaDevice.Describe().Device?.FreeMemoryBytes : GC.GetGCMemoryInfo().TotalAvailableMemoryBytes;

    private static string Words(RunPlan plan, TrainingConfig config, long? available)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        MemoryPlan memory = plan.Memory;
        var lines = new List<(string Name, string Value)>
        {
            ("device", $"{Word(plan.Device.Platform)} ({plan.Device.Reason ?? "as the configuration says"})"),
            ("parameters", string.Create(culture, $"{memory.Parameters:#,0}{(config.Adapter.Kind == AdapterKind.None ? ", all of them trained" : $", frozen; {memory.TrainableParameters:#,0} more are trained")}")),
            ("memory", $"{Quantities.Bytes(memory.ArenaBytes)} for micro-batches of {plan.MicroBatchTokens.ToString("#,0", culture)} tokens"),
        };
        lines.AddRange(memory.ByKind.Where(item => item.Value > 0).Select(item => ($"  {Name(item.Key)}", Quantities.Bytes(item.Value))));
        if (memory.MappedBytes > 0)
        {
            lines.Add(("on disk", $"{Quantities.Bytes(memory.MappedBytes)} of paged moments in {config.OutputDir}, while it trains"));
        }

        lines.Add(("this machine", Fits(plan, available)));
        lines.Add(("work", string.Create(culture, $"{memory.FlopsPerToken / 1e9:0.00} GFLOP a token, forward and backward")));
        lines.Add(("tokens", plan.Tokens is { } tokens ? tokens.ToString("#,0", culture) : "not known"));
        lines.Add(("steps", plan.Steps is { } steps ? steps.ToString("#,0", culture) : "not known"));
        int width = lines.Max(line => line.Name.Length) + 2;
        return string.Join(Environment.NewLine, lines.Select(line => line.Name.PadRight(width) + line.Value));
    }

    private static string Fits(RunPlan plan, long? available)
    {
        bool isGpu = plan.Device.Platform == DevicePlatform.Cuda;
        if (available is not { } bytes)
        {
            return "not compared: the memory is that of a GPU, and none here tells how much is free";
        }

        // Weights stream in through the host's memory, which on a GPU is another one.
        string has = isGpu ? $"{Quantities.Bytes(bytes)} of the GPU are free" : $"it has {Quantities.Bytes(bytes)}";
        return plan.Memory.ArenaBytes + (isGpu ? 0 : plan.HostBytes) <= bytes
            ? $"fits: {has}"
            : $"too small: {has}. Try gradient_checkpointing: true, a smaller micro_batch_size or sequence_len, {(isGpu ? "load_in_4bit: true, or device: cpu" : "or load_in_4bit: true")}";
    }

    private static string Word(DevicePlatform platform) => platform == DevicePlatform.Cuda ? "cuda" : "cpu";

    private static string Name(MemoryKind kind) => kind switch
    {
        MemoryKind.Weights => "frozen weights",
        MemoryKind.Parameters => "trained numbers",
        MemoryKind.KeyValueCache => "keys and values",
        _ => kind.ToString().ToLowerInvariant(),
    };

    private static void Write(Utf8JsonWriter json, RunPlan plan, long? available)
    {
        json.WriteStartObject();
        json.WriteStartObject("device");
        json.WriteString("platform", Word(plan.Device.Platform));
        json.WriteString("reason", plan.Device.Reason);
        json.WriteNumberOrNull("available_bytes", available);
        json.WriteEndObject();
        json.WriteNumber("parameters", plan.Memory.Parameters);
        json.WriteNumber("trainable_parameters", plan.Memory.TrainableParameters);
        json.WriteStartObject("memory");
        json.WriteNumber("device_bytes", plan.Memory.ArenaBytes);
        json.WriteNumber("host_bytes", plan.HostBytes);
        json.WriteNumber("mapped_bytes", plan.Memory.MappedBytes);
        RunSummary.WriteByKind(json, plan.Memory.ByKind);
        json.WriteEndObject();
        json.WriteNumber("flops_per_token", plan.Memory.FlopsPerToken);
        json.WriteNumberOrNull("tokens", plan.Tokens);
        json.WriteNumberOrNull("steps", plan.Steps);
        json.WriteEndObject();
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
