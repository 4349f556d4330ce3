using LoraTrainer.Data.Datasets;

namespace LoraTrainer.Data.Packing;

/// <summary>
/// What one forward and backward pass works on: documents one after the other in a stream of N tokens, without padding. Made once with room for the
/// largest pass and filled again and again; filling allocates nothing.
/// </summary>
public sealed class MicroBatch
{
    /// <summary>A target that is not scored, as in the files of the Python world.</summary>
    public const int IgnoreIndex = -100;

    private readonly int[] tokens, positions, targets, scoredRows, documentOffsets;

    /// <param name="tokenCapacity">The most tokens of a pass.</param>
    /// <param name="documentCapacity">The most documents of a pass.</param>
    public MicroBatch(int tokenCapacity, int documentCapacity)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(tokenCapacity, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(documentCapacity, 1);
        tokens = new int[tokenCapacity];
        positions = new int[tokenCapacity];
        targets = new int[tokenCapacity];
        scoredRows = new int[tokenCapacity];
        documentOffsets = new int[documentCapacity + 1];
    }

    /// <summary>N.</summary>
    public int TokenCount { get; private set; }

    /// <summary>B.</summary>
    public int DocumentCount { get; private set; }

    /// <summary>Targets that are scored.</summary>
    public int TargetCount { get; private set; }

    /// <summary>(N) token ids.</summary>
    public ReadOnlySpan<int> Tokens => tokens.AsSpan(0, TokenCount);

    /// <summary>(N) position of each token in its document, from 0.</summary>
    public ReadOnlySpan<int> Positions => positions.AsSpan(0, TokenCount);

    /// <summary>(N) the token that position t has to predict, which is token t + 1 of the same document; <see cref="IgnoreIndex"/> where it is not scored and at the end of each document.</summary>
    public ReadOnlySpan<int> Targets => targets.AsSpan(0, TokenCount);

    /// <summary>(<see cref="TargetCount"/>) the positions that have a target, ascending.</summary>
    public ReadOnlySpan<int> ScoredRows => scoredRows.AsSpan(0, TargetCount);

    /// <summary>(B + 1) where each document begins; the last is N. Valid until the next change.</summary>
    public ReadOnlyMemory<int> DocumentOffsets => documentOffsets.AsMemory(0, DocumentCount + 1);

    public void Clear() => TokenCount = DocumentCount = TargetCount = 0;

    /// <summary>Clears and adds the rows of one bin.</summary>
    public void Fill(TokenizedDataset data, ReadOnlySpan<int> rows)
    {
        Clear();
        Add(data, rows);
    }

    /// <summary>Adds rows, one document each.</summary>
    public void Add(TokenizedDataset data, ReadOnlySpan<int> rows)
    {
        foreach (int row in rows)
        {
            Add(data.Tokens(row), data.IsSupervised(row));
        }
    }

    /// <summary>Adds one document.</summary>
    /// <param name="document">(n) token ids, at least one.</param>
    /// <param name="isSupervised">(n) whether each token is scored; the first one's flag has no effect, as nothing predicts it.</param>
    public void Add(ReadOnlySpan<int> document, ReadOnlySpan<bool> isSupervised)
    {
        ArgumentOutOfRangeException.ThrowIfZero(document.Length);
        ArgumentOutOfRangeException.ThrowIfNotEqual(isSupervised.Length, document.Length);
        if (document.Length > tokens.Length - TokenCount || DocumentCount + 1 >= documentOffsets.Length)
        {
            throw new InvalidOperationException(
                $"A micro-batch with room for {tokens.Length} tokens and {documentOffsets.Length - 1} documents holds {TokenCount} and {DocumentCount}; a document of {document.Length} tokens does not fit.");
        }

        int start = TokenCount;
        document.CopyTo(tokens.AsSpan(start));
        for (int i = 0; i < document.Length; i++)
        {
            positions[start + i] = i;
            bool scored = i + 1 < document.Length && isSupervised[i + 1];
            targets[start + i] = scored ? document[i + 1] : IgnoreIndex;
            if (scored)
            {
                scoredRows[TargetCount++] = start + i;
            }
        }

        TokenCount += document.Length;
        documentOffsets[++DocumentCount] = TokenCount;
    }
}
