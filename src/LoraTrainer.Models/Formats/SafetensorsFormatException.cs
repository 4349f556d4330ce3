namespace LoraTrainer.Models.Formats;

/// <summary>A safetensors file breaks a rule of the format. The message says which file and tensor, what was found, and what to do.</summary>
public sealed class SafetensorsFormatException : FormatException
{
    public SafetensorsFormatException(string message)
        : base(message)
    {
    }

    public SafetensorsFormatException(string message, Exception innerException)
        : base(message, innerException)
    {
    }

    public SafetensorsFormatException()
    {
    }
}
