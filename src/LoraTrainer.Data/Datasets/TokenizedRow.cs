namespace LoraTrainer.Data.Datasets;

/// <summary>A row as token ids.</summary>
/// <param name="Tokens">The ids.</param>
/// <param name="IsSupervised">Per token, whether it is scored; the first token of a row never is, as nothing predicts it.</param>
/// <param name="Source">Where the row stands.</param>
public readonly record struct TokenizedRow(int[] Tokens, bool[] IsSupervised, RowSource Source)
{
    /// <summary>Tokens that are predicted and scored.</summary>
    public int TargetCount => IsSupervised.AsSpan().Count(true);

    /// <summary>The row cut to its first <paramref name="length"/> tokens.</summary>
    public TokenizedRow Truncate(int length) => new(Tokens[..length], IsSupervised[..length], Source);
}
