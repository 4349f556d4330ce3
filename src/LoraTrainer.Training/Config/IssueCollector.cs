namespace LoraTrainer.Training.Config;

/// <summary>Collects every problem of one configuration, so that all are told at once, and remembers which keys were given.</summary>
internal sealed class IssueCollector
{
    private readonly List<ConfigurationIssue> issues = [];
    private readonly Dictionary<string, ConfigurationLocation> given = new(StringComparer.Ordinal);

    /// <summary>The file (or what stands for it), for problems that have no line.</summary>
    public ConfigurationLocation Whole { get; init; }

    public bool HasWrong => issues.Exists(issue => issue.Kind == ConfigurationIssueKind.Wrong);

    public void Wrong(string key, ConfigurationLocation location, string message) => Add(ConfigurationIssueKind.Wrong, key, location, message);

    public void NotSupportedYet(string key, ConfigurationLocation location, string message) => Add(ConfigurationIssueKind.NotSupportedYet, key, location, message);

    public void Warning(string key, ConfigurationLocation location, string message) => Add(ConfigurationIssueKind.Warning, key, location, message);

    public void Notice(string key, ConfigurationLocation location, string message) => Add(ConfigurationIssueKind.Notice, key, location, message);

    /// <summary>The sentence for a value that does not fit. The hint is a next step in whole sentences, or empty.</summary>
    public void MustBe(string key, ConfigurationNode node, string expected, string hint) =>
        Wrong(key, node.Location, $"{key} must be {expected}, got {node.Describe()} ({node.Location}).{(hint.Length > 0 ? " " + hint : "")}");

    public void MarkGiven(string key, ConfigurationLocation location) => given[key] = location;

    public bool IsGiven(string key) => given.ContainsKey(key);

    /// <summary>Where the key stands, else the whole file.</summary>
    public ConfigurationLocation Where(string key) => given.TryGetValue(key, out ConfigurationLocation location) ? location : Whole;

    public IEnumerable<string> Given => given.Keys;

    /// <summary>Issues of these kinds by their place, in the order of the file.</summary>
    public IReadOnlyList<ConfigurationIssue> Sorted(params ReadOnlySpan<ConfigurationIssueKind> kinds)
    {
        HashSet<ConfigurationIssueKind> wanted = [.. kinds];
        return [.. issues.Where(issue => wanted.Contains(issue.Kind)).OrderBy(issue => issue.Location.Line == 0).ThenBy(issue => issue.Location.Line)];
    }

    private void Add(ConfigurationIssueKind kind, string key, ConfigurationLocation location, string message) =>
        issues.Add(new ConfigurationIssue(kind, key, location, message));
}
