using System.Text;

namespace LoraTrainer.Training.Config;

/// <summary>Writes the tables of docs/configuration.md from the table of keys, so that the page cannot say something else than the parser does.</summary>
internal static class ConfigurationReference
{
    /// <summary>One Markdown table for the keys at the top and one for each section.</summary>
    public static string ToMarkdown()
    {
        StringBuilder text = new();
        AppendTable(text, "Keys", "", ConfigurationKeys.Root.Keys.Select(key => (key.Name, (ConfigurationKey)key)));
        foreach (IGrouping<string, (string Path, ConfigurationKey Key)> section in ConfigurationKeys.All
            .Where(key => SectionOf(key.Path).Length > 0 && !key.Path.StartsWith("test_datasets", StringComparison.Ordinal))
            .GroupBy(key => SectionOf(key.Path)))
        {
            AppendTable(text, $"Keys of `{section.Key}`", section.Key + ".", section);
        }

        return text.ToString();
    }

    private static void AppendTable(StringBuilder text, string title, string prefix, IEnumerable<(string Path, ConfigurationKey Key)> keys)
    {
        text.Append("## ").Append(title).Append("\n\n| key | meaning | type | default | example |\n|---|---|---|---|---|\n");
        foreach ((string path, ConfigurationKey key) in keys)
        {
            text.Append("| `").Append(path[prefix.Length..]).Append("` | ").Append(Cell(key.Meaning + NotYet(path, key))).Append(" | ").Append(Cell(key.TypeText)).Append(" | ")
                .Append(Cell(DefaultOf(key))).Append(" | `").Append(Cell(key.Example)).Append("` |\n");
        }

        text.Append('\n');
    }

    /// <summary>Which values are errors for now.</summary>
    private static string NotYet(string path, ConfigurationKey key) => FeatureState.ValuesOf(path) switch
    {
        "" => "",
        "any value" when key.TypeText == "true or false" => " **Not supported yet: `true`.**",
        "any value" => " **Not supported yet.**",
        { } values => $" **Not supported yet: {values}.**",
    };

    private static string DefaultOf(ConfigurationKey key)
    {
        if (key.DefaultText is { } said)
        {
            return said;
        }

        ConfigurationNode value = key.InitialValue;
        return value.Kind == NodeKind.Mapping && value.Entries.Count > 0 ? "see below"
            : value.Kind != NodeKind.Scalar && value.Items.Count + value.Entries.Count == 0 ? "none"
            : $"`{ConfigurationYaml.WriteInline(value)}`";
    }

    private static string SectionOf(string path) => path.LastIndexOf('.') is var dot and >= 0 ? path[..dot] : "";

    private static string Cell(string text) => text.Replace("|", "\\|", StringComparison.Ordinal);
}
