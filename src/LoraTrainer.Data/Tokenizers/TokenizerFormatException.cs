namespace LoraTrainer.Data.Tokenizers;

/// <summary>A tokenizer's file is damaged or uses what this program does not support; the message names the file, what was found and what was expected.</summary>
public sealed class TokenizerFormatException : FormatException
{
    public TokenizerFormatException(string path, string problem, Exception? cause = null)
        : base($"{path}: {problem}", cause)
        => Path = path;

    /// <summary>The file.</summary>
    public string Path { get; }
}
