using System.Runtime.ExceptionServices;

namespace LoraTrainer.Data.Datasets;

/// <summary>Encodes a stream of rows on several threads, in their order, a batch at a time: neither the file nor its tokens have to fit into memory.</summary>
public static class EncodedRows
{
    private const int RowsPerBatch = 128;

    /// <param name="rows">In the order they get.</param>
    /// <param name="encoder">Used from several threads.</param>
    /// <param name="cancellation">Stops between batches.</param>
    /// <exception cref="DatasetException">While reading: see <see cref="RowEncoder.Encode"/>.</exception>
    public static IEnumerable<EncodedRow> Of(IEnumerable<DatasetRow> rows, RowEncoder encoder, CancellationToken cancellation = default)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(encoder.Options.SequenceLength, 2);
        return InOrder(rows, encoder.Options.Threads, encoder.Encode, cancellation);
    }

    /// <summary>What <paramref name="encode"/> makes of each row, in their order.</summary>
    /// <param name="rows">In the order they get.</param>
    /// <param name="threads">That work on a batch.</param>
    /// <param name="encode">Called from several threads; of what it throws the first in the rows' order is thrown.</param>
    /// <param name="cancellation">Stops between batches.</param>
    public static IEnumerable<TEncoded> InOrder<TRow, TEncoded>(IEnumerable<TRow> rows, int threads, Func<TRow, TEncoded> encode, CancellationToken cancellation = default)
    {
        var parallel = new ParallelOptions { MaxDegreeOfParallelism = Math.Max(1, threads), CancellationToken = cancellation };
        foreach (TRow[] batch in rows.Chunk(RowsPerBatch))
        {
            var encoded = new TEncoded[batch.Length];
            var refused = new Exception?[batch.Length];
            Parallel.For(0, batch.Length, parallel, i =>
            {
                try
                {
                    encoded[i] = encode(batch[i]);
                }
                catch (Exception exception)
                {
                    // Not swallowed: thrown again below.
                    refused[i] = exception;
                }
            });

            // The first in file order, whichever thread was first.
            if (Array.Find(refused, exception => exception is not null) is { } first)
            {
                ExceptionDispatchInfo.Throw(first);
            }

            foreach (TEncoded row in encoded)
            {
                yield return row;
            }
        }
    }
}
