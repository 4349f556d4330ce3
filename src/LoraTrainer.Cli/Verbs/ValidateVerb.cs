using System.CommandLine;
using System.Text.Json;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Sources;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Says whether a configuration is right, by itself and for its base where that is here, and how it is understood. Opens no device, reads no weights and no data.</summary>
internal static class ValidateVerb
{
    private const string Examples = """
        Examples:
          lora-trainer validate my.yaml
          lora-trainer validate my.yaml --show > resolved.yaml   every key, defaults included
          lora-trainer validate my.yaml --set learning_rate=1e-4 --set datasets.0.path=my.jsonl

        Where the base is here, what a run would refuse of it is found too: its config.json, its tokenizer, the modules that are named.

        Exit code: 0 the configuration is right, 2 it is not.
        """;

    public static Verb Create()
    {
        Argument<string> config = new("CONFIG") { Description = "The configuration, a YAML file." };
        Option<bool> show = new("--show") { Description = "Write the resolved configuration: every key, defaults included." };
        return new Verb("validate", "Check a configuration and tell all that is wrong with it at once.", Examples) { config, show, CommandLine.Set }
            .WithWork(context => Task.FromResult(Run(context, context.Arguments.GetRequiredValue(config), context.Arguments.GetValue(show))));
    }

    private static ExitCode Run(VerbContext context, string path, bool show)
    {
        Terminal terminal = context.Terminal;
        ConfigurationResult result = ConfigurationLoader.LoadFile(path, context.Settings);
        string[] missing = result.Config is null ? [] : [.. MissingHere(result.Config)];
        string[] idle = result.Config is { Device.Choice: DeviceChoice.Cpu } onCpu ? [.. TrainedModel.WithoutEffect(onCpu, DevicePlatform.Cpu)] : [];
        string[] refused = result.Config is null ? [] : [.. RefusedHere(result.Config)];
        bool valid = result.Errors.Count + refused.Length == 0;

        terminal.Remarks(result);
        foreach (string sentence in idle)
        {
            terminal.Note(sentence);
        }

        foreach (string sentence in missing)
        {
            terminal.Warn(sentence);
        }

        foreach (ConfigurationIssue error in result.Errors)
        {
            terminal.Error(error.Message);
        }

        foreach (string sentence in refused)
        {
            terminal.Error(sentence);
        }

        if (show && result.Config is { } shown)
        {
            terminal.Result(shown.ToYaml());
        }

        if (!valid)
        {
            terminal.Error($"{path}: {Quantities.Count(result.Errors.Count + refused.Length, "problem")}.", prefix: false);
        }
        else if (!show)
        {
            terminal.Say($"{path} is right{Unseen(result.Config!)}: {Summary(result.Config!)}");
        }

        terminal.Json(json => WriteJson(json, path, result, refused, missing, idle));
        return valid ? ExitCode.Done : ExitCode.WrongInput;
    }

    private static string Start(AdapterOptions adapter) => adapter switch
    {
        { StartFolder: { } folder } => $", going on from {folder}",
        { Initialization: AdapterInitialization.Pissa } => ", started by PiSSA",
        { Initialization: AdapterInitialization.Olora } => ", started by OLoRA",
        _ => "",
    };

    private static string Whole(AdapterOptions adapter) => adapter.ModulesToSave.Count > 0 ? $", and {string.Join(", ", adapter.ModulesToSave)} whole" : "";

    /// <summary>What the run would do, in one sentence.</summary>
    internal static string Summary(TrainingConfig config)
    {
        AdapterOptions adapter = config.Adapter;
        string targets = adapter.TargetsAllLinear ? "all linear layers" : adapter.TargetPattern is { } pattern ? $"the layers that match {pattern}" : string.Join(", ", adapter.TargetModules);
        string what = adapter.Kind == AdapterKind.None
            ? "all parameters are trained"
            : $"{(adapter.UseDora ? "DoRA" : adapter.UseRsLora ? "rsLoRA" : "LoRA")} of rank {adapter.Rank} on {targets}, scaled by {adapter.Scaling:0.###}{Start(adapter)}{Whole(adapter)}";
        string quantization = config.Quantization switch
        {
            { LoadIn4Bit: true } four => $", over a base in 4 bits ({(four.FourBit.Type ?? FourBitType.Nf4).ToString().ToUpperInvariant()}{(four.FourBit.DoubleQuantization ?? true ? ", scales quantized too" : "")})",
            { LoadIn8Bit: true } => ", over a base in 8 bits",
            _ => "",
        };
        string length = config.Batch.MaxSteps > 0 ? Quantities.Count(config.Batch.MaxSteps, "step") : config.Batch.NumEpochs == 1 ? "1 epoch" : $"{config.Batch.NumEpochs:0.###} epochs";
        string sequences = Quantities.Count(config.Batch.GlobalBatchSize, "sequence");
        return $"{what}{quantization}, {length}, {sequences} of up to {config.Data.SequenceLen} tokens a step.";
    }

    /// <summary>What the verdict is without, where that is not here.</summary>
    private static string Unseen(TrainingConfig config) => !Directory.Exists(config.BaseModel) ? " as far as can be seen without the base" : !ModelFolder.HasWeights(config.BaseModel) ? " as far as can be seen without the base's weights" : "";

    /// <summary>What a run would end at before its first step, seen in the base and the output folder of this machine.</summary>
    private static IEnumerable<string> RefusedHere(TrainingConfig config)
    {
        if (PathTrouble.FileInTheWay("output_dir", config.OutputDir) is { } inTheWay)
        {
            yield return inTheWay;
        }

        foreach (string problem in Directory.Exists(config.BaseModel) ? BaseCheck.Problems(config) : [])
        {
            yield return problem;
        }
    }

    private static IEnumerable<string> MissingHere(TrainingConfig config)
    {
        foreach ((string list, EquatableList<DatasetOptions> datasets) in new[] { ("datasets", config.Data.Datasets), ("test_datasets", config.Data.TestDatasets) })
        {
            for (int i = 0; i < datasets.Count; i++)
            {
                string path = datasets[i].Path;
                if (FetchedSources.IsHubName(path))
                {
                    yield return $"{list}[{i}].path: there is no file or folder {path} in {Directory.GetCurrentDirectory()}, so the data set of that name is fetched from the hub.";
                }
                else if (!DownloadCache.IsAddress(path) && !Path.Exists(path) && !GlobPattern.HasWildcards(path))
                {
                    yield return $"{list}[{i}].path names {path}, which is not here. Relative paths start at {Directory.GetCurrentDirectory()}.";
                }
            }
        }

        if (FetchedSources.IsHubName(config.BaseModel))
        {
            yield return $"base_model: there is no folder {config.BaseModel} in {Directory.GetCurrentDirectory()}, so the model of that name is fetched from the hub.";
        }
        else if (!config.BaseModel.Contains("://", StringComparison.Ordinal) && !Directory.Exists(config.BaseModel))
        {
            yield return $"base_model: {ModelFolder.NoSuchFolder(config.BaseModel)}";
        }
        else if (Directory.Exists(config.BaseModel) && !ModelFolder.HasWeights(config.BaseModel))
        {
            yield return $"base_model: there are no weights in {config.BaseModel} yet. plan does without them, train does not.";
        }
    }

    private static void WriteJson(Utf8JsonWriter json, string path, ConfigurationResult result, string[] refused, string[] missing, string[] idle)
    {
        json.WriteStartObject();
        json.WriteBoolean("valid", result.Errors.Count + refused.Length == 0);
        json.WriteString("file", path);
        WriteIssues("errors", result.Errors, "wrong", refused);
        WriteIssues("warnings", result.Warnings, "warning", missing);
        WriteIssues("notices", result.Notices, "notice", idle);
        if (result.Config is { } config)
        {
            json.WriteString("run_name", config.RunName);
            json.WriteString("hash", config.Hash);
            json.WritePropertyName("config");
            config.WriteJson(json);
        }
        else
        {
            json.WriteNull("run_name");
            json.WriteNull("hash");
            json.WriteNull("config");
        }

        json.WriteEndObject();

        void WriteIssues(string name, IReadOnlyList<ConfigurationIssue> issues, string kindOfMore, string[] more)
        {
            json.WriteStartArray(name);
            foreach (ConfigurationIssue issue in issues)
            {
                json.WriteStartObject();
                json.WriteString("key", issue.Key);
                json.WriteString("at", issue.Location.ToString());
                json.WriteString("kind", issue.Kind == ConfigurationIssueKind.NotSupportedYet ? "not_supported_yet" : issue.Kind.ToString().ToLowerInvariant());
                json.WriteString("message", issue.Message);
                json.WriteEndObject();
            }

            foreach (string message in more)
            {
                json.WriteStartObject();
                json.WriteString("kind", kindOfMore);
                json.WriteString("message", message);
                json.WriteEndObject();
            }

            json.WriteEndArray();
        }
    }
}
