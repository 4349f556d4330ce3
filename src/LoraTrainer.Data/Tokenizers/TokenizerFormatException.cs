namespace LoraTrainer.Data.Tokenizers;

/// <summary>A tokenizer's file is damaged or uses what this program does not support; the message names the file, what was found and what was expected.</summary>
public sealed class TokenizerFormatException : FormatException
{
    /// <summary>A file may have a megabyte where a word should be.</summary>
    private const int LongestProblem = 1000;

    public TokenizerFormatException(string path, string problem, Exception? cause = null)
        : base($"{path}: {(problem.Length <= LongestProblem ? problem : $"{problem[..(LongestProblem / 2)]} ... {problem[^(LongestProblem / 2)..]}")}", cause)
        => Path = path;

    /// <summary>The file.</summary>
    public string Path { get; }
}
