namespace LoraTrainer.Training.Config;

/// <summary>What the documentation needs to know about a key.</summary>
internal abstract class ConfigurationKey(string name, string meaning, string example, string typical)
{
    public string Name => name;

    /// <summary>One sentence or two for a newcomer.</summary>
    public string Meaning => meaning;

    /// <summary>A value that could stand in a file.</summary>
    public string Example => example;

    /// <summary>The next step after a wrong value, as sentences; may be empty.</summary>
    public string Typical => typical;

    /// <summary>Said instead of the initial value, where the default depends on something else.</summary>
    public string? DefaultText { get; init; }

    public abstract string TypeText { get; }

    /// <summary>The value in a fresh record.</summary>
    public abstract ConfigurationNode InitialValue { get; }

    public abstract IEnumerable<(string Prefix, ConfigurationKey Key)> InnerKeys { get; }
}

/// <summary>A key of the record <typeparamref name="TOwner"/>.</summary>
internal abstract class ConfigurationKey<TOwner>(string name, string meaning, string example, string typical)
    : ConfigurationKey(name, meaning, example, typical)
{
    /// <summary>Keys that mean nothing beside others are not written.</summary>
    public Func<TOwner, bool> AppliesTo { get; init; } = _ => true;

    public abstract bool Read(ConfigurationNode node, string path, IssueCollector issues, ref TOwner owner);

    public abstract ConfigurationNode Write(TOwner owner);
}

/// <summary>A key, the kind of its value, and the property that holds it.</summary>
internal sealed class ConfigurationKey<TOwner, T>(
    string name,
    ValueKind<T> kind,
    Func<TOwner, T> get,
    Func<TOwner, T, TOwner> set,
    string meaning,
    string example,
    string typical = "") : ConfigurationKey<TOwner>(name, meaning, example, typical)
    where TOwner : new()
{
    public override string TypeText => kind.TypeText;

    public override ConfigurationNode InitialValue => kind.Write(get(new TOwner()));

    public override IEnumerable<(string Prefix, ConfigurationKey Key)> InnerKeys => kind.InnerKeys;

    public override bool Read(ConfigurationNode node, string path, IssueCollector issues, ref TOwner owner)
    {
        if (!kind.TryRead(node, path, Typical, issues, out T value))
        {
            return false;
        }

        owner = set(owner, value);
        return true;
    }

    public override ConfigurationNode Write(TOwner owner) => kind.Write(get(owner));
}
