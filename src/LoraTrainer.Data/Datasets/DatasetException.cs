namespace LoraTrainer.Data.Datasets;

/// <summary>A data set cannot be used; the message names the file, the line, the row and what was found and expected.</summary>
public sealed class DatasetException : Exception
{
    public DatasetException(string message, Exception? cause = null)
        : base(message, cause)
    {
    }

    /// <summary>One row cannot be used.</summary>
    /// <param name="source">The row.</param>
    /// <param name="reason">Why, without the place.</param>
    /// <param name="cause">What was thrown below.</param>
    public DatasetException(RowSource source, string reason, Exception? cause = null)
        : base($"{source}: {reason}", cause) => Reason = reason;

    /// <summary>Why the row cannot be used, where it is about one row; null otherwise.</summary>
    public string? Reason { get; }
}
