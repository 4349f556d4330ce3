using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Interruptions;
using Xunit;

namespace LoraTrainer.Training.Tests.Interruptions;

/// <summary>What the watcher promises whatever a source does.</summary>
public sealed class InterruptionWatcherTests
{
    private static string[] Clouds => ["aws", "gcp", "azure"];

    private static InterruptionOptions Watch(string cloud, string address) => cloud switch
    {
        "aws" => new() { Sources = InterruptionSources.Aws, AwsEndpoint = address },
        "gcp" => new() { Sources = InterruptionSources.Gcp, GcpEndpoint = address },
        _ => new() { Sources = InterruptionSources.Azure, AzureEndpoint = address },
    };

    public static TheoryData<string, string> Failures => new(from cloud in Clouds from failure in (string[])["500", "redirect", "huge", "endless", "garbage", "closed"] select (cloud, failure));

    [Theory]
    [MemberData(nameof(Failures))]
    public async Task Source_Fails_IsWarnedOfOnceAndAskedRarely(string cloud, string failure)
    {
        await using MetadataServer elsewhere = new(_ => new MetadataReply(200, "TRUE", ("Metadata-Flavor", "Google")));
        string huge = "TRUE" + new string(' ', 1 << 19);
        await using MetadataServer server = new(_ => failure switch
        {
            "500" => new MetadataReply(500, "Internal Server Error"),
            "redirect" => new MetadataReply(302, "", ("Location", elsewhere.Address), ("Metadata-Flavor", "Google")),
            "huge" => new MetadataReply(200, huge, ("Metadata-Flavor", "Google")),
            "endless" => new MetadataReply(0, "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n\r\n" + huge + huge),
            "garbage" => new MetadataReply(0, "SSH-2.0-OpenSSH_9.6\r\n"),
            _ => new MetadataReply(0, ""),
        });
        await using WatchedRun run = new(Watch(cloud, server.Address));
        await run.Watcher.FirstRoundAsync();
        await WatchedRun.Until(() => !run.Warnings.IsEmpty);
        await Task.Delay(150, TestContext.Current.CancellationToken);

        Assert.Contains(server.Address, Assert.Single(run.Warnings), StringComparison.Ordinal);
        Assert.Empty(run.Notices);
        Assert.Empty(elsewhere.Requests);

        // Two sources at most, three questions each; the HTTP client itself asks again when a connection is closed without a word.
        Assert.InRange(server.Requests.Count, 3, failure == "closed" ? 24 : 6);
    }

    [Fact]
    public async Task FirstRound_ServersThatHang_TakesNoLongerThanItsLimit()
    {
        await using MetadataServer server = new(MetadataServer.Hang);
        var waited = Stopwatch.StartNew();
        await using (WatchedRun run = new(new InterruptionOptions
        {
            Sources = InterruptionSources.Aws | InterruptionSources.Gcp | InterruptionSources.Azure,
            AwsEndpoint = server.Address,
            GcpEndpoint = server.Address,
            AzureEndpoint = server.Address,
        }, WatchedRun.Quick with { Answer = TimeSpan.FromSeconds(30) }))
        {
            Assert.InRange(waited.ElapsedMilliseconds, 0, 2000);
            await run.Watcher.FirstRoundAsync();
            Assert.InRange(waited.ElapsedMilliseconds, 350, 5000);
            waited.Restart();
        }

        Assert.InRange(waited.ElapsedMilliseconds, 0, 900);
    }

    [Fact]
    public async Task Source_Hangs_IsGivenUpAndOthersGoOn()
    {
        using var folder = new TemporaryFolder();
        await using MetadataServer server = new(MetadataServer.Hang);
        await using WatchedRun run = new(
            Watch("aws", server.Address) with { Sources = InterruptionSources.Aws | InterruptionSources.File, File = folder.File("stop") },
            WatchedRun.Quick with { Answer = TimeSpan.FromMilliseconds(50) });
        await WatchedRun.Until(() => !run.Warnings.IsEmpty);
        Assert.Contains("asked for a token, it does not answer in time", Assert.Single(run.Warnings), StringComparison.Ordinal);
        File.WriteAllText(folder.File("stop"), "");
        Assert.Equal("touch file", (await run.NextAsync()).Source);
    }

    [Fact]
    public async Task Source_RefusesConnections_IsAskedRarely()
    {
        TcpListener closed = new(IPAddress.Loopback, 0);
        closed.Start();
        int port = ((IPEndPoint)closed.LocalEndpoint).Port;
        closed.Stop();
        await using WatchedRun run = new(Watch("azure", $"http://127.0.0.1:{port}"));
        await WatchedRun.Until(() => !run.Warnings.IsEmpty);
        Assert.Equal($"Azure's instance metadata at http://127.0.0.1:{port}/ cannot be read (there is no connection), so an eviction will not be noticed ahead.", run.Warnings.Single());
    }

    [Fact]
    public async Task Source_RareAtFirst_IsHeardWhenItComes()
    {
        bool isThere = false;
        await using MetadataServer server = new(request => !isThere ? new MetadataReply(503) : new MetadataReply(200, request.Target.Contains("preempted", StringComparison.Ordinal) ? "TRUE" : "NONE", ("Metadata-Flavor", "Google")));
        await using WatchedRun run = new(Watch("gcp", server.Address), WatchedRun.Quick with { Rare = TimeSpan.FromMilliseconds(150) });
        await WatchedRun.Until(() => !run.Warnings.IsEmpty);
        isThere = true;

        InterruptionNotice notice = await run.NextAsync();
        Assert.Null(notice.TimeLeft);
        Assert.Equal("Google Cloud takes this machine back: a checkpoint is saved, then the program ends.", notice.Sentence);
    }

    [Fact]
    public async Task Start_UnderANotice_HasItPendingAfterTheFirstRound()
    {
        await using MetadataServer server = new(request => request.Target switch
        {
            "/latest/api/token" => new MetadataReply(200, "token"),
            "/latest/meta-data/spot/instance-action" => new MetadataReply(200, """{"action":"terminate","time":"2017-09-18T08:22:00Z"}"""),
            _ => new MetadataReply(404),
        });
        await using WatchedRun run = new(Watch("aws", server.Address));
        await run.Watcher.FirstRoundAsync();

        Assert.NotNull(run.Watcher.Pending);
        Assert.Same(run.Watcher.Pending, Assert.Single(run.Notices));
        Assert.Null(run.Watcher.Pending.TimeLeft);
        Assert.Equal("AWS takes this machine back at 08:22:00 UTC: a checkpoint is saved, then the program ends.", run.Watcher.Pending.Sentence);
    }

    [Fact]
    public async Task Auto_OnAnUnknownMachine_AsksNobody()
    {
        await using WatchedRun run = new(new InterruptionOptions());

        Assert.Empty(run.Watcher.Watched);
        Assert.True(run.Watcher.FirstRoundAsync().IsCompleted);
        Assert.Equal("an unknown provider", run.Watcher.Provider.Name);
    }

    [Theory]
    [InlineData("Amazon EC2", "g6.xlarge", new[] { "AWS spot", "AWS rebalance recommendation" })]
    [InlineData("Google", "Google Compute Engine", new[] { "Google Cloud preemption", "Google Cloud host maintenance" })]
    [InlineData("Microsoft Corporation", "Virtual Machine", new[] { "Azure scheduled event" })]
    [InlineData("Dell Inc.", "PowerEdge R750", new string[0])]
    public async Task Auto_OnACloud_AsksThatCloud(string vendor, string product, string[] watched)
    {
        await using WatchedRun run = new(
            new InterruptionOptions { GcpEndpoint = null },
            WatchedRun.Quick with { Connect = TimeSpan.FromMilliseconds(1), Answer = TimeSpan.FromMilliseconds(1) },
            firmware: new() { ["sys_vendor"] = vendor, ["product_name"] = product });
        Assert.Equal(watched, run.Watcher.Watched);
    }

    [Fact]
    public async Task Variables_GoBeforeTheKeys()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("stop"), "");
        await using MetadataServer server = new(_ => new MetadataReply(404));
        await using WatchedRun run = new(
            new InterruptionOptions { AwsEndpoint = "http://127.0.0.1:1", File = folder.File("never") },
            variables: new() { ["LT_AWS_METADATA"] = server.Address, ["LT_INTERRUPT_FILE"] = folder.File("stop"), ["LT_GCP_METADATA"] = "metadata" });
        Assert.Equal("touch file", (await run.NextAsync()).Source);
        await WatchedRun.Until(() => !server.Requests.IsEmpty);
        Assert.Contains("LT_GCP_METADATA must be an address that starts with http:// or https://, got metadata. It is left out, so this cloud's notices are not watched.", run.Warnings);
    }

    [Fact]
    public async Task None_WatchesNothing()
    {
        await using WatchedRun run = new(
            new InterruptionOptions { Sources = InterruptionSources.None, AwsEndpoint = "http://127.0.0.1:1" },
            variables: new() { ["LT_AZURE_METADATA"] = "http://127.0.0.1:1", ["LT_INTERRUPT_FILE"] = "/" });
        Assert.Empty(run.Watcher.Watched);
    }

    [Fact]
    public async Task Callback_Throws_EndsNothing()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("stop"), "");
        List<string> warnings = [];
        await using var watcher = InterruptionWatcher.Start(
            new InterruptionOptions { File = folder.File("stop") }, _ => throw new InvalidOperationException("no"), warnings.Add, TimeProvider.System, new MachineTraits(_ => null, _ => null), WatchedRun.Quick);
        await watcher.FirstRoundAsync();
        Assert.NotNull(watcher.Pending);
        Assert.StartsWith("A notice could not be handled (no): The file ", Assert.Single(warnings), StringComparison.Ordinal);
        await watcher.DisposeAsync();
    }

    [Fact]
    public async Task Acknowledge_WhatNeedsNone_IsTrue()
    {
        InterruptionNotice signal = new ProviderInfo("RunPod", 5, "").NoticeOf("SIGTERM", TimeProvider.System);
        Assert.True(await InterruptionWatcher.AcknowledgeAsync(signal, TestContext.Current.CancellationToken));
        Assert.Equal("SIGTERM asks the run to stop within 5 s: a checkpoint is saved, then the program ends.", signal.Sentence);
    }

    [Theory]
    [InlineData("SIGUSR1", "10")]
    [InlineData("SIGUSR2", "12")]
    [InlineData("SIGHUP", "1")]
    public async Task Signal_OfAScheduler_IsANotice(string name, string number)
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "The numbers of signals are those of Linux.");
        await using WatchedRun run = new(new InterruptionOptions { Sources = InterruptionSources.Signals }, variables: new() { ["SLURM_JOB_ID"] = "7" });
        using (var kill = Process.Start("/bin/sh", ["-c", $"kill -{number} {Environment.ProcessId}"]))
        {
            await kill.WaitForExitAsync(TestContext.Current.CancellationToken);
        }

        InterruptionNotice notice = await run.NextAsync();
        Assert.Equal((name, NoticeKind.Stop, null), (notice.Source, notice.Kind, notice.TimeLeft));
        Assert.Equal($"{name} asks the run to stop: a checkpoint is saved, then the program ends.", notice.Sentence);
        Assert.Null(run.Watcher.Pending);
    }

    [Fact]
    public void IgnoredSignals_AreReadFromTheStatus()
    {
        Assert.Equal(0x1001UL, SchedulerSignals.IgnoredOf("Name:\tx\nSigBlk:\t0000000000000003\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n"));
        Assert.Equal(0UL, SchedulerSignals.IgnoredOf("nothing"));
    }
}
