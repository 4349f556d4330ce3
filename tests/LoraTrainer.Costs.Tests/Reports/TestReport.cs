using LoraTrainer.Costs.Ledger;
using LoraTrainer.Costs.Reports;
using LoraTrainer.Costs.Tests.Ledger;
using static LoraTrainer.Costs.Tests.Ledger.TestLedger;

namespace LoraTrainer.Costs.Tests.Reports;

/// <summary>Ledgers to report of.</summary>
internal static class TestReport
{
    public static DateTimeOffset Noon { get; } = new(2030, 1, 2, 12, 0, 0, TimeSpan.Zero);

    /// <summary>
    /// One run of two attempts at 3.60 an hour: from 23:00 for two hours over midnight, a quarter of whose training is lost, then from 06:00 for half an hour
    /// and half a second; a credit and storage. A run in another currency, one without a rate, and a cost of a project.
    /// </summary>
    public static LedgerTotals Mixed(TestLedger test)
    {
        using RunLedger ledger = test.Open();
        AttemptStart first = Start("r1", epoch: 1, rate: Dollars(3.6m)) with { Started = Noon.AddHours(11), Provider = "vast", Run = Start("r1").Run with { Tags = ["team=nlp", "seed=1"], Created = Noon.AddHours(11) } };
        ledger.Merge(Snapshot(first, Progress(7200, 0, 40, 30, 4000, (LedgerPhase.Load, 1200), (LedgerPhase.Train, 6000)), AttemptEnd.Killed));
        ledger.Merge(Snapshot(first with { Epoch = 2, Started = Noon.AddHours(18), Provider = "aws" }, Progress(1800.5, 30, 60, 60, 3000, (LedgerPhase.Train, 1800.5)), AttemptEnd.Finished));
        ledger.AddCostLine(new CostLine(CostCategory.Gpu, -0.5m, "USD", new DateOnly(2030, 1, 3)) { RunId = "r1", Description = "credit", ByHand = true });
        ledger.AddCostLine(new CostLine(CostCategory.Storage, 0.07m, "USD", new DateOnly(2030, 1, 3)) { RunId = "r1", Description = "1 GB" });
        ledger.Merge(Snapshot(Start("r2", rate: new AttemptRate(2, "EUR"), gpus: 4) with { Started = Noon, Run = Start("r2").Run with { Project = "q", Tags = ["team=vision"] } }, Progress(3600, 0, 10, 10, 50, (LedgerPhase.Train, 3600)), AttemptEnd.Finished));
        ledger.Merge(Snapshot(Start("r3") with { Started = Noon, Run = Start("r3").Run with { Tags = [] } }, Progress(600), AttemptEnd.Failed));
        ledger.AddCostLine(new CostLine(CostCategory.Labor, 400, "EUR", new DateOnly(2030, 1, 2)) { Project = "p", Description = "labels", ByHand = true });
        return ledger.Totals();
    }

    public static CostReport Whole(TestLedger test) => CostReport.Of(Mixed(test), ReportPeriod.Always);
}
