using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Layers;

namespace LoraTrainer.TestSupport;

/// <summary>Rows of token ids as one packed stream, each row a document of its own.</summary>
public sealed class HostBatch
{
    private const int Ignored = -100;

    private readonly List<int> tokens = [];
    private readonly List<int> positions = [];
    private readonly List<int> targets = [];
    private readonly List<int> scoredRows = [];
    private readonly List<int> offsets = [0];

    public int TokenCount => tokens.Count;

    public int ScoredCount => scoredRows.Count;

    /// <summary>The matrix of ids (rows of equal length) with labels aligned to it, or none.</summary>
    public static HostBatch FromRows(int[] ids, int[]? labels, int rowLength)
    {
        var batch = new HostBatch();
        for (int row = 0; row < ids.Length / rowLength; row++)
        {
            batch.Add(ids.AsSpan(row * rowLength, rowLength), labels is null ? default : labels.AsSpan(row * rowLength, rowLength));
        }

        return batch;
    }

    public static HostBatch FromDocuments(int[] ids, int[] lengths)
    {
        var batch = new HostBatch();
        int start = 0;
        foreach (int length in lengths)
        {
            batch.Add(ids.AsSpan(start, length), default);
            start += length;
        }

        return batch;
    }

    /// <summary>Position t is trained to predict labels[t + 1]; the last one predicts nothing.</summary>
    public void Add(ReadOnlySpan<int> ids, ReadOnlySpan<int> labels)
    {
        for (int t = 0; t < ids.Length; t++)
        {
            int target = labels.IsEmpty || t + 1 == ids.Length ? Ignored : labels[t + 1];
            if (target != Ignored)
            {
                scoredRows.Add(tokens.Count);
            }

            tokens.Add(ids[t]);
            positions.Add(t);
            targets.Add(target);
        }

        offsets.Add(tokens.Count);
    }

    public PackedBatch Upload(Device device) =>
        PackedBatch.Upload(device, tokens.ToArray(), positions.ToArray(), offsets.ToArray(), targets.ToArray(), scoredRows.ToArray());
}
