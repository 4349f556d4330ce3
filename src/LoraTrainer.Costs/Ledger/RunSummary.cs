namespace LoraTrainer.Costs.Ledger;

/// <summary>Which runs. What is null does not matter.</summary>
public sealed record RunFilter
{
    public string? RunId { get; init; }

    public string? Name { get; init; }

    public string? Project { get; init; }

    public string? Tag { get; init; }

    /// <summary>Created at this time or later.</summary>
    public DateTimeOffset? Since { get; init; }

    /// <summary>Created before this time.</summary>
    public DateTimeOffset? Until { get; init; }
}

/// <summary>Which attempts <see cref="RunLedger.SetRate"/> prices: those of <paramref name="Runs"/> that also match the rest.</summary>
/// <param name="Runs">Their runs.</param>
public sealed record AttemptFilter(RunFilter Runs)
{
    public int? Epoch { get; init; }

    public string? Host { get; init; }

    public string? Provider { get; init; }

    public string? GpuKind { get; init; }
}

/// <summary>The cost of one category in one currency.</summary>
public readonly record struct CategoryCost(CostCategory Category, Money Cost);

/// <summary>Hours and money of any set of attempts and cost lines. Every list of money has one amount for each currency; nothing is converted.</summary>
public record CostSummary
{
    public required int Attempts { get; init; }

    /// <summary>Attempts without an end.</summary>
    public required int OpenAttempts { get; init; }

    /// <summary>Attempts whose end is their last heartbeat.</summary>
    public required int EstimatedAttempts { get; init; }

    /// <summary>Machine time as it was measured.</summary>
    public required decimal Hours { get; init; }

    public required decimal GpuHours { get; init; }

    /// <summary>Machine time by the providers' units and minimums.</summary>
    public required decimal BilledHours { get; init; }

    /// <summary>Machine time without a known rate: the money is missing these.</summary>
    public required decimal UnpricedHours { get; init; }

    public required decimal LostHours { get; init; }

    public required IReadOnlyList<Money> LostCost { get; init; }

    /// <summary>The machines, and the lines of the category gpu.</summary>
    public required IReadOnlyList<Money> GpuCost { get; init; }

    /// <summary>All categories.</summary>
    public required IReadOnlyList<Money> Cost { get; init; }

    public required IReadOnlyList<CategoryCost> ByCategory { get; init; }

    /// <summary>Hours by phase, with one entry for each currency and one without cost where the rate is not known.</summary>
    public required IReadOnlyList<PhaseCost> ByPhase { get; init; }

    /// <summary>What units and minimums add; with <see cref="ByPhase"/> it makes the cost of the attempts.</summary>
    public required IReadOnlyList<Money> BillingRounding { get; init; }

    /// <summary>Steps that are in the results.</summary>
    public required long Steps { get; init; }

    /// <summary>Tokens of <see cref="Steps"/>.</summary>
    public required long Tokens { get; init; }

    /// <summary>Rows of the data that <see cref="Steps"/> were trained on.</summary>
    public required long Samples { get; init; }

    /// <summary>Of <see cref="Steps"/>, those of attempts with a rate: what a step cost can only be told of them.</summary>
    public required (long Steps, long Tokens, long Samples) Priced { get; init; }

    /// <summary>What machines cost by 1,000 steps, lost ones paid with; empty where there are none with a price.</summary>
    public IReadOnlyList<Money> CostPerThousandSteps => Each(1_000, Priced.Steps);

    /// <summary>The same by 1,000,000 tokens.</summary>
    public IReadOnlyList<Money> CostPerMillionTokens => Each(1_000_000, Priced.Tokens);

    /// <summary>The same by one row of the data.</summary>
    public IReadOnlyList<Money> CostPerSample => Each(1, Priced.Samples);

    internal static CostSummary Of(IReadOnlyList<AttemptCost> attempts, IReadOnlyList<CostLine> lines)
    {
        Money[] machines = [.. attempts.Select(attempt => attempt.Cost).OfType<Money>()];
        (CostCategory Category, Money Cost)[] categories = [.. machines.Select(cost => (CostCategory.Gpu, cost)), .. lines.Select(line => (line.Category, line.Money))];
        return new CostSummary
        {
            Attempts = attempts.Count,
            OpenAttempts = attempts.Count(attempt => attempt.Attempt.Ended is null),
            EstimatedAttempts = attempts.Count(attempt => attempt.Attempt.Estimated),
            Hours = Hours(attempts.Sum(attempt => (decimal)attempt.Attempt.Progress.Elapsed.Ticks)),
            GpuHours = Hours(attempts.Sum(attempt => (decimal)attempt.Attempt.Progress.Elapsed.Ticks * attempt.Attempt.Start.GpuCount)),
            BilledHours = attempts.Sum(attempt => attempt.BilledHours),
            UnpricedHours = Hours(attempts.Where(attempt => attempt.Cost is null).Sum(attempt => (decimal)attempt.Attempt.Progress.Elapsed.Ticks)),
            LostHours = attempts.Sum(attempt => attempt.LostHours),
            LostCost = Money.Totals(attempts.Select(attempt => attempt.LostCost).OfType<Money>().Where(cost => cost.Amount != 0)),
            GpuCost = Money.Totals(categories.Where(item => item.Category == CostCategory.Gpu).Select(item => item.Cost)),
            Cost = Money.Totals(categories.Select(item => item.Cost)),
            ByCategory = [.. categories.GroupBy(item => item.Category).OrderBy(group => group.Key).SelectMany(group => Money.Totals(group.Select(item => item.Cost)).Select(cost => new CategoryCost(group.Key, cost)))],
            ByPhase =
            [
                .. attempts.SelectMany(attempt => attempt.Phases).GroupBy(phase => (phase.Phase, phase.Cost?.Currency))
                    .OrderBy(group => group.Key.Phase).ThenBy(group => group.Key.Currency, StringComparer.Ordinal)
                    .Select(group => new PhaseCost(group.Key.Phase, group.Sum(phase => phase.Hours), group.Key.Currency is { } currency ? new Money(group.Sum(phase => phase.Cost!.Value.Amount), currency) : null)),
            ],
            BillingRounding = Money.Totals(attempts.Select(attempt => attempt.BillingRounding).OfType<Money>()),
            Steps = attempts.Sum(attempt => (long)attempt.KeptSteps),
            Tokens = attempts.Sum(attempt => attempt.KeptTokens),
            Samples = attempts.Sum(attempt => attempt.KeptSamples),
            Priced = (Priced(attempt => attempt.KeptSteps), Priced(attempt => attempt.KeptTokens), Priced(attempt => attempt.KeptSamples)),
        };

        long Priced(Func<AttemptCost, long> count) => attempts.Where(attempt => attempt.Cost is not null).Sum(count);

        // Divided once, after they were added.
        static decimal Hours(decimal ticks) => ticks / TimeSpan.TicksPerHour;
    }

    private Money[] Each(decimal unit, long count) => count == 0 ? [] : [.. GpuCost.Select(cost => new Money(cost.Amount * unit / count, cost.Currency))];
}

/// <summary>One run: its facts, its attempts by epoch, its cost lines, and what they add up to.</summary>
public sealed record RunSummary(RunFacts Run, CostSummary Total, IReadOnlyList<AttemptCost> Attempts, IReadOnlyList<CostLine> Lines);

/// <summary>Many runs, and the cost lines of their projects.</summary>
public sealed record LedgerTotals(IReadOnlyList<RunSummary> Runs, IReadOnlyList<CostLine> ProjectLines, CostSummary Total);
