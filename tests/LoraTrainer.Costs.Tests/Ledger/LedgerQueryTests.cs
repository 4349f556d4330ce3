using LoraTrainer.Costs.Ledger;
using Xunit;
using static LoraTrainer.Costs.Tests.Ledger.TestLedger;

namespace LoraTrainer.Costs.Tests.Ledger;

/// <summary>Every query on numbers that can be checked on paper.</summary>
public sealed class LedgerQueryTests
{
    /// <summary>Four GPUs at 0.26 an hour for 14.9 hours and 104 million tokens: 15.496, and 0.149 a million.</summary>
    [Fact]
    public void Summary_OfAPublishedRun_IsItsPrice()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        var attempt = new TestAttempt(ledger, Start(rate: Dollars(0.26m), gpus: 4));
        attempt.End(AttemptEnd.Finished, Progress(14.9 * 3600, 0, 2000, 2000, 104_000_000, (LedgerPhase.Train, 14 * 3600), (LedgerPhase.Load, 360)));

        RunSummary run = ledger.Summary("r1")!;
        CostSummary total = run.Total;

        Assert.Equal(14.9m, total.Hours);
        Assert.Equal(59.6m, total.GpuHours);
        Assert.Equal(14.9m, total.BilledHours);
        Assert.Equal([new Money(15.496m, "USD")], total.Cost);
        Assert.Equal([new CategoryCost(CostCategory.Gpu, new Money(15.496m, "USD"))], total.ByCategory);
        Assert.Equal([new Money(0.149m, "USD")], total.CostPerMillionTokens);
        Assert.Equal([new Money(7.748m, "USD")], total.CostPerThousandSteps);
        Assert.Equal(
            [
                new PhaseCost(LedgerPhase.Load, 0.1m, new Money(0.104m, "USD")),
                new PhaseCost(LedgerPhase.Train, 14, new Money(14.56m, "USD")),
                new PhaseCost(LedgerPhase.Idle, 0.8m, new Money(0.832m, "USD")),
            ],
            total.ByPhase);
        Assert.Equal([Money.Zero("USD")], total.BillingRounding);
        Assert.Equal((1, 0, 0, 0m, 0m), (total.Attempts, total.OpenAttempts, total.EstimatedAttempts, total.UnpricedHours, total.LostHours));
        Assert.Empty(total.LostCost);
        Assert.Null(ledger.Summary("another"));
    }

    /// <summary>By the hour with a minimum: hours stay as they are, billed hours and money do not.</summary>
    [Theory]
    [InlineData(3601, 3600, 0, "2", "20", "9.997222222222222222")]
    [InlineData(30, 1, 60, "0.0166666666666666666666666667", "0.166666666666666667", "0.083333333333333334")]
    public void BillingTerms_TouchBilledHoursAndCostOnly(double seconds, int granularity, int minimum, string billedHours, string cost, string rounding)
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        new TestAttempt(ledger, Start(rate: Dollars(10) with { Billing = new BillingTerms(granularity, minimum) })).End(AttemptEnd.Finished, Progress(seconds));

        CostSummary total = ledger.Summary("r1")!.Total;

        Assert.Equal((decimal)seconds / 3600, total.Hours);
        Assert.Equal(Number(billedHours), total.BilledHours);
        Assert.Equal(Number(cost), Assert.Single(total.Cost).Amount);
        Assert.Equal(Number(rounding), Assert.Single(total.BillingRounding).Amount);
    }

    [Fact]
    public void RatePerMachine_IsPaidOnce()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        new TestAttempt(ledger, Start(rate: Dollars(21.957642m, RatePer.Machine), gpus: 8)).End(AttemptEnd.Finished, Progress(7200));

        CostSummary total = ledger.Summary("r1")!.Total;

        Assert.Equal([new Money(43.915284m, "USD")], total.Cost);
        Assert.Equal((2m, 16m), (total.Hours, total.GpuHours));
    }

    /// <summary>Killed at step 30 with a checkpoint of step 20: a third of its training is lost. The next one goes on from 20 and is interrupted in order.</summary>
    [Fact]
    public void LostWork_IsTheStepsAfterTheLastSavedOne()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        var first = new TestAttempt(ledger, Start(epoch: 1, rate: Dollars(6)));
        first.Heartbeat(Progress(4000, 0, 30, 20, 3000, (LedgerPhase.Train, 3600), (LedgerPhase.Load, 400)));
        Assert.Equal(0, ledger.Summary("r1")!.Total.LostHours);

        AttemptCost closed = Assert.Single(ledger.CloseDead(_ => true));
        Assert.Equal((10, Number("0.3333333333333333333333333333"), new Money(2, "USD")), (closed.LostSteps, closed.LostHours, closed.LostCost!.Value));
        Assert.Equal((AttemptEnd.Killed, true), (closed.Attempt.Ended!.Value, closed.Attempt.Estimated));
        Assert.Empty(ledger.CloseDead(_ => true));

        new TestAttempt(ledger, Start(epoch: 2, rate: Dollars(6))).End(AttemptEnd.Interrupted, Progress(1800, 20, 40, 40, 2000, (LedgerPhase.Train, 1800)));
        CostSummary total = ledger.Summary("r1")!.Total;

        Assert.Equal((40, 4000), (total.Steps, total.Tokens));
        Assert.Equal([new Money(2, "USD")], total.LostCost);
        Assert.Equal(new PhaseCost(LedgerPhase.Lost, closed.LostHours, new Money(2, "USD")), total.ByPhase[^1]);
        Assert.Equal(new PhaseCost(LedgerPhase.Train, Number("1.1666666666666666666666666667"), new Money(7, "USD")), total.ByPhase[1]);
        Assert.Equal(1, total.EstimatedAttempts);
    }

    /// <summary>It was killed between a checkpoint and the heartbeat that would have told of it. Where the next one starts is what counts.</summary>
    [Theory]
    [InlineData(36, 0)]
    [InlineData(30, 0)]
    [InlineData(25, 5)]
    [InlineData(0, 30)]
    public void LostWork_IsCorrectedByWhereTheRunWentOn(int restart, int lost)
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        new TestAttempt(ledger, Start(epoch: 1)).Heartbeat(Progress(100, 0, 30, 20));
        new TestAttempt(ledger, Start(epoch: 2)).Heartbeat(Progress(1, 0, 0));
        new TestAttempt(ledger, Start(epoch: 3)).Heartbeat(Progress(10, restart, restart + 1));
        ledger.CloseDead(_ => false);

        RunSummary run = ledger.Summary("r1")!;

        Assert.Equal([lost, 0, 0], run.Attempts.Select(attempt => attempt.LostSteps));
        Assert.Equal(restart + 1, run.Total.Steps);
        Assert.Equal([AttemptEnd.Killed, AttemptEnd.Killed, null], run.Attempts.Select(attempt => attempt.Attempt.Ended));
    }

    /// <summary>Steps after the last heartbeat of a killed attempt are in the run where a checkpoint had them; not where an attempt in between is unknown here.</summary>
    [Theory]
    [InlineData(0, 0, 2, 20, 2000)]
    [InlineData(10, 700, 2, 20, 1640)]
    [InlineData(10, 700, 3, 18, 1500)]
    public void StepsAfterTheLastHeartbeat_AreCounted(int seen, long tokens, int epoch, int steps, long total)
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        new TestAttempt(ledger, Start(epoch: 1)).Heartbeat(Progress(100, 0, seen, null, tokens));
        new TestAttempt(ledger, Start(epoch: epoch)).End(AttemptEnd.Finished, Progress(100, 12, 20, 20, 800));
        ledger.CloseDead(_ => false);

        CostSummary sum = ledger.Summary("r1")!.Total;

        Assert.Equal((steps, total), (sum.Steps, sum.Tokens));
    }

    [Fact]
    public void CloseDead_TakesThoseWhoseProcessIsGone_AndOfThatRunOnly()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        _ = new TestAttempt(ledger, Start("r1"));
        _ = new TestAttempt(ledger, Start("r2", epoch: 5));
        var third = new TestAttempt(ledger, Start("r3", epoch: 5));
        third.End(AttemptEnd.Failed);

        Assert.Empty(ledger.CloseDead(_ => true, "r9"));
        Assert.Equal("r2", Assert.Single(ledger.CloseDead(holder => holder == new AttemptHolder("host", "boot", 15, 99))).Attempt.RunId);
        Assert.Equal([null, AttemptEnd.Killed, AttemptEnd.Failed], ledger.Runs().Select(run => ledger.Summary(run.RunId)!.Attempts[0].Attempt.Ended));
    }

    [Fact]
    public void CloseDead_OfOneThatLives_IsTakenBackByItsHeartbeat()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        var attempt = new TestAttempt(ledger, Start());
        attempt.Heartbeat(Progress(10));
        ledger.CloseDead(_ => true);
        attempt.Heartbeat(Progress(20));

        Assert.Equal((1, 0), (ledger.Summary("r1")!.Total.OpenAttempts, ledger.Summary("r1")!.Total.EstimatedAttempts));

        ledger.CloseDead(_ => true);
        attempt.End(AttemptEnd.Finished);
        AttemptSnapshot end = ledger.Summary("r1")!.Attempts[0].Attempt;

        Assert.Equal((AttemptEnd.Finished, false, TimeSpan.FromSeconds(20)), (end.Ended!.Value, end.Estimated, end.Progress.Elapsed));
    }

    [Fact]
    public void Totals_NeverAddCurrencies_AndHoldTheLinesOfProjects()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        new TestAttempt(ledger, Start("r1", rate: Dollars(2))).End(AttemptEnd.Finished, Progress(3600));
        new TestAttempt(ledger, Start("r2", rate: new AttemptRate(3, "EUR"))).End(AttemptEnd.Finished, Progress(3600));
        new TestAttempt(ledger, Start("r3")).End(AttemptEnd.Finished, Progress(1800));
        var day = new DateOnly(2030, 1, 1);
        ledger.AddCostLine(new CostLine(CostCategory.Storage, 0.07m, "USD", day) { RunId = "r1", Description = "1 GB" });
        ledger.AddCostLine(new CostLine(CostCategory.Gpu, -0.5m, "USD", day) { RunId = "r1", Description = "credit", ByHand = true });
        var labor = new CostLine(CostCategory.Labor, 400, "EUR", day) { Project = "p" };
        ledger.AddCostLine(labor);
        ledger.AddCostLine(labor);
        ledger.AddCostLine(new CostLine(CostCategory.Data, 9, "USD", day) { Project = "q" });

        CostSummary all = ledger.Totals().Total, p = ledger.Totals(new RunFilter { Project = "p" }).Total, r1 = ledger.Totals(new RunFilter { RunId = "r1" }).Total;

        Assert.Equal([new Money(403, "EUR"), new Money(10.57m, "USD")], all.Cost);
        Assert.Equal([new Money(403, "EUR"), new Money(1.57m, "USD")], p.Cost);
        Assert.Equal([new Money(1.57m, "USD")], r1.Cost);
        Assert.Equal([new Money(3, "EUR"), new Money(1.5m, "USD")], p.GpuCost);
        Assert.Equal((2.5m, 0.5m), (p.Hours, p.UnpricedHours));
        Assert.Equal(
            [(CostCategory.Gpu, 3m, "EUR"), (CostCategory.Gpu, 1.5m, "USD"), (CostCategory.Storage, 0.07m, "USD"), (CostCategory.Labor, 400m, "EUR")],
            p.ByCategory.Select(item => (item.Category, item.Cost.Amount, item.Cost.Currency)));
        Assert.Equal([null, "EUR", "USD"], p.ByPhase.Select(phase => phase.Cost?.Currency));
        ledger.AddCostLine(new CostLine(CostCategory.Inference, 2, "USD", day) { RunId = "not known yet" });
        Assert.Equal(new Money(12.57m, "USD"), ledger.Totals().Total.Cost[1]);
        Assert.True(ledger.Summary("r1")!.Lines.Single(line => line.Description == "credit").ByHand);
    }

    [Fact]
    public void SetRate_PricesWhatHasNone_AndLaterSnapshotsKeepIt()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        var first = new TestAttempt(ledger, Start(epoch: 1) with { Provider = "vast", GpuKind = "A" });
        _ = new TestAttempt(ledger, Start(epoch: 2, rate: Dollars(9)) with { Provider = "vast", GpuKind = "B" });
        AttemptRate rate = Dollars(1.5m) with { Source = "invoice", AsOf = new DateOnly(2030, 2, 1), Billing = new BillingTerms(60, 120) };

        Assert.Equal(0, ledger.SetRate(new AttemptFilter(new RunFilter { RunId = "r1" }) { GpuKind = "C" }, rate));
        Assert.Equal(1, ledger.SetRate(new AttemptFilter(new RunFilter { RunId = "r1" }) { Provider = "vast", Host = "host" }, rate));
        first.Heartbeat(Progress(10));
        ledger.Merge(Snapshot(Start(epoch: 1, rate: Dollars(77)), Progress(20)));

        Assert.Equal([rate, Dollars(9)], ledger.Summary("r1")!.Attempts.Select(attempt => attempt.Attempt.Start.Rate));
        Assert.Equal(2, ledger.SetRate(new AttemptFilter(new RunFilter { Name = "name of r1" }), Dollars(2), replace: true));
        Assert.Equal(1, ledger.SetRate(new AttemptFilter(new RunFilter()) { Epoch = 2 }, rate, replace: true));
        Assert.Equal([Dollars(2), rate], ledger.Summary("r1")!.Attempts.Select(attempt => attempt.Attempt.Start.Rate));
    }

    [Fact]
    public void Runs_AreFoundByEveryFilter_WithAllThatWasRecorded()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        AttemptStart start = Start("r1") with
        {
            Provider = "aws", InstanceType = "g6.xlarge", Region = "eu-west-1", GpuKind = "L4", Pricing = Pricing.OnDemand,
            Rate = Dollars(0.8048m) with { Source = "price list", AsOf = new DateOnly(2029, 12, 31) },
        };
        _ = new TestAttempt(ledger, start);
        _ = new TestAttempt(ledger, Start("r2") with { Run = Start("r2").Run with { Project = "q", Tags = ["c"], Created = ManualTime.Start.AddDays(1) } });

        Assert.Equivalent(start, ledger.Summary("r1")!.Attempts[0].Attempt.Start, strict: true);
        Assert.Equal(["r1", "r2"], ledger.Runs().Select(run => run.RunId));
        foreach (RunFilter filter in (RunFilter[])[new() { RunId = "r2" }, new() { Name = "name of r2" }, new() { Project = "q" }, new() { Tag = "c" }, new() { Since = ManualTime.Start.AddDays(1) }])
        {
            Assert.Equal("r2", Assert.Single(ledger.Runs(filter)).RunId);
        }

        Assert.Equal("r1", Assert.Single(ledger.Runs(new RunFilter { Until = ManualTime.Start.AddDays(1), Tag = "b" })).RunId);
        Assert.Empty(ledger.Runs(new RunFilter { Tag = "'; DROP TABLE runs; --" }));
    }

    [Fact]
    public void Money_IsTextInTheFile()
    {
        using var test = new TestLedger();
        using (RunLedger ledger = test.Open())
        {
            _ = new TestAttempt(ledger, Start(rate: Dollars(0.1234567890123456789m)));
            ledger.AddCostLine(new CostLine(CostCategory.Other, 0.10m, "USD", new DateOnly(2030, 1, 1)) { RunId = "r1" });
            Assert.Equal(0.1234567890123456789m, ledger.Summary("r1")!.Attempts[0].Attempt.Start.Rate!.Amount);
        }

        using var connection = test.Connect();
        using var command = connection.CreateCommand();
        command.CommandText = "SELECT typeof(rate) || rate FROM attempts UNION ALL SELECT typeof(amount) || amount FROM cost_lines";
        using var row = command.ExecuteReader();
        Assert.True(row.Read());
        Assert.Equal("text0.1234567890123456789", row.GetString(0));
        Assert.True(row.Read());
        Assert.Equal("text0.10", row.GetString(0));
    }

    [Fact]
    public void Values_ThatMakeNoSense_AreRefusedInASentence()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        var day = new DateOnly(2030, 1, 1);

        Assert.Equal("A rate cannot be negative, got -0.01 an hour. A credit is a cost line of its own.", Refused(() => Dollars(-0.01m)));
        Assert.Equal("A rate is a price of one hour, at most 100000, got 100000.01.", Refused(() => Dollars(100_000.01m)));
        Assert.Equal(100_000, Dollars(100_000).Amount);
        foreach (string currency in (string[])["", "usd", "US", "US$", "USDT"])
        {
            Assert.Equal($"A currency is three capital letters as in USD or EUR, got \"{currency}\".", Refused(() => new AttemptRate(1, currency)));
            Refused(() => new CostLine(CostCategory.Other, 1, currency, day));
        }

        Assert.Equal("Time is billed in units of more than 0 seconds with a minimum of at least 0, got 0 and 0.", Refused(() => Dollars(1) with { Billing = default }));
        Assert.Equal("A cost line is at most 1000000000, got -1000000001.", Refused(() => new CostLine(CostCategory.Other, -1_000_000_001, "USD", day)));
        Assert.Equal("A cost line belongs to a run or to a project, and not to both.", Refused(() => ledger.AddCostLine(new CostLine(CostCategory.Other, 1, "USD", day))));
        Refused(() => ledger.AddCostLine(new CostLine(CostCategory.Other, 1, "USD", day) { RunId = "r", Project = "p" }));
        Assert.Equal("The number of GPUs must be at least 1, got 0.", Refused(() => Start(gpus: 0)));
        Assert.Equal("The run id is empty.", Refused(() => Start(run: " ")));
        Refused(() => Progress(-1));
    }

    private static string Refused(Func<object> make) => Assert.Throws<ArgumentException>(make).Message;

    private static string Refused(Action make) => Assert.Throws<ArgumentException>(make).Message;

    private static decimal Number(string text) => decimal.Parse(text, System.Globalization.CultureInfo.InvariantCulture);
}
