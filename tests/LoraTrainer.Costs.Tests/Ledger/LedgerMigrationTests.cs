using LoraTrainer.Costs.Ledger;
using Xunit;
using static LoraTrainer.Costs.Tests.Ledger.TestLedger;

namespace LoraTrainer.Costs.Tests.Ledger;

/// <summary>Ledgers of other versions.</summary>
public sealed class LedgerMigrationTests
{
    /// <summary>A file of version 1 as that version made it, copied here, so that a changed step is noticed.</summary>
    private const string Version1 =
        """
        PRAGMA journal_mode = WAL;
        PRAGMA application_id = 1280601188;
        PRAGMA user_version = 1;
        CREATE TABLE runs(run_id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, project TEXT NOT NULL, tags TEXT NOT NULL, model TEXT NOT NULL, config TEXT NOT NULL, created TEXT NOT NULL) STRICT, WITHOUT ROWID;
        CREATE INDEX runs_by_project ON runs(project);
        CREATE TABLE attempts(attempt_id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs(run_id), epoch INTEGER NOT NULL, host TEXT NOT NULL, boot_id TEXT NOT NULL,
            process_id INTEGER NOT NULL, process_start INTEGER NOT NULL, provider TEXT NOT NULL, instance_type TEXT NOT NULL, region TEXT NOT NULL, gpu_kind TEXT NOT NULL,
            gpu_count INTEGER NOT NULL CHECK (gpu_count >= 1), pricing TEXT NOT NULL CHECK (pricing IN ('unknown', 'spot', 'on_demand', 'owned')), rate TEXT, rate_per TEXT CHECK (rate_per IN ('gpu', 'machine')),
            currency TEXT, price_source TEXT, price_as_of TEXT, billing_granularity TEXT, billing_minimum TEXT, started TEXT NOT NULL, last_seen TEXT NOT NULL,
            elapsed_ticks INTEGER NOT NULL CHECK (elapsed_ticks >= 0), ended TEXT CHECK (ended IN ('finished', 'interrupted', 'stopped', 'failed', 'killed')),
            estimated INTEGER NOT NULL CHECK (estimated IN (0, 1)), UNIQUE (run_id, epoch)) STRICT;
        CREATE INDEX attempts_open ON attempts(run_id) WHERE ended IS NULL;
        CREATE TABLE phases(attempt_id INTEGER NOT NULL REFERENCES attempts(attempt_id), phase TEXT NOT NULL, ticks INTEGER NOT NULL, PRIMARY KEY (attempt_id, phase)) STRICT, WITHOUT ROWID;
        CREATE TABLE progress(attempt_id INTEGER PRIMARY KEY REFERENCES attempts(attempt_id), first_step INTEGER NOT NULL, last_step INTEGER NOT NULL, saved_step INTEGER, tokens INTEGER NOT NULL) STRICT;
        INSERT INTO runs VALUES ('old', 'first', 'p', '["x"]', 'm', '{"rank":"8"}', '2029-01-01T00:00:00.0000000Z');
        INSERT INTO attempts VALUES (1, 'old', 3, 'h', 'b', 5, 6, 'aws', 'g6', 'eu', 'L4', 2, 'on_demand', '0.8048', 'machine', 'USD', 'list', '2029-01-01', '1', '60', '2029-01-01T00:00:00.0000000Z', '2029-01-01T02:00:00.0000000Z', 72000000000, 'finished', 0);
        INSERT INTO phases VALUES (1, 'train', 36000000000);
        INSERT INTO progress VALUES (1, 0, 100, 100, 5000);

        """;

    [Fact]
    public void Version1_IsBroughtHere_WithItsNumbers()
    {
        using var test = new TestLedger();
        test.Execute(Version1);
        using RunLedger ledger = test.Open();

        Assert.Empty(ledger.Warnings);
        CostSummary total = ledger.Summary("old")!.Total;
        Assert.Equal((2m, 4m, new Money(1.6096m, "USD")), (total.Hours, total.GpuHours, Assert.Single(total.Cost)));
        ledger.AddCostLine(new CostLine(CostCategory.Labor, 5, "USD", new DateOnly(2030, 1, 1)) { RunId = "old" });
        Assert.Equal([new Money(6.6096m, "USD")], ledger.Summary("old")!.Total.Cost);
        Assert.Empty(ledger.CheckIntegrity());
    }

    /// <summary>Where it was migrated and where it was made new, the tables are the same: the copy above is what the program made.</summary>
    [Fact]
    public void Version1_MigratedAndNew_HaveTheSameTables()
    {
        using TestLedger old = new(), created = new();
        old.Execute(Version1);
        old.Open().Dispose();
        created.Open().Dispose();

        Assert.Equal(Schema(created), Schema(old));
        Assert.Equal("3", Assert.Single(Rows(old, "PRAGMA user_version")));
    }

    [Fact]
    public async Task ManyAtOnce_MakeOneLedger()
    {
        using var test = new TestLedger();
        test.Execute(Version1);
        await Task.WhenAll(Enumerable.Range(0, 8).Select(index => Task.Run(() =>
        {
            using RunLedger ledger = RunLedger.Open(test.Path, test.Options with { BusyTimeout = TimeSpan.FromSeconds(20), HeartbeatTimeout = TimeSpan.FromSeconds(20) });
            new TestAttempt(ledger, Start($"r{index}")).Heartbeat(Progress(index + 1));
            Assert.Empty(ledger.Warnings);
        })));

        using RunLedger ledger = test.Open();
        Assert.Equal(2 * 3600 + 36, (double)ledger.Totals().Total.Hours * 3600, 6);
    }

    [Fact]
    public void ANewerLedger_IsRefused_AndLeftAlone()
    {
        using var test = new TestLedger();
        test.Open().Dispose();
        test.Execute("PRAGMA user_version = 99");
        string sentence = $"The ledger {test.Path} was written by a newer lora-trainer (its version is 99, this program knows 3). Use that one, or name another ledger.";
        using (RunLedger ledger = test.Open())
        {
            Assert.Equal(sentence, ledger.Problem);
            Assert.Equal(sentence, Assert.Throws<LedgerException>(() => ledger.Runs()).Message);
            new TestAttempt(ledger, Start()).End(AttemptEnd.Finished, Progress(7));
            Assert.Single(test.Journals);
        }

        Assert.Equal("99", Assert.Single(Rows(test, "PRAGMA user_version")));
        test.Execute("PRAGMA user_version = 3");
        using RunLedger again = test.Open();
        Assert.Equal(7, again.Summary("r1")!.Attempts[0].Attempt.Progress.Elapsed.TotalSeconds);
        Assert.Empty(test.Journals);
    }

    private static string[] Schema(TestLedger test) => [.. Rows(test, "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").Select(sql =>
        string.Join(' ', string.Join('\n', sql.Split('\n').Select(line => line.Split("--")[0])).Replace("(", "( ", StringComparison.Ordinal).Replace(")", " )", StringComparison.Ordinal).Replace(",", " , ", StringComparison.Ordinal).Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries)))];

    private static List<string> Rows(TestLedger test, string sql)
    {
        using var connection = test.Connect();
        using var command = connection.CreateCommand();
        command.CommandText = sql;
        using var row = command.ExecuteReader();
        var rows = new List<string>();
        while (row.Read())
        {
            rows.Add(row.GetValue(0).ToString()!);
        }

        return rows;
    }
}
