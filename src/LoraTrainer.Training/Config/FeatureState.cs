namespace LoraTrainer.Training.Config;

/// <summary>
/// Values that are right but whose feature this build does not have. One row each: when the feature arrives, its row is deleted and nothing else
/// changes.
/// </summary>
internal static class FeatureState
{
    // Before the rows, which use them.
    private static readonly Condition IsOn = new(node => !node.IsOff, "any value");
    private static readonly Condition HasEntries = new(node => !node.IsOff && node.Entries.Count + node.Items.Count > 0, "any value");

    private static readonly (string Key, Condition When, string What, string Instead)[] Missing =
    [
        ("resume_from_checkpoint", IsOn, "Starting from a chosen checkpoint", "Use lora-trainer resume, which takes the newest intact one."),
        ("base_model", StartsWith("s3://", "http://", "https://"), "A model from a store", "Download it and give its folder."),
        ("datasets[].ds_type", Is("arrow"), "This file format", "Convert the file to Parquet or JSON lines."),
        ("test_datasets[].ds_type", Is("arrow"), "This file format", "Convert the file to Parquet or JSON lines."),
    ];

    /// <summary>The keys that have a row.</summary>
    public static IEnumerable<string> Keys => Missing.Select(row => row.Key);

    /// <summary>Adds an issue if this build cannot do what the value asks for.</summary>
    public static void Check(string path, ConfigurationNode node, IssueCollector issues)
    {
        string pattern = ResolvedConfiguration.Pattern(path);
        foreach ((string key, Condition when, string what, string instead) in Missing)
        {
            if (key == pattern && when.Asks(node))
            {
                string got = node.Kind == NodeKind.Scalar ? $"{path}: {node.Text}" : path;
                issues.NotSupportedYet(path, node.Location, $"{what} is not supported yet, got {got} ({node.Location}). {instead}");
            }
        }
    }

    /// <summary>What of the values of a key is not supported yet, for the documentation; empty where all are.</summary>
    public static string ValuesOf(string pattern) => string.Join(", ", Missing.Where(row => row.Key == pattern).Select(row => row.When.Words).Distinct());

    private static Condition Is(params string[] words) => new(node => node.Kind == NodeKind.Scalar && words.Contains(node.Text), string.Join(", ", words.Select(word => $"`{word}`")));

    private static Condition StartsWith(params string[] schemes) => new(
        node => node.Kind == NodeKind.Scalar && Array.Exists(schemes, scheme => node.Text.StartsWith(scheme, StringComparison.OrdinalIgnoreCase)), string.Join(", ", schemes.Select(scheme => $"`{scheme}...`")));

    /// <summary>Which values a row is about: for the parser, and in words.</summary>
    private sealed record Condition(Func<ConfigurationNode, bool> Asks, string Words);
}
