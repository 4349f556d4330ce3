using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>
/// What the file system refuses, said of the file or folder as the user wrote it, with the key or option that names it. The system's own texts have full
/// paths, names of temporary files, and for a folder in a file's place the advice to look at the permissions.
/// </summary>
public static class PathTrouble
{
    // ENOTDIR, EROFS.
    private const int NotAFolder = 20;
    private const int ReadOnly = 30;

    /// <summary>Makes a folder with those above it.</summary>
    /// <param name="named">The key or option that names it.</param>
    /// <param name="folder">As it was written.</param>
    /// <exception cref="TrainingSetupException">It cannot be made.</exception>
    public static void MakeFolder(string named, string folder)
    {
        try
        {
            Directory.CreateDirectory(folder);
        }
        catch (Exception exception) when (OfFolder(named, folder, exception) is { } trouble)
        {
            throw trouble;
        }
    }

    /// <summary>Writes a file.</summary>
    /// <param name="named">The option or argument that names it.</param>
    /// <param name="file">As it was written.</param>
    /// <param name="write">Opens the file, or one beside it that gets its name.</param>
    /// <exception cref="TrainingSetupException">There can be no file of that name.</exception>
    public static T Write<T>(string named, string file, Func<T> write)
    {
        try
        {
            return write();
        }
        catch (Exception exception) when (OfFile(named, file, exception) is { } trouble)
        {
            throw trouble;
        }
    }

    /// <inheritdoc cref="Write{T}"/>
    public static void Write(string named, string file, Action write) => Write(named, file, () =>
    {
        write();
        return true;
    });

    /// <summary>The text of a file.</summary>
    /// <param name="named">The option that names it.</param>
    /// <param name="file">As it was written.</param>
    /// <exception cref="TrainingSetupException">It cannot be read.</exception>
    public static string ReadText(string named, string file)
    {
        try
        {
            return File.ReadAllText(file);
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException or UnauthorizedAccessException || IsPlace(exception))
        {
            string reason = Directory.Exists(file) ? "it is a folder. Give a file"
                : exception is UnauthorizedAccessException ? "this user may not read it. Give another file, or change its owner or permissions"
                : "there is no such file. A relative path starts at the current directory";
            throw new TrainingSetupException($"{named} {file} cannot be read: {reason}.", exception);
        }
    }

    /// <summary>The words for a file that should be there: whether there is nothing of that name, or a folder.</summary>
    /// <param name="path">As it was written.</param>
    /// <param name="what">What it should be, such as "file of prices".</param>
    public static string NotThere(string path, string what) => Directory.Exists(path) ? $"{path} is a folder; a {what} is expected." : $"{path}: there is no such {what}.";

    /// <summary>The sentence for a folder whose name, or that of one above it, a file has; null: no file is in the way.</summary>
    /// <param name="named">The key or option that names it.</param>
    /// <param name="folder">As it was written.</param>
    public static string? FileInTheWay(string named, string folder) => FileAbove(folder) is not { } file ? null
        : file == folder ? $"{named} {folder} is a file. Choose another name for the folder."
        : $"{named} {folder} cannot be made: {file} is a file. Choose another folder.";

    /// <summary>The sentence for a folder that cannot be made; null where something else is wrong, such as a full disk.</summary>
    internal static TrainingSetupException? OfFolder(string named, string folder, Exception exception) => exception switch
    {
        UnauthorizedAccessException => new($"{named} {folder} cannot be written by this user ({exception.Message}). Choose another folder, or change its owner.", exception),
        IOException when FileInTheWay(named, folder) is { } sentence => new(sentence, exception),
        IOException when IsPlace(exception) => new($"{named} {folder} cannot be made: {Reason(folder, "folder", exception)}. Choose another folder.", exception),
        _ => null,
    };

    private static TrainingSetupException? OfFile(string named, string file, Exception exception)
    {
        if (exception is not UnauthorizedAccessException && !IsPlace(exception) && !Directory.Exists(file))
        {
            return null;
        }

        string reason = Directory.Exists(file) ? "it is a folder"
            : exception is UnauthorizedAccessException ? "this user may not write there"
            : FileAbove(file) is null && Path.GetDirectoryName(Path.GetFullPath(file)) is { } folder && !Directory.Exists(folder) ? $"there is no folder {folder}"
            : Reason(file, "file", exception);
        return new TrainingSetupException($"{named} {file} cannot be written: {reason}. Choose another place.", exception);
    }

    /// <summary>True where the place is at fault, not the disk below it.</summary>
    private static bool IsPlace(Exception exception) => exception is FileNotFoundException or DirectoryNotFoundException or PathTooLongException || exception is IOException { HResult: NotAFolder or ReadOnly };

    private static string Reason(string path, string kind, Exception exception) => exception is PathTooLongException ? "the path is too long"
        : exception.HResult == ReadOnly ? "the file system is read-only"
        : FileAbove(path) is { } file ? $"{file} is a file"
        : $"the file system takes no {kind} there";

    private static string? FileAbove(string? path)
    {
        while (!string.IsNullOrEmpty(path) && !Path.Exists(path))
        {
            path = Path.GetDirectoryName(path);
        }

        return File.Exists(path) ? path : null;
    }
}
