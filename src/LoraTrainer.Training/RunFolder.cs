using System.Globalization;
using System.Text;
using System.Text.Json;
using LoraTrainer.Data.ChatTemplates;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Export;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Sources;

namespace LoraTrainer.Training;

/// <summary>
/// The files of a run: <c>config.resolved.yaml</c> (the first, it marks the folder as a run's), <c>log.jsonl</c>, <c>checkpoints/</c>, and at the
/// end the adapter with the tokenizer's files and <c>summary.json</c>. Where checkpoints lie elsewhere the config lies there too, so that the
/// place alone is enough to resume.
/// </summary>
public sealed class RunFolder
{
    internal const string SummaryName = "summary.json";

    /// <summary>The model with the best held-out loss, where the folder's top has the last one.</summary>
    public const string BestName = "best";

    /// <summary>The last model, where the folder's top has the best one.</summary>
    public const string LastName = "last";

    /// <summary>What a paged optimizer keeps its moments in while a process trains.</summary>
    internal const string PagedMomentsName = ".paged-moments";

    private const string CheckpointsName = "checkpoints";
    private const string StagingPrefix = ".staging-";

    /// <summary>Files that belong to a tokenizer; those that the base has are copied beside the adapter.</summary>
    private static readonly string[] TokenizerFiles =
        ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "added_tokens.json", "vocab.json", "merges.txt", ChatTemplate.FileName, "generation_config.json"];

    private TrainingConfig config;
    private bool madeOutput;
    private int staged;

    public RunFolder(TrainingConfig config)
    {
        this.config = config;
        CheckpointRoot = config.Checkpoint.Uri ?? Path.Combine(config.OutputDir, CheckpointsName);
    }

    /// <summary>The configuration, with what is known of it by now.</summary>
    internal TrainingConfig Config => config;

    /// <summary>Where checkpoints of runs lie, each run under its name: a folder or a URI.</summary>
    public string CheckpointRoot { get; }

    /// <summary>True where the folder already holds this run. The place of its checkpoints may hold it too.</summary>
    public bool HoldsRun => File.Exists(Path.Combine(config.OutputDir, CheckpointFiles.ConfigName));

    /// <summary>True where the folder holds what a run writes when it ends.</summary>
    public bool HoldsResult => File.Exists(SummaryFile);

    /// <summary>The summary of the run that has ended.</summary>
    public string SummaryFile => Path.Combine(config.OutputDir, SummaryName);

    /// <summary>True where all of it is there: summary, model, the tokenizer's files, and the second model where the best and the last one are two.</summary>
    internal bool HoldsWholeResult()
    {
        if (!HoldsResult || HasTwoModels() is not { } hasTwo)
        {
            return false;
        }

        string[] model = config.Adapter.Kind == AdapterKind.None ? ["config.json", ModelFolder.SingleFileName] : [AdapterConfig.FileName, PeftAdapterFolder.WeightsFileName];
        string[] names = [.. model, .. TokenizerFiles.Where(name => File.Exists(Path.Combine(config.BaseFolder, name)))];
        string[] folders = hasTwo ? ["", config.Evaluation.LoadBest ? LastName : BestName] : [""];
        return folders.All(folder => names.All(name => File.Exists(Path.Combine(config.OutputDir, folder, name))));
    }

    /// <summary>Whether the summary tells of a best model besides the last one; null where it is damaged.</summary>
    private bool? HasTwoModels()
    {
        try
        {
            using JsonDocument summary = JsonDocument.Parse(File.ReadAllBytes(SummaryFile));
            return summary.RootElement.TryGetProperty("evaluation", out JsonElement evaluation) && evaluation.ValueKind == JsonValueKind.Object
                && evaluation.TryGetProperty("best", out JsonElement best) && best.ValueKind == JsonValueKind.Object;
        }
        catch (Exception exception) when (exception is JsonException or InvalidOperationException)
        {
            return null;
        }
    }

    /// <summary>True where the folder or the place of its checkpoints holds this run.</summary>
    public async Task<bool> HoldsRunAnywhereAsync(CancellationToken cancellation = default)
    {
        if (HoldsRun)
        {
            return true;
        }

        IObjectStore store = ObjectStore.Open(CheckpointRoot);
        await using (store.ConfigureAwait(false))
        {
            return await new CheckpointStore(store, config.RunName, TimeProvider.System).ReadConfigAsync(cancellation).ConfigureAwait(false) is not null;
        }
    }

    /// <summary>
    /// Before anything is read or computed: with <paramref name="resume"/> the run that is there, if one is, must be the one that the config
    /// describes; otherwise there must be none, and nothing that it would overwrite.
    /// </summary>
    /// <param name="stored">The config of the run that lies with the checkpoints; null where none does.</param>
    /// <param name="resume">Go on with the run that is there.</param>
    /// <param name="force">Go on although settings that decide the result have changed.</param>
    /// <returns>Differences that are harmless or were forced, and what a name of the hub goes on meaning, a sentence each.</returns>
    /// <exception cref="TrainingSetupException">There is something already, or the run there is another one.</exception>
    public IReadOnlyList<string> Check(byte[]? stored, bool resume, bool force)
    {
        if (!resume)
        {
            RefuseOccupied(stored is not null);
            return [];
        }

        if (StoredConfig(stored) is not { } before)
        {
            RefuseOutputs();
            return [];
        }

        (config, IReadOnlyList<string> recorded) = FetchedSources.AsRecorded(config, before);
        IReadOnlyList<ConfigurationDifference> differences = TrainingConfig.CompareForResume(before, config);
        ConfigurationDifference[] refused = [.. differences.Where(difference => difference.Effect == ResumeEffect.Refused || (difference.Effect == ResumeEffect.NeedsForce && !force))];
        if (refused.Length > 0)
        {
            string table = string.Join("", refused.Select(difference =>
                $"\n  {difference.Key}: {difference.Old} -> {difference.New} ({(difference.Effect == ResumeEffect.Refused ? "refused: the checkpoints do not fit it" : "needs --force: the result would be that of neither")})"));
            throw new TrainingSetupException($"{config.OutputDir} holds a run with other settings:{table}\nKeep the old values, or start a new run with another output_dir.");
        }

        return [.. recorded, .. differences.Select(difference => $"{difference.Key} was {difference.Old} and is {difference.New} now.")];
    }

    /// <summary>Makes the folders and keeps other processes out of them until the result is disposed. Then the run is this process's: what killed ones left is removed.</summary>
    /// <param name="onWaiting">As in <see cref="RunLock.AcquireAsync"/>.</param>
    /// <param name="cancellation">Ends the waiting.</param>
    /// <exception cref="TrainingSetupException">The folder cannot be written, or another process works on the run and is not waited for.</exception>
    internal async Task<RunLock> ClaimAsync(Action<string>? onWaiting, CancellationToken cancellation)
    {
        try
        {
            madeOutput = !Directory.Exists(config.OutputDir);
            Directory.CreateDirectory(config.OutputDir);
            RunLock claimed = await RunLock.AcquireAsync(config.OutputDir, onWaiting, cancellation).ConfigureAwait(false);
            RemoveLeftovers();
            return claimed;
        }
        catch (Exception exception) when (PathTrouble.OfFolder("output_dir", config.OutputDir, exception) is { } trouble)
        {
            throw trouble;
        }
    }

    /// <summary>The config as it is written here and beside the checkpoints.</summary>
    internal byte[] ResolvedConfig => Encoding.UTF8.GetBytes(config.ToYaml());

    /// <summary>Writes the config: from here on the folder is a run's.</summary>
    public void WriteConfig() => AtomicFile.WriteAllBytes(Path.Combine(config.OutputDir, CheckpointFiles.ConfigName), ResolvedConfig);

    /// <summary>Takes back <see cref="ClaimAsync"/> and <see cref="WriteConfig"/> of a run that could not start, so that it can be started again once the cause is mended.</summary>
    internal void Withdraw()
    {
        File.Delete(Path.Combine(config.OutputDir, CheckpointFiles.ConfigName));
        File.Delete(Path.Combine(config.OutputDir, RunLock.FileName));
        foreach (string folder in new[] { CheckpointRoot, config.OutputDir })
        {
            if ((folder != config.OutputDir || madeOutput) && Directory.Exists(folder) && !Directory.EnumerateFileSystemEntries(folder).Any())
            {
                Directory.Delete(folder);
            }
        }
    }

    /// <summary>
    /// The folder that is meant where somebody names a trained model: the one that is named, or the checkpoint of which only the step is. A run without a model there is
    /// refused, since the base alone, or another folder, is not what was asked for.
    /// </summary>
    /// <param name="place">A folder, also one of no run; a name of the hub stays as it is.</param>
    /// <exception cref="TrainingSetupException">It is a run, or a checkpoint, without a model that could be loaded, or a folder that the run above it does not have.</exception>
    public static string ModelOf(string place)
    {
        place = Completed(place);
        if (!Path.Exists(place) && Path.GetDirectoryName(place) is { Length: > 0 } run && File.Exists(Path.Combine(run, CheckpointFiles.ConfigName)))
        {
            // It would pass for a name of the hub.
            throw new TrainingSetupException($"{place}: there is no such folder in the run {run}.");
        }

        if (ConfigFileOf(place) is null || File.Exists(Path.Combine(place, AdapterConfig.FileName)) || File.Exists(Path.Combine(place, "config.json")))
        {
            return place;
        }

        throw new TrainingSetupException(File.Exists(Path.Combine(place, CheckpointFiles.StateName))
            ? $"{place} is a checkpoint without an adapter, as runs have that train all parameters, and cannot be loaded by itself. The run's result can: it lies in its output_dir once the run has ended; lora-trainer resume {Path.GetDirectoryName(Path.TrimEndingDirectorySeparator(Path.GetFullPath(place)))} goes on with it."
            : $"{place} is a run, and there is no result in it. Finish it with lora-trainer resume {place}, or give one of its checkpoints: lora-trainer inspect {place} lists them.");
    }

    /// <summary>Names of checkpoints are long: the step, as in step-100, is enough where only one has it.</summary>
    /// <param name="path">Anything; what is no such name stays as it is.</param>
    public static string Completed(string path)
    {
        const string prefix = "step-";
        string trimmed = Path.TrimEndingDirectorySeparator(path), name = Path.GetFileName(trimmed), parent = Path.Combine(".", Path.GetDirectoryName(trimmed) ?? "");
        if (Path.Exists(path) || !name.StartsWith(prefix, StringComparison.Ordinal) || !int.TryParse(name[prefix.Length..], NumberStyles.None, CultureInfo.InvariantCulture, out int step)
            || !Directory.Exists(parent))
        {
            return path;
        }

        string[] found = [.. Directory.EnumerateDirectories(parent, prefix + "*").Select(folder => Path.GetFileName(folder)).Where(folder => StepOf(folder) == step)];
        return found.Length == 1 ? $"{trimmed[..^name.Length]}{found[0]}" : path;

        static int? StepOf(string folder) => int.TryParse(folder.Split('-')[1], NumberStyles.None, CultureInfo.InvariantCulture, out int number) ? number : null;
    }

    /// <summary>The file with the config of the run that wrote a model: in the model's folder, or above it where that is <see cref="BestName"/> or <see cref="LastName"/>. Null: none did.</summary>
    /// <param name="model">A folder; null too where it is none.</param>
    public static string? ConfigFileOf(string model)
    {
        if (!Directory.Exists(model))
        {
            return null;
        }

        string full = Path.TrimEndingDirectorySeparator(Path.GetFullPath(model));
        string[] folders = Path.GetFileName(full) is BestName or LastName ? [model, Path.GetDirectoryName(full)!] : [model];
        return folders.Select(folder => Path.Combine(folder, CheckpointFiles.ConfigName)).FirstOrDefault(File.Exists);
    }

    /// <summary>The config of the run that <paramref name="place"/> names: an output_dir, or the run's place among the checkpoints.</summary>
    /// <param name="place">A folder or a URI.</param>
    /// <param name="settings">Each key=value that replaces a value.</param>
    /// <param name="cancellation">Gives up.</param>
    /// <exception cref="TrainingSetupException">There is no run.</exception>
    /// <exception cref="ConfigurationException">A setting is wrong.</exception>
    public static async Task<TrainingConfig> ConfigOfAsync(string place, IReadOnlyList<string> settings, CancellationToken cancellation = default)
    {
        if (ObjectStore.IsUri(place))
        {
            (string root, string name) = ObjectStore.SplitLast(place);
            IObjectStore store = ObjectStore.Open(root);
            await using (store.ConfigureAwait(false))
            {
                byte[] yaml = await new CheckpointStore(store, name, TimeProvider.System).ReadConfigAsync(cancellation).ConfigureAwait(false)
                    ?? throw new TrainingSetupException($"{store.Location} holds no run {name}: there is no {name}/{CheckpointFiles.ConfigName}. Give checkpoint.uri and, behind it, the run_name.");
                TrainingConfig stored = ConfigurationLoader.LoadText(Encoding.UTF8.GetString(yaml), ObjectStore.Append(place, CheckpointFiles.ConfigName), settings).Require();
                return stored with { Checkpoint = stored.Checkpoint with { Uri = root } };
            }
        }

        return ConfigOf(place, settings);
    }

    /// <summary>The same for a folder.</summary>
    public static TrainingConfig ConfigOf(string place, IReadOnlyList<string> settings)
    {
        if (File.Exists(Path.Combine(place, CheckpointStore.ManifestName)))
        {
            throw new TrainingSetupException($"{place} is one checkpoint of a run. Give the run's folder, {Path.GetDirectoryName(Path.TrimEndingDirectorySeparator(Path.GetFullPath(place)))}, which goes on from its newest intact one.");
        }

        string file = Path.Combine(place, CheckpointFiles.ConfigName);
        if (!File.Exists(file))
        {
            throw new TrainingSetupException($"{place} holds no run: there is no {CheckpointFiles.ConfigName}. Give the output_dir of a run, or its folder among the checkpoints.");
        }

        TrainingConfig config = ConfigurationLoader.LoadFile(file, settings).Require();
        string full = Path.TrimEndingDirectorySeparator(Path.GetFullPath(place));
        string output = Path.GetFullPath(config.OutputDir);
        if (full == output)
        {
            return config;
        }

        // The folder lies elsewhere than the config says: it is the run's place among the checkpoints, or the run was moved, or is to be written elsewhere now.
        bool isAmongCheckpoints = Path.GetFileName(full) == config.RunName && !File.Exists(Path.Combine(full, CheckpointFiles.LogName)) && !Directory.Exists(Path.Combine(full, CheckpointsName));
        if (isAmongCheckpoints)
        {
            return WithCheckpointsAt(Path.GetDirectoryName(full)!);
        }

        bool isOutputGiven = settings.Any(setting => setting.StartsWith("output_dir=", StringComparison.Ordinal));
        return !isOutputGiven ? (IsCheckpointPlaceGiven() ? config : AsSeenFrom(config, full)) with { OutputDir = place }
            : config.Checkpoint.Uri is null ? WithCheckpointsAt(Path.Combine(full, CheckpointsName))
            : config;

        bool IsCheckpointPlaceGiven() => settings.Any(setting => setting.StartsWith("checkpoint.uri=", StringComparison.Ordinal));

        TrainingConfig WithCheckpointsAt(string root) =>
            root == Path.GetFullPath(config.Checkpoint.Uri ?? Path.Combine(output, CheckpointsName)) ? config : config with { Checkpoint = config.Checkpoint with { Uri = root } };
    }

    /// <summary>
    /// The config of the run in <paramref name="full"/> where the current folder is not the one it was started in: a relative place of its checkpoints
    /// means what it meant there, if its output_dir tells where that was.
    /// </summary>
    private static TrainingConfig AsSeenFrom(TrainingConfig config, string full)
    {
        string written = Path.TrimEndingDirectorySeparator(config.OutputDir);
        return config.Checkpoint.Uri is { } uri && !ObjectStore.IsUri(uri) && !Path.IsPathRooted(uri) && !Path.IsPathRooted(written) && full.EndsWith(Path.DirectorySeparatorChar + written, StringComparison.Ordinal)
            ? config with { Checkpoint = config.Checkpoint with { Uri = Path.Combine(full[..^written.Length], uri) } }
            : config;
    }

    private TrainingConfig? StoredConfig(byte[]? besideCheckpoints)
    {
        // That beside the checkpoints first: another machine may have gone on with other settings since this folder was written.
        string file = Path.Combine(config.OutputDir, CheckpointFiles.ConfigName);
        return besideCheckpoints is not null
            ? ConfigurationLoader.LoadText(Encoding.UTF8.GetString(besideCheckpoints), ObjectStore.Append(ObjectStore.Append(CheckpointRoot, config.RunName), CheckpointFiles.ConfigName), []).Require()
            : File.Exists(file) ? ConfigurationLoader.LoadFile(file, []).Require() : null;
    }

    /// <summary>Takes the config with what was fetched for it.</summary>
    internal void Locate(TrainingConfig fetched) => config = fetched;

    /// <summary>Where the log of the steps lies.</summary>
    internal string LogFile => Path.Combine(config.OutputDir, CheckpointFiles.LogName);

    /// <summary>Puts the log of a checkpoint in place where this folder's own does not reach as far: on another machine, or after a lost disk.</summary>
    internal void RestoreLog(string saved)
    {
        if (File.Exists(saved) && (!File.Exists(LogFile) || new FileInfo(LogFile).Length < new FileInfo(saved).Length))
        {
            AtomicFile.WriteAllBytes(LogFile, File.ReadAllBytes(saved));
        }
    }

    /// <summary>Opens log.jsonl for the steps after <paramref name="completedSteps"/>; lines of later steps, from a process that died, are cut off.</summary>
    public RunLog OpenLog(int completedSteps, int evaluatedStep) => RunLog.Open(LogFile, completedSteps, evaluatedStep);

    /// <summary>A new empty folder, on the same disk as the run; gone when disposed.</summary>
    public StagingFolder Stage() => new(Path.Combine(config.OutputDir, string.Create(CultureInfo.InvariantCulture, $"{StagingPrefix}{Environment.ProcessId}-{Interlocked.Increment(ref staged)}")));

    /// <summary>Writes what others load: a PEFT folder, or the whole model in bf16; the tokenizer's files beside it. Returns the weight file.</summary>
    /// <param name="shape">Of the base.</param>
    /// <param name="trained">Its values.</param>
    /// <param name="template">The chat template of the training: whoever runs the model needs the same one. Null: there is none.</param>
    /// <param name="within">A folder in the run's; null: the run's own.</param>
    internal string WriteModel(ModelConfig shape, TrainedModel trained, ChatTemplate? template, string? within = null)
    {
        string folder = within is null ? config.OutputDir : Path.Combine(config.OutputDir, within), weights;
        Directory.CreateDirectory(folder);
        if (trained.Adapters is { } adapters)
        {
            if (config.Adapter.ConvertsToLora)
            {
                adapters.SaveAsPlainLora(folder);
            }
            else
            {
                adapters.Save(folder);
            }

            weights = Path.Combine(folder, PeftAdapterFolder.WeightsFileName);
        }
        else
        {
            weights = FullModelWriter.Write(folder, shape, trained.Model);
        }

        CopyTokenizer(config.BaseFolder, folder);
        if (template is not null && ChatTemplate.OfModel(config.BaseFolder)?.Source != template.Source)
        {
            // The file goes before what tokenizer_config.json says.
            AtomicFile.WriteAllBytes(Path.Combine(folder, ChatTemplate.FileName), Encoding.UTF8.GetBytes(template.Source));
        }

        if (config.Data.Tokens.Count > 0)
        {
            (string name, byte[] content) = Tokenizer.Load(config.BaseFolder).FileWithTokens(config.Data.Tokens);
            AtomicFile.WriteAllBytes(Path.Combine(folder, name), content);
        }

        return weights;
    }

    /// <summary>Copies the files of a tokenizer that the folder has, over those of the same names.</summary>
    public static void CopyTokenizer(string from, string to)
    {
        foreach (string name in TokenizerFiles)
        {
            string source = Path.Combine(from, name);
            if (File.Exists(source))
            {
                AtomicFile.WriteAllBytes(Path.Combine(to, name), File.ReadAllBytes(source));
            }
        }
    }

    internal void WriteSummary(RunSummary summary)
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer, new JsonWriterOptions { Indented = true }))
        {
            summary.Write(json);
        }

        AtomicFile.WriteAllBytes(SummaryFile, buffer.ToArray());
    }

    /// <summary>Staging folders and files that were being written: all of processes that died, since the folder is locked.</summary>
    private void RemoveLeftovers()
    {
        foreach (string staging in Directory.EnumerateDirectories(config.OutputDir, StagingPrefix + "*"))
        {
            if (Path.GetFileName(staging)[StagingPrefix.Length..].All(letter => char.IsAsciiDigit(letter) || letter == '-'))
            {
                Directory.Delete(staging, recursive: true);
            }
        }

        foreach (string file in Directory.EnumerateFiles(config.OutputDir, ".*.tmp"))
        {
            if (AtomicFile.IsTemporary(Path.GetFileName(file)))
            {
                File.Delete(file);
            }
        }
    }

    private void RefuseOccupied(bool isStored)
    {
        if (HoldsRun)
        {
            throw new TrainingSetupException(
                $"{config.OutputDir} already holds a run. Go on with it: lora-trainer resume {config.OutputDir}. Or start anew elsewhere: --set output_dir=OTHER (and another run_name where checkpoint.uri is set).");
        }

        if (isStored)
        {
            throw new TrainingSetupException(
                $"{CheckpointRoot} already holds a run named {config.RunName}. Go on with it: lora-trainer resume {ObjectStore.Append(CheckpointRoot, config.RunName)}, or set resume: auto. Or start another one: --set run_name=OTHER.");
        }

        RefuseOutputs();
    }

    private void RefuseOutputs()
    {
        string[] models = [PeftAdapterFolder.WeightsFileName, ModelFolder.SingleFileName];
        string[] outputs = [.. models, CheckpointFiles.LogName, SummaryName, .. models.SelectMany(name => new[] { Path.Combine(BestName, name), Path.Combine(LastName, name) })];
        if (outputs.FirstOrDefault(name => File.Exists(Path.Combine(config.OutputDir, name))) is { } occupied)
        {
            throw new TrainingSetupException($"{config.OutputDir} already holds {occupied}, which this run would overwrite. Choose another output_dir.");
        }
    }
}

/// <summary>A temporary folder; disposing it removes it.</summary>
public sealed class StagingFolder : IDisposable
{
    internal StagingFolder(string path)
    {
        Path = path;
        Remove();
        Directory.CreateDirectory(path);
    }

    public string Path { get; }

    public void Dispose() => Remove();

    private void Remove()
    {
        if (Directory.Exists(Path))
        {
            Directory.Delete(Path, recursive: true);
        }
    }
}
