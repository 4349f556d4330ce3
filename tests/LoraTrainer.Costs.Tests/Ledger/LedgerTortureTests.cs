using System.Buffers.Binary;
using System.Diagnostics;
using System.Globalization;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Costs.Tests.Ledger.TestLedger;

namespace LoraTrainer.Costs.Tests.Ledger;

/// <summary>
/// Eight processes write 10,000 heartbeats into one ledger while fifty of them are killed in the middle of it. Each notes its true time in a file of its
/// own, before and after every heartbeat.
/// </summary>
[Trait("Category", "Crash")]
public sealed class LedgerTortureTests
{
    private const int Processes = 8;
    private const int Heartbeats = 10_000;
    private const int Kills = 50;
    private const string LedgerVariable = "LT_TORTURE_LEDGER";
    private const string FallbackVariable = "LT_TORTURE_FALLBACK";
    private const string TruthVariable = "LT_TORTURE_TRUTH";
    private const string AttemptVariable = "LT_TORTURE_ATTEMPT";

    [Fact]
    public async Task KilledWriters_LeaveASoundLedger_WithEveryHour()
    {
        using var folder = new TemporaryFolder();
        string ledgerPath = folder.File("ledger.db"), fallback = folder.File("fallback");
        (int sum, int kills) = (0, 0);
        (int Beats, int Kills)[] done = await Task.WhenAll(Enumerable.Range(0, Processes).Select(process => Task.Run(() => Torture(process, ledgerPath, fallback, folder.Path))));
        (sum, kills) = (done.Sum(item => item.Beats), done.Sum(item => item.Kills));
        Assert.Equal(Heartbeats, sum);
        Assert.Equal(Kills, kills);

        using RunLedger ledger = RunLedger.Open(ledgerPath, Options(fallback));
        Assert.Null(ledger.Problem);
        Assert.Empty(ledger.Warnings);
        Assert.Empty(ledger.CheckIntegrity());
        ledger.CloseDead(_ => true);
        LedgerTotals totals = ledger.Totals();
        int attempts = AssertHours(totals, folder.Path);
        Assert.Equal(Kills + Processes, attempts);
        Assert.Equal((Kills, 0), (totals.Total.EstimatedAttempts, totals.Total.OpenAttempts));
        Assert.DoesNotContain(Directory.GetFiles(folder.Path), file => file.EndsWith(".jsonl", StringComparison.Ordinal));
        TestContext.Current.TestOutputHelper?.WriteLine($"{sum} heartbeats, {attempts} attempts, {totals.Total.Hours} h");
    }

    /// <summary>The same with one writer whose disk is full: its hours wait elsewhere, and are all there when it is freed.</summary>
    [Fact]
    public void KilledWriter_OnAFullDisk_LosesNothing()
    {
        using var disk = new SmallDisk(sizeKilobytes: 256);
        using var folder = new TemporaryFolder();
        string ledgerPath = Path.Combine(disk.Path, "ledger.db"), fallback = folder.File("fallback");
        RunLedger.Open(ledgerPath, Options(fallback)).Dispose();
        disk.Fill();
        (int beats, int kills) = Torture(0, ledgerPath, fallback, folder.Path, heartbeats: 500, kills: 3);
        Assert.Equal(3, kills);
        Assert.NotEmpty(Directory.GetFiles(fallback));
        disk.Free();

        using RunLedger ledger = RunLedger.Open(ledgerPath, Options(fallback));
        Assert.Empty(ledger.Warnings);
        Assert.Empty(ledger.CheckIntegrity());
        ledger.CloseDead(_ => true);
        Assert.Equal(4, AssertHours(ledger.Totals(), folder.Path));
        Assert.Empty(Directory.GetFiles(fallback));
        Assert.Equal(500, beats);
    }

    /// <summary>In the child: one attempt of as many heartbeats as it is told; one that is to be killed never ends by itself.</summary>
    [Fact(Explicit = true)]
    public void Child()
    {
        string[] words = Environment.GetEnvironmentVariable(AttemptVariable)!.Split(' ');
        (string run, int epoch, int count) = (words[0], int.Parse(words[1], CultureInfo.InvariantCulture), int.Parse(words[2], CultureInfo.InvariantCulture));
        using var truth = new FileStream(Environment.GetEnvironmentVariable(TruthVariable)!, FileMode.CreateNew, FileAccess.Write, FileShare.ReadWrite, bufferSize: 0);
        using RunLedger ledger = RunLedger.Open(Environment.GetEnvironmentVariable(LedgerVariable), Options(Environment.GetEnvironmentVariable(FallbackVariable)!));
        var attempt = new TestAttempt(ledger, Start(run, epoch, Dollars(1)));
        Span<byte> note = stackalloc byte[sizeof(int)];
        for (int beat = 1; beat <= count; beat++)
        {
            attempt.Heartbeat(Progress(Seconds(beat), 0, beat, null, beat, (LedgerPhase.Train, Seconds(beat))));
            BinaryPrimitives.WriteInt32LittleEndian(note, beat);
            truth.Write(note);
        }

        if (bool.Parse(words[3]))
        {
            // Faster than who kills it, on a busy machine: it stays until then.
            Thread.Sleep(Timeout.Infinite);
        }

        attempt.End(AttemptEnd.Finished);
    }

    /// <summary>Children one after the other, each killed somewhere, until the heartbeats are made; the last may finish.</summary>
    private static (int Beats, int Kills) Torture(int process, string ledger, string fallback, string truths, int heartbeats = Heartbeats / Processes, int? kills = null)
    {
        var random = new Random(process);
        int wanted = kills ?? (Kills / Processes) + (process < Kills % Processes ? 1 : 0);
        int beats = 0;
        for (int epoch = 1; epoch <= wanted + 1; epoch++)
        {
            bool isKilled = epoch <= wanted;
            string truth = Path.Combine(truths, $"truth-r{process}-{epoch}");
            int share = (heartbeats - beats) / (wanted + 2 - epoch);
            int killAt = isKilled ? Math.Max(1, share - random.Next(share / 2)) : int.MaxValue;
            using Process child = StartChild(new Dictionary<string, string>
            {
                [LedgerVariable] = ledger,
                [FallbackVariable] = fallback,
                [TruthVariable] = truth,
                [AttemptVariable] = $"r{process} {epoch} {(isKilled ? share : heartbeats - beats)} {isKilled}",
            });
            while (isKilled && Beats(truth) < killAt && !child.HasExited)
            {
                Thread.Sleep(3);
            }

            if (isKilled)
            {
                child.Kill();
            }

            child.WaitForExit();
            Assert.True(child.ExitCode == (isKilled ? 128 + 9 : 0), $"the child of epoch {epoch} ended with {child.ExitCode}");
            beats += Beats(truth);
        }

        return (beats, wanted);
    }

    private static int AssertHours(LedgerTotals totals, string truths)
    {
        AttemptCost[] attempts = [.. totals.Runs.SelectMany(run => run.Attempts)];
        foreach (AttemptCost attempt in attempts)
        {
            int beats = Beats(Path.Combine(truths, $"truth-{attempt.Attempt.RunId}-{attempt.Attempt.Start.Epoch}"));
            double seconds = attempt.Attempt.Progress.Elapsed.TotalSeconds;

            // A heartbeat that was recorded may not have been noted any more; one that was noted has been recorded.
            Assert.Contains(seconds, new[] { Seconds(beats), Seconds(beats + 1) });
            Assert.Equal(seconds, attempt.Attempt.Progress.Phases[LedgerPhase.Train].TotalSeconds);
            Assert.Equal((decimal)seconds / 3600, attempt.Hours);
        }

        return attempts.Length;
    }

    private static double Seconds(int beat) => beat * 5.25;

    private static int Beats(string truth) => File.Exists(truth) ? (int)(new FileInfo(truth).Length / sizeof(int)) : 0;

    private static LedgerOptions Options(string fallback) => new()
    {
        RemoteFileSystemOf = _ => null,
        FallbackFolder = fallback,
        BusyTimeout = TimeSpan.FromSeconds(20),
        HeartbeatTimeout = TimeSpan.FromSeconds(20),
    };

    private static Process StartChild(Dictionary<string, string> environment)
    {
        string host = Environment.ProcessPath!;
        var start = new ProcessStartInfo(host) { RedirectStandardOutput = true };
        string[] program = Path.GetFileNameWithoutExtension(host) == "dotnet" ? [typeof(LedgerTortureTests).Assembly.Location] : [];
        foreach (string argument in (string[])[.. program, "-explicit", "only", "-method", $"{typeof(LedgerTortureTests).FullName}.{nameof(Child)}"])
        {
            start.ArgumentList.Add(argument);
        }

        foreach ((string name, string value) in environment)
        {
            start.Environment[name] = value;
        }

        Process child = Process.Start(start)!;
        child.OutputDataReceived += (_, _) => { };
        child.BeginOutputReadLine();
        return child;
    }
}
