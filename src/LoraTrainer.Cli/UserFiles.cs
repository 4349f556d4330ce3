using LoraTrainer.Training;

namespace LoraTrainer.Cli;

/// <summary>Data files of the user that come before those of the program.</summary>
internal static class UserFiles
{
    /// <summary>The file that is asked for, else that of an environment variable, else the one in the user's configuration folder; null where there is none. One that is named must be there.</summary>
    /// <param name="given">Asked for on the command line; null: not.</param>
    /// <param name="variable">The environment variable.</param>
    /// <param name="name">Its name in the configuration folder.</param>
    /// <param name="what">What it holds, for the sentence that it is not there.</param>
    public static string? Find(string? given, string variable, string name, string what)
    {
        if ((given ?? Environment.GetEnvironmentVariable(variable)) is { Length: > 0 } named)
        {
            return File.Exists(named) ? named : throw new FileNotFoundException(PathTrouble.NotThere(named, $"file of {what}"));
        }

        string usual = Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.ApplicationData), "lora-trainer", name);
        return File.Exists(usual) ? usual : null;
    }

    /// <summary>The user's prices; see <see cref="Find"/>.</summary>
    public static string? Prices(string? given) => Find(given, "LT_PRICES", "prices.csv", "prices");

    /// <summary>The user's GPUs; see <see cref="Find"/>.</summary>
    public static string? Gpus(string? given) => Find(given, "LT_GPUS", "gpus.csv", "GPUs");
}
