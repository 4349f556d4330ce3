using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Export;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Sources;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Writes an adapter into the weights of its base.</summary>
internal static class MergeVerb
{
    private const string Examples = """
        Examples:
          lora-trainer merge outputs/mine models/merged
          lora-trainer merge models/llama outputs/mine models/merged --dtype float16 --verify
          lora-trainer merge models/llama adapters/downloaded models/merged --quantization nf4

        ADAPTER is the output_dir of a run, one of its checkpoints, or any adapter folder of PEFT. Without BASE the one that the adapter names is taken. OUT is a
        model like any other: whatever loads Hugging Face folders loads it.
        An adapter that was trained on a base in 4 or 8 bits has learned to correct that very rounding: its update is added to the dequantized weights, and
        what is written is not quantized again. For a run its config says how the base was kept; else --quantization does.
        The model is never in memory as a whole, except for --verify, which runs base with adapter and then the merged model, and compares what they say.
        """;

    private static readonly (string Word, BaseFormat Format)[] Quantizations =
    [
        ("none", BaseFormat.AsStored), ("nf4", BaseFormat.Nf4), ("nf4-dq", BaseFormat.Nf4DoubleQuantized), ("fp4", BaseFormat.Fp4), ("fp4-dq", BaseFormat.Fp4DoubleQuantized), ("int8", BaseFormat.EightBit),
    ];

    private static readonly (string Word, SafetensorsDType DType)[] DTypes =
        [("bfloat16", SafetensorsDType.BF16), ("float16", SafetensorsDType.F16), ("float32", SafetensorsDType.F32)];

    private static readonly (string Unit, long Bytes)[] Units =
        [("KiB", 1L << 10), ("MiB", 1L << 20), ("GiB", 1L << 30), ("KB", 1000), ("MB", 1_000_000), ("GB", 1_000_000_000)];

    public static Verb Create()
    {
        Argument<string[]> folders = new("FOLDERS") { Description = "The base (or none: the one that the adapter names), the adapter, and the folder to make, which must not exist or be empty.", HelpName = "[BASE] ADAPTER OUT", Arity = new ArgumentArity(2, 3) };
        Option<string?> quantization = new("--quantization") { Description = "How the base was kept when the adapter was trained. Without it: as the run's config says, else none.", HelpName = string.Join('|', Quantizations.Select(item => item.Word)) };
        Option<string> dtype = new("--dtype") { Description = "The type of the merged weights.", HelpName = string.Join('|', DTypes.Select(item => item.Word)), DefaultValueFactory = _ => "bfloat16" };
        Option<string> shardSize = new("--shard-size") { Description = "The most that a weight file holds, as in 5GB or 500MiB.", HelpName = "SIZE", DefaultValueFactory = _ => "5GB" };
        Option<string?> start = new("--start-adapter") { Description = "For an adapter of PiSSA or OLoRA: its folder as it was before the first step.", HelpName = "FOLDER" };
        Option<bool> verify = new("--verify") { Description = "Compare the merged model with base and adapter before it gets its name; needs memory for the whole model." };
        Option<string> device = new("--device") { Description = "Where --verify computes; the merge itself is on the CPU.", HelpName = "auto|cpu|cuda", DefaultValueFactory = _ => "cpu" };
        Option<int> threads = new("--threads") { Description = "Worker threads; 0: one for each core.", DefaultValueFactory = _ => 0 };
        return new Verb("merge", "Write an adapter into the weights of its base: a model to load anywhere.", Examples) { folders, quantization, dtype, shardSize, start, verify, device, threads }
            .WithWork(context => Task.FromResult(Run(
                context,
                context.Arguments.GetRequiredValue(folders),
                context.Arguments.GetValue(quantization) is { } word ? Word(Quantizations, word, quantization.Name) : null,
                new MergeOptions
                {
                    DType = Word(DTypes, context.Arguments.GetRequiredValue(dtype), dtype.Name),
                    LargestFileBytes = Size(context.Arguments.GetRequiredValue(shardSize), shardSize.Name),
                    StartAdapter = context.Arguments.GetValue(start),
                    Threads = context.Arguments.GetValue(threads),
                },
                context.Arguments.GetValue(verify)
                    ? DeviceSelection.ForRun(DeviceWords.Parse(context.Arguments.GetRequiredValue(device), device.Name), context.Arguments.GetValue(threads), $"{device.Name} ")
                    : null)));
    }

    private static ExitCode Run(VerbContext context, string[] folders, BaseFormat? asked, MergeOptions options, DeviceSelection? verification)
    {
        Terminal terminal = context.Terminal;
        string adapter = RunFolder.ModelOf(folders[^2]), output = folders[^1];
        ModelMerge.RefuseOccupied(output);
        TrainingConfig? run = RunOf(adapter);
        string baseFolder = folders.Length == 3 ? FetchedSources.FolderOf(folders[0], HubRepository.DefaultRevision, terminal.Note, CancellationToken.None) : BaseOf(terminal, adapter, run);
        Models.Architectures.StoredQuantization? stored = Models.Architectures.ModelConfig.Parse(baseFolder).Quantization;
        options = options with { Format = stored is null ? FormatOf(terminal, adapter, run, asked) : asked ?? stored.Format };
        var source = new TextModelSource(baseFolder, adapter, options.Format);
        long started = Stopwatch.GetTimestamp();
        using ModelMerge merge = ModelMerge.Open(baseFolder, adapter, options);
        foreach (string notice in merge.Notices)
        {
            terminal.Note(notice);
        }

        terminal.Note($"The base is {baseFolder}, {(stored is not null ? $"quantized in its files ({WordOf(options.Format)})" : options.Format == BaseFormat.AsStored ? "as its files have it" : $"its linear layers rounded to {WordOf(options.Format)} as in training")}.");
        if (verification is not null)
        {
            RequireVerifiable(source, verification);
        }

        var progress = new ProgressLine(terminal, "merging");
        MergeCheck? check = null;
        CancellationToken stop = context.Signals.Listen("The merge is given up; nothing is left behind.");
        IReadOnlyList<string> files = merge.Write(output, progress.Tell, staged => check = verification is null ? null : Verify(terminal, source, staged, options, verification), stop);
        terminal.Say(string.Create(
            CultureInfo.InvariantCulture,
            $"{output}: {merge.ParameterCount:#,0} parameters in {WordOf(options.DType)}, {merge.OutputBytes / 1e9:0.0##} GB in {Quantities.Count(files.Count, "file")}, after {Quantities.Time(Stopwatch.GetElapsedTime(started))}."));
        terminal.Say($"{(merge.UpdatedModules == 1 ? "1 matrix has" : $"{merge.UpdatedModules} matrices have")} the adapter's update{(merge.ReplacedModules > 0 ? $", {merge.ReplacedModules} {(merge.ReplacedModules == 1 ? "was" : "were")} trained whole and replaced" : "")}; the others are the base's.");
        terminal.Json(json => WriteJson(json, merge, baseFolder, adapter, output, files, options, check));
        return ExitCode.Done;
    }

    /// <summary>Before the merge, which may take long: the engine must be able to run the adapter at all.</summary>
    private static void RequireVerifiable(TextModelSource source, DeviceSelection selection)
    {
        using Engine.Devices.MeasureDevice measure = selection.Measure();
        using PeftAdapterFolder adapter = PeftAdapterFolder.Open(source.AdapterFolder!);
        LoraInjection.Inject(ModelLoader.LoadFrozen(Models.Architectures.ModelConfig.Parse(source.BaseFolder), null, measure, source.Format), adapter.Config, seed: 0);
    }

    private static MergeCheck Verify(Terminal terminal, TextModelSource source, string staged, MergeOptions options, DeviceSelection selection)
    {
        terminal.Progress("verifying");
        MergeCheck check = MergeCheck.Run(source, staged, options.DType, selection, terminal.Note);
        string numbers = string.Create(
            CultureInfo.InvariantCulture,
            $"largest difference of a logit {check.LargestDifference:0.0###e-0} (the adapter itself changes up to {check.AdapterEffect:0.0##e-0}), relative error {check.RelativeError:0.0#e-0}, limit {check.Limit:0.####}; {check.SameToken * 100:0.#} % of {check.Positions} positions have the same most likely token");
        if (!check.Passes)
        {
            throw new InvalidDataException($"The merged model does not say what base and adapter say: {numbers}. It was not kept. --dtype float32 rounds nothing: try it, and report it if that fails too.");
        }

        terminal.Say($"Verified: {numbers}.");
        return check;
    }

    private static TrainingConfig? RunOf(string adapter)
    {
        if (!Directory.Exists(adapter))
        {
            throw new TrainingSetupException($"{adapter}: there is no such folder. Give the output_dir of a run, a checkpoint, or a folder with {AdapterConfig.FileName} and {PeftAdapterFolder.WeightsFileName}.");
        }

        TrainingConfig? run = RunFolder.ConfigFileOf(adapter) is { } file ? ConfigurationLoader.LoadFile(file, []).Require() : null;
        return run is null || File.Exists(Path.Combine(adapter, AdapterConfig.FileName)) ? run
            : throw new TrainingSetupException($"{adapter} has no adapter to merge: its folder is a whole model, as runs leave that train all parameters.");
    }

    private static string BaseOf(Terminal terminal, string adapter, TrainingConfig? run) => FetchedSources.FolderOfBase(
        adapter, run?.BaseModel ?? AdapterConfig.Parse(adapter).BaseModelNameOrPath, run?.RevisionOfModel ?? HubRepository.DefaultRevision, $"Give the base before the adapter: lora-trainer merge BASE {adapter} OUT.",
        terminal.Note, CancellationToken.None);

    private static BaseFormat FormatOf(Terminal terminal, string adapter, TrainingConfig? run, BaseFormat? asked)
    {
        if (run is null)
        {
            if (asked is null)
            {
                terminal.Note($"{adapter} does not say how its base was kept in training: taken as not quantized. If it was QLoRA, give --quantization, mostly nf4 or nf4-dq.");
            }

            return asked ?? BaseFormat.AsStored;
        }

        BaseFormat trained = TrainedModel.FormatOf(run.Quantization);
        if (asked is null && trained != BaseFormat.AsStored && run.Adapter.Initialization is AdapterInitialization.Pissa or AdapterInitialization.Olora)
        {
            terminal.Warn($"{adapter} started from the base's weights, and what was left of them was rounded to {WordOf(trained)}: that remainder is not kept. The adapter is merged into the weights as they were before the rounding.");
            return BaseFormat.AsStored;
        }

        if (asked is { } other && other != trained)
        {
            terminal.Warn($"{adapter} was trained on a base kept as {WordOf(trained)}; --quantization {WordOf(other)} merges it into other weights than those.");
        }

        return asked ?? trained;
    }

    private static string WordOf(BaseFormat format) => Quantizations.First(item => item.Format == format).Word;

    private static string WordOf(SafetensorsDType dtype) => DTypes.First(item => item.DType == dtype).Word;

    private static T Word<T>((string Word, T Value)[] words, string given, string option)
    {
        foreach ((string word, T value) in words)
        {
            if (word == given)
            {
                return value;
            }
        }

        throw new TrainingSetupException(WrongCommandLine.NoSuchWord(option, given, [.. words.Select(item => item.Word)]));
    }

    /// <summary>Bytes of a size with a unit; GB is 10^9 as in Hugging Face's libraries, GiB 2^30.</summary>
    internal static long Size(string given, string option)
    {
        foreach ((string unit, long bytes) in Units)
        {
            if (given.EndsWith(unit, StringComparison.OrdinalIgnoreCase)
                && decimal.TryParse(given[..^unit.Length], NumberStyles.AllowDecimalPoint | NumberStyles.AllowTrailingWhite, CultureInfo.InvariantCulture, out decimal number)
                && number > 0 && number < 1_000_000)
            {
                return Math.Max(1, (long)(number * bytes));
            }
        }

        throw new TrainingSetupException($"{option} must be a number with a unit ({string.Join(", ", Units.Select(item => item.Unit))}), got '{given}'. Typical: 5GB.");
    }

    private static void WriteJson(Utf8JsonWriter json, ModelMerge merge, string baseFolder, string adapter, string output, IReadOnlyList<string> files, MergeOptions options, MergeCheck? check)
    {
        json.WriteStartObject();
        json.WriteString("path", output);
        json.WriteString("base", baseFolder);
        json.WriteString("adapter", adapter);
        json.WriteString("quantization", WordOf(options.Format));
        json.WriteString("dtype", WordOf(options.DType));
        json.WriteStartArray("files");
        foreach (string file in files)
        {
            json.WriteStringValue(file);
        }

        json.WriteEndArray();
        json.WriteNumber("bytes", merge.OutputBytes);
        json.WriteNumber("parameters", merge.ParameterCount);
        json.WriteNumber("updated_modules", merge.UpdatedModules);
        json.WriteNumber("replaced_modules", merge.ReplacedModules);
        if (check is null)
        {
            json.WriteNull("verification");
        }
        else
        {
            json.WriteStartObject("verification");
            json.WriteNumber("positions", check.Positions);
            json.WriteNumber("largest_difference", check.LargestDifference);
            json.WriteNumber("adapter_effect", check.AdapterEffect);
            json.WriteNumber("relative_error", check.RelativeError);
            json.WriteNumber("limit", check.Limit);
            json.WriteNumber("same_token", check.SameToken);
            json.WriteEndObject();
        }

        json.WriteEndObject();
    }
}
