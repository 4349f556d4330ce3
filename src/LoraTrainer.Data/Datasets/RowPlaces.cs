namespace LoraTrainer.Data.Datasets;

/// <summary>Makes the rows of one file, for its reader.</summary>
internal sealed class RowPlaces(string file)
{
    public RowSource At(int line, int row) => new(file, line, row);

    /// <summary>A row that cannot be read, while those behind it can.</summary>
    public SourceRow Faulty(int line, int row, string reason) => new(At(line, row), default) { Fault = reason };

    /// <summary>The reading ends: what follows cannot be found.</summary>
    public DatasetException Lost(int line, int row, string reason, Exception? cause = null) => new(At(line, row), reason, cause);
}
