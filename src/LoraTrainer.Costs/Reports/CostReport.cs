using LoraTrainer.Costs.Ledger;

namespace LoraTrainer.Costs.Reports;

/// <summary>What the rows of a report are.</summary>
public enum GroupBy
{
    Run,
    Provider,
    Project,
    Model,
    Day,
    Tag,
}

/// <summary>Charges that have something in common, added up. Currencies stay apart.</summary>
public sealed record ChargeGroup
{
    private const decimal TicksPerHour = TimeSpan.TicksPerHour;

    /// <summary>What they have in common, as it is recorded; null where that is not known.</summary>
    public required string? Key { get; init; }

    public required int Runs { get; init; }

    /// <summary>An attempt that went on over midnight counts on both days.</summary>
    public required int Attempts { get; init; }

    /// <summary>Machine time as it was measured.</summary>
    public required decimal Hours { get; init; }

    public required decimal GpuHours { get; init; }

    public required decimal LostHours { get; init; }

    /// <summary>Machine time without a known rate: the money is missing these.</summary>
    public required decimal UnpricedHours { get; init; }

    /// <summary>One amount for each currency.</summary>
    public required IReadOnlyList<Money> Cost { get; init; }

    public required IReadOnlyList<Money> LostCost { get; init; }

    public static ChargeGroup Of(string? key, IReadOnlyList<Charge> charges)
    {
        ArgumentNullException.ThrowIfNull(charges);
        return new ChargeGroup
        {
            Key = key,
            Runs = charges.Select(charge => charge.Run?.RunId).OfType<string>().Distinct().Count(),
            Attempts = charges.Where(charge => charge.Attempt is not null).Select(charge => (charge.Run!.RunId, charge.Attempt!.Attempt.Start.Epoch)).Distinct().Count(),
            Hours = charges.Sum(charge => (decimal)charge.Ticks) / TicksPerHour,
            GpuHours = charges.Sum(charge => (decimal)charge.Ticks * (charge.Attempt?.Attempt.Start.GpuCount ?? 1)) / TicksPerHour,
            LostHours = charges.Where(charge => charge.Phase == LedgerPhase.Lost).Sum(charge => (decimal)charge.Ticks) / TicksPerHour,
            UnpricedHours = charges.Where(charge => charge.Cost is null).Sum(charge => (decimal)charge.Ticks) / TicksPerHour,
            Cost = Money.Totals(charges.Select(charge => charge.Cost).OfType<Money>()),
            LostCost = Money.Totals(charges.Where(charge => charge.Phase == LedgerPhase.Lost).Select(charge => charge.Cost).OfType<Money>()),
        };
    }
}

/// <summary>A run as far as it lies within the period of a report.</summary>
/// <param name="Summary">The whole run.</param>
/// <param name="Within">What of it lies within the period.</param>
/// <param name="IsWhole">Whether that is all of it.</param>
public sealed record ReportedRun(RunSummary Summary, ChargeGroup Within, bool IsWhole);

/// <summary>What runs cost in a period: the runs that did or cost something in it, and what they and their projects cost.</summary>
public sealed class CostReport
{
    private CostReport(ReportPeriod period, IReadOnlyList<ReportedRun> runs, IReadOnlyList<Charge> charges)
    {
        Period = period;
        Runs = runs;
        Charges = charges;
        Total = ChargeGroup.Of(key: null, charges);
    }

    public ReportPeriod Period { get; }

    /// <summary>The newest first.</summary>
    public IReadOnlyList<ReportedRun> Runs { get; }

    /// <summary>Everything within the period, that of projects without a run among it.</summary>
    public IReadOnlyList<Charge> Charges { get; }

    public ChargeGroup Total { get; }

    /// <summary>The costs of projects as a whole, which belong to none of the runs.</summary>
    public IReadOnlyList<Charge> OfProjects => [.. Charges.Where(charge => charge.Run is null)];

    public static CostReport Of(LedgerTotals totals, ReportPeriod period)
    {
        ArgumentNullException.ThrowIfNull(totals);
        var runs = new List<ReportedRun>();
        var all = new List<Charge>();
        foreach (RunSummary run in totals.Runs.OrderByDescending(run => run.Run.Created))
        {
            Charge[] whole = [.. Charge.Of(run)];
            Charge[] within = period.IsAlways ? whole : [.. whole.Select(charge => charge.Within(period)).OfType<Charge>()];
            if (within.Length > 0 || period.Holds(run.Run.Created))
            {
                runs.Add(new ReportedRun(run, ChargeGroup.Of(run.Run.RunId, within), within.Length == whole.Length && !within.Any(charge => charge.IsPart)));
                all.AddRange(within);
            }
        }

        all.AddRange(Charge.Of(totals with { Runs = [] }).Select(charge => charge.Within(period)).OfType<Charge>());
        return new CostReport(period, runs, all);
    }

    /// <summary>The charges in groups: days in their order, anything else by what it cost first, and what is not known last.</summary>
    /// <param name="by">What each group has in common.</param>
    /// <param name="tag">The key of <see cref="GroupBy.Tag"/>; its values are the groups.</param>
    public IReadOnlyList<ChargeGroup> Groups(GroupBy by, string? tag = null)
    {
        IEnumerable<(string? Key, Charge Charge)> keyed = by == GroupBy.Day
            ? Charges.SelectMany(charge => charge.ByDay()).Select(item => ((string?)LedgerText.Of(item.Day), item.Charge))
            : Charges.Select(charge => (Blank(Key(charge, by, tag)), charge));
        IEnumerable<ChargeGroup> groups = keyed.GroupBy(item => item.Key).Select(group => ChargeGroup.Of(group.Key, [.. group.Select(item => item.Charge)]));
        return by == GroupBy.Day
            ? [.. groups.OrderBy(group => group.Key, StringComparer.Ordinal)]
            : [.. groups.OrderBy(group => group.Key is null).ThenByDescending(group => group.Cost.Count == 1 ? group.Cost[0].Amount : 0).ThenByDescending(group => group.Hours).ThenBy(group => group.Key, StringComparer.Ordinal)];
    }

    private static string? Key(Charge charge, GroupBy by, string? tag) => by switch
    {
        GroupBy.Run => charge.Run?.RunId,
        GroupBy.Provider => charge.Attempt?.Attempt.Start.Provider,
        GroupBy.Project => charge.Project,
        GroupBy.Model => charge.Run?.Model,
        _ => charge.Run?.Tags.FirstOrDefault(item => item.StartsWith(tag + "=", StringComparison.Ordinal))?[(tag!.Length + 1)..],
    };

    private static string? Blank(string? key) => string.IsNullOrEmpty(key) ? null : key;
}
