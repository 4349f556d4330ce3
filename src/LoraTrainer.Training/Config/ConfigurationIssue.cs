namespace LoraTrainer.Training.Config;

/// <summary>Where a value stands: a line of a file, a whole file (line 0), or an option of the command line.</summary>
public readonly record struct ConfigurationLocation(string Source, int Line)
{
    public override string ToString() => Line > 0 ? $"{Source}:{Line}" : Source;
}

/// <summary>What kind of problem or remark it is.</summary>
public enum ConfigurationIssueKind
{
    /// <summary>The configuration is wrong.</summary>
    Wrong,

    /// <summary>The configuration is right, but this build cannot do what it asks for.</summary>
    NotSupportedYet,

    /// <summary>Allowed, but probably not meant.</summary>
    Warning,

    /// <summary>How something was understood.</summary>
    Notice,
}

/// <summary>One sentence about one key as it was written. The message is whole: what, got, expected, where, next step.</summary>
public sealed record ConfigurationIssue(ConfigurationIssueKind Kind, string Key, ConfigurationLocation Location, string Message)
{
    public override string ToString() => Message;
}

/// <summary>What came of reading a configuration.</summary>
public sealed record ConfigurationResult
{
    /// <summary>The configuration; null when it is wrong. It is there although <see cref="Errors"/> is not empty when all that is missing is a feature of this build.</summary>
    public required TrainingConfig? Config { get; init; }

    /// <summary>What must change before a run can start.</summary>
    public required IReadOnlyList<ConfigurationIssue> Errors { get; init; }

    public required IReadOnlyList<ConfigurationIssue> Warnings { get; init; }

    /// <summary>How keys of other trainers were understood.</summary>
    public required IReadOnlyList<ConfigurationIssue> Notices { get; init; }

    /// <summary>The configuration, ready to run.</summary>
    /// <exception cref="ConfigurationException">there are errors; it holds all of them</exception>
    public TrainingConfig Require() => Errors.Count == 0 && Config is not null ? Config : throw new ConfigurationException(Errors);
}

/// <summary>The configuration cannot be used. Holds every reason, one sentence each.</summary>
public sealed class ConfigurationException : Exception
{
    public ConfigurationException(IReadOnlyList<ConfigurationIssue> errors)
        : base(string.Join(Environment.NewLine, errors.Select(error => error.Message))) => Errors = errors;

    public IReadOnlyList<ConfigurationIssue> Errors { get; }
}
