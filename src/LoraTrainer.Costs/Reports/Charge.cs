using LoraTrainer.Costs.Ledger;

namespace LoraTrainer.Costs.Reports;

/// <summary>
/// The smallest piece of a bill: one phase of one attempt, what the provider's units add to an attempt, or a cost line. Every report is a sum of these, and
/// the charges of a run add up to its cost to the last digit, also after they were cut at days or at the borders of a period.
/// </summary>
public sealed record Charge
{
    /// <summary>Null for a cost of a project as a whole.</summary>
    public required RunFacts? Run { get; init; }

    /// <summary>Empty where there is none.</summary>
    public required string Project { get; init; }

    /// <summary>Null for a cost line.</summary>
    public AttemptCost? Attempt { get; init; }

    /// <summary>Null for a cost line, and for what units and minimums add.</summary>
    public LedgerPhase? Phase { get; init; }

    /// <summary>Null for an attempt's time.</summary>
    public CostLine? Line { get; init; }

    public required CostCategory Category { get; init; }

    /// <summary>
    /// When it arose. Phases are laid one behind the other in the order of <see cref="LedgerPhase"/>, as an attempt goes through them by and large; what units and
    /// minimums add, at the attempt's end; a cost line, at the beginning of its day.
    /// </summary>
    public required DateTimeOffset Start { get; init; }

    /// <summary><see cref="Start"/> where it took no time.</summary>
    public required DateTimeOffset End { get; init; }

    /// <summary>Null where the rate is not known.</summary>
    public required Money? Cost { get; init; }

    /// <summary>Whether it is a piece of one that was cut.</summary>
    public bool IsPart { get; init; }

    /// <summary>Machine time in units of 100 ns; 0 for a cost line.</summary>
    public long Ticks => (End - Start).Ticks;

    public bool IsRounding => Attempt is not null && Phase is null;

    /// <summary>All charges of the runs and the project lines.</summary>
    public static IReadOnlyList<Charge> Of(LedgerTotals totals)
    {
        ArgumentNullException.ThrowIfNull(totals);
        return [.. totals.Runs.SelectMany(Of), .. totals.ProjectLines.Select(line => Of(line, run: null))];
    }

    /// <summary>All charges of a run, attempt by attempt, then its cost lines.</summary>
    public static IEnumerable<Charge> Of(RunSummary run)
    {
        ArgumentNullException.ThrowIfNull(run);
        foreach (AttemptCost attempt in run.Attempts)
        {
            DateTimeOffset at = attempt.Attempt.Start.Started.ToUniversalTime();
            foreach (PhaseCost phase in attempt.Phases)
            {
                DateTimeOffset end = at.AddTicks(phase.Ticks);
                yield return new Charge { Run = run.Run, Project = run.Run.Project, Attempt = attempt, Phase = phase.Phase, Category = CostCategory.Gpu, Start = at, End = end, Cost = phase.Cost };
                at = end;
            }

            if (attempt.BillingRounding is { Amount: not 0 } rounding)
            {
                yield return new Charge { Run = run.Run, Project = run.Run.Project, Attempt = attempt, Category = CostCategory.Gpu, Start = at, End = at, Cost = rounding };
            }
        }

        foreach (CostLine line in run.Lines)
        {
            yield return Of(line, run.Run);
        }
    }

    /// <summary>The piece of it within the period; null where nothing is.</summary>
    public Charge? Within(ReportPeriod period)
    {
        if (Ticks == 0)
        {
            // Of an attempt that ended with the period: its last moment belongs to it.
            return period.Holds(IsRounding && Attempt!.Attempt.Progress.Elapsed > TimeSpan.Zero ? Start.AddTicks(-1) : Start) ? this : null;
        }

        DateTimeOffset start = period.Since is { } since && since > Start ? since : Start, end = period.Until is { } until && until < End ? until : End;
        return start >= end ? null : Cut(start, end);
    }

    /// <summary>Its pieces by the days of UTC that it touches.</summary>
    public IEnumerable<(DateOnly Day, Charge Charge)> ByDay()
    {
        if (Ticks == 0)
        {
            yield return (DateOnly.FromDateTime((IsRounding && Attempt!.Attempt.Progress.Elapsed > TimeSpan.Zero ? Start.AddTicks(-1) : Start).UtcDateTime), this);
            yield break;
        }

        for (DateTimeOffset at = Start; at < End;)
        {
            DateOnly day = DateOnly.FromDateTime(at.UtcDateTime);
            var midnight = new DateTimeOffset(day.AddDays(1), default, TimeSpan.Zero);
            DateTimeOffset end = midnight < End ? midnight : End;
            yield return (day, Cut(at, end));
            at = end;
        }
    }

    private static Charge Of(CostLine line, RunFacts? run)
    {
        var day = new DateTimeOffset(line.Date, default, TimeSpan.Zero);
        return new Charge { Run = run, Project = run?.Project ?? line.Project ?? string.Empty, Line = line, Category = line.Category, Start = day, End = day, Cost = line.Money };
    }

    /// <summary>The difference of two costs up to a moment, so that neighbouring pieces make the whole whatever the rounding.</summary>
    private Charge Cut(DateTimeOffset start, DateTimeOffset end) => start == Start && end == End
        ? this
        : this with { Start = start, End = end, IsPart = true, Cost = Cost is { } cost ? new Money(Until(cost, end) - Until(cost, start), cost.Currency) : null };

    private decimal Until(Money cost, DateTimeOffset moment) =>
        moment == End ? cost.Amount : decimal.Round(cost.Amount * (moment - Start).Ticks / Ticks, AttemptRate.Digits);
}
