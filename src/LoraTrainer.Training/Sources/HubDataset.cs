using LoraTrainer.Data.Datasets;
using LoraTrainer.Storage;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using YamlDotNet.Core;
using YamlDotNet.RepresentationModel;

namespace LoraTrainer.Training.Sources;

/// <summary>
/// Which files of a data set's repository make the part that a configuration names: those of data_files, else those that the card says (the YAML at the top of README.md), else by the
/// names of the files. Nothing of a repository is ever run.
/// </summary>
internal static class HubDataset
{
    private const string Card = "README.md";
    private const int LargestCard = 1 << 20;

    /// <summary>Fetches the files of the part and gives the commit that they are of and their local paths, in the order of their names.</summary>
    public static async Task<(string Commit, IReadOnlyList<string> Files)> FetchAsync(Hub hub, DatasetOptions dataset, CancellationToken cancellation)
    {
        HubSnapshot snapshot = await hub.OpenAsync(new HubRepository(HubKind.Dataset, dataset.Path, dataset.Revision), cancellation).ConfigureAwait(false);
        Configuration[] configurations = [];
        if (dataset.DataFiles.Count == 0 && snapshot.Files.FirstOrDefault(file => file.Path == Card) is { } card && card.SizeBytes is null or <= LargestCard && snapshot.Has(Card))
        {
            await snapshot.FetchAsync([Card], cancellation).ConfigureAwait(false);
            configurations = [.. ConfigurationsOf(await File.ReadAllTextAsync(snapshot.PathOf(Card), cancellation).ConfigureAwait(false))];
        }

        IReadOnlyList<string> chosen = Choose(dataset, [.. snapshot.Files.Select(file => file.Path)], configurations);
        await snapshot.FetchAsync([.. chosen], cancellation).ConfigureAwait(false);
        return (snapshot.Commit, [.. chosen.Select(snapshot.PathOf)]);
    }

    /// <summary>The paths of the part among all files of the repository.</summary>
    /// <exception cref="TrainingSetupException">there is no such configuration or part</exception>
    internal static IReadOnlyList<string> Choose(DatasetOptions dataset, IReadOnlyList<string> files, IReadOnlyList<Configuration> configurations)
    {
        if (dataset.Split.AsSpan().ContainsAny('[', '+', ':'))
        {
            throw new TrainingSetupException($"split: {dataset.Split} of {dataset.Path} asks for a piece of a part, which is not supported. Name the part, and take fewer rows with weight, for example weight: 0.1.");
        }

        string[] sorted = [.. files.Order(StringComparer.Ordinal)];
        if (dataset.DataFiles.Count > 0)
        {
            return Matching(sorted, dataset.DataFiles, $"data_files of {dataset.Path}");
        }

        if (ConfigurationFor(dataset, configurations) is { } configuration)
        {
            IReadOnlyList<string>? patterns = configuration.PatternsOf(dataset.Split);
            return patterns is not null ? Matching(sorted, patterns, $"the card of {dataset.Path} for the part {dataset.Split}") : throw new TrainingSetupException(
                $"{dataset.Path} has no part '{dataset.Split}'; its card names {string.Join(", ", configuration.Parts.Select(part => part.Split))}. Set split to one of them.");
        }

        IReadOnlyList<string> data = DataFiles.DataAmong(dataset.Name is { } name ? sorted.Where(file => file.Split('/').SkipLast(1).Contains(name)) : sorted);
        if (data.Count > 0)
        {
            return DataSplits.Select(data, dataset.Split, dataset.Path);
        }

        string script = sorted.Any(file => file.EndsWith(".py", StringComparison.Ordinal)) ? " It is made by a script, and code from a data set is never run: many such data sets have their rows as Parquet in the revision refs/convert/parquet (set revision)." : "";
        throw new TrainingSetupException(dataset.Name is { } asked
            ? $"{dataset.Path} has no configuration '{asked}', neither in its card nor as a folder of that name.{script}"
            : $"{dataset.Path} has no data file that can be read.{script}");
    }

    /// <summary>What the card's <c>configs</c> say; nothing where there is no card, no such key, or where it is not as documented.</summary>
    internal static IEnumerable<Configuration> ConfigurationsOf(string card)
    {
        string[] lines = card.TrimStart('\uFEFF').ReplaceLineEndings("\n").Split('\n');
        int end = Array.FindIndex(lines, 1, line => line.TrimEnd() == "---");
        if (lines[0].TrimEnd() != "---" || end < 0)
        {
            return [];
        }

        var yaml = new YamlStream();
        try
        {
            yaml.Load(new StringReader(string.Join('\n', lines[1..end])));
        }
        catch (YamlException)
        {
            // A card that is no YAML says nothing; the names of the files do.
            return [];
        }

        return yaml.Documents.Count > 0 && yaml.Documents[0].RootNode is YamlMappingNode root && Child(root, "configs") is YamlSequenceNode configs
            ? [.. configs.OfType<YamlMappingNode>().Select(ConfigurationOf).OfType<Configuration>()]
            : [];
    }

    private static Configuration? ConfigurationFor(DatasetOptions dataset, IReadOnlyList<Configuration> configurations)
    {
        if (configurations.Count == 0)
        {
            return null;
        }

        Configuration? chosen = dataset.Name is { } name ? configurations.FirstOrDefault(item => item.Name == name)
            : configurations.Count == 1 ? configurations[0]
            : configurations.FirstOrDefault(item => item.IsDefault) ?? configurations.FirstOrDefault(item => item.Name == "default");
        return chosen ?? throw new TrainingSetupException(
            $"{dataset.Path} has the configurations {string.Join(", ", configurations.Take(20).Select(item => item.Name))}{(configurations.Count > 20 ? ", ..." : "")}{(dataset.Name is { } asked ? $", and none called '{asked}'" : "")}. Set name to one of them.");
    }

    private static string[] Matching(string[] files, IReadOnlyList<string> patterns, string whose)
    {
        var chosen = new List<string>();
        foreach (string pattern in patterns)
        {
            string wanted = pattern.StartsWith("./", StringComparison.Ordinal) ? pattern[2..] : pattern;
            var glob = new GlobPattern(wanted.EndsWith('/') ? wanted + "**" : wanted);
            string[] matches = [.. files.Where(file => file == wanted || glob.IsMatch(file))];
            matches = matches.Length > 0 ? matches : [.. files.Where(file => file.StartsWith(wanted + "/", StringComparison.Ordinal))];
            chosen.AddRange(matches.Length > 0 ? matches : throw new TrainingSetupException($"{whose}: no file of the repository is '{pattern}' or matches it."));
        }

        return [.. chosen.Distinct(StringComparer.Ordinal)];
    }

    private static Configuration? ConfigurationOf(YamlMappingNode node)
    {
        if (Child(node, "data_files") is not { } files)
        {
            return null;
        }

        (string Split, IReadOnlyList<string> Patterns)[] parts = files is YamlSequenceNode list && list.All(item => item is YamlMappingNode)
            ? [.. list.OfType<YamlMappingNode>().Select(part => (Text(Child(part, "split")) ?? DataSplits.Train, Texts(Child(part, "path"))))]
            : [(DataSplits.Train, Texts(files))];
        return new Configuration(Text(Child(node, "config_name")) ?? "default", Text(Child(node, "default")) == "true", parts);
    }

    private static YamlNode? Child(YamlMappingNode node, string key) => node.Children.TryGetValue(new YamlScalarNode(key), out YamlNode? value) ? value : null;

    private static string? Text(YamlNode? node) => (node as YamlScalarNode)?.Value;

    private static IReadOnlyList<string> Texts(YamlNode? node) => node switch
    {
        YamlScalarNode { Value: { Length: > 0 } one } => [one],
        YamlSequenceNode many => [.. many.Select(Text).OfType<string>()],
        _ => [],
    };

    /// <summary>One of the data sets of a repository.</summary>
    internal sealed record Configuration(string Name, bool IsDefault, IReadOnlyList<(string Split, IReadOnlyList<string> Patterns)> Parts)
    {
        public IReadOnlyList<string>? PatternsOf(string split) => Parts.Where(part => part.Split == split).Select(part => part.Patterns).FirstOrDefault();
    }
}
