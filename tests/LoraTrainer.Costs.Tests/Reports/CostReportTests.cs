using LoraTrainer.Costs.Ledger;
using LoraTrainer.Costs.Reports;
using LoraTrainer.Costs.Tests.Ledger;
using Xunit;
using static LoraTrainer.Costs.Tests.Ledger.TestLedger;

namespace LoraTrainer.Costs.Tests.Reports;

public sealed class CostReportTests
{
    [Fact]
    public void Whole_IsWhatTheLedgerSays()
    {
        using var test = new TestLedger();
        LedgerTotals totals = TestReport.Mixed(test);
        CostReport report = CostReport.Of(totals, ReportPeriod.Always);

        Assert.Equal(["r1", "r2", "r3"], report.Runs.Select(run => run.Summary.Run.RunId).Order());
        Assert.All(report.Runs, run => Assert.True(run.IsWhole));
        Assert.All(report.Runs, run => Assert.Equal(run.Summary.Total.Cost, run.Within.Cost));
        Assert.Equal(totals.Total.Cost, report.Total.Cost);
        Assert.Equal((totals.Total.Hours, totals.Total.GpuHours, totals.Total.LostHours, totals.Total.UnpricedHours), (report.Total.Hours, report.Total.GpuHours, report.Total.LostHours, report.Total.UnpricedHours));
        Assert.Equal("labels", Assert.Single(report.OfProjects).Line!.Description);

        // 2 h at 3.60, a begun second of 1800.5 s whole, less the credit, with the storage.
        Assert.Equal([new Money(7.2m + 1.801m - 0.5m + 0.07m, "USD")], report.Runs.Single(run => run.Summary.Run.RunId == "r1").Within.Cost);
    }

    [Fact]
    public void ByDay_CutsAnAttemptAtMidnight()
    {
        using var test = new TestLedger();
        CostReport report = TestReport.Whole(test);
        IReadOnlyList<ChargeGroup> days = report.Groups(GroupBy.Day);

        Assert.Equal(["2030-01-02", "2030-01-03"], days.Select(day => day.Key));

        // The first hour of the first attempt; the other run and the one without a rate; the labels.
        Assert.Equal([new Money(408, "EUR"), new Money(3.6m, "USD")], days[0].Cost);
        Assert.Equal([new Money(3.6m + 1.801m - 0.43m, "USD")], days[1].Cost);
        Assert.Equal(((3, 3), (1, 2)), ((days[0].Runs, days[0].Attempts), (days[1].Runs, days[1].Attempts)));
        Assert.Equal(2 + (600 / 3600m), days[0].Hours);
        Assert.Equal((0m, 1500 / 3600m), (days[0].LostHours, days[1].LostHours));
        Assert.Equal(report.Total.Cost, Money.Totals(days.SelectMany(day => day.Cost)));
    }

    [Fact]
    public void Groups_HaveWhatTheirChargesHaveInCommon()
    {
        using var test = new TestLedger();
        CostReport report = TestReport.Whole(test);

        // Of no provider: the runs where none was told, and every cost line.
        Assert.Equal(["vast", "aws", null], report.Groups(GroupBy.Provider).Select(group => group.Key));
        Assert.Equal([new Money(7.2m, "USD")], report.Groups(GroupBy.Provider)[0].Cost);
        Assert.Equal(["q", "p"], report.Groups(GroupBy.Project).Select(group => group.Key));
        Assert.Equal([new Money(400, "EUR"), new Money(8.571m, "USD")], report.Groups(GroupBy.Project)[1].Cost);
        Assert.Equal(["m", null], report.Groups(GroupBy.Model).Select(group => group.Key));
        Assert.Equal([("nlp", 1, 2), ("vision", 1, 1), (null, 1, 1)], report.Groups(GroupBy.Tag, "team").OrderBy(group => group.Key is null).ThenBy(group => group.Key).Select(group => (group.Key, group.Runs, group.Attempts)));
        Assert.Equal(4, report.Groups(GroupBy.Run).Count);
        foreach (GroupBy by in Enum.GetValues<GroupBy>())
        {
            Assert.Equal(report.Total.Cost, Money.Totals(report.Groups(by, "seed").SelectMany(group => group.Cost)));
        }
    }

    [Fact]
    public void Period_TakesWhatLiesWithin()
    {
        using var test = new TestLedger();
        LedgerTotals totals = TestReport.Mixed(test);
        DateTimeOffset midnight = TestReport.Noon.AddHours(12);
        CostReport before = CostReport.Of(totals, new ReportPeriod(null, midnight)), after = CostReport.Of(totals, new ReportPeriod(midnight, null)), never = CostReport.Of(totals, new ReportPeriod(midnight.AddDays(9), null));

        Assert.Equal(["r1"], after.Runs.Select(run => run.Summary.Run.RunId));
        Assert.False(after.Runs[0].IsWhole);
        Assert.Equal([new Money(3.6m + 1.801m - 0.43m, "USD")], after.Total.Cost);
        Assert.Equal([new Money(408, "EUR"), new Money(3.6m, "USD")], before.Total.Cost);
        Assert.True(before.Runs.Single(run => run.Summary.Run.RunId == "r2").IsWhole);
        Assert.Empty(never.Runs);
        Assert.Empty(never.Total.Cost);
    }

    /// <summary>However the time is cut: the pieces make the whole, to the last digit and the last tick.</summary>
    [Fact]
    public void AnyCuts_TheirPiecesMakeTheWhole()
    {
        var random = new Random(11);
        using var test = new TestLedger();
        using (RunLedger ledger = test.Open())
        {
            for (int run = 0; run < 40; run++)
            {
                AttemptRate? rate = random.Next(6) == 0
                    ? null
                    : new AttemptRate(random.Next(1, 99_999_999) / 1_000_003m, random.Next(3) == 0 ? "EUR" : "USD") { Billing = new BillingTerms(random.Next(2) == 0 ? 1 : 3600, 60) };
                double train = random.NextDouble() * 400_000, load = random.NextDouble() * 3000;
                ledger.Merge(Snapshot(
                    Start($"r{run}", 1, rate, random.Next(1, 9)) with { Started = TestReport.Noon.AddSeconds(random.NextDouble() * 1e6), Provider = $"p{random.Next(3)}" },
                    Progress(train + load + random.Next(100), 0, 90, random.Next(90), 90, (LedgerPhase.Load, load), (LedgerPhase.Train, train)), AttemptEnd.Killed));
                ledger.AddCostLine(new CostLine(CostCategory.Other, random.Next(-1000, 1000) / 1000m, "USD", DateOnly.FromDateTime(TestReport.Noon.UtcDateTime).AddDays(random.Next(9))) { RunId = $"r{run}" });
            }
        }

        using RunLedger read = test.Open();
        LedgerTotals totals = read.Totals();
        CostReport whole = CostReport.Of(totals, ReportPeriod.Always);
        Assert.Equal(totals.Total.Cost, whole.Total.Cost);
        foreach (IReadOnlyList<ChargeGroup> groups in (IReadOnlyList<ChargeGroup>[])[whole.Groups(GroupBy.Day), whole.Groups(GroupBy.Provider), whole.Groups(GroupBy.Run)])
        {
            Assert.Equal(whole.Total.Cost, Money.Totals(groups.SelectMany(group => group.Cost)));
            Assert.Equal(whole.Total.LostCost, Money.Totals(groups.SelectMany(group => group.LostCost)));
            Assert.InRange(groups.Sum(group => group.Hours) - whole.Total.Hours, -1e-20m, 1e-20m);
        }

        DateTimeOffset[] borders = [.. Enumerable.Range(0, 25).Select(_ => TestReport.Noon.AddTicks(random.NextInt64((long)(1.4e6 * TimeSpan.TicksPerSecond)))).Order()];
        ReportPeriod[] periods = [.. Enumerable.Range(0, borders.Length + 1).Select(index => new ReportPeriod(index == 0 ? null : borders[index - 1], index == borders.Length ? null : borders[index]))];
        CostReport[] parts = [.. periods.Select(period => CostReport.Of(totals, period))];
        Assert.Equal(whole.Total.Cost, Money.Totals(parts.SelectMany(part => part.Total.Cost)));
        Assert.Equal(whole.Charges.Sum(charge => (decimal)charge.Ticks), parts.SelectMany(part => part.Charges).Sum(charge => (decimal)charge.Ticks));
        Assert.Contains(parts, part => part.Charges.Count(charge => charge.IsPart) > 3);
    }
}
