using System.Globalization;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>
/// What a run has cost so far and when it has to stop: over all its attempts, as their records beside the checkpoints say, so that a limit survives
/// every restart. An attempt that was killed counts up to its last renewal.
/// </summary>
internal sealed class RunBudget
{
    // For the way from the last safe checkpoint to the end of the process.
    private const double GoodbyeSeconds = 5;
    private const double CommitMargin = 1.5;

    private readonly CostOptions options;
    private readonly AttemptRate? rate;
    private readonly decimal spentBefore;
    private readonly double hoursBefore;
    private readonly bool isMixed;
    private bool isWarned;

    /// <param name="options">Limits.</param>
    /// <param name="rate">Of this attempt; null where nobody knows it.</param>
    /// <param name="earlier">The attempts before this one. What one of them cost whose rate nobody wrote down is counted at this one's.</param>
    /// <exception cref="TrainingSetupException">A budget without a rate, or attempts that were paid in another currency.</exception>
    public RunBudget(CostOptions options, AttemptRate? rate, IEnumerable<AttemptRecord> earlier)
    {
        this.options = options;
        this.rate = rate;
        RequireRate(options, rate);
        foreach (AttemptRecord attempt in earlier)
        {
            AttemptRate? paid = attempt.Rate ?? rate;
            bool isOther = paid is not null && paid.Currency != options.Currency;
            isMixed |= isOther;
            if (isOther && options.Budget is not null)
            {
                throw new TrainingSetupException($"The run's attempt {attempt.Epoch} was paid in {paid!.Currency}, and cost.budget is in {options.Currency}: they cannot be added. Keep the currency of the run.");
            }

            hoursBefore += attempt.Seconds / 3600;
            spentBefore += Price(attempt.Seconds, paid);
        }
    }

    public string Currency => options.Currency;

    /// <exception cref="TrainingSetupException">A budget without a rate: nothing could be counted.</exception>
    public static void RequireRate(CostOptions options, AttemptRate? rate)
    {
        if (options.Budget is not null && rate is null)
        {
            throw new TrainingSetupException("cost.budget is given, and neither does cost.rate say what an hour costs nor is a price of this machine known: nothing could be counted. Give cost.rate, or limit the run with cost.max_hours.");
        }
    }

    /// <summary>What the run has cost over all attempts, the killed ones included.</summary>
    /// <param name="seconds">Of this process so far.</param>
    public RunCost Cost(double seconds) => new(Spent(seconds) is { } spent ? Math.Round(spent, 6) : null, Currency, hoursBefore + seconds / 3600, rate?.Amount);

    /// <summary>Over all attempts; null where no rate is known, or attempts were paid in several currencies: they are never added.</summary>
    /// <param name="seconds">Of this process so far.</param>
    public decimal? Spent(double seconds) => rate is not null && !isMixed ? spentBefore + Price(seconds, rate) : null;

    /// <summary>What the run will have cost at its end, if it goes on as it does; null where <see cref="Spent"/> is.</summary>
    /// <param name="seconds">Of this process so far.</param>
    /// <param name="remaining">What it still needs.</param>
    public decimal? Forecast(double seconds, TimeSpan remaining) => Spent(seconds + remaining.TotalSeconds);

    /// <summary>Why the run has to stop before its next step, as a sentence; null while it need not.</summary>
    /// <param name="seconds">Of this process so far.</param>
    /// <param name="stepSeconds">A step takes.</param>
    /// <param name="commit">A checkpoint takes until it is safe; null: not measured.</param>
    public string? ReasonToStop(double seconds, double stepSeconds, TimeSpan? commit)
    {
        double reserve = stepSeconds + (commit?.TotalSeconds ?? 0) * CommitMargin + GoodbyeSeconds;
        if (options.Budget is { } budget && spentBefore + Price(seconds + reserve, rate) > budget)
        {
            return string.Create(CultureInfo.InvariantCulture, $"The budget of {budget} {Currency} is reached: {Spent(seconds):0.00##} {Currency} are spent, and a step more with its checkpoint would go beyond it.");
        }

        double hours = hoursBefore + (seconds + reserve) / 3600;
        return options.MaxHours is { } most && hours > most
            ? string.Create(CultureInfo.InvariantCulture, $"cost.max_hours is reached: the run has taken {hoursBefore + seconds / 3600:0.####} of {most} hours, and a step more with its checkpoint would go beyond it.")
            : null;
    }

    /// <summary>Once, when the warning share of the budget is spent; null otherwise.</summary>
    /// <param name="seconds">Of this process so far.</param>
    public string? Warning(double seconds)
    {
        if (isWarned || options.Budget is not { } budget || Spent(seconds) is not { } spent || spent < budget * (decimal)options.WarnAt)
        {
            return null;
        }

        isWarned = true;
        return string.Create(CultureInfo.InvariantCulture, $"{spent:0.00##} of the budget of {budget} {Currency} are spent ({spent / budget:0 %}).");
    }

    /// <summary>As it is billed: begun units whole, and the minimum.</summary>
    private static decimal Price(double seconds, AttemptRate? rate) => rate?.BilledCostOf((decimal)seconds, gpuCount: 1).Amount ?? 0;
}
