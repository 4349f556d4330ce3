using LoraTrainer.Data.Datasets;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Sources;

/// <summary>What of a configuration is needed on this machine.</summary>
[Flags]
public enum SourceNeeds
{
    None = 0,

    /// <summary>config.json and the tokenizer.</summary>
    Description = 1,

    Weights = 2 | Description,

    /// <summary>datasets and test_datasets.</summary>
    Data = 4,
}

/// <summary>
/// Where a model or data set lies that a configuration names by a name of the hub or by an address: local folders and files, fetched where they are not here. An existing path goes
/// before a name, and stays what it is.
/// </summary>
/// <param name="BaseFolder">Of the base; null: it is a folder itself.</param>
/// <param name="Files">Of each data set that is not a path.</param>
public sealed record FetchedSources(string? BaseFolder, IReadOnlyDictionary<DatasetOptions, IReadOnlyList<string>> Files)
{
    public static FetchedSources None { get; } = new(null, new Dictionary<DatasetOptions, IReadOnlyList<string>>());

    /// <summary>True for text that names something of the hub and nothing of this machine. What ends as data files do is a file that is missing.</summary>
    public static bool IsHubName(string text) => !Path.Exists(text) && HubRepository.IsName(text) && !DataFiles.HasDataName(text);

    /// <summary>True for a data set that is not on this machine by its path.</summary>
    public static bool IsElsewhere(DatasetOptions dataset) => DownloadCache.IsAddress(dataset.Path) || IsHubName(dataset.Path);

    /// <summary>The local files of a data set: those that were fetched for it, or those that its path names.</summary>
    /// <exception cref="DatasetException">there are none</exception>
    /// <exception cref="TrainingSetupException">there is no such part</exception>
    public IReadOnlyList<string> FilesOf(DatasetOptions dataset)
    {
        if (Files.TryGetValue(dataset, out IReadOnlyList<string>? fetched))
        {
            return fetched;
        }

        IReadOnlyList<string> all = DataFiles.Of(dataset.Path);
        if (Directory.Exists(dataset.Path))
        {
            return [.. HubDataset.Choose(dataset, DataFiles.RelativeTo(dataset.Path), []).Select(file => Path.Combine(dataset.Path, file))];
        }

        string? senseless = dataset.Split != DataSplits.Train ? $"split: {dataset.Split}" : dataset.Name is not null ? $"name: {dataset.Name}" : dataset.DataFiles.Count > 0 ? "data_files" : null;
        return senseless is null ? all : throw new TrainingSetupException($"{senseless} chooses among the files of a folder or of a repository of the hub, and {dataset.Path} is a file: all of it is read. Leave it out.");
    }

    /// <summary>Fetches what is needed and is not here. Blocks until it is.</summary>
    /// <param name="config">Names, revisions, splits.</param>
    /// <param name="needs">What of it.</param>
    /// <param name="tell">Is told how downloads come on.</param>
    /// <param name="cancellation">Leaves what has arrived, to go on from.</param>
    /// <returns>The same configuration, which knows where its things are, and names the commits that its revisions were: written down, it fetches the same again.</returns>
    /// <exception cref="IOException">something cannot be fetched; says what to do</exception>
    /// <exception cref="TrainingSetupException">a data set has no such part</exception>
    public static TrainingConfig Fetch(TrainingConfig config, SourceNeeds needs, Action<string> tell, CancellationToken cancellation)
    {
        DatasetOptions[] elsewhere = needs.HasFlag(SourceNeeds.Data) ? [.. config.Data.Datasets.Concat(config.Data.TestDatasets).Where(IsElsewhere).Distinct()] : [];
        bool isNamed = needs.HasFlag(SourceNeeds.Description) && IsHubName(config.BaseModel);
        if (!isNamed && elsewhere.Length == 0)
        {
            return config;
        }

        // No caller has a context that waiting could block.
        return Task.Run(() => FetchAsync(config, isNamed, needs.HasFlag(SourceNeeds.Weights), elsewhere, tell, cancellation), cancellation).GetAwaiter().GetResult();
    }

    /// <summary>The folder of a model that a command line names: itself, or where the hub's model of that name was fetched to.</summary>
    /// <param name="nameOrFolder">As it was written.</param>
    /// <param name="revision">Of a name.</param>
    /// <param name="tell">Is told how downloads come on.</param>
    /// <param name="cancellation">Leaves what has arrived.</param>
    public static string FolderOf(string nameOrFolder, string revision, Action<string> tell, CancellationToken cancellation)
        => IsHubName(nameOrFolder) ? Fetch(new TrainingConfig { BaseModel = nameOrFolder, RevisionOfModel = revision }, SourceNeeds.Weights, tell, cancellation).BaseFolder : nameOrFolder;

    /// <summary>A misspelt path looks like a name: what fails says that it was taken for one.</summary>
    private static async Task<T> NamedAsync<T>(string name, Task<T> fetching)
    {
        try
        {
            return await fetching.ConfigureAwait(false);
        }
        catch (StoreException exception)
        {
            throw new StoreException(exception.Problem, $"{name} is not here, so it was taken for a name of the hub. {exception.Message}", exception);
        }
    }

    /// <summary>The folder of the base that an adapter names.</summary>
    /// <param name="adapter">Its folder, for the sentence.</param>
    /// <param name="named">What it names: a folder, or a name of the hub.</param>
    /// <param name="revision">Of a name.</param>
    /// <param name="instead">What to do where it is not to be had, a sentence.</param>
    /// <param name="tell">Is told how downloads come on.</param>
    /// <param name="cancellation">Leaves what has arrived.</param>
    /// <exception cref="TrainingSetupException">it is not here, and cannot be fetched</exception>
    public static string FolderOfBase(string adapter, string? named, string revision, string instead, Action<string> tell, CancellationToken cancellation)
    {
        try
        {
            string? folder = named is null ? null : FolderOf(named, revision, tell, cancellation);
            return Directory.Exists(folder) ? folder : throw new TrainingSetupException($"{adapter} names its base '{named}', which is not a folder here. {instead}");
        }
        catch (StoreException exception)
        {
            throw new TrainingSetupException($"{adapter} names its base '{named}', which is not a folder here and cannot be fetched. {instead} ({exception.Message})");
        }
    }

    private static async Task<TrainingConfig> FetchAsync(TrainingConfig config, bool isNamed, bool withWeights, DatasetOptions[] elsewhere, Action<string> tell, CancellationToken cancellation)
    {
        using var hub = new Hub(HubSettings.FromEnvironment(), tell);
        string? folder = config.Fetched.BaseFolder;
        if (isNamed)
        {
            HubSnapshot snapshot = await NamedAsync(config.BaseModel, hub.OpenAsync(new HubRepository(HubKind.Model, config.BaseModel, config.RevisionOfModel), cancellation)).ConfigureAwait(false);
            await HubModelFiles.FetchDescriptionAsync(snapshot, cancellation).ConfigureAwait(false);
            if (withWeights)
            {
                await HubModelFiles.FetchWeightsAsync(snapshot, cancellation).ConfigureAwait(false);
            }

            folder = snapshot.Folder;
            config = config with { RevisionOfModel = snapshot.Commit };
        }

        var files = new Dictionary<DatasetOptions, IReadOnlyList<string>>(config.Fetched.Files);
        using var downloads = new DownloadCache(DownloadCache.DefaultFolder, tell);
        var pinned = new Dictionary<DatasetOptions, DatasetOptions>();
        foreach (DatasetOptions dataset in elsewhere)
        {
            DatasetOptions known = dataset;
            IReadOnlyList<string> fetched;
            if (DownloadCache.IsAddress(dataset.Path))
            {
                fetched = await downloads.FetchAsync(dataset.Path, cancellation).ConfigureAwait(false);
            }
            else
            {
                (string commit, fetched) = await NamedAsync(dataset.Path, HubDataset.FetchAsync(hub, dataset, cancellation)).ConfigureAwait(false);
                pinned[dataset] = known = dataset with { Revision = commit };
            }

            files[known] = fetched;
        }

        return WithDatasets(config, dataset => pinned.GetValueOrDefault(dataset, dataset)) with { Fetched = new FetchedSources(folder, files) };
    }

    /// <summary>
    /// The configuration of a run that goes on. Where it names what <paramref name="before"/> names in the same place, and no commit, the commit that the run recorded is
    /// meant: a branch may have moved since. Where it names something else, the recorded commit, which is none of that, is not asked for.
    /// </summary>
    /// <param name="config">As it is now.</param>
    /// <param name="before">As the run began.</param>
    /// <returns>With the revisions that are meant, and a sentence for each that is another one than was given.</returns>
    internal static (TrainingConfig Config, IReadOnlyList<string> Sentences) AsRecorded(TrainingConfig config, TrainingConfig before)
    {
        List<string> sentences = [];
        TrainingConfig meant = config with
        {
            RevisionOfModel = Meant("revision_of_model", config.BaseModel, config.RevisionOfModel, before.BaseModel, before.RevisionOfModel),
            Data = config.Data with { Datasets = Each("datasets", config.Data.Datasets, before.Data.Datasets), TestDatasets = Each("test_datasets", config.Data.TestDatasets, before.Data.TestDatasets) },
        };
        return (meant, sentences);

        EquatableList<DatasetOptions> Each(string key, EquatableList<DatasetOptions> now, EquatableList<DatasetOptions> then) =>
            [.. now.Select((dataset, i) => i >= then.Count ? dataset : dataset with { Revision = Meant($"{key}[{i}].revision", dataset.Path, dataset.Revision, then[i].Path, then[i].Revision) })];

        string Meant(string key, string name, string revision, string nameBefore, string revisionBefore)
        {
            if (!HubRepository.IsCommit(revisionBefore))
            {
                return revision;
            }

            if (name != nameBefore)
            {
                return revision == revisionBefore ? HubRepository.DefaultRevision : revision;
            }

            if (!HubRepository.IsCommit(revision))
            {
                sentences.Add($"{key}: {revision} of {name} was commit {revisionBefore} when the run began, and the run goes on from that. Another one has to be named by its commit.");
            }

            return HubRepository.IsCommit(revision) ? revision : revisionBefore;
        }
    }

    private static TrainingConfig WithDatasets(TrainingConfig config, Func<DatasetOptions, DatasetOptions> change) =>
        config with { Data = config.Data with { Datasets = [.. config.Data.Datasets.Select(change)], TestDatasets = [.. config.Data.TestDatasets.Select(change)] } };
}
