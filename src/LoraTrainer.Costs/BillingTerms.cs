namespace LoraTrainer.Costs;

/// <summary>How a provider turns the time that a machine was used into the time that is paid.</summary>
/// <param name="GranularitySeconds">Begun units of so many seconds are paid whole; 1 for billing by the second.</param>
/// <param name="MinimumSeconds">At least so much is paid for each start.</param>
public readonly record struct BillingTerms(decimal GranularitySeconds, decimal MinimumSeconds)
{
    /// <summary>By the second, from the first on.</summary>
    public static BillingTerms PerSecond { get; } = new(1, 0);

    /// <summary>What is paid of one attempt: max(minimum, ceil(seconds / granularity) * granularity).</summary>
    /// <param name="seconds">Elapsed machine time, 0 or more.</param>
    public decimal BilledSeconds(decimal seconds)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(seconds);
        decimal units = Math.Ceiling(seconds / GranularitySeconds) * GranularitySeconds;
        return Math.Max(MinimumSeconds, units);
    }
}
