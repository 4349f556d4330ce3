using System.Globalization;
using System.Text.Json;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>What runs cost, as the ledger knows it after kills, resumes and a lost ledger.</summary>
public sealed class ReportTests : IDisposable
{
    private readonly TinyFolder run = new(changes: ("cost", "{rate: 3600, currency: EUR, project: search}"));

    public void Dispose() => run.Dispose();

    [Fact]
    public async Task Report_AfterAKillAndALostLedger_HasAllAttempts()
    {
        await run.KillWhenAsync(() => Directory.Exists(run.Checkpoints) && run.CheckpointFolders().Length > 0, ["train", "tiny.yaml"]);

        // The records beside the checkpoints bring back what the file knew.
        foreach (string file in Directory.EnumerateFiles(Path.GetDirectoryName(Ending.LedgerOf(run.Path))!, Path.GetFileName(Ending.LedgerOf(run.Path)) + "*"))
        {
            File.Delete(file);
        }

        Ending end = await run.RunAsync("resume", "out");
        Assert.True(end.ExitCode == 0, end.ToString());
        Ending report = await run.RunAsync("report", "--json");

        Assert.True(report.ExitCode == 0, report.ToString());
        using JsonDocument document = JsonDocument.Parse(report.Output);
        JsonElement only = Assert.Single(document.RootElement.GetProperty("runs").EnumerateArray());
        Assert.Equal(("tiny", "search", 2, "EUR"), (only.GetProperty("run_name").GetString(), only.GetProperty("project").GetString(), only.GetProperty("attempts").GetInt32(), only.GetProperty("currency").GetString()));

        // A euro a second: what is billed is what the processes took, begun seconds whole.
        decimal cost = decimal.Parse(only.GetProperty("cost").GetString()!, CultureInfo.InvariantCulture), hours = only.GetProperty("hours").GetDecimal();
        Assert.InRange(cost, hours * 3600, hours * 3600 + 2.001m);
        Assert.Equal(only.GetProperty("cost").GetString(), document.RootElement.GetProperty("totals").GetProperty("cost").GetString());

        Ending words = await run.RunAsync("report", "tiny");
        Assert.Contains("killed*", words.Output, StringComparison.Ordinal);
        Assert.Contains("* counted up to its last sign of life", words.Output, StringComparison.Ordinal);
        Assert.Contains("finished", words.Output, StringComparison.Ordinal);
        Assert.Contains(" EUR", words.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Report_WithoutARate_KeepsTheHours()
    {
        using var free = new TinyFolder();
        Assert.Equal(0, (await free.RunAsync("train", "tiny.yaml", "--ledger", "mine.db")).ExitCode);

        Ending report = await free.RunAsync("report", "--ledger", "mine.db"), other = await free.RunAsync("report"), unknown = await free.RunAsync("report", "nope");

        Assert.Contains("no rate", report.Output, StringComparison.Ordinal);
        Assert.Contains("holds no run yet", other.Output, StringComparison.Ordinal);
        Assert.Equal(2, unknown.ExitCode);
    }

    [Fact]
    public async Task Train_WithABrokenLedger_GoesOnAndSaysSo()
    {
        File.WriteAllText(run.PathOf("broken.db"), "not a database, but a file of some length that is none");

        Ending end = await run.RunAsync("train", "tiny.yaml", "--ledger", "broken.db");

        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Contains("warning: ", end.Error, StringComparison.Ordinal);
    }
}
