using LoraTrainer.Costs.Ledger;
using Xunit;
using static LoraTrainer.Costs.Tests.Ledger.TestLedger;

namespace LoraTrainer.Costs.Tests.Ledger;

/// <summary>What must hold for any attempts, whatever happened to them.</summary>
public sealed class LedgerIdentityTests
{
    [Fact]
    public void AnyAttempts_TheirPartsMakeTheWhole()
    {
        var random = new Random(7);
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        int lossy = 0, rounded = 0;
        for (int round = 0; round < 60; round++)
        {
            string run = $"r{round}";
            List<AttemptSnapshot> attempts = RandomRun(random, run);

            // As they would be told of: each more than once, older states among newer ones, in any order.
            AttemptSnapshot[] told = [.. attempts, .. attempts.Select(attempt => Earlier(random, attempt)), .. attempts];
            random.Shuffle(told);
            foreach (AttemptSnapshot attempt in told)
            {
                ledger.Merge(attempt);
            }

            RunSummary summary = ledger.Summary(run)!;
            CostSummary total = summary.Total;
            Assert.Equal(attempts.Count, summary.Attempts.Count);
            Assert.Equal(attempts[^1].Progress.LastStep, total.Steps);
            foreach ((AttemptSnapshot attempt, AttemptCost cost) in attempts.Zip(summary.Attempts))
            {
                decimal seconds = (decimal)attempt.Progress.Elapsed.Ticks / TimeSpan.TicksPerSecond;
                Assert.Equal(seconds / 3600, cost.Hours);
                AssertClose(cost.Hours, cost.Phases.Sum(phase => phase.Hours));
                Assert.Equal(cost.LostHours, cost.Phases.FirstOrDefault(phase => phase.Phase == LedgerPhase.Lost)?.Hours ?? 0);
                Assert.InRange(cost.LostHours, 0, cost.Hours);
                Assert.True(cost.BilledHours >= cost.Hours);
                Assert.Equal(attempt.Start.Rate, cost.Attempt.Start.Rate);
                if (attempt.Start.Rate is not { } rate)
                {
                    Assert.Null(cost.Cost);
                    continue;
                }

                int units = rate.Per == RatePer.Machine ? 1 : attempt.Start.GpuCount;
                Assert.Equal(cost.Cost!.Value, cost.Phases.Aggregate(cost.BillingRounding!.Value, (sum, phase) => sum + phase.Cost!.Value));
                AssertClose(rate.Amount * units * (rate.Billing.BilledSeconds(seconds) - seconds) / 3600, cost.BillingRounding.Value.Amount);
                Assert.True(cost.LostCost <= cost.Cost);
                rounded += cost.BilledHours > cost.Hours ? 1 : 0;
            }

            lossy += summary.Attempts.Count(attempt => attempt.LostSteps > 0);
            AssertClose(total.Hours, total.ByPhase.Sum(phase => phase.Hours));
            Assert.Equal(Money.Totals(summary.Attempts.Select(attempt => attempt.Cost).OfType<Money>()), total.Cost);
            foreach (Money cost in total.Cost)
            {
                decimal phases = total.ByPhase.Where(phase => phase.Cost?.Currency == cost.Currency).Sum(phase => phase.Cost!.Value.Amount);
                Assert.Equal(cost.Amount, phases + total.BillingRounding.Single(money => money.Currency == cost.Currency).Amount);
            }
        }

        Assert.InRange(lossy, 30, int.MaxValue);
        Assert.InRange(rounded, 30, int.MaxValue);
        LedgerTotals all = ledger.Totals();
        Assert.Equal(60, all.Runs.Count);
        AssertClose(all.Runs.Sum(run => run.Total.Hours), all.Total.Hours);
        Assert.Equal(Money.Totals(all.Runs.SelectMany(run => run.Total.Cost)), all.Total.Cost);
    }

    /// <summary>Decimals that were divided agree but for their last digits.</summary>
    private static void AssertClose(decimal expected, decimal actual) => Assert.InRange(actual - expected, -1e-16m, 1e-16m);

    private static List<AttemptSnapshot> RandomRun(Random random, string run)
    {
        var attempts = new List<AttemptSnapshot>();
        int step = 0;
        for (int epoch = 1, count = random.Next(1, 6); epoch <= count; epoch++)
        {
            int last = step + random.Next(0, 50);
            int? saved = random.Next(3) == 0 ? null : random.Next(step, last + 1);
            bool isLast = epoch == count;
            double[] parts = [.. Enumerable.Range(0, 5).Select(_ => random.NextDouble() * 5000)];
            AttemptRate? rate = random.Next(5) == 0
                ? null
                : new AttemptRate(random.Next(0, 40_000_000) / 1_000_000m, random.Next(4) == 0 ? "EUR" : "USD", (RatePer)random.Next(2)) { Billing = new BillingTerms(random.Next(3) switch { 0 => 1, 1 => 60, _ => 3600 }, random.Next(2) * 60) };

            // One in three overshoots its elapsed time, as clocks of two kinds do.
            AttemptProgress progress = Progress(parts.Sum() - (random.Next(3) == 0 ? 0.005 : 0), step, last, saved, last - step, (LedgerPhase.Load, parts[0]), (LedgerPhase.Train, parts[1]), (LedgerPhase.Evaluate, parts[2]), (LedgerPhase.Save, parts[3]));
            attempts.Add(Snapshot(Start(run, epoch, rate, random.Next(1, 9)), progress, isLast ? AttemptEnd.Finished : (AttemptEnd)random.Next(1, 5)));
            step = isLast ? last : saved ?? step;
        }

        return attempts;
    }

    private static AttemptSnapshot Earlier(Random random, AttemptSnapshot attempt)
    {
        double share = random.NextDouble() * 0.9;
        return attempt with
        {
            Progress = attempt.Progress with { Elapsed = attempt.Progress.Elapsed * share, LastStep = attempt.Progress.FirstStep, SavedStep = null, Phases = attempt.Progress.Phases.ToDictionary(phase => phase.Key, phase => phase.Value * share) },
            Ended = null,
            Estimated = false,
        };
    }
}
