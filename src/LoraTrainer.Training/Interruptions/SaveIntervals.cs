namespace LoraTrainer.Training.Interruptions;

/// <summary>
/// How often to save. A save that stalls the training for C costs C each interval T, and an interruption costs half an interval on average; with M
/// between interruptions the share lost is C/T + T/(2M), which is least at Young's T.
/// </summary>
public static class SaveIntervals
{
    /// <summary>Hours without interruption that are assumed before anything is observed: spot machines last 4 to 6.</summary>
    public const double PriorHours = 5;

    /// <summary>Young 1974: sqrt(2CM).</summary>
    /// <param name="cost">C: the stall of one save, not the time of an upload behind the training.</param>
    /// <param name="between">M: the mean time between interruptions.</param>
    public static TimeSpan Young(TimeSpan cost, TimeSpan between) => TimeSpan.FromSeconds(Math.Sqrt(2 * cost.TotalSeconds * between.TotalSeconds));

    /// <summary>Daly 2006: sqrt(2CM) (1 + sqrt(C/2M)/3 + (C/2M)/9) - C while C is below 2M, else M.</summary>
    /// <param name="cost">C, as in <see cref="Young"/>.</param>
    /// <param name="between">M.</param>
    public static TimeSpan Daly(TimeSpan cost, TimeSpan between)
    {
        double ratio = cost.TotalSeconds / (2 * between.TotalSeconds);
        return cost < 2 * between ? (Young(cost, between) * (1 + (Math.Sqrt(ratio) / 3) + (ratio / 9))) - cost : between;
    }

    /// <summary>The share of the time that saves and lost work take: C/T + T/(2M).</summary>
    /// <param name="interval">T.</param>
    /// <param name="cost">C.</param>
    /// <param name="between">M.</param>
    public static double Overhead(TimeSpan interval, TimeSpan cost, TimeSpan between) => (cost / interval) + (interval / (2 * between));

    /// <summary>M from what was observed, and the prior as one interruption after <see cref="PriorHours"/>.</summary>
    /// <param name="exposedHours">All hours in which an interruption could have come.</param>
    /// <param name="interruptions">How many came.</param>
    public static TimeSpan MeanBetweenInterruptions(double exposedHours, int interruptions) =>
        TimeSpan.FromHours((exposedHours + PriorHours) / (interruptions + 1));
}
