namespace LoraTrainer.Data.Datasets;

/// <summary>A row that cannot be read, while those behind it can.</summary>
/// <param name="Source">Where it stands.</param>
/// <param name="Reason">What is wrong with it.</param>
public readonly record struct FaultyRow(RowSource Source, string Reason)
{
    public override string ToString() => $"{Source}: {Reason}";
}

/// <summary>Where the readers of one file tell their faulty rows.</summary>
/// <param name="file">The file.</param>
/// <param name="onFault">Is told each; null: the first one is an exception.</param>
internal sealed class RowFaults(string file, Action<FaultyRow>? onFault)
{
    public string File => file;

    public RowSource At(int line, int row) => new(file, line, row);

    public void Report(int line, int row, string reason, Exception? cause = null)
    {
        var fault = new FaultyRow(At(line, row), reason);
        if (onFault is null)
        {
            throw new DatasetException(fault.ToString(), cause);
        }

        onFault(fault);
    }

    /// <summary>The reading ends: what follows cannot be found.</summary>
    public DatasetException Lost(int line, int row, string reason, Exception? cause = null) => new($"{At(line, row)}: {reason}", cause);
}
