using System.Diagnostics;
using System.Globalization;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>A notice in every phase of a run: the run ends with 75, what it had computed is safe, and it goes on to the bytes of a run that was never stopped.</summary>
[Collection(S3Runs.Name)]
[Trait("Category", "Crash")]
public sealed class NoticeRunTests(S3Server server)
{
    /// <summary>Nothing is saved but at the end and on a notice.</summary>
    private const string Rarely = "{every_steps: 100000, keep: 2}";

    private static readonly string[] Train = ["train", "tiny.yaml"];

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    private static Dictionary<string, string> Asking(MetadataServer service, string variable = "LT_GCP_METADATA") => new() { [variable] = service.Address };

    /// <summary>Google's service, which answers a waiting question in the moment when the test says so.</summary>
    private static MetadataServer Google(Task notice, TaskCompletionSource? asked = null) => new(async (request, ended) =>
    {
        bool waits = request.Target.Contains("wait_for_change", StringComparison.Ordinal);
        if (waits)
        {
            asked?.TrySetResult();
            await notice.WaitAsync(ended);
        }

        bool isPreemption = request.Target.Contains("/preempted", StringComparison.Ordinal);
        return new MetadataReply(200, !isPreemption ? "NONE" : notice.IsCompleted ? "TRUE" : "FALSE", ("Metadata-Flavor", "Google"), ("ETag", notice.IsCompleted ? "b" : "a"));
    });

    [Theory]
    [InlineData("tokenizing", "tokenizing", 20_000)]
    [InlineData("loading", "loading", 43)]
    [InlineData("evaluating", "evaluating", 43)]
    [InlineData("training", "step 7/", 43)]
    public async Task Notice_InAnyPhase_EndsWith75_AndTheRunGoesOn(string phase, string line, int rows)
    {
        using var folder = new TinyFolder(rows: rows, changes: [("checkpoint", Rarely), ("num_epochs", rows > 43 ? 1 : 40), ("val_set_size", rows > 43 ? 3 : 30), ("eval_max_new_tokens", 32)]);
        var notice = new TaskCompletionSource();
        var asked = new TaskCompletionSource();
        await using MetadataServer service = Google(notice.Task, asked);
        await using Child child = Child.Start(folder, Train, Asking(service));
        await child.SeesAsync(line);
        await asked.Task.WaitAsync(Cancellation);
        long start = Stopwatch.GetTimestamp();
        notice.SetResult();
        Task<TimeSpan> seen = SafeAsync(child, start);

        Ending end = await child.EndAsync();

        Assert.True(end.ExitCode == 75, end.ToString());
        Assert.Contains("warning: Google Cloud takes this machine back", end.Error, StringComparison.Ordinal);
        int steps = child.Said("step ").Count(said => said.Contains("  loss ", StringComparison.Ordinal));
        Tell(phase, "Google Cloud preemption", steps > 0 ? await seen : null, Stopwatch.GetElapsedTime(start), steps);
        AssertSavedAndFree(folder, steps);
        Assert.True(phase == "training" ? steps >= 7 : steps == 0, $"{steps} steps were done");
        if (rows == 43)
        {
            await GoesOnAsync(folder);
        }
    }

    [Theory]
    [InlineData("SIGUSR1")]
    [InlineData("touch file")]
    [InlineData("AWS spot")]
    [InlineData("SIGTERM")]
    public async Task Notice_OfEachKind_SavesWhatWasComputed(string kind)
    {
        using var folder = new TinyFolder(changes: [("checkpoint", Rarely), ("num_epochs", 400), ("evaluate_before", "false"), ("evaluate_after", "false")]);
        bool isGiven = false;
        await using var service = new MetadataServer(request => request.Method == "PUT" ? new MetadataReply(200, "token", ("X-aws-ec2-metadata-token-ttl-seconds", "21600"))
            : request.Target.EndsWith("/spot/instance-action", StringComparison.Ordinal) && Volatile.Read(ref isGiven)
                ? new MetadataReply(200, $$"""{"action":"terminate","time":"{{DateTime.UtcNow.AddSeconds(120):yyyy-MM-ddTHH:mm:ssZ}}"}""")
                : new MetadataReply(404));
        Dictionary<string, string> environment = kind switch
        {
            "touch file" => new() { ["LT_INTERRUPT_FILE"] = folder.PathOf("stop") },
            "AWS spot" => Asking(service, "LT_AWS_METADATA"),
            _ => [],
        };
        await using Child child = Child.Start(folder, Train, environment);
        await child.SeesAsync("step ", 5);
        long start = Stopwatch.GetTimestamp();
        switch (kind)
        {
            case "SIGUSR1":
                child.Signal(TinyFolder.SignalUser1);
                break;
            case "SIGTERM":
                child.Signal(TinyFolder.SignalTerminate);
                break;
            case "touch file":
                File.WriteAllText(folder.PathOf("stop"), string.Empty);
                break;
            default:
                Volatile.Write(ref isGiven, true);
                break;
        }

        Task<TimeSpan> seen = SafeAsync(child, start);
        Ending end = await child.EndAsync();

        Assert.True(end.ExitCode == 75, end.ToString());
        int steps = child.Said("step ").Count(said => said.Contains("  loss ", StringComparison.Ordinal));
        Tell("training", kind, await seen, Stopwatch.GetElapsedTime(start), steps);
        AssertSavedAndFree(folder, steps);
    }

    /// <summary>A checkpoint is on its way, slowly, when the notice comes; what was computed meanwhile is safe too before the process ends.</summary>
    [Fact]
    [Trait("Category", "S3")]
    public async Task Notice_WhileUploading_SavesWhatWasComputed()
    {
        server.Require();
        const int bytesPerSecond = 150_000;
        await using var run = new S3Run(server, [("num_epochs", 400), ("evaluate_before", "false"), ("evaluate_after", "false")], leaseSeconds: 30, saves: "every_steps: 4, keep: 2");
        await using Child child = Child.Start(run.Folder, Train);
        await child.SeesAsync("step ", 2);
        Fault slow = run.Proxy.Set(new Fault(FaultKind.Slow) { BytesPerSecond = bytesPerSecond, Times = int.MaxValue })!;
        long before = run.Proxy.BytesUp;
        await child.SeesAsync("saving", 2);
        while (run.Proxy.BytesUp < before + 50_000)
        {
            await Task.Delay(1, Cancellation);
        }

        long start = Stopwatch.GetTimestamp();
        child.Signal(TinyFolder.SignalUser1);
        Task<TimeSpan> seen = SafeAsync(child, start);
        Ending end = await child.EndAsync();

        Assert.True(end.ExitCode == 75, end.ToString());
        Assert.True(slow.Hits > 0);
        int steps = child.Said("step ").Count(said => said.Contains("  loss ", StringComparison.Ordinal));
        Tell($"uploading at {bytesPerSecond / 1000} kB/s", "SIGUSR1", await seen, Stopwatch.GetElapsedTime(start), steps);
        Assert.Equal(steps, (await run.ChosenAsync())!.Step);
    }

    [Fact]
    public async Task StartedUnderANotice_EndsBeforeItTakesAnything()
    {
        using var folder = new TinyFolder();
        await using MetadataServer service = Google(Task.CompletedTask);
        Ending end = await folder.RunAsync(Train, environment: Asking(service));
        Assert.True(end.ExitCode == 75, end.ToString());
        Assert.Contains("warning: Google Cloud takes this machine back", end.Error, StringComparison.Ordinal);
        Assert.False(Directory.Exists(folder.Out));
    }

    /// <summary>Advice is no notice: the run saves at once and goes on to its end.</summary>
    [Fact]
    public async Task Rebalance_SavesAndGoesOn()
    {
        using var folder = new TinyFolder(changes: ("checkpoint", "{every_steps: 100000, keep: 9}"));
        await using var service = new MetadataServer(request => request.Method == "PUT" ? new MetadataReply(200, "token", ("X-aws-ec2-metadata-token-ttl-seconds", "21600"))
            : request.Target.EndsWith("/rebalance", StringComparison.Ordinal) ? new MetadataReply(200, """{"noticeTime":"2030-01-01T00:00:00Z"}""")
            : new MetadataReply(404));
        Ending end = await folder.RunAsync(Train, environment: Asking(service, "LT_AWS_METADATA"));
        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Contains("warning: AWS may take this machine back soon (rebalance recommendation)", end.Error, StringComparison.Ordinal);
        Assert.Equal(["step-00000001", "step-00000012"], folder.CheckpointFolders().Select(path => Path.GetFileName(path)[..13]));
    }

    /// <summary>What is done at the end is done once: not where a run is stopped, and not where a finished one is resumed.</summary>
    [Fact]
    public async Task OnFinish_RunsOnce()
    {
        using var folder = new TinyFolder(changes: [("on_finish", "{command: echo done >> count.txt}"), ("num_epochs", 8)]);
        Ending stopped = await folder.RunAsync(Train, new Moment("step ", 3, 0), [TinyFolder.SignalTerminate]);
        Assert.True(stopped.ExitCode == 75, stopped.ToString());
        Assert.False(File.Exists(folder.PathOf("count.txt")));
        foreach (string[] arguments in (string[][])[["resume", "out"], ["resume", "out"], ["train", "tiny.yaml", "--set", "resume=auto"]])
        {
            Ending end = await folder.RunAsync(arguments);
            Assert.True(end.ExitCode == 0, end.ToString());
            Assert.Equal(["done"], File.ReadAllLines(folder.PathOf("count.txt")));
        }
    }

    private static async Task GoesOnAsync(TinyFolder folder)
    {
        Ending resumed = await folder.RunAsync("resume", "out");
        Assert.True(resumed.ExitCode == 0, resumed.ToString());
        Dictionary<string, string> result = folder.Result();
        Ending whole = await folder.RunAsync("train", "tiny.yaml", "--set", "output_dir=whole");
        Assert.True(whole.ExitCode == 0, whole.ToString());
        Assert.Equal(folder.Result(folder.PathOf("whole"), folder.PathOf("whole/checkpoints/tiny")), result);
    }

    /// <summary>From the notice to the last checkpoint that was told to be safe.</summary>
    private static async Task<TimeSpan> SafeAsync(Child child, long start)
    {
        int seen = child.Count("is safe, after");
        TimeSpan last = TimeSpan.Zero;
        Task<Ending> end = child.EndAsync();
        while (!end.IsCompleted || child.Count("is safe, after") > seen)
        {
            if (child.Count("is safe, after") is { } now && now > seen)
            {
                (seen, last) = (now, Stopwatch.GetElapsedTime(start));
            }

            await Task.Delay(1, Cancellation);
        }

        return last;
    }

    private static void AssertSavedAndFree(TinyFolder folder, int steps)
    {
        Assert.Contains("\"state\": \"released\"", File.ReadAllText(folder.PathOf("out/checkpoints/tiny/lease.json")), StringComparison.Ordinal);
        if (steps > 0)
        {
            Assert.Equal(string.Create(CultureInfo.InvariantCulture, $"step-{steps:D8}"), Path.GetFileName(folder.CheckpointFolders()[^1])[..13]);
        }
    }

    /// <summary>A row of the table of a test's log.</summary>
    private static void Tell(string phase, string source, TimeSpan? committed, TimeSpan ended, int steps) => TestContext.Current.SendDiagnosticMessage(string.Create(
        CultureInfo.InvariantCulture, $"| {phase} | {source} | step {steps} | {(committed is { } time ? $"{time.TotalSeconds:0.00} s to the committed checkpoint" : "nothing to save")} | {ended.TotalSeconds:0.00} s to the end |"));
}
