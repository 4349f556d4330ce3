using System.Diagnostics;
using System.Text.Json;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>status, save and stop: what another terminal sees of a run, and what it can ask of it.</summary>
public sealed class StatusTests : IDisposable
{
    private const int SignalStop = 19;
    private const int SignalContinue = 18;

    // Guards against a hang, not a measure of speed.
    private static readonly TimeSpan Longest = TimeSpan.FromMinutes(2);

    private static readonly string[] Train = ["train", "tiny.yaml"];

    // Many steps: the run goes on until the test ends it.
    private static readonly string[] TrainLong = ["train", "tiny.yaml", "--set", "max_steps=200000", "--set", "checkpoint.every_steps=0", "--set", "checkpoint.every_minutes=0", "--set", "checkpoint.lease_seconds=1", "--set", "logging_steps=1"];

    private readonly TinyFolder run = new();

    public void Dispose() => run.Dispose();

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    private static async Task<JsonElement> StatusAsync(string folder, string place)
    {
        Ending end = await Ending.RunAsync(folder, "status", place, "--json");
        Assert.True(end.ExitCode == 0, end.ToString());
        using JsonDocument document = JsonDocument.Parse(end.Output);
        return document.RootElement.Clone();
    }

    private Task<JsonElement> StatusAsync(string place = "out") => StatusAsync(run.Path, place);

    private static string? State(JsonElement status) => status.GetProperty("state").GetString();

    /// <summary>A process that works on the run until the test ends it; its output is read away.</summary>
    private async Task<(Process Process, Task<string> Error)> StartAsync(string[] arguments, string until = "step ")
    {
        Process process = run.Start(arguments, null);
        Task<string> error = process.StandardError.ReadToEndAsync(Cancellation);
        while (await process.StandardOutput.ReadLineAsync(Cancellation) is { } line && !line.StartsWith(until, StringComparison.Ordinal))
        {
        }

        _ = process.StandardOutput.ReadToEndAsync(Cancellation);
        return (process, error);
    }

    private static void Kill(Process process)
    {
        if (!process.HasExited)
        {
            process.Kill();
            process.WaitForExit();
        }

        process.Dispose();
    }

    private async Task<string> TouchedByStatusAsync(string place)
    {
        Dictionary<string, string> before = TinyFolder.Snapshot(run.Out);
        Ending end = await run.RunAsync("status", place);
        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Equal(before, TinyFolder.Snapshot(run.Out));
        return end.Output;
    }

    [Theory]
    [InlineData("status")]
    [InlineData("save")]
    [InlineData("stop")]
    public async Task NoRun_IsAnErrorThatSaysWhatToGive(string verb)
    {
        foreach (string place in (string[])["nowhere", "base"])
        {
            Ending end = await run.RunAsync(verb, place);
            Assert.Equal((2, ""), (end.ExitCode, end.Output));
            Assert.Equal($"error: {place} holds no run: there is no config.resolved.yaml. Give the output_dir of a run, or its folder among the checkpoints.\n", end.Error);
        }
    }

    [Fact]
    public async Task Finished_SaysWhatTheRunCameTo_AndIsLeftAlone()
    {
        Ending train = await run.RunAsync(Train);
        Assert.True(train.ExitCode == 0, train.ToString());

        JsonElement status = await StatusAsync();
        int steps = run.Log().Length;
        Assert.Equal(("finished", "tiny", steps, steps), (State(status), status.GetProperty("run_name").GetString(), status.GetProperty("step").GetInt32(), status.GetProperty("total_steps").GetInt32()));
        Assert.Equal((1, 0), (status.GetProperty("attempts").GetInt32(), status.GetProperty("interruptions").GetInt32()));
        Assert.True(status.GetProperty("hours").GetDouble() > 0);
        Assert.StartsWith("CPU", status.GetProperty("device").GetString(), StringComparison.OrdinalIgnoreCase);
        using JsonDocument last = JsonDocument.Parse(File.ReadAllLines(run.PathOf("out/log.jsonl"))[^1]);
        Assert.Equal(last.RootElement.GetProperty("loss").GetDouble(), status.GetProperty("loss").GetDouble());
        JsonElement checkpoint = status.GetProperty("checkpoint");
        Assert.Equal((steps, run.CheckpointFolders()[^1]), (checkpoint.GetProperty("step").GetInt32(), checkpoint.GetProperty("location").GetString()));
        string words = await TouchedByStatusAsync("out");
        Assert.Contains("state:       finished\n", words, StringComparison.Ordinal);
        Assert.Contains($"step:        {steps} of {steps} (100 %)\n", words, StringComparison.Ordinal);

        // Nothing to save, nothing to stop.
        Ending save = await run.RunAsync("save", "out");
        Assert.Equal(2, save.ExitCode);
        Assert.Contains("Nobody works on the run tiny (it is finished)", save.Error, StringComparison.Ordinal);
        Ending stop = await run.RunAsync("stop", "out");
        Assert.Equal((0, "The run tiny is finished: there is nothing to stop.\n"), (stop.ExitCode, stop.Output));
        Assert.Equal("finished", State(await StatusAsync()));
    }

    [Fact]
    public async Task WhileItTrains_AndWhereItGivesNoSignOfLife()
    {
        (Process process, _) = await StartAsync(TrainLong);
        try
        {
            JsonElement status = await StatusAsync();
            Assert.Equal(("training", process.Id, Environment.MachineName), (State(status), status.GetProperty("process").GetInt32(), status.GetProperty("host").GetString()));
            Assert.True(status.GetProperty("step").GetInt32() > 0);
            Assert.Equal(JsonValueKind.Null, status.GetProperty("checkpoint").ValueKind);

            // Stopped, it is alive and silent; nothing but its lease tells.
            Assert.Equal(0, TinyFolder.SendSignal(process.Id, SignalStop));
            await Task.Delay(TimeSpan.FromSeconds(1.5), Cancellation);
            Ending silent = await run.RunAsync("status", "out");
            Assert.Contains("state:       no sign of life since ", silent.Output, StringComparison.Ordinal);
            Assert.Contains("The lease of process", silent.Error, StringComparison.Ordinal);
            Assert.Equal(0, TinyFolder.SendSignal(process.Id, SignalContinue));
        }
        finally
        {
            Kill(process);
        }

        // Dead on this machine, which needs no waiting.
        JsonElement dead = await StatusAsync();
        Assert.Equal(("silent", 1), (State(dead), dead.GetProperty("interruptions").GetInt32()));
        string words = await TouchedByStatusAsync("out");
        Assert.Contains($"of {Environment.MachineName} (process {dead.GetProperty("process").GetInt32()}): it has ended\n", words, StringComparison.Ordinal);
        Assert.Contains("checkpoint:  none is safe yet\n", words, StringComparison.Ordinal);
        Ending save = await run.RunAsync("save", "out");
        Assert.Equal(2, save.ExitCode);
        Assert.Contains("has ended without giving it back", save.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Released_FromEveryPlaceThatNamesTheRun()
    {
        string[] elsewhere = ["--set", "checkpoint.uri=kept/checkpoints"];
        Ending stopped = await run.RunAsync([.. Train, .. elsewhere], new Moment("step ", 3, 0), [TinyFolder.SignalTerminate]);
        Assert.True(stopped.ExitCode == 75, stopped.ToString());

        JsonElement here = await StatusAsync();
        Assert.Equal(("released", 1, 1), (State(here), here.GetProperty("attempts").GetInt32(), here.GetProperty("interruptions").GetInt32()));
        Assert.True(here.GetProperty("checkpoint").GetProperty("step").GetInt32() >= 3);
        using var other = new TestSupport.TemporaryFolder();
        foreach (string place in (string[])[run.Out, run.PathOf("kept/checkpoints/tiny")])
        {
            JsonElement there = await StatusAsync(other.Path, place);
            foreach (string name in (string[])["run_name", "run_id", "state", "step", "total_steps", "loss", "checkpoint", "attempts", "hours"])
            {
                Assert.Equal(here.GetProperty(name).GetRawText(), there.GetProperty(name).GetRawText());
            }
        }
    }

    [Fact]
    public async Task Failed_IsTheWordWhereTheLastProcessMetAnError()
    {
        Ending train = await run.RunAsync([.. Train, "--set", "loraplus_lr_ratio=1e21", "--set", "learning_rate=1", "--set", "warmup_steps=0", "--set", "checkpoint.every_steps=1"]);
        Assert.True(train.ExitCode == 1, train.ToString());
        Assert.Contains("is NaN", train.Error, StringComparison.Ordinal);

        JsonElement status = await StatusAsync();
        Assert.Equal(("released", "failed", 1), (State(status), status.GetProperty("ended").GetString(), status.GetProperty("interruptions").GetInt32()));
        string words = await TouchedByStatusAsync("out");
        Assert.Contains("state:       failed: the last process ended with an error; whoever comes goes on\n", words, StringComparison.Ordinal);
        Assert.Contains("attempts:    1, 1 of them interrupted or failed, ", words, StringComparison.Ordinal);
        Assert.Contains("state:        failed: the last process", (await run.SucceedsAsync("inspect", "out")).Output, StringComparison.Ordinal);
    }

    /// <summary>A process that has the run again is not at its start, although it loads the base as at one.</summary>
    [Fact]
    public async Task WhileItLoads_ARunThatGoesOnResumes_AndANewOneStarts()
    {
        Assert.Contains("state:       starting on ", await WordsWhileItReadsTheDataAsync(TrainLong), StringComparison.Ordinal);
        Ending stopped = await run.RunAsync(["resume", "out"], new Moment("step ", 3, 0), [TinyFolder.SignalTerminate]);
        Assert.True(stopped.ExitCode == 75, stopped.ToString());
        int step = (await StatusAsync()).GetProperty("step").GetInt32();
        Assert.True(step >= 3);
        Assert.Contains($"state:       resuming at step {step} on ", await WordsWhileItReadsTheDataAsync(["resume", "out"]), StringComparison.Ordinal);
    }

    /// <summary>The process is held where it has just taken the run, and killed afterwards.</summary>
    private async Task<string> WordsWhileItReadsTheDataAsync(string[] arguments)
    {
        (Process process, _) = await StartAsync([.. arguments, "--set", "checkpoint.lease_seconds=60"], "tokenizing");
        try
        {
            Assert.Equal(0, TinyFolder.SendSignal(process.Id, SignalStop));
            return (await run.SucceedsAsync("status", "out")).Output;
        }
        finally
        {
            Kill(process);
        }
    }

    [Fact]
    public async Task Waiting_WhereNobodyHasBegun()
    {
        Ending train = await run.RunAsync(Train, new Moment("step ", 1, 0));
        Assert.Equal(137, train.ExitCode);
        File.Delete(run.PathOf("out/checkpoints/tiny/lease.json"));
        Directory.Delete(run.PathOf("out/checkpoints/tiny/attempts"), recursive: true);
        JsonElement status = await StatusAsync();
        Assert.Equal(("waiting", 0), (State(status), status.GetProperty("attempts").GetInt32()));
    }

    [Fact]
    public async Task Save_DuringARun_ReturnsWhenTheCheckpointIsSafe()
    {
        (Process process, _) = await StartAsync(TrainLong);
        try
        {
            Ending save = await run.RunAsync("save", "out", "--json");
            Assert.True(save.ExitCode == 0, save.ToString());
            using JsonDocument document = JsonDocument.Parse(save.Output);
            int step = document.RootElement.GetProperty("checkpoint").GetProperty("step").GetInt32();
            string folder = Assert.Single(run.CheckpointFolders());
            Assert.Equal(folder, Path.Combine(run.Checkpoints, document.RootElement.GetProperty("checkpoint").GetProperty("name").GetString()!));
            Assert.True(step > 0);
            Assert.Contains($"Asked process {process.Id} on {Environment.MachineName} to save.", save.Error, StringComparison.Ordinal);

            Assert.False(process.HasExited);
            JsonElement status = await StatusAsync();
            Assert.Equal(("training", step, 0), (State(status), status.GetProperty("checkpoint").GetProperty("step").GetInt32(), status.GetProperty("requests").GetArrayLength()));

            // From elsewhere, by the place of the checkpoints.
            Ending second = await run.RunAsync("save", "out/checkpoints/tiny");
            Assert.True(second.ExitCode == 0, second.ToString());
            Assert.Equal(2, run.CheckpointFolders().Length);
        }
        finally
        {
            Kill(process);
        }
    }

    [Fact]
    public async Task Save_OfAProcessThatDoesNotAnswer_IsWithdrawn()
    {
        (Process process, _) = await StartAsync([.. TrainLong, "--set", "checkpoint.lease_seconds=600"]);
        try
        {
            Assert.Equal(0, TinyFolder.SendSignal(process.Id, SignalStop));
            Ending late = await run.RunAsync("save", "out", "--timeout", "0.5");
            Assert.True(late.ExitCode == 1, late.ToString());
            Assert.Contains("has not answered within 0.5 s. The request is withdrawn", late.Error, StringComparison.Ordinal);
            Ending withdrawn = await run.RunAsync(["stop", "out"], new Moment("Asked ", 1, 50), [TinyFolder.SignalInterrupt]);
            Assert.True(withdrawn.ExitCode == 75, withdrawn.ToString());
            Assert.Contains("The request is withdrawn", withdrawn.Error, StringComparison.Ordinal);
            Assert.Equal(0, (await StatusAsync()).GetProperty("requests").GetArrayLength());

            // It dies while somebody waits for it.
            Task<Ending> waits = run.RunAsync("save", "out");
            await Task.Delay(1500, Cancellation);
            process.Kill();
            Ending dead = await waits;
            Assert.True(dead.ExitCode is 1 or 2, dead.ToString());
            Assert.Contains(dead.ExitCode == 1 ? "gives no sign of life and did not answer. The run has no checkpoint" : "Nobody works on the run", dead.Error, StringComparison.Ordinal);
        }
        finally
        {
            Kill(process);
        }
    }

    [Fact]
    public async Task Stop_DuringARun_EndsItWith0_AndItStaysStopped()
    {
        (Process process, Task<string> error) = await StartAsync(TrainLong);
        Process? waiter = null;
        try
        {
            // Another one waits for it, as a restarted machine would.
            (waiter, Task<string> waiterError) = await StartAsync(["train", "tiny.yaml", .. TrainLong[2..], "--set", "resume=auto", "--set", "checkpoint.uri=out/checkpoints", "--set", "output_dir=second"], "starting");
            Ending stop = await run.RunAsync("stop", "out");
            await process.WaitForExitAsync(Cancellation).WaitAsync(Longest, Cancellation);

            Assert.True(stop.ExitCode == 0, stop.ToString());
            Assert.Matches("^Asked process [0-9]+ on .* to save and stop. Waiting until it has.\nThe run tiny has stopped, with a checkpoint of step [0-9]+. ", stop.Output);
            Assert.True(process.ExitCode == 0, await error);
            await waiter.WaitForExitAsync(Cancellation).WaitAsync(Longest, Cancellation);
            Assert.True(waiter.ExitCode == 0, await waiterError);
            Assert.Contains("was stopped by request and is left alone", await waiterError, StringComparison.Ordinal);
        }
        finally
        {
            Kill(process);
            if (waiter is not null)
            {
                Kill(waiter);
            }
        }

        Assert.Equal("stopped", State(await StatusAsync()));
        int saved = run.CheckpointFolders().Length;
        Ending again = await run.RunAsync([.. TrainLong, "--set", "resume=auto"]);
        Assert.True(again.ExitCode == 0, again.ToString());
        Assert.Contains("was stopped by request and is left alone", again.Error, StringComparison.Ordinal);
        Assert.Equal(saved, run.CheckpointFolders().Length);
        Ending twice = await run.RunAsync("stop", "out");
        Assert.Equal((0, "The run tiny was stopped already.\n"), (twice.ExitCode, twice.Output));

        Ending resumed = await run.RunAsync(["resume", "out"], new Moment("step ", 3, 0), [TinyFolder.SignalTerminate]);
        Assert.True(resumed.ExitCode == 75, resumed.ToString());
        Assert.Equal("released", State(await StatusAsync()));
    }

    [Fact]
    public async Task Stop_OfARunThatNobodyWorksOn_MarksItStopped()
    {
        Ending killed = await run.RunAsync(Train, new Moment("step ", 3, 0));
        Assert.Equal(137, killed.ExitCode);

        Ending stop = await run.RunAsync("stop", "out", "--json");
        Assert.True(stop.ExitCode == 0, stop.ToString());
        using JsonDocument document = JsonDocument.Parse(stop.Output);
        Assert.Equal("stopped", document.RootElement.GetProperty("state").GetString());
        Assert.Equal("stopped", State(await StatusAsync()));
        Ending train = await run.RunAsync("train", "tiny.yaml", "--set", "resume=auto");
        Assert.True(train.ExitCode == 0, train.ToString());
        Assert.False(File.Exists(run.PathOf("out/adapter_model.safetensors")));

        Ending resumed = await run.RunAsync("resume", "out");
        Assert.True(resumed.ExitCode == 0, resumed.ToString());
        Assert.True(File.Exists(run.PathOf("out/adapter_model.safetensors")));
        Assert.Equal("finished", State(await StatusAsync()));
    }

    /// <summary>The request of a terminal that died does not stop the next resume.</summary>
    [Fact]
    public async Task Resume_IsNotStoppedByAnOldRequest()
    {
        Ending killed = await run.RunAsync(Train, new Moment("step ", 3, 0));
        Assert.Equal(137, killed.ExitCode);
        Directory.CreateDirectory(run.PathOf("out/checkpoints/tiny/requests"));
        File.WriteAllText(run.PathOf("out/checkpoints/tiny/requests/01700000000000-stop-0a1b2c3d"), "");
        Assert.Equal("stop", Assert.Single((await StatusAsync()).GetProperty("requests").EnumerateArray()).GetString());

        Ending resumed = await run.RunAsync("resume", "out");
        Assert.True(resumed.ExitCode == 0, resumed.ToString());
        Assert.Equal("finished", State(await StatusAsync()));
    }

    [Theory]
    [InlineData("0")]
    [InlineData("-3")]
    public async Task Timeout_MustBeMoreThanNothing(string seconds)
    {
        Ending end = await run.RunAsync("save", "out", "--timeout", seconds);
        Assert.Equal(2, end.ExitCode);
        Assert.StartsWith("error: --timeout must be more than 0 seconds.\n", end.Error, StringComparison.Ordinal);
    }
}
