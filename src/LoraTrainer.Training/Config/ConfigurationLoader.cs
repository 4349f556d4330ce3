using System.Globalization;

namespace LoraTrainer.Training.Config;

/// <summary>Reads a configuration file and the settings of the command line into a <see cref="TrainingConfig"/>, and finds all that is wrong at once.</summary>
public static class ConfigurationLoader
{
    /// <summary>
    /// Reads the file at <paramref name="path"/>. Each of the <paramref name="settings"/> is <c>key=value</c>: dotted keys, list items by index,
    /// values in YAML. Later ones win, and all win over the file.
    /// </summary>
    /// <exception cref="ConfigurationException">the file cannot be opened</exception>
    public static ConfigurationResult LoadFile(string path, IReadOnlyList<string> settings)
    {
        string text;
        try
        {
            text = File.ReadAllText(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or ArgumentException)
        {
            string reason = exception switch
            {
                FileNotFoundException or DirectoryNotFoundException => $"There is no configuration file {path}. Check the name; relative paths start at {Directory.GetCurrentDirectory()}.",
                _ when Directory.Exists(path) => $"{path} is a folder, not a configuration file. Give the YAML file in it.",
                _ => $"The configuration file {path} cannot be read: {exception.Message.TrimEnd('.')}.",
            };
            throw new ConfigurationException([new ConfigurationIssue(ConfigurationIssueKind.Wrong, "", new ConfigurationLocation(path, 0), reason)]);
        }

        return LoadText(text, path, settings);
    }

    /// <summary>Reads a configuration that is at hand as text. <paramref name="source"/> names its file in messages, and its stem is the default of <c>run_name</c>.</summary>
    public static ConfigurationResult LoadText(string text, string source, IReadOnlyList<string> settings)
    {
        IssueCollector issues = new() { Whole = new ConfigurationLocation(source, 0) };
        TrainingConfig? config = null;
        ConfigurationNode? root = ConfigurationYaml.Read(text, source, fixedLocation: null, issues);
        if (root is { Kind: not NodeKind.Mapping } && !root.IsNull)
        {
            issues.Wrong("", root.Location, $"A configuration is a mapping of keys and values, got {root.Describe()} ({root.Location}). Example of a line: learning_rate: 2e-4.");
        }
        else if (root is not null)
        {
            root = WithOwnNames(root, issues);
            foreach (string setting in settings)
            {
                root = WithSetting(root, setting, issues);
            }

            root = StartingAdapter.TakeOver(root, issues);
            bool fits = ConfigurationKeys.Root.TryRead(root, "", "", issues, out TrainingConfig read);
            config = WithResolvedDefaults(read, source, issues);
            ContradictionRules.Check(config, issues);
            if (!fits || issues.HasWrong)
            {
                config = null;
            }
        }

        return new ConfigurationResult
        {
            Config = config,
            Errors = issues.Sorted(ConfigurationIssueKind.Wrong, ConfigurationIssueKind.NotSupportedYet),
            Warnings = issues.Sorted(ConfigurationIssueKind.Warning),
            Notices = issues.Sorted(ConfigurationIssueKind.Notice),
        };
    }

    /// <summary>Defaults that depend on other keys.</summary>
    private static TrainingConfig WithResolvedDefaults(TrainingConfig config, string source, IssueCollector issues)
    {
        if (!issues.IsGiven("run_name"))
        {
            string stem = new([.. Path.GetFileNameWithoutExtension(source).Select(character => char.IsAsciiLetterOrDigit(character) || character is '.' or '-' or '_' ? character : '-')]);
            config = config with { RunName = stem.Length > 0 && char.IsAsciiLetterOrDigit(stem[0]) ? stem : "run" + stem };
        }

        if (!issues.IsGiven("output_dir"))
        {
            config = config with { OutputDir = Path.Combine("outputs", config.RunName) };
        }

        if (config.Adapter.Kind == AdapterKind.Qlora && !issues.IsGiven("load_in_4bit"))
        {
            config = config with { Quantization = config.Quantization with { LoadIn4Bit = true } };
        }

        if (!issues.IsGiven("eval_strategy") && (config.Evaluation.Steps > 0 || config.Evaluation.PerEpoch > 0))
        {
            config = config with { Evaluation = config.Evaluation with { Strategy = EvaluationStrategy.Steps } };
        }

        return config;
    }

    /// <summary>The root with all keys called as they are called here. A key that is given under two names is an error.</summary>
    private static ConfigurationNode WithOwnNames(ConfigurationNode root, IssueCollector issues)
    {
        List<ConfigurationEntry> kept = [];
        List<(ConfigurationEntry Entry, string Path, ConfigurationNode Value)> renamed = [];
        foreach (ConfigurationEntry entry in root.Entries)
        {
            if (KeyAliases.Translate(entry.Key, entry.Value, entry.Location, issues) is not { } translated)
            {
                continue;
            }

            if (translated.Path == entry.Key)
            {
                kept.Add(entry with { Value = translated.Value });
            }
            else if (!translated.Value.IsNull)
            {
                renamed.Add((entry, translated.Path, translated.Value));
            }
        }

        ConfigurationNode result = ConfigurationNode.Mapping(kept, root.Location);
        foreach ((ConfigurationEntry entry, string path, ConfigurationNode value) in renamed)
        {
            ConfigurationNode? present = path.Split('.').Aggregate<string, ConfigurationNode?>(result, (node, segment) => node?.Find(segment));
            if (present is { IsNull: false } && ConfigurationYaml.WriteInline(present) != ConfigurationYaml.WriteInline(value))
            {
                issues.Wrong(entry.Key, entry.Location, $"{entry.Key} ({entry.Location}) and {path} ({present.Location}) mean the same. Keep one.");
                continue;
            }

            result = Replaced(result, path.Split('.'), 0, value, entry.Location, path, issues) ?? result;
        }

        return result;
    }

    private static ConfigurationNode WithSetting(ConfigurationNode root, string setting, IssueCollector issues)
    {
        int equals = setting.IndexOf('=', StringComparison.Ordinal);
        string key = equals > 0 ? setting[..equals].Trim() : "";
        if (key.Length == 0)
        {
            ConfigurationLocation option = new("--set", 0);
            issues.Wrong("", option, $"--set must be key=value, got {setting}. Example: --set learning_rate=1e-4.");
            return root;
        }

        ConfigurationLocation where = new($"--set {key}", 0);
        if (ConfigurationYaml.Read(setting[(equals + 1)..], "", where, issues) is not { } value)
        {
            return root;
        }

        // No text at all is the empty mapping of an empty file; here it means: nothing.
        value = value is { Kind: NodeKind.Mapping, Entries.Count: 0 } && string.IsNullOrWhiteSpace(setting[(equals + 1)..]) ? ConfigurationNode.Scalar("", true, where) : value;
        if (KeyAliases.Translate(key, value, where, issues) is not { } translated)
        {
            return root;
        }

        return Replaced(root, translated.Path.Split('.'), 0, translated.Value, where, key, issues) ?? root;
    }

    /// <summary>The tree with one value exchanged or added; the tree itself stays as it is. Null after an error.</summary>
    private static ConfigurationNode? Replaced(
        ConfigurationNode? node, string[] segments, int index, ConfigurationNode value, ConfigurationLocation where, string key, IssueCollector issues)
    {
        if (index == segments.Length)
        {
            return value;
        }

        string segment = segments[index];
        bool isNumber = int.TryParse(segment, NumberStyles.None, CultureInfo.InvariantCulture, out int position);
        if (node is { Kind: NodeKind.Sequence } || ((node is null || node.IsNull) && isNumber))
        {
            List<ConfigurationNode> items = [.. node?.Items ?? []];
            if (!isNumber || position > items.Count)
            {
                string last = items.Count == 0 ? "it is empty, so 0 adds the first item" : $"it has the items 0..{items.Count - 1}, and {items.Count} adds one";
                issues.Wrong(key, where, $"{string.Join('.', segments[..index])} is a list, got {segment} as its index ({where}). Count from 0: {last}.");
                return null;
            }

            if (Replaced(position < items.Count ? items[position] : null, segments, index + 1, value, where, key, issues) is not { } item)
            {
                return null;
            }

            if (position < items.Count)
            {
                items[position] = item;
            }
            else
            {
                items.Add(item);
            }

            return ConfigurationNode.Sequence(items, where);
        }

        if (node is { Kind: NodeKind.Scalar, IsNull: false } && index > 0)
        {
            // A word such as "type: alpaca" gives way to the block that is set key by key.
            node = null;
        }

        List<ConfigurationEntry> entries = [.. node?.Entries ?? []];
        int at = entries.FindIndex(entry => entry.Key == segment);
        if (Replaced(at < 0 ? null : entries[at].Value, segments, index + 1, value, where, key, issues) is not { } changed)
        {
            return null;
        }

        ConfigurationEntry replacement = new(segment, where, changed);
        if (at < 0)
        {
            entries.Add(replacement);
        }
        else
        {
            entries[at] = replacement;
        }

        return ConfigurationNode.Mapping(entries, node?.Location ?? where);
    }
}
