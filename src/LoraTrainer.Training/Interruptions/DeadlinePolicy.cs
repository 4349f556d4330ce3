namespace LoraTrainer.Training.Interruptions;

/// <summary>Whether a checkpoint that is begun now can be whole before the machine is gone.</summary>
internal static class DeadlinePolicy
{
    /// <summary>A commit is expected to take at most this much longer than its 95th percentile: a dying machine is a busy one.</summary>
    public const double Margin = 1.5;

    /// <summary>
    /// True: begin. False: what is begun would not be committed. Where the time that is left or the time of a commit is not known, beginning is
    /// right, as a torn checkpoint does no harm; but not when nothing is left.
    /// </summary>
    /// <param name="timeLeft">Until the end; null: not known.</param>
    /// <param name="commit">The 95th percentile of measured commits, see <see cref="Percentile95"/>; null: none was measured.</param>
    public static bool CanCommit(TimeSpan? timeLeft, TimeSpan? commit) =>
        timeLeft is not { } left || (commit is { } cost ? cost * Margin < left : left > TimeSpan.Zero);

    /// <summary>The smallest measured time that is not exceeded by 95 % of them; null of none.</summary>
    /// <param name="commits">In any order.</param>
    public static TimeSpan? Percentile95(IReadOnlyCollection<TimeSpan> commits) =>
        commits.Count == 0 ? null : commits.Order().ElementAt((int)Math.Ceiling(0.95 * commits.Count) - 1);
}
