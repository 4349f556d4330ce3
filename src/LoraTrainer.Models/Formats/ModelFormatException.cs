namespace LoraTrainer.Models.Formats;

/// <summary>A model or adapter folder, or one of the JSON files in it, is not what it must be. The message says where, what was found, what was expected and what to do.</summary>
public sealed class ModelFormatException : FormatException
{
    public ModelFormatException(string message)
        : base(message)
    {
    }

    public ModelFormatException(string message, Exception innerException)
        : base(message, innerException)
    {
    }

    public ModelFormatException()
    {
    }
}
