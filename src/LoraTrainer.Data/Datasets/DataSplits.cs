using System.Text.RegularExpressions;

namespace LoraTrainer.Data.Datasets;

/// <summary>
/// Which files of a folder or a repository belong to a part of a data set, by their names (huggingface.co/docs/hub/datasets-file-names-and-splits): the part's name stands in the
/// file's name or in that of a folder above it, apart from other letters and digits; or the file is one of NAME-00000-of-00003. Where no name tells a part, all files are <c>train</c>.
/// </summary>
public static partial class DataSplits
{
    public const string Train = "train";

    private static readonly string[][] Synonyms = [["train", "training"], ["validation", "valid", "dev", "val"], ["test", "testing", "eval", "evaluation"]];

    /// <param name="files">Relative paths with '/'.</param>
    /// <param name="split">train, test, validation, or another name that numbered files have.</param>
    /// <param name="where">The folder or repository, for the sentence.</param>
    /// <exception cref="DatasetException">No file is of that part.</exception>
    public static IReadOnlyList<string> Select(IReadOnlyCollection<string> files, string split, string where)
    {
        (string File, string? Split)[] told = [.. files.Select(file => (file, SplitOf(file)))];
        string[] names = [.. told.Select(item => item.Split).OfType<string>().Distinct(StringComparer.Ordinal).Order(StringComparer.Ordinal)];
        string wanted = Canonical(split);
        if (names.Length == 0 && wanted == Train)
        {
            return [.. files];
        }

        string[] chosen = [.. told.Where(item => item.Split == wanted).Select(item => item.File)];
        return chosen.Length > 0 ? chosen : throw new DatasetException(
            $"{where} has no files of the part '{split}'. {(names.Length == 0 ? "Its files are one part, called train." : $"By the names of its files it has {string.Join(", ", names)}.")} Set split, or name the files with data_files.");
    }

    private static string Canonical(string split) => Synonyms.FirstOrDefault(words => words.Contains(split))?[0] ?? split;

    private static string? SplitOf(string file)
    {
        string[] parts = file.Split('/');
        if (Numbered().Match(parts[^1]) is { Success: true } numbered)
        {
            return Canonical(numbered.Groups[1].Value);
        }

        return parts.Reverse().Select(InName).FirstOrDefault(found => found is not null);
    }

    private static string? InName(string name)
    {
        string[] words = Separators().Split(name.ToLowerInvariant());
        return Synonyms.FirstOrDefault(synonyms => words.Any(synonyms.Contains))?[0];
    }

    [GeneratedRegex(@"^(\w+(?:\.\w+)*)-\d{5}-of-\d{5}", RegexOptions.CultureInvariant)]
    private static partial Regex Numbered();

    [GeneratedRegex("[-._ 0-9]+", RegexOptions.CultureInvariant)]
    private static partial Regex Separators();
}
