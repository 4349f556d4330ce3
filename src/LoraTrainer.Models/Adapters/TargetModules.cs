using System.Globalization;
using System.Text.RegularExpressions;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.Models.Adapters;

/// <summary>What a module of the model is, as far as adapters care.</summary>
public enum ModuleKind
{
    Linear,

    /// <summary>lm_head: linear, but not part of "all-linear".</summary>
    OutputHead,
    Embedding,

    /// <summary>Norms and the like; they can be trained in full, but carry no adapter.</summary>
    Other,
}

/// <summary>A module without children, by its path as in the weight files without <c>.weight</c>: model.layers.0.self_attn.q_proj.</summary>
public readonly record struct ModelModule(string Path, ModuleKind Kind);

/// <summary>A module that gets an adapter, and the adapter's numbers there; the scaling is the factor on B·A.</summary>
public readonly record struct TargetModule(string Path, int Rank, double Alpha, double Scaling);

/// <summary>
/// Which modules an adapter config means, by PEFT's rules (huggingface/peft, tuners/tuners_utils.py, check_target_module_exists and
/// get_pattern_key; utils/other.py). A pure function of the config and the model's modules.
/// </summary>
/// <param name="Targets">the modules with an adapter, in the model's order</param>
/// <param name="Saved">the modules trained in full, in the model's order</param>
/// <param name="Notices">entries that matched nothing, a sentence each</param>
public sealed record TargetModules(IReadOnlyList<TargetModule> Targets, IReadOnlyList<string> Saved, IReadOnlyList<string> Notices)
{
    private const string AllLinear = "all-linear";
    private static readonly TimeSpan MatchTimeout = TimeSpan.FromSeconds(1);

    /// <summary>PEFT's modules for a family whose config names none (utils/constants.py).</summary>
    private static readonly Dictionary<string, string[]> FamilyDefaults = new(StringComparer.Ordinal)
    {
        ["llama"] = ["q_proj", "v_proj"],
        ["mistral"] = ["q_proj", "v_proj"],
        ["mixtral"] = ["q_proj", "v_proj"],
        ["gemma"] = ["q_proj", "v_proj"],
        ["gemma2"] = ["q_proj", "v_proj"],
        ["gemma3_text"] = ["q_proj", "v_proj"],
        ["qwen2"] = ["q_proj", "v_proj"],
        ["qwen3"] = ["q_proj", "v_proj"],
    };

    /// <exception cref="ModelFormatException">nothing matches, something without a weight matrix matches, or the settings contradict each other</exception>
    public static TargetModules Select(AdapterConfig config, string modelType, IReadOnlyList<ModelModule> modules)
    {
        ArgumentNullException.ThrowIfNull(config);
        ArgumentNullException.ThrowIfNull(modules);
        ModuleNames wanted = config.TargetModules ?? (FamilyDefaults.TryGetValue(modelType, out string[]? names)
            ? ModuleNames.Of(names)
            : throw new ModelFormatException($"target_modules is not given, and the family {modelType} has no usual ones. Name them, for example: {Leaves(modules)}."));
        bool layersGiven = config.LayersToTransform is { Count: > 0 };
        if (layersGiven && wanted.List is null)
        {
            throw new ModelFormatException($"layers_to_transform needs a list of target_modules, got the pattern '{wanted.Pattern}'. Write the names as a list, or put the layers into the pattern.");
        }

        if (!layersGiven && config.LayersPattern is { Count: > 0 })
        {
            throw new ModelFormatException("layers_pattern has no meaning without layers_to_transform. Give both, or neither.");
        }

        var targets = new List<TargetModule>();
        var matcher = new Matcher(config, wanted);
        foreach (ModelModule module in modules)
        {
            if (!matcher.Matches(module))
            {
                continue;
            }

            if (module.Kind == ModuleKind.Other)
            {
                throw new ModelFormatException($"target_modules matches '{module.Path}', which is neither linear nor an embedding and can carry no adapter. To train it in full, name it in modules_to_save.");
            }

            int rank = RankOf(config, module.Path);
            double alpha = FirstMatch(config.AlphaPattern, "alpha_pattern", module.Path) ?? config.LoraAlpha;
            targets.Add(new TargetModule(module.Path, rank, alpha, config.Scaling(rank, alpha)));
        }

        string[] saved = [.. modules.Where(module => config.ModulesToSave?.Any(name => module.Path.EndsWith(name, StringComparison.Ordinal)) == true).Select(module => module.Path)];
        if (targets.Count == 0)
        {
            string given = wanted.Pattern is { } pattern ? $"'{pattern}'" : $"[{string.Join(", ", wanted.List!)}]";
            throw new ModelFormatException($"target_modules {given} matches no module of the model{(layersGiven || config.ExcludeModules is not null ? " (after layers_to_transform, exclude_modules and modules_to_save)" : "")}. Its modules are: {Leaves(modules)}.");
        }

        return new TargetModules(targets, saved, Unmatched(config, wanted, modules));
    }

    /// <summary>
    /// The list to save for these targets: the last names where these mean exactly the same modules, else whole paths. Sorted, so that the same
    /// adapter gives the same file.
    /// </summary>
    public static ModuleNames Compact(IReadOnlyList<TargetModule> targets, IReadOnlyList<ModelModule> modules)
    {
        string[] leaves = [.. targets.Select(target => Leaf(target.Path)).Distinct(StringComparer.Ordinal).Order(StringComparer.Ordinal)];
        int meant = modules.Count(module => leaves.Any(leaf => EndsWithComponents(module.Path, leaf)));
        return ModuleNames.Of(meant == targets.Count ? leaves : [.. targets.Select(target => target.Path).Order(StringComparer.Ordinal)]);
    }

    /// <summary>The rank of the adapter on the module <paramref name="path"/>.</summary>
    internal static int RankOf(AdapterConfig config, string path) => FirstMatch(config.RankPattern, "rank_pattern", path) ?? config.R;

    /// <summary>The factor on B·A of the adapter on the module <paramref name="path"/>.</summary>
    internal static double ScalingOf(AdapterConfig config, string path) =>
        config.Scaling(RankOf(config, path), FirstMatch(config.AlphaPattern, "alpha_pattern", path) ?? config.LoraAlpha);

    /// <summary>The entries of a list that are no module's name or path, nor the end of one.</summary>
    public static IReadOnlyList<string> UnknownNames(IEnumerable<string> names, IReadOnlyList<ModelModule> modules)
        => [.. names.Where(name => !modules.Any(module => EndsWithComponents(module.Path, name)))];

    /// <summary>Whether a key of rank_pattern or alpha_pattern is about any module.</summary>
    /// <param name="pattern">The key.</param>
    /// <param name="field">Whose key it is, for messages.</param>
    /// <param name="modules">Of the model.</param>
    public static bool MatchesAny(string pattern, string field, IReadOnlyList<ModelModule> modules) =>
        modules.Any(module => FirstMatch([KeyValuePair.Create(pattern, 1)], field, module.Path) is not null);

    /// <summary>The last names of the modules that can carry an adapter.</summary>
    public static IReadOnlyList<string> LeafNames(IReadOnlyList<ModelModule> modules)
        => [.. modules.Where(module => module.Kind != ModuleKind.Other).Select(module => Leaf(module.Path)).Distinct(StringComparer.Ordinal)];

    private static List<string> Unmatched(AdapterConfig config, ModuleNames wanted, IReadOnlyList<ModelModule> modules)
    {
        var notices = new List<string>();
        foreach (string name in UnknownNames(wanted.List ?? [], modules))
        {
            notices.Add($"target_modules: '{name}' matches no module of the model. Its modules are: {Leaves(modules)}.");
        }

        foreach (string name in config.ModulesToSave ?? [])
        {
            if (!modules.Any(module => module.Path.EndsWith(name, StringComparison.Ordinal)))
            {
                notices.Add($"modules_to_save: '{name}' matches no module of the model. Its modules are: {Leaves(modules)}.");
            }
        }

        return notices;
    }

    private static T? FirstMatch<T>(IReadOnlyList<KeyValuePair<string, T>> pattern, string field, string path)
        where T : struct
    {
        foreach ((string key, T value) in pattern)
        {
            if (IsMatch(Compile($@"\A(.*\.)?({key})\z", key, field), path, key, field))
            {
                return value;
            }
        }

        return null;
    }

    private static Regex Compile(string expression, string given, string field)
    {
        try
        {
            // Python spells named groups with a P.
            return new Regex(expression.Replace("(?P<", "(?<", StringComparison.Ordinal), RegexOptions.CultureInvariant, MatchTimeout);
        }
        catch (ArgumentException exception)
        {
            throw new ModelFormatException($"{field}: '{given}' is not a valid regular expression: {exception.Message}", exception);
        }
    }

    private static bool IsMatch(Regex regex, string path, string given, string field)
    {
        try
        {
            return regex.IsMatch(path);
        }
        catch (RegexMatchTimeoutException exception)
        {
            throw new ModelFormatException($"{field}: the regular expression '{given}' took more than {MatchTimeout.TotalSeconds} second on '{path}'. Write a simpler one, without nested repetition.", exception);
        }
    }

    private static bool EndsWithComponents(string path, string name)
        => path == name || (path.Length > name.Length && path.EndsWith(name, StringComparison.Ordinal) && path[path.Length - name.Length - 1] == '.');

    private static string Leaf(string path) => path[(path.LastIndexOf('.') + 1)..];

    private static string Leaves(IReadOnlyList<ModelModule> modules)
        => string.Join(", ", LeafNames(modules));

    /// <summary>The rules for one module, with the patterns compiled once.</summary>
    private sealed class Matcher
    {
        private readonly AdapterConfig config;
        private readonly ModuleNames wanted;
        private readonly bool allLinear;
        private readonly Regex? target;
        private readonly Regex? excluded;

        public Matcher(AdapterConfig config, ModuleNames wanted)
        {
            this.config = config;
            this.wanted = wanted;
            allLinear = string.Equals(wanted.Pattern, AllLinear, StringComparison.OrdinalIgnoreCase);
            target = wanted.Pattern is { } pattern && !allLinear ? Compile($@"\A(?:{pattern})\z", pattern, "target_modules") : null;
            excluded = config.ExcludeModules?.Pattern is { } exclusion ? Compile($@"\A(?:{exclusion})\z", exclusion, "exclude_modules") : null;
        }

        public bool Matches(ModelModule module) => !IsExcluded(module.Path) && IsWanted(module);

        private bool IsWanted(ModelModule module)
        {
            if (allLinear)
            {
                return module.Kind == ModuleKind.Linear;
            }

            if (target is not null)
            {
                return IsMatch(target, module.Path, wanted.Pattern!, "target_modules");
            }

            // An entry that is the whole path is meant as it is, whatever the layers.
            return wanted.List!.Contains(module.Path, StringComparer.Ordinal)
                || (wanted.List!.Any(name => EndsWithComponents(module.Path, name)) && IsInChosenLayer(module.Path));
        }

        private bool IsExcluded(string path)
        {
            bool byName = config.ExcludeModules?.List?.Any(name => EndsWithComponents(path, name)) == true;
            bool byPattern = excluded is not null && IsMatch(excluded, path, config.ExcludeModules!.Pattern!, "exclude_modules");
            return byName || byPattern || config.ModulesToSave?.Any(name => $".{path}.".Contains($".{name}.", StringComparison.Ordinal)) == true;
        }

        /// <summary>The first number in the path that follows a name (one of layers_pattern, where given) and precedes another counts as the layer.</summary>
        private bool IsInChosenLayer(string path)
        {
            if (config.LayersToTransform is not { Count: > 0 } layers)
            {
                return true;
            }

            if (config.LayersPattern is not { Count: > 0 } patterns)
            {
                return LayerOf(path, null) is { } layer && layers.Contains(layer);
            }

            // The first pattern that finds a number decides.
            int? found = patterns.Select(pattern => LayerOf(path, pattern)).FirstOrDefault(layer => layer is not null);
            return found is { } index && layers.Contains(index);
        }

        private static int? LayerOf(string path, string? before)
        {
            string[] parts = path.Split('.');
            for (int i = 2; i < parts.Length - 1; i++)
            {
                bool follows = before is null || EndsWithComponents(string.Join('.', parts[1..i]), before);
                if (follows && int.TryParse(parts[i], NumberStyles.None, CultureInfo.InvariantCulture, out int layer))
                {
                    return layer;
                }
            }

            return null;
        }
    }
}
