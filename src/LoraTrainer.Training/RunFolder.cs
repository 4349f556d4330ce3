using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Export;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>
/// The files of a run: <c>config.resolved.yaml</c> (the first, it marks the folder as a run's), <c>log.jsonl</c>, <c>checkpoints/</c>, and at the
/// end the adapter with the tokenizer's files and <c>summary.json</c>. Where checkpoints lie elsewhere the config lies there too, so that the
/// place alone is enough to resume.
/// </summary>
public sealed partial class RunFolder
{
    private const string LogName = "log.jsonl";
    private const string SummaryName = "summary.json";
    private const string CheckpointsName = "checkpoints";
    private const string StagingPrefix = ".staging-";
    private const string AttemptsName = "attempts";

    // ENOTDIR, EROFS.
    private const int NotAFolder = 20;
    private const int ReadOnly = 30;

    /// <summary>Files that belong to a tokenizer; those that the base has are copied beside the adapter.</summary>
    private static readonly string[] TokenizerFiles =
        ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"];

    private readonly TrainingConfig config;
    private bool madeOutput;

    public RunFolder(TrainingConfig config)
    {
        this.config = config;
        CheckpointRoot = config.Checkpoint.Uri ?? Path.Combine(config.OutputDir, CheckpointsName);
    }

    /// <summary>The folder under which checkpoints of runs lie, each run under its name.</summary>
    public string CheckpointRoot { get; }

    /// <summary>The run's own folder among the checkpoints.</summary>
    private string CheckpointFolder => Path.Combine(CheckpointRoot, config.RunName);

    /// <summary>True where the folder, or the place of the checkpoints, already holds this run.</summary>
    public bool HoldsRun => File.Exists(Path.Combine(config.OutputDir, CheckpointFiles.ConfigName)) || File.Exists(Path.Combine(CheckpointFolder, CheckpointFiles.ConfigName));

    /// <summary>
    /// Before anything is read or computed: with <paramref name="resume"/> the run that is there, if one is, must be the one that the config
    /// describes; otherwise the folder must be free.
    /// </summary>
    /// <param name="resume">Go on with the run that is there.</param>
    /// <param name="force">Go on although settings that decide the result have changed.</param>
    /// <returns>Differences that are harmless or were forced, a sentence each.</returns>
    /// <exception cref="TrainingSetupException">The folder holds something already, or the run there is another one.</exception>
    public IReadOnlyList<string> Check(bool resume, bool force)
    {
        if (!resume)
        {
            RefuseOccupied();
            return [];
        }

        if (StoredConfig() is not { } stored)
        {
            RefuseOutputs();
            return [];
        }

        IReadOnlyList<ConfigurationDifference> differences = TrainingConfig.CompareForResume(stored, config);
        ConfigurationDifference[] refused = [.. differences.Where(difference => difference.Effect == ResumeEffect.Refused || (difference.Effect == ResumeEffect.NeedsForce && !force))];
        if (refused.Length > 0)
        {
            string table = string.Join("", refused.Select(difference =>
                $"\n  {difference.Key}: {difference.Old} -> {difference.New} ({(difference.Effect == ResumeEffect.Refused ? "refused: the checkpoints do not fit it" : "needs --force: the result would be that of neither")})"));
            throw new TrainingSetupException($"{config.OutputDir} holds a run with other settings:{table}\nKeep the old values, or start a new run with another output_dir.");
        }

        return [.. differences.Select(difference => $"{difference.Key} was {difference.Old} and is {difference.New} now.")];
    }

    /// <summary>Makes the folders and keeps other processes out of them until the result is disposed. Then the run is this process's: what killed ones left is removed.</summary>
    /// <exception cref="TrainingSetupException">The folder cannot be written, or another process works on the run.</exception>
    internal RunLock Claim()
    {
        if (File.Exists(config.OutputDir))
        {
            throw new TrainingSetupException($"output_dir {config.OutputDir} is a file. Choose another name for the folder.");
        }

        try
        {
            madeOutput = !Directory.Exists(config.OutputDir);
            Directory.CreateDirectory(config.OutputDir);
            Directory.CreateDirectory(CheckpointFolder);
            var claimed = new RunLock([config.OutputDir, CheckpointFolder]);
            RemoveLeftovers();
            return claimed;
        }
        catch (UnauthorizedAccessException exception)
        {
            throw new TrainingSetupException($"output_dir {config.OutputDir} cannot be written by this user ({exception.Message}). Choose another folder, or change its owner.", exception);
        }
        catch (IOException exception) when (exception is FileNotFoundException or DirectoryNotFoundException or PathTooLongException || exception.HResult is NotAFolder or ReadOnly)
        {
            string reason = exception is PathTooLongException ? "the path is too long"
                : exception.HResult == ReadOnly ? "the file system is read-only"
                : FileAbove(config.OutputDir) is { } file ? $"{file} is a file"
                : "the file system takes no folder there";
            throw new TrainingSetupException($"output_dir {config.OutputDir} cannot be made: {reason}. Choose another folder.", exception);
        }

        static string? FileAbove(string? path)
        {
            while (!string.IsNullOrEmpty(path) && !Path.Exists(path))
            {
                path = Path.GetDirectoryName(path);
            }

            return File.Exists(path) ? path : null;
        }
    }

    /// <summary>Writes the config: from here on the folder is a run's.</summary>
    public void WriteConfig()
    {
        byte[] yaml = Encoding.UTF8.GetBytes(config.ToYaml());
        AtomicFile.WriteAllBytes(Path.Combine(config.OutputDir, CheckpointFiles.ConfigName), yaml);
        AtomicFile.WriteAllBytes(Path.Combine(CheckpointFolder, CheckpointFiles.ConfigName), yaml);
    }

    /// <summary>
    /// Counts this process among those that work on the run, durably and before it does anything that takes time, and returns its number, from 1 on.
    /// The count lies with the checkpoints: it goes where the run goes.
    /// </summary>
    /// <param name="isNew">No process worked on the run before.</param>
    internal int CountAttempt(bool isNew)
    {
        // A run without a count was left by a process that died between writing the config and this.
        int before = isNew ? 0 : Math.Max(1, StoredAttempts());
        StoreAttempts(before + 1);
        return before + 1;
    }

    /// <summary>Sets the count where a checkpoint knows of more processes, or where this one was refused after all.</summary>
    internal void StoreAttempts(int count) => AtomicFile.WriteAllBytes(Path.Combine(CheckpointFolder, AttemptsName), Encoding.UTF8.GetBytes(string.Create(CultureInfo.InvariantCulture, $"{count}\n")));

    private int StoredAttempts()
    {
        string file = Path.Combine(CheckpointFolder, AttemptsName);
        return File.Exists(file) && int.TryParse(File.ReadAllText(file), NumberStyles.AllowTrailingWhite, CultureInfo.InvariantCulture, out int count) ? count : 0;
    }

    /// <summary>Takes back <see cref="Claim"/> and <see cref="WriteConfig"/> of a run that could not start, so that it can be started again once the cause is mended.</summary>
    internal void Withdraw()
    {
        foreach (string folder in new[] { CheckpointFolder, config.OutputDir })
        {
            File.Delete(Path.Combine(folder, CheckpointFiles.ConfigName));
            File.Delete(Path.Combine(folder, RunLock.FileName));
        }

        File.Delete(Path.Combine(CheckpointFolder, AttemptsName));

        foreach (string folder in new[] { CheckpointFolder, CheckpointRoot, config.OutputDir })
        {
            if ((folder != config.OutputDir || madeOutput) && Directory.Exists(folder) && !Directory.EnumerateFileSystemEntries(folder).Any())
            {
                Directory.Delete(folder);
            }
        }
    }

    /// <summary>The config of the run that <paramref name="path"/> names: an output_dir, or the run's folder among the checkpoints.</summary>
    /// <param name="path">A local folder.</param>
    /// <param name="settings">Each key=value that replaces a value.</param>
    /// <exception cref="TrainingSetupException">There is no run.</exception>
    /// <exception cref="ConfigurationException">A setting is wrong.</exception>
    public static TrainingConfig ConfigOf(string path, IReadOnlyList<string> settings)
    {
        string file = Path.Combine(path, CheckpointFiles.ConfigName);
        if (!File.Exists(file))
        {
            throw new TrainingSetupException($"{path} holds no run: there is no {CheckpointFiles.ConfigName}. Give the output_dir of a run, or its folder among the checkpoints.");
        }

        TrainingConfig config = ConfigurationLoader.LoadFile(file, settings).Require();
        string full = Path.TrimEndingDirectorySeparator(Path.GetFullPath(path));
        string output = Path.GetFullPath(config.OutputDir);
        if (full == output)
        {
            return config;
        }

        // The folder lies elsewhere than the config says: it is the run's place among the checkpoints, or the run was moved, or is to be written elsewhere now.
        bool isAmongCheckpoints = Path.GetFileName(full) == config.RunName && !File.Exists(Path.Combine(full, LogName)) && !Directory.Exists(Path.Combine(full, CheckpointsName));
        if (isAmongCheckpoints)
        {
            return WithCheckpointsAt(Path.GetDirectoryName(full)!);
        }

        bool isOutputGiven = settings.Any(setting => setting.StartsWith("output_dir=", StringComparison.Ordinal));
        return !isOutputGiven ? config with { OutputDir = path }
            : config.Checkpoint.Uri is null ? WithCheckpointsAt(Path.Combine(full, CheckpointsName))
            : config;

        TrainingConfig WithCheckpointsAt(string root) =>
            root == Path.GetFullPath(config.Checkpoint.Uri ?? Path.Combine(output, CheckpointsName)) ? config : config with { Checkpoint = config.Checkpoint with { Uri = root } };
    }

    private TrainingConfig? StoredConfig()
    {
        string[] places = [Path.Combine(config.OutputDir, CheckpointFiles.ConfigName), Path.Combine(CheckpointFolder, CheckpointFiles.ConfigName)];
        return places.FirstOrDefault(File.Exists) is { } file ? ConfigurationLoader.LoadFile(file, []).Require() : null;
    }

    /// <summary>Opens log.jsonl for the steps after <paramref name="completedSteps"/>; lines of later steps, from a process that died, are cut off.</summary>
    public RunLog OpenLog(int completedSteps) => RunLog.Open(Path.Combine(config.OutputDir, LogName), completedSteps);

    /// <summary>An empty folder of this process, on the same disk as the run; gone when disposed.</summary>
    public StagingFolder Stage() => new(Path.Combine(config.OutputDir, StagingPrefix + Environment.ProcessId));

    /// <summary>Writes what others load: a PEFT folder, or the whole model in bf16; the tokenizer's files beside it. Returns the weight file.</summary>
    internal string WriteModel(TrainingConfig settings, ModelConfig shape, TrainedModel trained)
    {
        string weights;
        if (trained.Adapters is { } adapters)
        {
            adapters.Save(config.OutputDir);
            weights = Path.Combine(config.OutputDir, PeftAdapterFolder.WeightsFileName);
        }
        else
        {
            weights = FullModelWriter.Write(config.OutputDir, shape, trained.Model);
        }

        CopyTokenizer(settings.BaseModel, config.OutputDir);
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

        AtomicFile.WriteAllBytes(Path.Combine(config.OutputDir, SummaryName), buffer.ToArray());
    }

    /// <summary>Staging folders, files that were being written, checkpoints without a manifest: all of processes that died, since the run is locked.</summary>
    private void RemoveLeftovers()
    {
        foreach (string staging in Directory.EnumerateDirectories(config.OutputDir, StagingPrefix + "*"))
        {
            if (Path.GetFileName(staging)[StagingPrefix.Length..].All(char.IsAsciiDigit))
            {
                Directory.Delete(staging, recursive: true);
            }
        }

        string[] checkpoints = [.. Directory.EnumerateDirectories(CheckpointFolder).Where(path => CheckpointName().IsMatch(Path.GetFileName(path)))];
        foreach (string checkpoint in checkpoints.Where(path => !File.Exists(Path.Combine(path, CheckpointStore.ManifestName))))
        {
            Directory.Delete(checkpoint, recursive: true);
        }

        foreach (string file in checkpoints.Where(Directory.Exists).Append(config.OutputDir).Append(CheckpointFolder).SelectMany(folder => Directory.EnumerateFiles(folder, ".*.tmp")))
        {
            if (TemporaryName().IsMatch(Path.GetFileName(file)))
            {
                File.Delete(file);
            }
        }
    }

    [GeneratedRegex("^step-[0-9]{8,10}-[0-9]+-[0-9a-f]{8}$", RegexOptions.CultureInvariant)]
    private static partial Regex CheckpointName();

    /// <summary>As <see cref="AtomicFile"/> names a file that is not whole yet.</summary>
    [GeneratedRegex(@"^\..+\.[0-9a-f]{32}\.tmp$", RegexOptions.CultureInvariant)]
    private static partial Regex TemporaryName();

    private void RefuseOccupied()
    {
        if (HoldsRun)
        {
            throw new TrainingSetupException(
                $"{config.OutputDir} already holds a run. Go on with it: lora-trainer resume {config.OutputDir}. Or start anew elsewhere: --set output_dir=OTHER (and another run_name where checkpoint.uri is set).");
        }

        RefuseOutputs();
    }

    private void RefuseOutputs()
    {
        string[] outputs = [PeftAdapterFolder.WeightsFileName, ModelFolder.SingleFileName, LogName, SummaryName];
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
