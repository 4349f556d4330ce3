using LoraTrainer.Costs.Ledger;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Costs.Tests.Ledger.TestLedger;

namespace LoraTrainer.Costs.Tests.Ledger;

/// <summary>Ledgers that cannot be used: the training goes on, one sentence says why, and nothing is lost once it is over.</summary>
public sealed class LedgerFaultTests
{
    [Fact]
    public void Locked_EventsWaitInTheJournal_UntilItIsTriedAgain()
    {
        using var test = new TestLedger();
        var heard = new List<string>();
        using RunLedger ledger = RunLedger.Open(test.Path, test.Options with { Warn = heard.Add });
        var attempt = new TestAttempt(ledger, Start(rate: Dollars(3600)));
        using (var other = test.Connect())
        {
            using var begin = other.CreateCommand();
            begin.CommandText = "BEGIN IMMEDIATE";
            begin.ExecuteNonQuery();
            attempt.Heartbeat(Progress(1));
            attempt.Heartbeat(Progress(2));
            ledger.AddCostLine(new CostLine(CostCategory.Other, 5, "USD", new DateOnly(2030, 1, 1)) { RunId = "r1" });

            Assert.Equal($"The ledger {test.Path} is locked by another process. The run goes on; its hours and costs are written to a journal that is merged once the ledger can be written.", Assert.Single(heard));
            Assert.Equal(heard, ledger.Warnings);
            Assert.StartsWith(test.Path + ".pending-", Assert.Single(test.Journals), StringComparison.Ordinal);
            Assert.Equal([Money.Zero("USD")], ledger.Summary("r1")!.Total.Cost);
            Assert.Equal($"The ledger {test.Path} is locked by another process.", Assert.Throws<LedgerException>(() => ledger.SetRate(new AttemptFilter(new RunFilter()), Dollars(1))).Message);

            // Another process leaves the journal of one that lives alone.
            test.Open().Dispose();
            Assert.Single(test.Journals);
        }

        attempt.Heartbeat(Progress(3));
        Assert.Single(test.Journals);
        test.Time.Advance(31);
        attempt.Heartbeat(Progress(4));

        Assert.Empty(test.Journals);
        Assert.Null(ledger.Problem);
        Assert.Equal([new Money(9, "USD")], ledger.Summary("r1")!.Total.Cost);
        Assert.Single(heard);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Garbage_IsLeftAlone_AndMergedIntoANewLedger(bool looksLikeSqlite)
    {
        using var test = new TestLedger();
        byte[] garbage = new byte[20_000];
        new Random(3).NextBytes(garbage);
        if (looksLikeSqlite)
        {
            using (RunLedger sound = test.Open())
            {
                for (int run = 0; run < 200; run++)
                {
                    _ = new TestAttempt(sound, Start($"r{run}"));
                }
            }

            byte[] bytes = File.ReadAllBytes(test.Path);
            garbage.AsSpan(0, 12_000).CopyTo(bytes.AsSpan(8192));
            garbage = bytes;
        }

        File.WriteAllBytes(test.Path, garbage);
        using (RunLedger ledger = test.Open())
        {
            Assert.Matches(looksLikeSqlite ? "damaged.* Move it away" : "is not a ledger: it is no SQLite file. Move it away", ledger.Problem);
            Assert.Throws<LedgerException>(() => ledger.Totals());
            Assert.Empty(ledger.CloseDead(_ => true));
            new TestAttempt(ledger, Start()).End(AttemptEnd.Finished, Progress(60));
            Assert.Single(ledger.Warnings);
        }

        Assert.Equal(garbage, File.ReadAllBytes(test.Path));
        Assert.Single(test.Journals);
        File.Delete(test.Path);
        using RunLedger next = test.Open();
        Assert.Equal(60, next.Summary("r1")!.Attempts[0].Attempt.Progress.Elapsed.TotalSeconds);
        Assert.Empty(test.Journals);
    }

    [Fact]
    public void ADatabaseOfAnotherProgram_IsRefused()
    {
        using var test = new TestLedger();
        test.Execute("CREATE TABLE bookmarks(url TEXT)");
        using RunLedger ledger = test.Open();

        Assert.Equal($"{test.Path} is a database of another program, not a ledger of lora-trainer.", ledger.Problem);
    }

    [Fact]
    public void NoFolderCanBeWritten_TheRunStillGoesOn()
    {
        using var test = new TestLedger();
        File.WriteAllText(test.Path, "a file, not a folder");
        using RunLedger ledger = RunLedger.Open(Path.Combine(test.Path, "ledger.db"), test.Options with { FallbackFolder = Path.Combine(test.Path, "x") });
        var attempt = new TestAttempt(ledger, Start());
        attempt.Heartbeat(Progress(1));
        attempt.End(AttemptEnd.Finished);

        Assert.Equal(2, ledger.Warnings.Count);
        Assert.Contains("Nor can the ledger's journal be written", ledger.Warnings[1], StringComparison.Ordinal);
    }

    [Fact]
    public void OnANetworkMount_TheDefaultIsUsed_AndSaidAloud()
    {
        using var test = new TestLedger();
        using var mount = new TemporaryFolder();
        string asked = mount.File("ledger.db");
        string? type = "fuse.gcsfuse";
        Func<string, string?> remote = path => path == asked || path == LedgerPath.Default && type == "nfs4" ? type : null;

        string used = LedgerPath.Resolve(asked, remote, out string? warning);
        Assert.Equal(LedgerPath.Default, used);
        Assert.Equal($"The ledger {asked} is on a fuse.gcsfuse mount, where its locks cannot be relied on; {used} is used instead. --ledger or LT_LEDGER name another one on a disk of this machine.", warning);

        // A home folder on a network file system: one of this machine.
        type = "nfs4";
        used = LedgerPath.Resolve(null, remote, out warning);
        Assert.Equal(($"/var/tmp/lora-trainer-{Environment.UserName}/ledger.db", true), (used, warning!.Contains(used, StringComparison.Ordinal)));
        Assert.Equal(test.Path, LedgerPath.Resolve(test.Path, remote, out warning));
        Assert.Null(warning);
    }

    [Fact]
    public void MovedAway_ItIsBegunAnew()
    {
        using var test = new TestLedger();
        using RunLedger ledger = test.Open();
        var attempt = new TestAttempt(ledger, Start(rate: Dollars(2)));
        attempt.Heartbeat(Progress(1));
        File.Move(test.Path, test.Path + ".old");
        attempt.Heartbeat(Progress(1800));

        Assert.Empty(ledger.Warnings);
        Assert.Equal([new Money(1, "USD")], ledger.Summary("r1")!.Total.Cost);
    }

    [Fact]
    public void Disposed_AHeartbeatOnItsWayDoesNothing()
    {
        using var test = new TestLedger();
        RunLedger ledger = test.Open();
        var attempt = new TestAttempt(ledger, Start());
        ledger.Dispose();
        attempt.Heartbeat(Progress(1));

        Assert.Throws<ObjectDisposedException>(() => ledger.Runs());
        Assert.Empty(test.Journals);
    }

    /// <summary>Paths from the environment, which a process reads from its own.</summary>
    [Theory]
    [InlineData("/local/x/a.db", "/data", "/local/x/a.db")]
    [InlineData("", "/data", "/data/lora-trainer/ledger.db")]
    [InlineData("", "relative", "/home/u/.local/share/lora-trainer/ledger.db")]
    public async Task DefaultPath_IsThatOfTheEnvironment(string ledger, string data, string expected) => Assert.Equal(
        ChildTest.Lines([(expected, default)]),
        await ChildTest.Run(typeof(LedgerFaultTests), nameof(ReportPath), new Dictionary<string, string> { [LedgerPath.Variable] = ledger, ["XDG_DATA_HOME"] = data, ["HOME"] = "/home/u" }));

    [Fact(Explicit = true)]
    public void ReportPath() => ChildTest.Report([(LedgerPath.Resolve(null, _ => null, out _), default)]);

    /// <summary>A read-only mount: what is in the ledger can be read, what is new waits in the fallback folder.</summary>
    [Fact]
    public void ReadOnly_IsRead_AndWritesWait()
    {
        using var disk = new SmallDisk(sizeKilobytes: 1024);
        using var test = new TestLedger();
        string path = Path.Combine(disk.Path, "ledger.db");
        using (RunLedger ledger = RunLedger.Open(path, test.Options))
        {
            new TestAttempt(ledger, Start("r1")).End(AttemptEnd.Finished, Progress(5));
        }

        disk.MakeReadOnly();
        using (RunLedger ledger = RunLedger.Open(path, test.Options))
        {
            Assert.Null(ledger.Problem);
            new TestAttempt(ledger, Start("r2")).Heartbeat(Progress(6));

            Assert.Equal($"The ledger {path} is read-only. The run goes on; its hours and costs are written to a journal that is merged once the ledger can be written.", Assert.Single(ledger.Warnings));
            Assert.Equal(5, ledger.Summary("r1")!.Attempts[0].Attempt.Progress.Elapsed.TotalSeconds);
            Assert.StartsWith(test.Fallback, Assert.Single(test.Journals), StringComparison.Ordinal);
        }

        disk.MakeWritable();
        using RunLedger next = RunLedger.Open(path, test.Options);
        Assert.Equal(6, next.Summary("r2")!.Attempts[0].Attempt.Progress.Elapsed.TotalSeconds);
        Assert.Empty(test.Journals);
        Assert.Empty(next.CheckIntegrity());
    }

    /// <summary>The disk fills up under a running attempt, and is freed again.</summary>
    [Fact]
    public void FullDisk_EventsWaitElsewhere_UntilThereIsRoom()
    {
        using var disk = new SmallDisk(sizeKilobytes: 1024);
        using var test = new TestLedger();
        string path = Path.Combine(disk.Path, "ledger.db");
        using RunLedger ledger = RunLedger.Open(path, test.Options);
        var attempt = new TestAttempt(ledger, Start());
        disk.Fill();
        int beats = 0;
        while (ledger.Warnings.Count == 0 && beats < 2000)
        {
            // Its log takes a few before it has to grow.
            attempt.Heartbeat(Progress(++beats));
        }

        attempt.Heartbeat(Progress(++beats));
        Assert.Contains("full", Assert.Single(ledger.Warnings), StringComparison.Ordinal);
        Assert.StartsWith(test.Fallback, Assert.Single(test.Journals), StringComparison.Ordinal);
        disk.Free();
        test.Time.Advance(60);
        attempt.Heartbeat(Progress(++beats));

        Assert.Empty(test.Journals);
        Assert.Equal(beats, ledger.Summary("r1")!.Attempts[0].Attempt.Progress.Elapsed.TotalSeconds);
        Assert.Empty(ledger.CheckIntegrity());
    }
}
