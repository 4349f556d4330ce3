namespace LoraTrainer.Training.Config;

internal enum NodeKind
{
    Scalar,
    Sequence,
    Mapping,
}

/// <summary>A key and its value in a mapping.</summary>
internal readonly record struct ConfigurationEntry(string Key, ConfigurationLocation Location, ConfigurationNode Value);

/// <summary>A value of the file or of <c>--set</c>, not yet understood, with its place. Immutable; nodes behind a YAML anchor are shared.</summary>
internal sealed class ConfigurationNode
{
    private ConfigurationNode(NodeKind kind, ConfigurationLocation location)
    {
        Kind = kind;
        Location = location;
    }

    public NodeKind Kind { get; }

    public ConfigurationLocation Location { get; }

    /// <summary>A scalar's text.</summary>
    public string Text { get; private init; } = "";

    /// <summary>The scalar is not quoted, so it may be a number, a truth value or nothing at all.</summary>
    public bool IsPlain { get; private init; }

    public IReadOnlyList<ConfigurationNode> Items { get; private init; } = [];

    public IReadOnlyList<ConfigurationEntry> Entries { get; private init; } = [];

    /// <summary>Nodes in here, counting a shared one each time it is used.</summary>
    public long Size { get; private init; } = 1;

    /// <summary>Written as nothing: the default counts.</summary>
    public bool IsNull => Kind == NodeKind.Scalar && IsPlain && Text is "" or "~" or "null" or "Null" or "NULL";

    /// <summary>Nothing, false, or empty: a key of another trainer with such a value asks for nothing.</summary>
    public bool IsOff => IsNull || IsFalse || (Kind == NodeKind.Scalar && Text.Length == 0) || (Kind != NodeKind.Scalar && Items.Count + Entries.Count == 0);

    public bool IsFalse => Kind == NodeKind.Scalar && IsPlain && Text is "false" or "False" or "FALSE";

    public bool IsTrue => Kind == NodeKind.Scalar && IsPlain && Text is "true" or "True" or "TRUE";

    public static ConfigurationNode Scalar(string text, bool plain, ConfigurationLocation location = default) =>
        new(NodeKind.Scalar, location) { Text = text, IsPlain = plain };

    public static ConfigurationNode Sequence(IReadOnlyList<ConfigurationNode> items, ConfigurationLocation location = default) =>
        new(NodeKind.Sequence, location) { Items = items, Size = 1 + items.Sum(item => item.Size) };

    public static ConfigurationNode Mapping(IReadOnlyList<ConfigurationEntry> entries, ConfigurationLocation location = default) =>
        new(NodeKind.Mapping, location) { Entries = entries, Size = 1 + entries.Sum(entry => entry.Value.Size) };

    public ConfigurationNode? Find(string key)
    {
        foreach (ConfigurationEntry entry in Entries)
        {
            if (entry.Key == key)
            {
                return entry.Value;
            }
        }

        return null;
    }

    /// <summary>The value as a person would say it.</summary>
    public string Describe()
    {
        if (Kind != NodeKind.Scalar)
        {
            return Kind == NodeKind.Sequence ? "a list" : "a mapping";
        }

        if (IsNull)
        {
            return "nothing";
        }

        string text = Text.Length > 60 ? string.Concat(Text.AsSpan(0, 57), "...") : Text;
        text = string.Create(text.Length, text, (span, source) =>
        {
            for (int i = 0; i < span.Length; i++)
            {
                span[i] = char.IsControl(source[i]) ? ' ' : source[i];
            }
        });
        return IsPlain ? text : $"the text \"{text}\"";
    }
}
