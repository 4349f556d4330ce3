using System.Runtime.InteropServices;
using System.Security.Cryptography;
using LoraTrainer.Data.Tokenizers;

namespace LoraTrainer.Data.Datasets;

/// <summary>What is worth telling about a row.</summary>
public enum RowFindingKind
{
    /// <summary>Longer than the sequence length: left out.</summary>
    DroppedTooLong,

    /// <summary>Longer than the sequence length: cut.</summary>
    Truncated,

    /// <summary>Prompt and completion are both empty: left out.</summary>
    DroppedEmpty,

    /// <summary>There is a prompt but nothing to learn: left out.</summary>
    DroppedEmptyCompletion,

    /// <summary>Cut so short that no scored token is left: left out.</summary>
    DroppedNothingScored,

    /// <summary>The text begins with the BOS that the tokenizer puts before it anyway.</summary>
    DoubleBos,
}

public readonly record struct RowFinding(RowFindingKind Kind, RowSource Source, int Tokens);

/// <summary>
/// All rows of a data set as token ids, in three flat arrays: tokens, one flag per token (scored or not), and where each row begins.
/// The content does not depend on the number of threads.
/// </summary>
public sealed class TokenizedDataset
{
    private const int RowsPerBatch = 1024;

    private readonly int[] tokens;
    private readonly bool[] supervised;
    private readonly int[] offsets;
    private readonly RowSource[] sources;
    private string? contentHash;

    private TokenizedDataset(int[] tokens, bool[] supervised, int[] offsets, RowSource[] sources, IReadOnlyList<RowFinding> findings)
    {
        this.tokens = tokens;
        this.supervised = supervised;
        this.offsets = offsets;
        this.sources = sources;
        Findings = findings;
        TargetCount = supervised.AsSpan().Count(true);
    }

    public int RowCount => sources.Length;

    public int TokenCount => tokens.Length;

    /// <summary>Tokens that are scored, which is what a mean loss is divided by. The first token of a row never counts: nothing predicts it.</summary>
    public int TargetCount { get; }

    /// <summary>Rows that were left out, cut or are dubious, in file order.</summary>
    public IReadOnlyList<RowFinding> Findings { get; }

    /// <summary>SHA-256 over row offsets, tokens and flags, in hexadecimal.</summary>
    public string ContentHash => contentHash ??= ComputeHash();

    /// <param name="rows">Rows in the order they get.</param>
    /// <param name="tokenizer">Used from several threads.</param>
    /// <param name="options">Lengths, masks, threads.</param>
    /// <param name="progress">Called with the number of rows read so far, on the calling thread.</param>
    /// <param name="cancellation">Stops between batches.</param>
    /// <exception cref="DatasetException">There is no row, or none is left.</exception>
    public static TokenizedDataset Build(
        IEnumerable<DatasetRow> rows, Tokenizer tokenizer, TokenizationOptions options, Action<int>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(options.SequenceLength, 2);
        var builder = new Builder(tokenizer, options);
        var parallel = new ParallelOptions { MaxDegreeOfParallelism = Math.Max(1, options.Threads), CancellationToken = cancellation };
        int read = 0;
        foreach (DatasetRow[] batch in rows.Chunk(RowsPerBatch))
        {
            var encoded = new TokenizedRow[batch.Length];
            try
            {
                Parallel.For(0, batch.Length, parallel, i => encoded[i] = TokenizedRow.Encode(batch[i], tokenizer, options));
            }
            catch (AggregateException failures) when (failures.InnerExceptions.OfType<DatasetException>().FirstOrDefault() is { } first)
            {
                throw new DatasetException(first.Message, first);
            }

            for (int i = 0; i < batch.Length; i++)
            {
                builder.Add(batch[i], encoded[i]);
            }

            read += batch.Length;
            progress?.Invoke(read);
        }

        return builder.Finish(read);
    }

    /// <summary>The ids of row <paramref name="row"/>.</summary>
    public ReadOnlySpan<int> Tokens(int row) => tokens.AsSpan(offsets[row]..offsets[row + 1]);

    /// <summary>Per token of row <paramref name="row"/>, whether it is scored.</summary>
    public ReadOnlySpan<bool> IsSupervised(int row) => supervised.AsSpan(offsets[row]..offsets[row + 1]);

    public int Length(int row) => offsets[row + 1] - offsets[row];

    public RowSource Source(int row) => sources[row];

    private string ComputeHash()
    {
        if (!BitConverter.IsLittleEndian)
        {
            throw new PlatformNotSupportedException("The content hash is defined over little-endian numbers.");
        }

        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        hash.AppendData(MemoryMarshal.AsBytes(offsets.AsSpan()));
        hash.AppendData(MemoryMarshal.AsBytes(tokens.AsSpan()));
        hash.AppendData(MemoryMarshal.AsBytes(supervised.AsSpan()));
        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }

    private static string Words(RowFindingKind kind) => kind switch
    {
        RowFindingKind.DroppedTooLong => "too long",
        RowFindingKind.DroppedEmpty => "empty",
        RowFindingKind.DroppedEmptyCompletion => "without an answer to learn",
        RowFindingKind.DroppedNothingScored => "with nothing of the answer left after the cut",
        _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "such a row is kept"),
    };

    private sealed class Builder(Tokenizer tokenizer, TokenizationOptions options)
    {
        private readonly List<int> tokens = [];
        private readonly List<bool> supervised = [];
        private readonly List<int> offsets = [0];
        private readonly List<RowSource> sources = [];
        private readonly List<RowFinding> findings = [];

        public void Add(DatasetRow row, TokenizedRow encoded)
        {
            int length = encoded.Tokens.Length;
            if (row.Completion.Length == 0)
            {
                Report(row.Prompt.Length == 0 ? RowFindingKind.DroppedEmpty : RowFindingKind.DroppedEmptyCompletion);
                return;
            }

            if (length > options.SequenceLength)
            {
                if (options.ExcessLength == ExcessLength.Drop)
                {
                    Report(RowFindingKind.DroppedTooLong);
                    return;
                }

                encoded = encoded.Truncate(options.SequenceLength);
                Report(encoded.TargetCount == 0 ? RowFindingKind.DroppedNothingScored : RowFindingKind.Truncated);
            }

            if (encoded.TargetCount == 0)
            {
                return;
            }

            if (encoded.Tokens.Length > 1 && tokenizer.PrefixIds.Contains(encoded.Tokens[0]) && encoded.Tokens[0] == encoded.Tokens[1])
            {
                Report(RowFindingKind.DoubleBos);
            }

            tokens.AddRange(encoded.Tokens);
            supervised.AddRange(encoded.IsSupervised);
            offsets.Add(tokens.Count);
            sources.Add(encoded.Source);

            void Report(RowFindingKind kind) => findings.Add(new RowFinding(kind, row.Source, length));
        }

        public TokenizedDataset Finish(int read)
        {
            if (sources.Count > 0)
            {
                return new TokenizedDataset([.. tokens], [.. supervised], [.. offsets], [.. sources], findings);
            }

            string reasons = string.Join(", ", findings.GroupBy(finding => finding.Kind).Select(group => $"{group.Count()} {Words(group.Key)}"));
            throw new DatasetException(read == 0
                ? "the data set is empty: no row was read"
                : $"no row is left of {read}: {reasons}; the first is {findings[0].Source} with {findings[0].Tokens} tokens, sequence_len is {options.SequenceLength}");
        }
    }
}
