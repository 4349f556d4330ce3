using LoraTrainer.Storage;

namespace LoraTrainer.Data.Datasets;

/// <summary>The files that a path on this machine names: a file, all data files below a folder, or those that a pattern matches; in ordinal order of their paths.</summary>
public static class DataFiles
{
    private const int MostFiles = 100_000;

    // What stands beside data and is none.
    private static readonly string[] Companions = ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

    /// <exception cref="DatasetException">There is nothing of that name, or nothing that could be data.</exception>
    public static IReadOnlyList<string> Of(string path)
    {
        if (File.Exists(path))
        {
            return [path];
        }

        if (Directory.Exists(path))
        {
            if (File.Exists(Path.Combine(path, "config.json")) && Directory.EnumerateFiles(path, "*.safetensors").Any())
            {
                throw new DatasetException($"{path} is a folder with a model; give the file or the folder with the rows");
            }

            IReadOnlyList<string> inside = DataAmong(Below(path, int.MaxValue));
            return inside.Count > 0 ? inside : throw new DatasetException($"{path}: no data file in this folder. Data files end in {DataFileKinds.Known}.");
        }

        if (!GlobPattern.HasWildcards(path))
        {
            throw new DatasetException($"{path}: no such file");
        }

        var pattern = new GlobPattern(path);
        string root = pattern.FixedPart.Length > 0 ? pattern.FixedPart : path.StartsWith('/') ? "/" : ".";
        string[] matches = Directory.Exists(root) ? [.. Below(root, pattern.Depth).Select(file => root == "." ? file[2..] : file).Where(pattern.IsMatch)] : [];
        return matches.Length > 0 ? matches : throw new DatasetException($"{path}: no file matches this pattern");
    }

    /// <summary>
    /// Of the files of a folder or a repository those that hold rows: with a known ending and not hidden. Texts (.txt, .md) count only where there is nothing else: beside
    /// other data they are licences and descriptions.
    /// </summary>
    public static IReadOnlyList<string> DataAmong(IEnumerable<string> files)
    {
        string[] known = [.. files.Where(file => DataFileKinds.OfName(file) is not null && !Companions.Contains(Path.GetFileName(file)) && !file.Split('/')[^1].StartsWith('.'))];
        string[] structured = [.. known.Where(file => DataFileKinds.OfName(file) is not (DataFileKind.Paragraphs or DataFileKind.Document))];
        return structured.Length > 0 ? structured : [.. known.Where(file => !Path.GetFileName(file).StartsWith("README.", StringComparison.OrdinalIgnoreCase))];
    }

    /// <summary>True for a name that ends as data files do.</summary>
    public static bool HasDataName(string path) => DataFileKinds.OfName(path) is not null;

    /// <summary>All files below a folder, relative to it, with '/'; hidden ones left out.</summary>
    public static IReadOnlyList<string> RelativeTo(string folder) => [.. Below(folder, int.MaxValue).Select(file => Path.GetRelativePath(folder, file).Replace(Path.DirectorySeparatorChar, '/'))];

    private static string[] Below(string folder, int depth)
    {
        var options = new EnumerationOptions
        {
            RecurseSubdirectories = depth > 1,
            MaxRecursionDepth = depth == int.MaxValue ? int.MaxValue : depth - 1,
            AttributesToSkip = FileAttributes.Hidden | FileAttributes.System,
            IgnoreInaccessible = true,
        };
        string[] files = [.. Directory.EnumerateFiles(folder, "*", options).Take(MostFiles + 1)];
        return files.Length <= MostFiles
            ? [.. files.Order(StringComparer.Ordinal)]
            : throw new DatasetException($"{folder}: more than {MostFiles} files below this folder. Give a narrower folder or pattern.");
    }
}
