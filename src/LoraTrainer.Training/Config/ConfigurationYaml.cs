using System.Globalization;
using System.Text;
using YamlDotNet.Core;
using YamlDotNet.Core.Events;

namespace LoraTrainer.Training.Config;

/// <summary>
/// Turns YAML text into nodes and back. What a configuration does not need is refused: several documents, tags, merge keys, keys given twice,
/// deep nesting, and aliases that blow up.
/// </summary>
internal static class ConfigurationYaml
{
    private const int MaximumDepth = 16;
    private const long MaximumNodes = 20_000;
    private const int MaximumCharacters = 1 << 20;

    /// <summary>
    /// Reads one document. Problems go to <paramref name="issues"/>; null when nothing could be read. With a <paramref name="fixedLocation"/>, as a
    /// value from the command line has one, all nodes stand there.
    /// </summary>
    public static ConfigurationNode? Read(string text, string source, ConfigurationLocation? fixedLocation, IssueCollector issues)
    {
        var whole = fixedLocation ?? new ConfigurationLocation(source, 0);
        if (text.Length > MaximumCharacters)
        {
            issues.Wrong("", whole, $"The configuration has {text.Length:N0} characters, more than {MaximumCharacters:N0} ({whole}). Is this the right file?");
            return null;
        }

        try
        {
            return new Reader(text, source, fixedLocation, issues).ReadDocument();
        }
        catch (YamlException exception)
        {
            var location = fixedLocation ?? new ConfigurationLocation(source, (int)exception.Start.Line);
            string reason = exception.Message.ReplaceLineEndings(" ").TrimEnd('.');
            issues.Wrong("", location, $"This is not valid YAML: {reason} ({location}). Tabs, a missing space after a colon and unbalanced quotes are the usual causes.");
            return null;
        }
    }

    /// <summary>Block style, two spaces, one final line feed; the same nodes give the same text always.</summary>
    public static string Write(ConfigurationNode mapping)
    {
        StringBuilder text = new();
        WriteEntries(text, mapping, 0, firstIsIndented: false);
        return text.ToString();
    }

    /// <summary>The value on one line.</summary>
    public static string WriteInline(ConfigurationNode node) => node.Kind switch
    {
        NodeKind.Sequence => $"[{string.Join(", ", node.Items.Select(WriteInline))}]",
        NodeKind.Mapping => $"{{{string.Join(", ", node.Entries.Select(entry => $"{WriteText(entry.Key)}: {WriteInline(entry.Value)}"))}}}",
        _ => node.IsPlain ? node.Text : WriteText(node.Text),
    };

    private static void WriteEntries(StringBuilder text, ConfigurationNode mapping, int indent, bool firstIsIndented)
    {
        bool first = firstIsIndented;
        foreach (ConfigurationEntry entry in mapping.Entries)
        {
            text.Append(' ', first ? 0 : indent).Append(WriteText(entry.Key)).Append(':');
            first = false;
            ConfigurationNode value = entry.Value;
            if (value.Kind == NodeKind.Mapping && value.Entries.Count > 0)
            {
                text.Append('\n');
                WriteEntries(text, value, indent + 2, firstIsIndented: false);
            }
            else if (value.Kind == NodeKind.Sequence && value.Items.Any(item => item.Kind == NodeKind.Mapping))
            {
                text.Append('\n');
                foreach (ConfigurationNode item in value.Items)
                {
                    text.Append(' ', indent + 2).Append("- ");
                    WriteEntries(text, item, indent + 4, firstIsIndented: true);
                }
            }
            else
            {
                text.Append(' ').Append(WriteInline(value)).Append('\n');
            }
        }
    }

    /// <summary>Bare where no reader could take it for something else, double quotes otherwise.</summary>
    private static string WriteText(string value)
    {
        bool bare = value.Length > 0 && (char.IsAsciiLetter(value[0]) || value[0] is '/' or '_')
            && value.All(character => char.IsAsciiLetterOrDigit(character) || character is '_' or '-' or '/' or '.')
            && value.ToLowerInvariant() is not ("true" or "false" or "null" or "yes" or "no" or "on" or "off" or "y" or "n");
        if (bare)
        {
            return value;
        }

        StringBuilder quoted = new("\"");
        foreach (char character in value)
        {
            _ = character switch
            {
                '"' => quoted.Append("\\\""),
                '\\' => quoted.Append("\\\\"),
                '\n' => quoted.Append("\\n"),
                '\t' => quoted.Append("\\t"),
                < ' ' or (>= '\x7f' and <= '\xa0') or '\u2028' or '\u2029' or '\ufeff' => quoted.Append(CultureInfo.InvariantCulture, $"\\u{(int)character:x4}"),
                _ => quoted.Append(character),
            };
        }

        return quoted.Append('"').ToString();
    }

    /// <summary>Reads the parser's events; depth is bounded, so recursion is.</summary>
    private sealed class Reader(string text, string source, ConfigurationLocation? fixedLocation, IssueCollector issues)
    {
        private readonly Parser parser = new(new StringReader(text));
        private readonly Dictionary<string, ConfigurationNode> anchors = [];
        private long aliasedNodes;

        public ConfigurationNode? ReadDocument()
        {
            Advance();
            Advance();
            if (parser.Current is StreamEnd or null)
            {
                return ConfigurationNode.Mapping([], new ConfigurationLocation(source, 0));
            }

            Advance();
            ConfigurationNode? root = ReadNode(0);
            if (root is null)
            {
                return null;
            }

            if (Advance() && parser.Current is DocumentStart second)
            {
                ConfigurationLocation location = At(second);
                issues.Wrong("", location, $"A second YAML document starts here ({location}). Write one configuration per file.");
            }

            return root;
        }

        /// <summary>Reads the node at the current event and moves behind it. Null: what follows cannot be read; an issue says why.</summary>
        private ConfigurationNode? ReadNode(int depth)
        {
            ParsingEvent current = parser.Current!;
            ConfigurationLocation location = At(current);
            if (depth > MaximumDepth)
            {
                issues.Wrong("", location, $"The configuration is nested more than {MaximumDepth} levels deep ({location}). No key needs that.");
                return null;
            }

            if (current is NodeEvent { Tag.IsEmpty: false, Tag.IsNonSpecific: false } tagged)
            {
                issues.Wrong("", location, $"The YAML tag {tagged.Tag} is not understood here ({location}). Write the plain value.");
            }

            ConfigurationNode? node;
            switch (current)
            {
                case AnchorAlias alias:
                    Advance();
                    if (!anchors.TryGetValue(alias.Value.Value, out node))
                    {
                        issues.Wrong("", location, $"The alias *{alias.Value.Value} names no anchor above it ({location}). Write &{alias.Value.Value} before the value it stands for.");
                        return ConfigurationNode.Scalar("", true, location);
                    }

                    aliasedNodes += node.Size;
                    if (aliasedNodes > MaximumNodes)
                    {
                        issues.Wrong("", location, $"The aliases stand for more than {MaximumNodes:N0} values ({location}). Write the values out.");
                        return null;
                    }

                    return node;

                case Scalar scalar:
                    Advance();
                    node = ConfigurationNode.Scalar(scalar.Value, scalar.Style == ScalarStyle.Plain, location);
                    break;

                case SequenceStart:
                    Advance();
                    node = ReadSequence(depth, location);
                    break;

                default:
                    Advance();
                    node = ReadMapping(depth, location);
                    break;
            }

            // Only a finished node has a name, so that none can contain itself.
            if (node is not null && current is NodeEvent { Anchor.IsEmpty: false } anchored)
            {
                anchors[anchored.Anchor.Value] = node;
            }

            return node;
        }

        private ConfigurationNode? ReadSequence(int depth, ConfigurationLocation location)
        {
            List<ConfigurationNode> items = [];
            while (parser.Current is not SequenceEnd)
            {
                if (ReadNode(depth + 1) is not { } item)
                {
                    return null;
                }

                items.Add(item);
            }

            Advance();
            return ConfigurationNode.Sequence(items, location);
        }

        private ConfigurationNode? ReadMapping(int depth, ConfigurationLocation location)
        {
            List<ConfigurationEntry> entries = [];
            Dictionary<string, ConfigurationLocation> seen = [];
            while (parser.Current is not MappingEnd)
            {
                ConfigurationLocation keyLocation = At(parser.Current!);
                string? key = (parser.Current as Scalar)?.Value;
                if (key is null)
                {
                    issues.Wrong("", keyLocation, $"A key must be a plain word ({keyLocation}).");
                    return null;
                }

                Advance();
                if (ReadNode(depth + 1) is not { } value)
                {
                    return null;
                }

                if (key == "<<")
                {
                    issues.Wrong(key, keyLocation, $"The merge key << is not supported ({keyLocation}). Write the keys out.");
                }
                else if (!seen.TryAdd(key, keyLocation))
                {
                    issues.Wrong(key, keyLocation, $"{key} is given twice ({seen[key]} and {keyLocation}). Keep one.");
                }
                else
                {
                    entries.Add(new ConfigurationEntry(key, keyLocation, value));
                }
            }

            Advance();
            return ConfigurationNode.Mapping(entries, location);
        }

        /// <summary>The next event. What the parser throws by mistake on damaged text is a syntax error all the same.</summary>
        private bool Advance()
        {
            Mark position = parser.Current?.End ?? Mark.Empty;
            try
            {
                return parser.MoveNext();
            }
            catch (Exception exception) when (exception is InvalidOperationException or ArgumentException or FormatException or OverflowException or IndexOutOfRangeException)
            {
                throw new YamlException(position, position, "what follows cannot be read", exception);
            }
        }

        private ConfigurationLocation At(ParsingEvent parsed) => fixedLocation ?? new ConfigurationLocation(source, (int)parsed.Start.Line);
    }
}
