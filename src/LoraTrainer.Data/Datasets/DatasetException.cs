namespace LoraTrainer.Data.Datasets;

/// <summary>A data set cannot be used; the message names the file, the line, the row and what was found and expected.</summary>
public sealed class DatasetException(string message, Exception? cause = null) : Exception(message, cause);
