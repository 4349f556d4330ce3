namespace LoraTrainer.Models.Formats;

/// <summary>A file of torch.save breaks a rule of its format, or asks for more than tensors. The message says which file and where, what was found, and what to do.</summary>
public sealed class TorchFormatException : FormatException
{
    public TorchFormatException(string message)
        : base(message)
    {
    }

    public TorchFormatException(string message, Exception innerException)
        : base(message, innerException)
    {
    }

    public TorchFormatException()
    {
    }
}
