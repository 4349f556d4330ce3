using System.Globalization;
using System.Security.Cryptography;

namespace LoraTrainer.Training.Checkpoints;

/// <summary>What another terminal can ask of a run.</summary>
public enum RunRequestKind
{
    /// <summary>Save a checkpoint now and go on.</summary>
    Save,

    /// <summary>Save a checkpoint and stop; automatic restarts leave the run alone then.</summary>
    Stop,
}

/// <summary>A request to the process that works on a run, wherever it is: an empty object whose name says all, removed when it is done.</summary>
/// <param name="Kind">What is asked for.</param>
/// <param name="Name">Of the object; names sort by time.</param>
public sealed record RunRequest(RunRequestKind Kind, string Name)
{
    public static RunRequest New(RunRequestKind kind, DateTimeOffset now) => new(
        kind, string.Create(CultureInfo.InvariantCulture, $"{now.ToUnixTimeMilliseconds():D14}-{kind.ToString().ToLowerInvariant()}-{Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(4))}"));

    /// <summary>Null for an object that is no request.</summary>
    internal static RunRequest? Parse(string name) =>
        name.Split('-') is [_, { Length: > 0 } word, _] && char.IsAsciiLetterLower(word[0]) && Enum.TryParse(word, ignoreCase: true, out RunRequestKind kind) ? new RunRequest(kind, name) : null;
}
