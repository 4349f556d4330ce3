using System.Text.RegularExpressions;

namespace LoraTrainer.Storage;

public enum HubKind
{
    Model,
    Dataset,
}

/// <summary>A repository of a model hub at a revision.</summary>
/// <param name="Kind">What is in it.</param>
/// <param name="Name">org/name.</param>
/// <param name="Revision">A branch, a tag or a commit.</param>
public sealed partial record HubRepository(HubKind Kind, string Name, string Revision = HubRepository.DefaultRevision)
{
    public const string DefaultRevision = "main";

    private const int LongestName = 96;

    /// <summary>
    /// True for text that can be a repository's name: two parts of letters, digits, '-', '_' and '.'. A path that begins with '/', './', '../' or '~', a URI and a single word never are. That a
    /// folder of that name exists is not looked at here; it goes before the hub.
    /// </summary>
    public static bool IsName(string text) => text.Length <= LongestName && NameShape().IsMatch(text) && !text.Contains("--", StringComparison.Ordinal) && !text.Contains("..", StringComparison.Ordinal)
        && !text.EndsWith(".git", StringComparison.Ordinal);

    /// <summary>True for text that can be a branch, a tag or a commit and reaches nowhere else as a path.</summary>
    public static bool IsRevision(string text) => text.Length <= 200 && RevisionShape().IsMatch(text) && !text.Contains("..", StringComparison.Ordinal) && !text.Contains("//", StringComparison.Ordinal) && !text.EndsWith('/');

    /// <summary>As messages call it.</summary>
    public override string ToString() => Revision == DefaultRevision ? Name : $"{Name} at {Revision}";

    /// <summary>The folder of the cache: models--org--name.</summary>
    internal string FolderName => $"{(Kind == HubKind.Model ? "models" : "datasets")}--{Name.Replace("/", "--", StringComparison.Ordinal)}";

    /// <summary>Behind the server's address, for files.</summary>
    internal string UrlPath => Kind == HubKind.Model ? Name : $"datasets/{Name}";

    internal string ApiPath => Kind == HubKind.Model ? $"api/models/{Name}" : $"api/datasets/{Name}";

    /// <summary>True for 40 hexadecimal digits, which name the same files for ever.</summary>
    public static bool IsCommit(string text) => text.Length == 40 && text.All(char.IsAsciiHexDigitLower);

    [GeneratedRegex(@"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*(?<![.-])\z", RegexOptions.CultureInvariant)]
    private static partial Regex NameShape();

    [GeneratedRegex(@"^[A-Za-z0-9_][A-Za-z0-9._/-]*\z", RegexOptions.CultureInvariant)]
    private static partial Regex RevisionShape();
}
