using System.Globalization;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.Training.Config;

/// <summary>
/// The settings of the adapter that <c>lora_model_dir</c> names, taken over into the configuration: what is trained on has its rank, its scaling and its
/// modules. Keys that are given must say the same.
/// </summary>
internal static class StartingAdapter
{
    private const string Key = "lora_model_dir";

    /// <summary>The root with every key that the adapter decides.</summary>
    public static ConfigurationNode TakeOver(ConfigurationNode root, IssueCollector issues)
    {
        if (root.Find(Key) is not { Kind: NodeKind.Scalar, IsNull: false } named)
        {
            return root;
        }

        // The configuration that a run keeps has all of the keys: another machine resumes it without the folder.
        string file = Path.Combine(named.Text, AdapterConfig.FileName);
        if (!File.Exists(file) && root.Find("lora_r") is not null && root.Find("lora_target_modules") is not null)
        {
            return root;
        }

        if (!File.Exists(file) && File.Exists(Path.Combine(named.Text, "config.json")))
        {
            issues.Wrong(Key, named.Location, $"{Key} ({named.Location}): {named.Text} is a whole model, not an adapter. Give it as base_model.");
            return root;
        }

        AdapterConfig adapter;
        try
        {
            adapter = AdapterConfig.Parse(file);
            RefuseWithoutKey(adapter, file);
        }
        catch (ModelFormatException exception)
        {
            issues.Wrong(Key, named.Location, $"{Key} ({named.Location}): {exception.Message}");
            return root;
        }

        if (root.Find("base_model") is { Kind: NodeKind.Scalar, IsNull: false, Text.Length: > 0 } baseModel && adapter.DoubtAbout(baseModel.Text) is { } doubt)
        {
            issues.Warning(Key, named.Location, $"{Key} ({named.Location}): {doubt}");
        }

        // Whether names, a pattern or "all linear layers" mean the same is known with the model: an adapter that does not fit its layers is refused there.
        bool choosesLayers = root.Find("lora_target_linear") is { IsTrue: true } || root.Find("lora_target_modules") is { IsOff: false };
        List<ConfigurationEntry> entries = [.. root.Entries];
        foreach ((string key, ConfigurationNode value) in Settings(adapter, named.Location))
        {
            if (choosesLayers && (key is "lora_target_modules" or "lora_target_linear"))
            {
                continue;
            }

            if (root.Find(key) is { IsNull: false } given)
            {
                if (!Same(given, value))
                {
                    issues.Wrong(key, given.Location, $"{key} is {ConfigurationYaml.WriteInline(given)} ({given.Location}), but the adapter in {named.Text} has {ConfigurationYaml.WriteInline(value)}. Remove {key}: it comes with the adapter.");
                }

                continue;
            }

            entries.RemoveAll(entry => entry.Key == key);
            entries.Add(new ConfigurationEntry(key, named.Location, value));
        }

        return ConfigurationNode.Mapping(entries, root.Location);
    }

    private static void RefuseWithoutKey(AdapterConfig adapter, string file)
    {
        string? setting = adapter switch
        {
            { TargetModules: null } => "names no target_modules",
            { Bias: not AdapterBias.None } => "trains biases (bias)",
            { LoraBias: true } => "has lora_bias",
            { ExcludeModules: not null } => "has exclude_modules",
            { LayersPattern: { Count: > 0 } } => "has layers_pattern",
            { InitLoraWeights: AdapterStart.Pissa or AdapterStart.Olora } => $"started from the base's own weights (init_lora_weights: {adapter.InitLoraWeights}) and was not converted to plain LoRA",
            _ => null,
        };
        if (setting is not null)
        {
            throw new ModelFormatException($"{file}: the adapter {setting}, and training cannot go on from such a one. Merge it into its base, and give the result as base_model.");
        }
    }

    private static IEnumerable<(string Key, ConfigurationNode Value)> Settings(AdapterConfig adapter, ConfigurationLocation where)
    {
        yield return ("lora_r", Plain(adapter.R.ToString(CultureInfo.InvariantCulture)));
        yield return ("lora_alpha", Plain(adapter.LoraAlpha.ToString("R", CultureInfo.InvariantCulture)));
        yield return ("lora_target_modules", adapter.TargetModules!.List is { } names ? List(names) : ConfigurationNode.Scalar(adapter.TargetModules.Pattern!, plain: false, where));
        yield return ("lora_target_linear", Plain("false"));
        yield return ("lora_modules_to_save", List(adapter.ModulesToSave ?? []));
        yield return ("peft_use_rslora", Plain(adapter.UseRslora ? "true" : "false"));
        yield return ("peft_use_dora", Plain(adapter.UseDora ? "true" : "false"));
        yield return ("peft_layers_to_transform", List([.. (adapter.LayersToTransform ?? []).Select(layer => layer.ToString(CultureInfo.InvariantCulture))]));
        yield return ("lora_rank_pattern", Map(adapter.RankPattern.Select(pair => (pair.Key, pair.Value.ToString(CultureInfo.InvariantCulture)))));
        yield return ("lora_alpha_pattern", Map(adapter.AlphaPattern.Select(pair => (pair.Key, pair.Value.ToString("R", CultureInfo.InvariantCulture)))));

        ConfigurationNode Plain(string text) => ConfigurationNode.Scalar(text, plain: true, where);

        ConfigurationNode List(IReadOnlyList<string> items) => ConfigurationNode.Sequence([.. items.Select(Plain)], where);

        ConfigurationNode Map(IEnumerable<(string Key, string Value)> items) => ConfigurationNode.Mapping([.. items.Select(item => new ConfigurationEntry(item.Key, where, Plain(item.Value)))], where);
    }

    /// <summary>Equal as values: 8 is 8.0, and the order of names means nothing.</summary>
    private static bool Same(ConfigurationNode given, ConfigurationNode value) =>
        given.Kind == NodeKind.Sequence && value.Kind == NodeKind.Sequence ? given.Items.Select(item => item.Text).Order(StringComparer.Ordinal).SequenceEqual(value.Items.Select(item => item.Text).Order(StringComparer.Ordinal))
        : given.Kind == NodeKind.Scalar && value.Kind == NodeKind.Scalar && double.TryParse(given.Text, NumberStyles.Float, CultureInfo.InvariantCulture, out double one) && double.TryParse(value.Text, NumberStyles.Float, CultureInfo.InvariantCulture, out double other) ? one == other
        : given.IsOff && value.IsOff || ConfigurationYaml.WriteInline(given) == ConfigurationYaml.WriteInline(value);
}
