using LoraTrainer.Costs.Ledger;
using Xunit;
using static LoraTrainer.Costs.Tests.Ledger.TestLedger;

namespace LoraTrainer.Costs.Tests.Ledger;

/// <summary>Attempts that are known from several places, and events that waited in a journal.</summary>
public sealed class LedgerMergeTests
{
    [Fact]
    public void Merge_Twice_ChangesNothing()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        AttemptSnapshot snapshot = Snapshot(Start(rate: Dollars(2), gpus: 2), Progress(100, 0, 10, 5, 50, (LedgerPhase.Train, 90)), AttemptEnd.Killed);
        ledger.Merge(snapshot);
        string once = test.Dump();
        ledger.Merge(snapshot);
        ledger.Merge(snapshot);

        Assert.Equal(once, test.Dump());
        Assert.Single(ledger.Summary("r1")!.Attempts);
    }

    [Fact]
    public void Merge_KeepsTheLongerTime_WithAllThatBelongsToIt()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        var local = new TestAttempt(ledger, Start());
        local.Heartbeat(Progress(100, 0, 10, 5, 50, (LedgerPhase.Train, 90)));

        ledger.Merge(Snapshot(Start(), Progress(80, 0, 8, null, 40, (LedgerPhase.Train, 70))));
        AttemptSnapshot kept = ledger.Summary("r1")!.Attempts[0].Attempt;
        Assert.Equal((100, 10, 5, 50, 90), (kept.Progress.Elapsed.TotalSeconds, kept.Progress.LastStep, kept.Progress.SavedStep!.Value, kept.Progress.Tokens, kept.Progress.Phases[LedgerPhase.Train].TotalSeconds));

        ledger.Merge(Snapshot(Start(), Progress(120, 0, 12, 12, 60, (LedgerPhase.Train, 110)), AttemptEnd.Interrupted));
        kept = ledger.Summary("r1")!.Attempts[0].Attempt;
        Assert.Equal((120, 12, 12, 60, 110, AttemptEnd.Interrupted), (kept.Progress.Elapsed.TotalSeconds, kept.Progress.LastStep, kept.Progress.SavedStep!.Value, kept.Progress.Tokens, kept.Progress.Phases[LedgerPhase.Train].TotalSeconds, kept.Ended!.Value));

        // A clean end stays, whoever thinks otherwise.
        ledger.Merge(Snapshot(Start(), Progress(130), AttemptEnd.Killed));
        Assert.Equal(AttemptEnd.Interrupted, ledger.Summary("r1")!.Attempts[0].Attempt.Ended);
    }

    /// <summary>What a snapshot without facts brought first is filled in, and the newest attempt names the run.</summary>
    [Fact]
    public void Merge_FillsFacts_AndTheNewestAttemptNamesTheRun()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        AttemptStart bare = Start() with { Run = new RunFacts { RunId = "r1", Created = ManualTime.Start } };
        ledger.Merge(Snapshot(bare, Progress(1)));
        ledger.Merge(Snapshot(Start(rate: Dollars(3)) with { Provider = "aws", Pricing = Pricing.Spot }, Progress(0)));
        Assert.Equal(("name of r1", "aws", Pricing.Spot, 3m), Facts());

        _ = new TestAttempt(ledger, Start(epoch: 2) with { Run = Start().Run with { Name = "renamed" } });
        ledger.Merge(Snapshot(bare, Progress(2)));
        ledger.Merge(Snapshot(Start(), Progress(3)));
        Assert.Equal(("renamed", "aws", Pricing.Spot, 3m), Facts());

        (string, string, Pricing, decimal) Facts()
        {
            AttemptStart start = ledger.Summary("r1")!.Attempts[0].Attempt.Start;
            return (start.Run.Name, start.Provider, start.Pricing, start.Rate!.Amount);
        }
    }

    [Fact]
    public void Journal_WithATornLine_IsMergedAndRemoved()
    {
        using var test = new TestLedger();
        test.Open().Dispose();
        string journal = WriteJournal(test);
        byte[] bytes = File.ReadAllBytes(journal);
        Assert.Equal(4, bytes.Count(value => value == '\n'));

        // Torn at every place within its last line.
        int lastLine = bytes.AsSpan(0, bytes.Length - 1).LastIndexOf((byte)'\n') + 1;
        string? whole = null;
        for (int length = bytes.Length; length >= lastLine; length -= length == bytes.Length ? 1 : 37)
        {
            File.Delete(test.Path);
            File.WriteAllBytes(journal, bytes[..length]);
            using RunLedger ledger = test.Open();

            Assert.Empty(ledger.Warnings);
            Assert.Empty(test.Journals);
            Assert.Equal(length == bytes.Length ? 30 : 20, ledger.Summary("r1")!.Attempts[0].Attempt.Progress.Elapsed.TotalSeconds);
            Assert.Equal(new Money(0.5m, "USD"), Assert.Single(ledger.Summary("r1")!.Lines).Money);
            whole ??= test.Dump();
        }

        // Merged again, as after a crash between the two: nothing counts twice.
        File.Delete(test.Path);
        File.WriteAllBytes(journal, bytes);
        File.WriteAllBytes(journal.Replace(".jsonl", "2.jsonl", StringComparison.Ordinal), bytes);
        test.Open().Dispose();
        Assert.Equal(whole, test.Dump());
    }

    [Fact]
    public void Journal_WithABadLineInside_IsMergedAndKept()
    {
        using var test = new TestLedger();
        test.Open().Dispose();
        string journal = WriteJournal(test);
        string[] lines = File.ReadAllLines(journal);
        lines[1] = lines[1].Replace("\"r1\"", "\" \"", StringComparison.Ordinal);
        File.WriteAllText(journal, string.Join('\n', lines) + "\n");

        using RunLedger ledger = test.Open();

        Assert.Equal($"1 lines of the ledger's journal could not be read; they are kept in {journal}.rejected.", Assert.Single(ledger.Warnings));
        Assert.Equal([journal + ".rejected"], test.Journals);
        Assert.Equal(30, ledger.Summary("r1")!.Attempts[0].Attempt.Progress.Elapsed.TotalSeconds);
    }

    /// <summary>A begin, a heartbeat, a cost line and a heartbeat, written while another process had the ledger locked.</summary>
    private static string WriteJournal(TestLedger test)
    {
        using var other = test.Connect();
        using var begin = other.CreateCommand();
        begin.CommandText = "BEGIN IMMEDIATE";
        begin.ExecuteNonQuery();
        using RunLedger ledger = test.Open();
        var attempt = new TestAttempt(ledger, Start(rate: Dollars(1.25m) with { AsOf = new DateOnly(2030, 1, 1), Billing = new BillingTerms(60, 60) }));
        attempt.Heartbeat(Progress(20, 0, 2, null, 10, (LedgerPhase.Train, 15.25)));
        ledger.AddCostLine(new CostLine(CostCategory.Egress, 0.5m, "USD", new DateOnly(2030, 1, 1)) { RunId = "r1" });
        attempt.Heartbeat(Progress(30, 0, 3, 3, 15, (LedgerPhase.Train, 25.25)));
        return Assert.Single(test.Journals);
    }
}
