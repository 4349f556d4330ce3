using System.Globalization;
using System.Text.RegularExpressions;

namespace LoraTrainer.Training.Config;

/// <summary>How one kind of value is read strictly, written back, and named in the documentation.</summary>
internal abstract class ValueKind<T>
{
    /// <summary>The type as the documentation shows it.</summary>
    public abstract string TypeText { get; }

    /// <summary>Keys inside the value, with what stands between the outer name and theirs.</summary>
    public virtual IEnumerable<(string Prefix, ConfigurationKey Key)> InnerKeys => [];

    /// <summary>False: the value does not fit and an issue was added.</summary>
    public abstract bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out T value);

    public abstract ConfigurationNode Write(T value);
}

/// <summary>Whole numbers between two bounds.</summary>
internal sealed class WholeNumber(long minimum, long maximum = int.MaxValue) : ValueKind<long>
{
    private string Range => maximum >= int.MaxValue ? $"{minimum} or more" : $"{minimum}..{maximum}";

    public override string TypeText => $"whole number, {Range}";

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out long value)
    {
        value = 0;
        if (node.Kind != NodeKind.Scalar || !node.IsPlain || !Numbers.IsWhole(node.Text))
        {
            issues.MustBe(path, node, $"a whole number ({Range})", Numbers.Hint(node, hint));
            return false;
        }

        if (!long.TryParse(node.Text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out value) || value < minimum || value > maximum)
        {
            issues.MustBe(path, node, Range, hint);
            return false;
        }

        return true;
    }

    public override ConfigurationNode Write(long value) => ConfigurationNode.Scalar(value.ToString(CultureInfo.InvariantCulture), plain: true);
}

/// <summary>Numbers that pass a test, which is also said in words.</summary>
internal sealed class RealNumber(string range, Func<double, bool> fits) : ValueKind<double>
{
    public override string TypeText => $"number, {range}";

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out double value)
    {
        value = 0;
        if (node.Kind != NodeKind.Scalar || !node.IsPlain || !Numbers.IsNumber(node.Text))
        {
            issues.MustBe(path, node, $"a number ({range})", Numbers.Hint(node, hint));
            return false;
        }

        value = double.Parse(node.Text, NumberStyles.Float, CultureInfo.InvariantCulture);
        if (!double.IsFinite(value) || !fits(value))
        {
            issues.MustBe(path, node, range, hint);
            return false;
        }

        return true;
    }

    public override ConfigurationNode Write(double value) =>
        ConfigurationNode.Scalar(value.ToString("R", CultureInfo.InvariantCulture).Replace('E', 'e'), plain: true);
}

/// <summary>Amounts of money: decimal, never binary.</summary>
internal sealed class Money : ValueKind<decimal>
{
    public override string TypeText => "amount, 0 or more";

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out decimal value)
    {
        value = 0;
        bool written = node.Kind == NodeKind.Scalar && Numbers.IsNumber(node.Text);
        if (!written || !decimal.TryParse(node.Text, NumberStyles.Float, CultureInfo.InvariantCulture, out value) || value < 0)
        {
            issues.MustBe(path, node, "an amount (0 or more)", Numbers.Hint(node, hint));
            return false;
        }

        return true;
    }

    public override ConfigurationNode Write(decimal value) => ConfigurationNode.Scalar(value.ToString(CultureInfo.InvariantCulture), plain: true);
}

internal sealed class TruthValue : ValueKind<bool>
{
    public override string TypeText => "true or false";

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out bool value)
    {
        value = node.IsTrue;
        if (value || node.IsFalse)
        {
            return true;
        }

        issues.MustBe(path, node, "true or false", hint);
        return false;
    }

    public override ConfigurationNode Write(bool value) => ConfigurationNode.Scalar(value ? "true" : "false", plain: true);
}

/// <summary>Any text; a bare number is text too.</summary>
internal sealed class Text(string typeText = "text", string expected = "a text", Func<string, bool>? fits = null) : ValueKind<string>
{
    public override string TypeText => typeText;

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out string value)
    {
        value = node.Text;
        if (node.Kind == NodeKind.Scalar && fits?.Invoke(node.Text) is not false)
        {
            return true;
        }

        issues.MustBe(path, node, expected, hint);
        return false;
    }

    public override ConfigurationNode Write(string value) => ConfigurationNode.Scalar(value, plain: false);
}

/// <summary>One of some words, several of which may mean the same; the first word for a meaning is the one that is written.</summary>
internal sealed class Choice<T>(params (string Word, T Meaning)[] words) : ValueKind<T>
    where T : struct, Enum
{
    /// <summary>Words that are understood but do not have to be shown in messages.</summary>
    public IReadOnlyList<string> Hidden { get; init; } = [];

    /// <summary>The next step for a wrong word that people are known to write, in whole sentences; null for others.</summary>
    public Func<string, string?>? Advice { get; init; }

    private string Shown => string.Join(", ", words.Select(word => word.Word).Where(word => word != "null" && !Hidden.Contains(word)));

    public override string TypeText => $"one of: {Shown}{(words.Any(word => word.Word == "null") ? ", or empty" : "")}";

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out T value)
    {
        foreach ((string word, T meaning) in words)
        {
            if (node.Kind == NodeKind.Scalar && (node.Text == word || (word is "true" && node.IsTrue) || (word is "false" && node.IsFalse)))
            {
                value = meaning;
                return true;
            }
        }

        value = default;
        issues.MustBe(path, node, $"one of {Shown}", (node.Kind == NodeKind.Scalar ? Advice?.Invoke(node.Text) ?? Suggestions.DidYouMean(node.Text, words.Select(word => word.Word)) : null) ?? hint);
        return false;
    }

    public override ConfigurationNode Write(T value) =>
        ConfigurationNode.Scalar(words.First(word => EqualityComparer<T>.Default.Equals(word.Meaning, value)).Word, plain: true);
}

/// <summary>A value that may be absent.</summary>
internal sealed class Optional<T>(ValueKind<T> kind) : ValueKind<T?>
    where T : struct
{
    public override string TypeText => kind.TypeText;

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out T? value)
    {
        bool read = kind.TryRead(node, path, hint, issues, out T present);
        value = present;
        return read;
    }

    public override ConfigurationNode Write(T? value) => value is { } present ? kind.Write(present) : ConfigurationNode.Scalar("null", plain: true);
}

/// <summary>A text, path or record that may be absent.</summary>
internal sealed class OptionalReference<T>(ValueKind<T> kind) : ValueKind<T?>
    where T : class
{
    public override string TypeText => kind.TypeText;

    public override IEnumerable<(string Prefix, ConfigurationKey Key)> InnerKeys => kind.InnerKeys;

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out T? value)
    {
        bool read = kind.TryRead(node, path, hint, issues, out T present);
        value = present;
        return read;
    }

    public override ConfigurationNode Write(T? value) => value is null ? ConfigurationNode.Scalar("null", plain: true) : kind.Write(value);
}

internal sealed class ListOf<T>(ValueKind<T> item, string itemsText) : ValueKind<EquatableList<T>>
{
    public override string TypeText => $"list of {itemsText}";

    public override IEnumerable<(string Prefix, ConfigurationKey Key)> InnerKeys => item.InnerKeys.Select(inner => ("[]" + inner.Prefix, inner.Key));

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out EquatableList<T> value)
    {
        value = [];
        if (node.Kind != NodeKind.Sequence)
        {
            issues.MustBe(path, node, $"a list of {itemsText}", hint);
            return false;
        }

        List<T> items = [];
        for (int i = 0; i < node.Items.Count; i++)
        {
            if (item.TryRead(node.Items[i], $"{path}[{i}]", hint, issues, out T read))
            {
                items.Add(read);
            }
        }

        value = new EquatableList<T>([.. items]);
        return items.Count == node.Items.Count;
    }

    public override ConfigurationNode Write(EquatableList<T> value) => ConfigurationNode.Sequence([.. value.Select(item.Write)]);
}

/// <summary>A list of texts, or one text in its place.</summary>
internal sealed class OneOrMore(ValueKind<string> item, string itemsText) : ValueKind<EquatableList<string>>
{
    private readonly ListOf<string> list = new(item, itemsText);

    public override string TypeText => list.TypeText;

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out EquatableList<string> value)
    {
        if (node.Kind != NodeKind.Scalar || node.IsNull)
        {
            return list.TryRead(node, path, hint, issues, out value);
        }

        bool isRight = item.TryRead(node, path, hint, issues, out string one);
        value = isRight ? [one] : [];
        return isRight;
    }

    public override ConfigurationNode Write(EquatableList<string> value) => list.Write(value);
}

/// <summary>Free names with values; kept in the order of the names.</summary>
internal sealed class MapOf<T>(ValueKind<T> valueKind, string valuesText) : ValueKind<EquatableList<KeyValuePair<string, T>>>
{
    public override string TypeText => $"mapping of names to {valuesText}";

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out EquatableList<KeyValuePair<string, T>> value)
    {
        value = [];
        if (node.Kind != NodeKind.Mapping)
        {
            issues.MustBe(path, node, $"a mapping of names to {valuesText}", hint);
            return false;
        }

        SortedDictionary<string, T> pairs = new(StringComparer.Ordinal);
        foreach (ConfigurationEntry entry in node.Entries)
        {
            if (valueKind.TryRead(entry.Value, $"{path}.{entry.Key}", hint, issues, out T read))
            {
                pairs[entry.Key] = read;
            }
        }

        value = new EquatableList<KeyValuePair<string, T>>([.. pairs]);
        return pairs.Count == node.Entries.Count;
    }

    public override ConfigurationNode Write(EquatableList<KeyValuePair<string, T>> value) =>
        ConfigurationNode.Mapping([.. value.Select(pair => new ConfigurationEntry(pair.Key, default, valueKind.Write(pair.Value)))]);
}

/// <summary>A mapping with the keys of one record. Unknown keys are refused with a suggestion.</summary>
internal sealed class RecordOf<T>(T initial, params ConfigurationKey<T>[] keys) : ValueKind<T>
{
    /// <summary>Keys that other trainers know in this place.</summary>
    public ForeignKeys Foreign { get; init; } = ForeignKeys.None;

    public IReadOnlyList<ConfigurationKey<T>> Keys => keys;

    public T Initial => initial;

    public override string TypeText => "mapping";

    public override IEnumerable<(string Prefix, ConfigurationKey Key)> InnerKeys => keys.Select(key => (".", (ConfigurationKey)key));

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out T value)
    {
        value = initial;
        if (node.Kind != NodeKind.Mapping)
        {
            issues.MustBe(path, node, "a mapping of keys and values", hint);
            return false;
        }

        bool fits = true;
        foreach (ConfigurationEntry entry in node.Entries)
        {
            string inner = path.Length == 0 ? entry.Key : $"{path}.{entry.Key}";
            ConfigurationKey<T>? key = Array.Find(keys, candidate => candidate.Name == entry.Key);
            if (key is null)
            {
                if (!Foreign.TryHandle(entry, inner, issues))
                {
                    Suggestions.ReportUnknown(entry, path, keys.Select(candidate => candidate.Name).Concat(Foreign.Names), issues);
                    fits = false;
                }
            }
            else if (!entry.Value.IsNull)
            {
                issues.MarkGiven(inner, entry.Value.Location);
                FeatureState.Check(inner, entry.Value, issues);
                fits &= key.Read(entry.Value, inner, issues, ref value);
            }
        }

        return fits;
    }

    public override ConfigurationNode Write(T value) => ConfigurationNode.Mapping(
        [.. keys.Where(key => key.AppliesTo(value)).Select(key => new ConfigurationEntry(key.Name, default, key.Write(value)))]);
}

/// <summary>axolotl's <c>type</c> of a dataset: a word, or a block of fields.</summary>
internal sealed class DatasetFormatValue(RecordOf<CustomFormat> block) : ValueKind<DatasetFormatOptions>
{
    private static readonly Choice<DatasetFormatKind> Words = new(
        ("auto", DatasetFormatKind.Auto),
        ("alpaca", DatasetFormatKind.Alpaca),
        ("completion", DatasetFormatKind.Completion),
        ("input_output", DatasetFormatKind.InputOutput),
        ("chat_template", DatasetFormatKind.ChatTemplate),
        ("sharegpt", DatasetFormatKind.ChatTemplate));

    public override string TypeText => "auto, alpaca, completion, input_output, chat_template, or a block with the keys below";

    public override IEnumerable<(string Prefix, ConfigurationKey Key)> InnerKeys => block.InnerKeys;

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out DatasetFormatOptions value)
    {
        value = new DatasetFormatOptions();
        if (node.Kind == NodeKind.Mapping)
        {
            bool fits = block.TryRead(node, path, hint, issues, out CustomFormat custom);
            value = new DatasetFormatOptions { Kind = DatasetFormatKind.Custom, Custom = custom };
            return fits;
        }

        if (node.Kind == NodeKind.Scalar && Words.TryRead(node, path, "", new IssueCollector(), out DatasetFormatKind kind))
        {
            value = new DatasetFormatOptions { Kind = kind };
            return true;
        }

        issues.MustBe(path, node, "auto, alpaca, completion, input_output, chat_template, or a block such as {field_instruction: question, field_output: answer, format: \"{instruction}\"}", hint);
        return false;
    }

    public override ConfigurationNode Write(DatasetFormatOptions value) => value.Custom is { } custom ? block.Write(custom) : Words.Write(value.Kind);
}

/// <summary>The word none, or a block that says what is done at the end.</summary>
internal sealed class FinishValue(RecordOf<FinishOptions> block) : ValueKind<FinishOptions>
{
    private const string None = "none";

    public override string TypeText => "none, or a block with the key below";

    public override IEnumerable<(string Prefix, ConfigurationKey Key)> InnerKeys => block.InnerKeys;

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out FinishOptions value)
    {
        value = new FinishOptions();
        if (node.Kind == NodeKind.Mapping)
        {
            return block.TryRead(node, path, hint, issues, out value);
        }

        if (node.Kind == NodeKind.Scalar && node.Text == None)
        {
            return true;
        }

        issues.MustBe(path, node, "none, or a block such as {command: sudo shutdown -h now}", hint);
        return false;
    }

    public override ConfigurationNode Write(FinishOptions value) => value.Command is null ? new Text().Write(None) : block.Write(value);
}

/// <summary>PEFT's target_modules: a list of names, or one regular expression.</summary>
internal sealed class TargetsValue : ValueKind<(EquatableList<string> Names, string? Pattern)>
{
    private static readonly ListOf<string> Names = new(new Text(expected: "a module name", fits: name => name.Length > 0), "module names");

    public override string TypeText => "list of module names, or a regular expression";

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out (EquatableList<string> Names, string? Pattern) value)
    {
        value = ([], null);
        if (node.Kind != NodeKind.Scalar)
        {
            bool read = Names.TryRead(node, path, hint, issues, out EquatableList<string> names);
            value = (names, null);
            return read;
        }

        // A pattern must match a whole path, so a bare name or names with commas would match nothing at all.
        if (node.Text.All(character => char.IsAsciiLetterOrDigit(character) || character is '_' or ',' or ' '))
        {
            string names = string.Join(", ", node.Text.Split([',', ' '], StringSplitOptions.RemoveEmptyEntries));
            issues.MustBe(path, node, "a list of module names, or a regular expression for a whole path", $"Write [{(names.Length > 0 ? names : "q_proj, v_proj")}].");
            return false;
        }

        value = ([], node.Text);
        try
        {
            _ = new Regex(node.Text, RegexOptions.CultureInvariant);
            return true;
        }
        catch (ArgumentException exception)
        {
            string reason = exception.Message.ReplaceLineEndings(" ").TrimEnd('.');
            issues.MustBe(path, node, "a list of module names or a valid regular expression", $"{reason}. Example: [q_proj, v_proj].");
            return false;
        }
    }

    public override ConfigurationNode Write((EquatableList<string> Names, string? Pattern) value) =>
        value.Pattern is not null ? ConfigurationNode.Scalar(value.Pattern, plain: false)
        : value.Names.Count > 0 ? Names.Write(value.Names)
        : ConfigurationNode.Scalar("null", plain: true);
}

/// <summary>What is watched: auto, none, or a list of sources.</summary>
internal sealed class SourcesValue : ValueKind<InterruptionSources>
{
    private static readonly Choice<InterruptionSources> Alone = new(("auto", InterruptionSources.Auto), ("none", InterruptionSources.None));

    private static readonly Choice<InterruptionSources> Listed = new(
        ("aws", InterruptionSources.Aws),
        ("gcp", InterruptionSources.Gcp),
        ("azure", InterruptionSources.Azure),
        ("file", InterruptionSources.File),
        ("signals", InterruptionSources.Signals));

    private static readonly ListOf<InterruptionSources> Several = new(Listed, "sources");

    public override string TypeText => "auto, none, or a list of: aws, gcp, azure, file, signals";

    public override bool TryRead(ConfigurationNode node, string path, string hint, IssueCollector issues, out InterruptionSources value)
    {
        if (node.Kind == NodeKind.Sequence)
        {
            bool read = Several.TryRead(node, path, hint, issues, out EquatableList<InterruptionSources> listed);
            value = listed.Aggregate(InterruptionSources.None, (all, one) => all | one);
            return read;
        }

        IssueCollector unused = new();
        if (Alone.TryRead(node, path, hint, unused, out value) || Listed.TryRead(node, path, hint, unused, out value))
        {
            return true;
        }

        issues.MustBe(path, node, "auto, none, or a list of aws, gcp, azure, file, signals", hint);
        return false;
    }

    public override ConfigurationNode Write(InterruptionSources value) => value is InterruptionSources.Auto or InterruptionSources.None
        ? Alone.Write(value)
        : Several.Write([.. Enum.GetValues<InterruptionSources>().Where(source => source is not InterruptionSources.None && value.HasFlag(source))]);
}

/// <summary>YAML's numbers, strictly: what one reader takes for a number and another for text is refused.</summary>
internal static partial class Numbers
{
    public static bool IsWhole(string text) => WholePattern().IsMatch(text);

    public static bool IsNumber(string text) => NumberPattern().IsMatch(text);

    /// <summary>The usual reason why a number is none, else the hint of the key.</summary>
    public static string Hint(ConfigurationNode node, string hint) =>
        node.Kind != NodeKind.Scalar ? hint
        : !node.IsPlain && IsNumber(node.Text) ? "Remove the quotes."
        : node.Text.Contains('_', StringComparison.Ordinal) && IsNumber(node.Text.Replace("_", "", StringComparison.Ordinal)) ? "Write the digits without underscores."
        : hint;

    [GeneratedRegex(@"\A[-+]?(0|[1-9][0-9]*)\z")]
    private static partial Regex WholePattern();

    [GeneratedRegex(@"\A[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?\z")]
    private static partial Regex NumberPattern();
}
