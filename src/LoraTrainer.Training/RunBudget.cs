using System.Globalization;
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
    private readonly decimal spentBefore;
    private readonly double hoursBefore;
    private readonly bool isMixed;
    private bool isWarned;

    /// <param name="options">Rate, limits.</param>
    /// <param name="earlier">The attempts before this one.</param>
    /// <exception cref="TrainingSetupException">A budget without a rate, or attempts that were paid in another currency.</exception>
    public RunBudget(CostOptions options, IEnumerable<AttemptRecord> earlier)
    {
        this.options = options;
        if (options.Budget is not null && options.Rate is null)
        {
            throw new TrainingSetupException("cost.budget is given and cost.rate is not: without a price of an hour nothing can be counted. Give cost.rate, or limit the run with cost.max_hours.");
        }

        foreach (AttemptRecord attempt in earlier)
        {
            bool isOther = attempt.Rate is not null && attempt.Currency != options.Currency;
            isMixed |= isOther;
            if (isOther && options.Budget is not null)
            {
                throw new TrainingSetupException($"The run's attempt {attempt.Epoch} was paid in {attempt.Currency}, and cost.budget is in {options.Currency}: they cannot be added. Keep the currency of the run.");
            }

            hoursBefore += attempt.Seconds / 3600;
            spentBefore += Price(attempt.Seconds, attempt.Rate ?? options.Rate);
        }
    }

    public string Currency => options.Currency;

    /// <summary>What the run has cost over all attempts, the killed ones included.</summary>
    /// <param name="seconds">Of this process so far.</param>
    public RunCost Cost(double seconds) => new(Spent(seconds) is { } spent ? Math.Round(spent, 6) : null, Currency, hoursBefore + seconds / 3600, options.Rate);

    /// <summary>Over all attempts; null where no rate is known, or attempts were paid in several currencies: they are never added.</summary>
    /// <param name="seconds">Of this process so far.</param>
    public decimal? Spent(double seconds) => options.Rate is { } rate && !isMixed ? spentBefore + Price(seconds, rate) : null;

    /// <summary>Why the run has to stop before its next step, as a sentence; null while it need not.</summary>
    /// <param name="seconds">Of this process so far.</param>
    /// <param name="stepSeconds">A step takes.</param>
    /// <param name="commit">A checkpoint takes until it is safe; null: not measured.</param>
    public string? ReasonToStop(double seconds, double stepSeconds, TimeSpan? commit)
    {
        double reserve = stepSeconds + (commit?.TotalSeconds ?? 0) * CommitMargin + GoodbyeSeconds;
        if (options.Budget is { } budget && spentBefore + Price(seconds + reserve, options.Rate) > budget)
        {
            return string.Create(CultureInfo.InvariantCulture, $"The budget of {budget} {Currency} is reached: {Spent(seconds):0.00##} {Currency} are spent, and a step more with its checkpoint would go beyond it.");
        }

        double hours = hoursBefore + (seconds + reserve) / 3600;
        return options.MaxHours is { } most && hours > most
            ? string.Create(CultureInfo.InvariantCulture, $"cost.max_hours is reached: the run has taken {hoursBefore + seconds / 3600:0.###} of {most} hours.")
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

    private static decimal Price(double seconds, decimal? rate) => (rate ?? 0) * (decimal)seconds / 3600;
}
