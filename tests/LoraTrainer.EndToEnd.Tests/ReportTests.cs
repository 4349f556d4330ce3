using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.TestSupport;
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

    /// <summary>Killed three times, the ledger's file lost once: the hours of each attempt are those of the clock, but for what was not told any more.</summary>
    [Fact]
    public async Task Hours_OfThreeKills_AreThoseOfTheClock()
    {
        const double Heartbeat = 5, Renewal = 2, Slack = 2;
        using var folder = new TinyFolder(changes:
            [("cost", "{rate: 3600, currency: EUR}"), ("num_epochs", 4000), ("checkpoint", "{every_steps: 40, lease_seconds: 6}"), ("evaluate_before", "false"), ("evaluate_after", "false")]);
        var clock = new List<double>();
        for (int attempt = 0; attempt < 3; attempt++)
        {
            long start = Stopwatch.GetTimestamp();
            Ending killed = await folder.RunAsync(attempt == 0 ? ["train", "tiny.yaml"] : ["resume", "out"], new Moment("step ", 1, 6000 + 900 * attempt));
            clock.Add(Stopwatch.GetElapsedTime(start).TotalSeconds);
            Assert.True(killed.ExitCode == 137, killed.ToString());
            if (attempt == 1)
            {
                File.Delete(Ending.LedgerOf(folder.Path));
            }
        }

        long last = Stopwatch.GetTimestamp();
        Assert.Equal(75, (await folder.RunAsync(["resume", "out"], new Moment("step ", 1, 0), [TinyFolder.SignalTerminate])).ExitCode);
        clock.Add(Stopwatch.GetElapsedTime(last).TotalSeconds);

        using JsonDocument document = JsonDocument.Parse((await folder.RunAsync("report", "tiny", "--json")).Output);
        JsonElement report = document.RootElement.GetProperty("runs")[0];
        JsonElement[] attempts = [.. report.GetProperty("attempt_list").EnumerateArray()];
        Assert.Equal(clock.Count, attempts.Length);
        double[] seconds = [.. attempts.Select(item => (double)(item.GetProperty("hours").GetDecimal() * 3600))];
        for (int i = 0; i < clock.Count; i++)
        {
            // Of the first two only the records beside the checkpoints are left.
            Assert.InRange(seconds[i], clock[i] - (i < 2 ? Renewal : Heartbeat) - Slack, clock[i]);
        }

        Assert.Equal((double)(report.GetProperty("hours").GetDecimal() * 3600), seconds.Sum(), 6);
        Assert.True(report.GetProperty("lost_hours").GetDecimal() > 0, report.GetRawText());
        Assert.Equal(attempts.Sum(item => Math.Ceiling(item.GetProperty("hours").GetDecimal() * 3600)), Math.Round(decimal.Parse(report.GetProperty("cost").GetString()!, CultureInfo.InvariantCulture), 9));
    }

    /// <summary>The cloud says what machine this is, the price list what it costs: a budget needs no rate then, and is kept in the provider's units.</summary>
    [Fact]
    public async Task Rate_IsThePriceListsWhereTheCloudTellsTheMachine()
    {
        string region = "us-east-1";
        await using var service = new MetadataServer(request => request.Method == "PUT"
            ? new MetadataReply(200, "token", ("X-aws-ec2-metadata-token-ttl-seconds", "21600"))
            : request.Target switch
            {
                "/latest/meta-data/instance-type" => new MetadataReply(200, "g6.xlarge"),
                "/latest/meta-data/placement/region" => new MetadataReply(200, region),
                "/latest/meta-data/instance-life-cycle" => new MetadataReply(200, "on-demand"),
                _ => new MetadataReply(404),
            });
        using var folder = new TinyFolder(changes: ("evaluate_before", "false"));
        Dictionary<string, string> cloud = new() { ["LT_AWS_METADATA"] = service.Address };
        string[] train = ["train", "tiny.yaml", "--set", "cost.budget=1"];

        region = "eu-nowhere-1";
        Ending unknown = await folder.RunAsync(train, environment: cloud);
        Assert.True(unknown.ExitCode == 2, unknown.ToString());
        Assert.Contains("No price of this machine is known (aws g6.xlarge, eu-nowhere-1, on demand)", unknown.Error, StringComparison.Ordinal);
        Assert.Contains("cost.budget is given", unknown.Error, StringComparison.Ordinal);

        region = "us-east-1";
        Ending end = await folder.RunAsync(train, environment: cloud);
        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Contains("This machine (aws g6.xlarge, us-east-1, on demand) costs 0.8048 USD an hour, by SkyPilot catalog", end.Error, StringComparison.Ordinal);

        using JsonDocument document = JsonDocument.Parse((await folder.RunAsync("report", "tiny", "--json")).Output);
        JsonElement attempt = document.RootElement.GetProperty("runs")[0].GetProperty("attempt_list").EnumerateArray().Last();
        Assert.Equal(("aws", "g6.xlarge", "0.8048", "machine"), (attempt.GetProperty("provider").GetString(), attempt.GetProperty("instance_type").GetString(), attempt.GetProperty("rate").GetString(), attempt.GetProperty("rate_per").GetString()));
        Assert.Equal(Math.Max(60, Math.Ceiling(attempt.GetProperty("hours").GetDecimal() * 3600)), Math.Round(attempt.GetProperty("billed_hours").GetDecimal() * 3600, 6));
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
