using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Interruptions;
using Xunit;

namespace LoraTrainer.Training.Tests.Interruptions;

/// <summary>Every source against a server that speaks its provider's protocol.</summary>
public sealed class NoticeSourceTests
{
    private const string SpotPath = "/latest/meta-data/spot/instance-action";

    private static InterruptionOptions Aws(MetadataServer server) => new() { Sources = InterruptionSources.Aws, AwsEndpoint = server.Address };

    private static InterruptionOptions Gcp(MetadataServer server) => new() { Sources = InterruptionSources.Gcp, GcpEndpoint = server.Address };

    private static InterruptionOptions Azure(MetadataServer server) => new() { Sources = InterruptionSources.Azure, AzureEndpoint = server.Address };

    /// <summary>For questions that a test waits for anyway.</summary>
    private static WatchTimings Patient { get; } = WatchedRun.Quick with { FirstRound = TimeSpan.FromSeconds(30) };

    /// <summary>IMDSv2 as EC2 speaks it: a token for each question, none without its header, 401 for a token that is not valid (any more).</summary>
    private sealed class AwsMachine
    {
        private int tokens;

        public string? Action { get; set; }

        public string? Rebalance { get; set; }

        public string ValidToken { get; private set; } = "";

        public int TokensGiven => tokens;

        public int Refused { get; private set; }

        public int SecondsOfToken { get; init; } = 21600;

        public void ExpireToken() => ValidToken = "expired";

        public MetadataReply Answer(MetadataRequest request)
        {
            if (request is { Method: "PUT", Target: "/latest/api/token" })
            {
                if (request.Header("X-aws-ec2-metadata-token-ttl-seconds") != "21600")
                {
                    return new MetadataReply(400);
                }

                ValidToken = $"AQAEAL{++tokens}==";
                return new MetadataReply(200, ValidToken, ("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", SecondsOfToken.ToString(CultureInfo.InvariantCulture)));
            }

            if (request.Header("X-aws-ec2-metadata-token") != ValidToken)
            {
                Refused++;
                return new MetadataReply(401);
            }

            string? body = request.Target switch
            {
                SpotPath => Action,
                "/latest/meta-data/events/recommendations/rebalance" => Rebalance,
                "/latest/meta-data/instance-type" => "g6.xlarge",
                "/latest/meta-data/placement/region" => "us-east-1",
                "/latest/meta-data/instance-life-cycle" => "spot",
                _ => null,
            };
            return body is null ? new MetadataReply(404, "<html>Not Found</html>") : new MetadataReply(200, body, ("Date", DateTimeOffset.UtcNow.ToString("r")));
        }
    }

    [Fact]
    public async Task Aws_TellsWhichMachineThisIs()
    {
        AwsMachine machine = new();
        await using MetadataServer server = new(machine.Answer);
        await using WatchedRun run = new(Aws(server), Patient);

        Assert.Equal(new MachineIdentity("aws", "g6.xlarge", "us-east-1", true), await run.Watcher.IdentifyAsync());
    }

    [Fact]
    public async Task GoogleCloud_TellsWhichMachineThisIs()
    {
        await using MetadataServer server = new(request => request.Target switch
        {
            _ when request.Header("Metadata-Flavor") != "Google" => new MetadataReply(403),
            "/computeMetadata/v1/instance/machine-type" => new MetadataReply(200, "projects/12/machineTypes/a2-highgpu-1g", ("Metadata-Flavor", "Google")),
            "/computeMetadata/v1/instance/zone" => new MetadataReply(200, "projects/12/zones/us-central1-a", ("Metadata-Flavor", "Google")),
            "/computeMetadata/v1/instance/scheduling/preemptible" => new MetadataReply(200, "FALSE", ("Metadata-Flavor", "Google")),
            _ => new MetadataReply(404, "", ("Metadata-Flavor", "Google")),
        });
        await using WatchedRun run = new(Gcp(server), Patient);

        Assert.Equal(new MachineIdentity("gcp", "a2-highgpu-1g", "us-central1", false), await run.Watcher.IdentifyAsync());
    }

    [Fact]
    public async Task Azure_TellsWhichMachineThisIs()
    {
        await using MetadataServer server = new(request => request.Target.StartsWith("/metadata/instance/compute?", StringComparison.Ordinal) && request.Header("Metadata") == "true"
            ? new MetadataReply(200, """{"location":"westeurope","name":"vm","priority":"Spot","vmSize":"Standard_NC24ads_A100_v4"}""")
            : new MetadataReply(404));
        await using WatchedRun run = new(Azure(server), Patient);

        Assert.Equal(new MachineIdentity("azure", "Standard_NC24ads_A100_v4", "westeurope", true), await run.Watcher.IdentifyAsync());
    }

    /// <summary>A service that never answers, and one that answers with something that is no name, cost a moment and no more.</summary>
    [Theory]
    [InlineData("<html>\n a page</html>")]
    [InlineData("")]
    [InlineData("{\"vmSize\": 7, \"location\": \"a b\"}")]
    [InlineData("[")]
    public async Task Machine_ThatIsNotTold_IsUnknown(string body)
    {
        await using MetadataServer server = new(_ => new MetadataReply(200, body, ("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60"), ("Metadata-Flavor", "Google")));
        foreach (InterruptionOptions options in new[] { Aws(server), Gcp(server), Azure(server) })
        {
            await using WatchedRun run = new(options, Patient);
            MachineIdentity identity = await run.Watcher.IdentifyAsync();
            Assert.Equal(("", ""), (identity.InstanceType, identity.Region));
        }
    }

    [Fact]
    public async Task Platform_IsNamedBeforeTheCloudBelowIt()
    {
        await using WatchedRun run = new(new InterruptionOptions { Sources = InterruptionSources.None }, variables: new() { ["RUNPOD_POD_ID"] = "x", ["RUNPOD_DC_ID"] = "EU-RO-1" });

        Assert.Equal(new MachineIdentity("runpod", "", "EU-RO-1", null), await run.Watcher.IdentifyAsync());
    }

    [Fact]
    public async Task Aws_NoticeAfterQuiet_IsRaisedOnceWithItsTime()
    {
        AwsMachine machine = new();
        await using MetadataServer server = new(machine.Answer);
        await using WatchedRun run = new(Aws(server) with { GraceSeconds = 20 });
        await run.Watcher.FirstRoundAsync();
        Assert.Null(run.Watcher.Pending);
        Assert.Equal(1, machine.TokensGiven);

        DateTimeOffset end = DateTimeOffset.UtcNow.AddSeconds(100);
        machine.Action = $$"""{"action":"terminate","time":"{{end:yyyy-MM-ddTHH:mm:ssZ}}"}""";
        var waited = Stopwatch.StartNew();
        InterruptionNotice notice = await run.NextAsync();

        Assert.InRange(waited.Elapsed, TimeSpan.Zero, TimeSpan.FromSeconds(3));
        Assert.Equal(("AWS spot", NoticeKind.Stop, TimeSpan.FromSeconds(20)), (notice.Source, notice.Kind, notice.Grace!.Value));
        Assert.InRange(notice.TimeLeft!.Value.TotalSeconds, 90, 101);
        Assert.Equal($"AWS takes this machine back at {end:HH:mm:ss} UTC (in {(long)notice.TimeLeftAtReceipt!.Value.TotalSeconds} s): a checkpoint is saved, then the program ends.", notice.Sentence);

        int asked = server.Requests.Count;
        await WatchedRun.Until(() => server.Requests.Count > asked + 4);
        Assert.Single(run.Notices);
        Assert.Null(run.Watcher.Pending);
        Assert.All(server.Requests, request => Assert.True(request.Method == "PUT" || request.Header("X-aws-ec2-metadata-token") is not null));
        Assert.Empty(run.Warnings);
    }

    [Fact]
    public async Task Aws_TokenIsNoLongerValid_IsFetchedAgainAndTheNoticeSeen()
    {
        AwsMachine machine = new();
        await using MetadataServer server = new(machine.Answer);
        await using WatchedRun run = new(Aws(server));
        await run.Watcher.FirstRoundAsync();

        machine.ExpireToken();
        machine.Action = """{"action":"stop","time":"2017-09-18T08:22:00Z"}""";
        InterruptionNotice notice = await run.NextAsync();

        Assert.StartsWith("AWS stops this machine at 08:22:00 UTC", notice.Sentence, StringComparison.Ordinal);
        Assert.True(machine.Refused >= 1);
        Assert.True(machine.TokensGiven >= 2);
    }

    [Fact]
    public async Task Aws_TokenOfOneSecond_IsRenewedBeforeItEnds()
    {
        AwsMachine machine = new() { SecondsOfToken = 1 };
        await using MetadataServer server = new(machine.Answer);
        await using WatchedRun run = new(Aws(server));

        await WatchedRun.Until(() => machine.TokensGiven >= 2);
        Assert.Equal(0, machine.Refused);
    }

    [Fact]
    public async Task Aws_Hibernation_IsNow()
    {
        AwsMachine machine = new() { Action = """{"action":"hibernate","time":"2017-09-18T08:22:00Z"}""" };
        await using MetadataServer server = new(machine.Answer);
        await using WatchedRun run = new(Aws(server));
        InterruptionNotice notice = await run.NextAsync();

        Assert.Equal(TimeSpan.Zero, notice.TimeLeft);
        Assert.Equal("AWS hibernates this machine now: a checkpoint is saved, then the program ends.", notice.Sentence);
    }

    [Fact]
    public async Task Aws_Rebalance_AsksForASaveOnly()
    {
        AwsMachine machine = new() { Rebalance = """{"noticeTime":"2020-10-27T08:22:00Z"}""" };
        await using MetadataServer server = new(machine.Answer);
        await using WatchedRun run = new(Aws(server));
        await run.Watcher.FirstRoundAsync();
        InterruptionNotice notice = await run.NextAsync();

        Assert.Equal(NoticeKind.Save, notice.Kind);
        Assert.Null(run.Watcher.Pending);
        Assert.Equal("AWS may take this machine back soon (rebalance recommendation): a checkpoint is saved, and the training goes on.", notice.Sentence);
    }

    [Fact]
    public async Task Aws_AWrongClock_DoesNotChangeWhatIsLeft()
    {
        // The notice says 2017; no clock here does, and the machine has been quiet until just now.
        AwsMachine machine = new();
        await using MetadataServer server = new(machine.Answer);
        await using WatchedRun run = new(Aws(server));
        await run.Watcher.FirstRoundAsync();
        machine.Action = """{"action":"terminate","time":"2017-09-18T08:22:00Z"}""";
        InterruptionNotice notice = await run.NextAsync();

        Assert.InRange(notice.TimeLeft!.Value.TotalSeconds, 110, 120);
        Assert.Equal(new DateTimeOffset(2017, 9, 18, 8, 22, 0, TimeSpan.Zero), notice.Deadline);
    }

    [Theory]
    [InlineData("not json")]
    [InlineData("{")]
    [InlineData("[]")]
    [InlineData("{}")]
    [InlineData("""{"action":7,"time":"2017-09-18T08:22:00Z"}""")]
    [InlineData("""{"action":"","time":"2017-09-18T08:22:00Z"}""")]
    [InlineData("""{"action":"\ud800"}""")]
    public async Task Aws_AnswerThatIsNone_IsNoNoticeAndEndsNothing(string body)
    {
        AwsMachine machine = new();
        await using MetadataServer server = new(machine.Answer);
        await using WatchedRun run = new(Aws(server));
        await run.Watcher.FirstRoundAsync();
        machine.Action = body;
        await WatchedRun.Until(() => !run.Warnings.IsEmpty);
        Assert.Empty(run.Notices);
        Assert.Single(run.Warnings);

        machine.Action = """{"action":"terminate"}""";
        Assert.Null((await run.NextAsync()).Deadline);
    }

    [Fact]
    public async Task Gcp_Preemption_IsHeardByWaitingAtTheServer()
    {
        TaskCompletionSource preempted = new(TaskCreationOptions.RunContinuationsAsynchronously);
        await using MetadataServer server = new(async (request, ended) =>
        {
            (string, string)[] headers = [("Metadata-Flavor", "Google"), ("ETag", preempted.Task.IsCompleted ? "b1" : "a0")];
            if (request.Header("Metadata-Flavor") != "Google")
            {
                return new MetadataReply(403);
            }

            if (request.Target.EndsWith("maintenance-event", StringComparison.Ordinal))
            {
                return new MetadataReply(200, "NONE", headers);
            }

            if (request.Target == "/computeMetadata/v1/instance/preempted?wait_for_change=true&last_etag=a0&timeout_sec=2")
            {
                await Task.WhenAny(preempted.Task, Task.Delay(2000, ended));
                headers[1].Item2 = preempted.Task.IsCompleted ? "b1" : "a0";
            }
            else if (request.Target != "/computeMetadata/v1/instance/preempted")
            {
                return new MetadataReply(400);
            }

            return new MetadataReply(200, preempted.Task.IsCompleted ? "TRUE" : "FALSE", headers);
        });
        await using WatchedRun run = new(Gcp(server));
        await run.Watcher.FirstRoundAsync();
        await WatchedRun.Until(() => server.Requests.Any(request => request.Target.Contains("wait_for_change", StringComparison.Ordinal)));
        Assert.Empty(run.Notices);

        preempted.SetResult();
        var waited = Stopwatch.StartNew();
        InterruptionNotice notice = await run.NextAsync();

        Assert.InRange(waited.Elapsed, TimeSpan.Zero, TimeSpan.FromSeconds(2));
        Assert.Equal("Google Cloud takes this machine back within 30 s: a checkpoint is saved, then the program ends.", notice.Sentence);
        Assert.Equal(TimeSpan.FromSeconds(30), notice.TimeLeftAtReceipt);

        // Plain questions with their pause from now on, and nothing is raised again.
        int asked = server.Requests.Count;
        await Task.Delay(300, TestContext.Current.CancellationToken);
        Assert.InRange(server.Requests.Count - asked, 1, 40);
        Assert.Single(run.Notices);
    }

    [Theory]
    [InlineData("FALSE")]
    [InlineData(null)]
    public async Task Gcp_ServerThatDoesNotWait_IsAskedPlainly(string? whenWaiting)
    {
        string value = "FALSE";
        await using MetadataServer server = new(request =>
            request.Target.Contains("wait_for_change", StringComparison.Ordinal) && whenWaiting is null ? new MetadataReply(500)
            : request.Target.Contains("preempted", StringComparison.Ordinal) ? new MetadataReply(200, value, ("Metadata-Flavor", "Google"), ("ETag", "a0"))
            : new MetadataReply(404));
        await using WatchedRun run = new(Gcp(server));
        await WatchedRun.Until(() => server.Requests.Count(request => request.Target.EndsWith("preempted", StringComparison.Ordinal)) > 3);
        Assert.Equal(2, server.Requests.Count(request => request.Target.Contains("wait_for_change", StringComparison.Ordinal)));

        value = "TRUE";
        Assert.InRange((await run.NextAsync()).TimeLeft!.Value.TotalSeconds, 20, 30);
    }

    [Fact]
    public async Task Gcp_AnswerWithoutItsHeader_IsOfAnotherService()
    {
        await using MetadataServer server = new(_ => new MetadataReply(200, "TRUE"));
        await using WatchedRun run = new(Gcp(server));
        await WatchedRun.Until(() => !run.Warnings.IsEmpty);

        Assert.Empty(run.Notices);
        Assert.Equal($"Google Cloud's metadata server at {server.Address}/ cannot be read (what answers is not Google's metadata server), so a preemption will not be noticed before its SIGTERM.", Assert.Single(run.Warnings));
    }

    [Fact]
    public async Task Gcp_Maintenance_AsksForASaveEachTime()
    {
        string maintenance = "MIGRATE_ON_HOST_MAINTENANCE";
        await using MetadataServer server = new(request =>
            new MetadataReply(200, request.Target.Contains("preempted", StringComparison.Ordinal) ? "FALSE" : maintenance, ("Metadata-Flavor", "Google")));
        await using WatchedRun run = new(Gcp(server));
        await run.Watcher.FirstRoundAsync();
        Assert.Empty(run.Notices);
        for (int round = 1; round <= 2; round++)
        {
            maintenance = "TERMINATE_ON_HOST_MAINTENANCE";
            Assert.Equal(NoticeKind.Save, (await run.NextAsync()).Kind);
            Assert.Equal(round, run.Notices.Count);
            maintenance = "NONE";
            int asked = server.Requests.Count(request => request.Target.Contains("maintenance", StringComparison.Ordinal));
            await WatchedRun.Until(() => server.Requests.Count(request => request.Target.Contains("maintenance", StringComparison.Ordinal)) > asked + 1);
        }
    }

    /// <summary>Scheduled events as Azure speaks them: the header, the version, this machine's name elsewhere, and acknowledgements.</summary>
    private sealed class AzureMachine
    {
        public string Events { get; set; } = "";

        public int Incarnation { get; set; } = 1;

        public List<string> Acknowledged { get; } = [];

        public static string Event(string id, string type, string resources, string status = "Scheduled", string notBefore = "") =>
            $$"""{"EventId":"{{id}}","EventType":"{{type}}","ResourceType":"VirtualMachine","Resources":{{resources}},"EventStatus":"{{status}}","NotBefore":"{{notBefore}}","Description":"","EventSource":"Platform","DurationInSeconds":-1}""";

        public MetadataReply Answer(MetadataRequest request)
        {
            if (request.Header("Metadata") != "true")
            {
                return new MetadataReply(400);
            }

            switch (request.Method, request.Target)
            {
                case ("GET", "/metadata/instance/compute/name?api-version=2021-02-01&format=text"):
                    return new MetadataReply(200, "Trainer-7");
                case ("GET", "/metadata/scheduledevents?api-version=2020-07-01"):
                    return new MetadataReply(200, $$"""{"DocumentIncarnation":{{Incarnation}},"Events":[{{Events}}]}""", ("Date", DateTimeOffset.UtcNow.ToString("r")));
                case ("POST", "/metadata/scheduledevents?api-version=2020-07-01"):
                    using (var body = JsonDocument.Parse(request.Body))
                    {
                        Acknowledged.AddRange(body.RootElement.GetProperty("StartRequests").EnumerateArray().Select(start => start.GetProperty("EventId").GetString()!));
                    }

                    return new MetadataReply(200);
                default:
                    return new MetadataReply(404);
            }
        }
    }

    [Fact]
    public async Task Azure_PreemptionOfThisMachine_IsRaisedAndAcknowledgedOnRequestOnly()
    {
        AzureMachine machine = new() { Events = AzureMachine.Event("other", "Preempt", """["trainer-8","trainer-71"]""") };
        await using MetadataServer server = new(machine.Answer);
        await using WatchedRun run = new(Azure(server));
        await run.Watcher.FirstRoundAsync();
        Assert.Empty(run.Notices);

        DateTimeOffset end = DateTimeOffset.UtcNow.AddSeconds(40);
        string preempt = AzureMachine.Event("A123\\u0022BC", "Preempt", """["trainer-8","trainer-7"]""", notBefore: end.ToString("r"));
        (machine.Events, machine.Incarnation) = ($"{machine.Events},{preempt}", 2);
        var waited = Stopwatch.StartNew();
        InterruptionNotice notice = await run.NextAsync();

        Assert.InRange(waited.Elapsed, TimeSpan.Zero, TimeSpan.FromSeconds(2));
        Assert.Equal((NoticeKind.Stop, TimeSpan.FromSeconds(30)), (notice.Kind, notice.Grace!.Value));
        Assert.InRange(notice.TimeLeft!.Value.TotalSeconds, 30, 41);
        Assert.StartsWith($"Azure takes this machine back at {end:HH:mm:ss} UTC (in ", notice.Sentence, StringComparison.Ordinal);
        Assert.Empty(machine.Acknowledged);

        Assert.True(await InterruptionWatcher.AcknowledgeAsync(notice, TestContext.Current.CancellationToken));
        Assert.Equal(["A123\"BC"], machine.Acknowledged);

        // Now it has started; it is the same event.
        (machine.Events, machine.Incarnation) = (AzureMachine.Event("A123\\u0022BC", "Preempt", """["trainer-7"]""", "Started"), 3);
        int asked = server.Requests.Count;
        await WatchedRun.Until(() => server.Requests.Count > asked + 3);
        Assert.Single(run.Notices);
    }

    [Theory]
    [InlineData("Preempt", "Scheduled", NoticeKind.Stop, "Azure takes this machine back within ")]
    [InlineData("Terminate", "Scheduled", NoticeKind.Stop, "Azure deletes this machine within ")]
    [InlineData("Reboot", "Scheduled", NoticeKind.Stop, "Azure restarts this machine within ")]
    [InlineData("Redeploy", "Started", NoticeKind.Stop, "Azure moves this machine to another host now: a checkpoint is saved, then")]
    [InlineData("Freeze", "Scheduled", NoticeKind.Save, "Azure pauses this machine for some seconds within ")]
    [InlineData("Preempt", "Canceled", null, null)]
    [InlineData("Reboot", "Completed", null, null)]
    [InlineData("Rename", "Scheduled", null, null)]
    public async Task Azure_Event_MeansWhatItsTypeSays(string type, string status, NoticeKind? kind, string? sentence)
    {
        AzureMachine machine = new();
        await using MetadataServer server = new(machine.Answer);
        await using WatchedRun run = new(Azure(server), Patient);
        await run.Watcher.FirstRoundAsync();
        machine.Events = $"{AzureMachine.Event("1", type, """["TRAINER-7"]""", status)},{AzureMachine.Event("last", "Preempt", """["TRAINER-7"]""")}";
        InterruptionNotice notice = await run.NextAsync();

        Assert.Equal(kind is null ? "Azure scheduled event last" : "Azure scheduled event 1", notice.Key);
        Assert.Equal(kind ?? NoticeKind.Stop, notice.Kind);
        Assert.StartsWith(sentence ?? "Azure takes", notice.Sentence, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("")]
    [InlineData("""{"DocumentIncarnation":1}""")]
    [InlineData("""{"DocumentIncarnation":1,"Events":null}""")]
    [InlineData("""{"DocumentIncarnation":1,"Events":[7]}""")]
    public async Task Azure_AnswerThatIsNone_IsNoNotice(string body)
    {
        await using MetadataServer server = new(request => new MetadataReply(200, request.Target.Contains("compute", StringComparison.Ordinal) ? "vm" : body));
        await using WatchedRun run = new(Azure(server));
        await WatchedRun.Until(() => !run.Warnings.IsEmpty);
        Assert.Empty(run.Notices);
    }

    [Fact]
    public async Task Azure_EventWithoutIdOrResources_DoesNotHideTheOthers()
    {
        AzureMachine machine = new() { Events = """{"EventType":"Preempt"},{"EventType":"Preempt","Resources":"vm"},{"EventType":"Preempt","Resources":[1,"Trainer-7"]},""" + AzureMachine.Event("2", "Preempt", """["Trainer-7"]""") };
        await using MetadataServer server = new(machine.Answer);
        await using WatchedRun run = new(Azure(server));
        Assert.Equal("Azure scheduled event 2", (await run.NextAsync()).Key);
    }

    [Fact]
    public async Task File_Appears_StopsTheRunOnce()
    {
        using var folder = new TemporaryFolder();
        await using WatchedRun run = new(new InterruptionOptions { Sources = InterruptionSources.File, File = folder.File("stop") });
        await run.Watcher.FirstRoundAsync();
        Assert.Null(run.Watcher.Pending);
        File.WriteAllText(folder.File("stop"), "");
        InterruptionNotice notice = await run.NextAsync();

        Assert.Equal($"The file {folder.File("stop")} asks the run to stop (remove it before the next start): a checkpoint is saved, then the program ends.", notice.Sentence);
        Assert.Null(notice.TimeLeft);
        File.Delete(folder.File("stop"));
        await Task.Delay(60, TestContext.Current.CancellationToken);
        File.WriteAllText(folder.File("stop"), "");
        await Task.Delay(60, TestContext.Current.CancellationToken);
        Assert.Single(run.Notices);
    }
}
