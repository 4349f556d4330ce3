using System.Diagnostics;
using System.Text.Json;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>What train and resume do with a run that exists: go on, refuse, fall back, restore. Each test has a run of its own and looks at its bytes.</summary>
[Trait("Category", "Crash")]
public sealed class ResumeTests : IDisposable
{
    private static readonly string[] Train = ["train", "tiny.yaml"];
    private static readonly string[] Resume = ["resume", "out"];

    // Reference results are the same for all tests here: one uninterrupted run for the whole class.
    private static readonly SemaphoreSlim Gate = new(1);
    private static Dictionary<string, string>? uninterrupted;

    private readonly TinyFolder run = new();

    public void Dispose() => run.Dispose();

    private static async Task<Dictionary<string, string>> ExpectedAsync()
    {
        await Gate.WaitAsync(TestContext.Current.CancellationToken);
        try
        {
            if (uninterrupted is null)
            {
                using var folder = new TinyFolder();
                Ending whole = await folder.RunAsync(Train);
                Assert.True(whole.ExitCode == 0, whole.ToString());
                uninterrupted = folder.Result();
            }

            return uninterrupted;
        }
        finally
        {
            Gate.Release();
        }
    }

    private async Task<Ending> EndsAsExpectedAsync(params string[] arguments)
    {
        Dictionary<string, string> expected = await ExpectedAsync();
        Ending end = await run.RunAsync(arguments);
        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Equal(expected, run.Result());
        return end;
    }

    /// <summary>A run that was killed in its middle: with two checkpoints, and steps still to do behind the newer one.</summary>
    /// <param name="latest">The newer one is of this step at most.</param>
    private async Task KillInTheMiddleAsync(int latest = 10)
    {
        const int attempts = 20;
        for (int i = 0; i < attempts; i++)
        {
            // Saving goes on behind the steps, and a newer checkpoint may take the place of one that waits: which two they are differs from try to try.
            await run.KillWhenAsync(() => Directory.Exists(run.Checkpoints) && Directory.EnumerateFiles(run.Checkpoints, "manifest.json", SearchOption.AllDirectories).Count() == 2, Train);
            if (run.CheckpointFolders() is [_, var newer] && StepOf(newer) <= latest && !File.Exists(run.PathOf("out/adapter_model.safetensors")))
            {
                return;
            }

            Directory.Delete(run.Out, recursive: true);
        }

        Assert.Fail($"no run of {attempts} could be killed with two checkpoints and steps to do");
    }

    private static int StepOf(string checkpoint) => int.Parse(Path.GetFileName(checkpoint).Split('-')[1], System.Globalization.CultureInfo.InvariantCulture);

    private static async Task<Ending> RefusedAsync(TinyFolder run, string sentence, params string[] arguments)
    {
        Dictionary<string, string> before = OfTheRun();
        Ending end = await run.RunAsync(arguments);
        Assert.True(end.ExitCode == 2, end.ToString());
        Assert.Contains(sentence, end.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", end.Error, StringComparison.Ordinal);
        Assert.Equal(before, OfTheRun());
        return end;

        // Whoever looks into a run takes its lease and clears away what a killed process left half written.
        Dictionary<string, string> OfTheRun() => TinyFolder.Snapshot(run.Out)
            .Where(file => Path.GetFileName(file.Key) != "lease.json" && !file.Key.StartsWith(".staging-", StringComparison.Ordinal) && !file.Key.EndsWith(".tmp", StringComparison.Ordinal))
            .ToDictionary(StringComparer.Ordinal);
    }

    [Theory]
    [InlineData(TinyFolder.SignalTerminate, "step ", 3)]
    [InlineData(TinyFolder.SignalInterrupt, "step ", 5)]
    [InlineData(TinyFolder.SignalTerminate, "evaluating", 1)]
    [InlineData(TinyFolder.SignalTerminate, "tokenizing", 1)]
    [InlineData(TinyFolder.SignalInterrupt, "loading", 1)]
    public async Task FirstSignal_SavesAndReturns75_ResumeIsExact(int signal, string line, int occurrence)
    {
        Ending stopped = await run.RunAsync(Train, new Moment(line, occurrence, 0), [signal]);

        Assert.True(stopped.ExitCode == 75, stopped.ToString());
        Assert.Contains("Stop requested.", stopped.Error, StringComparison.Ordinal);
        if (line == "step ")
        {
            string[] checkpoints = run.CheckpointFolders();
            string lastStep = run.Log()[^1].Split(' ')[0];
            Assert.EndsWith(lastStep, Path.GetFileName(checkpoints[^1]).Split('-')[1], StringComparison.Ordinal);
            Assert.Contains("lora-trainer resume out", stopped.Output, StringComparison.Ordinal);
        }

        await EndsAsExpectedAsync(Resume);
    }

    [Fact]
    public async Task SecondSignal_Returns130_ResumeIsExact()
    {
        Ending aborted = await run.RunAsync(Train, new Moment("loading", 1, 0), [TinyFolder.SignalInterrupt, TinyFolder.SignalInterrupt]);

        // A run that stops in good order before the second signal arrives has done nothing wrong either, but here it is made to come first.
        Assert.True(aborted.ExitCode is 130 or 75, aborted.ToString());
        await EndsAsExpectedAsync(Resume);
    }

    [Fact]
    public async Task Train_OnAnExistingRun_RefusesAndChangesNothing()
    {
        await KillInTheMiddleAsync();
        await RefusedAsync(run, "out already holds a run. Go on with it: lora-trainer resume out.", Train);
    }

    [Fact]
    public async Task Train_ResumeAuto_GoesOn()
    {
        await KillInTheMiddleAsync();
        Ending end = await EndsAsExpectedAsync("train", "tiny.yaml", "--set", "resume=auto");
        Assert.Contains("Resumed after step ", end.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Train_ResumeAuto_OnForeignOutputs_Refuses()
    {
        Directory.CreateDirectory(run.Out);
        File.WriteAllText(run.PathOf("out/adapter_model.safetensors"), "someone's work");
        await RefusedAsync(run, "out already holds adapter_model.safetensors, which this run would overwrite.", "train", "tiny.yaml", "--set", "resume=auto");
    }

    [Fact]
    public async Task Train_WithWrongData_LeavesNoRunBehind()
    {
        File.WriteAllText(run.PathOf("train.jsonl"), "{\"instruction\":\"a\"\n");
        Ending wrong = await run.RunAsync(Train);
        Assert.True(wrong.ExitCode == 2, wrong.ToString());
        Assert.False(Directory.Exists(run.Out));

        TinyRun.WriteData(run.PathOf("train.jsonl"), 43);
        await EndsAsExpectedAsync(Train);
    }

    [Fact]
    public async Task Resume_OfAFinishedRun_RestoresWhatIsMissing()
    {
        await EndsAsExpectedAsync(Train);
        Dictionary<string, string> before = TinyFolder.Snapshot(run.Out);
        foreach (string name in (string[])["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"])
        {
            File.Delete(run.PathOf("out/" + name));
        }

        await EndsAsExpectedAsync(Resume);

        // One attempt more was counted; summary.json tells of it, and of other times.
        Dictionary<string, string> after = TinyFolder.Snapshot(run.Out);
        Assert.True(after.Remove(Path.Combine("checkpoints", "tiny", "attempts", "2.json")));
        foreach (string changed in (string[])["summary.json", Path.Combine("checkpoints", "tiny", "lease.json")])
        {
            Assert.True(before.Remove(changed) && after.Remove(changed));
        }

        Assert.Equal(before, after);
    }

    /// <summary>A finished run is left as it is: not trained again where its checkpoints were removed, and where nothing is missing not evaluated again either.</summary>
    [Fact]
    public async Task Resume_OfAFinishedRun_ChangesNothing()
    {
        await EndsAsExpectedAsync(Train);
        Dictionary<string, string> before = TinyFolder.Snapshot(run.Out);
        Ending again = await run.RunAsync([.. Resume, "--json"]);
        Assert.True(again.ExitCode == 0, again.ToString());
        Assert.Contains("is finished, and its result is in out: there is nothing left to do.", again.Error, StringComparison.Ordinal);
        Assert.Equal(File.ReadAllText(run.PathOf("out/summary.json")).Trim(), again.Output.Trim());
        Assert.Equal(before, TinyFolder.Snapshot(run.Out));

        // A damaged summary is as good as none.
        string summary = File.ReadAllText(run.PathOf("out/summary.json"));
        File.WriteAllText(run.PathOf("out/summary.json"), summary[..(summary.Length / 2)]);
        await EndsAsExpectedAsync(Resume);
        using (JsonDocument whole = JsonDocument.Parse(File.ReadAllText(run.PathOf("out/summary.json"))))
        {
            Assert.Equal(JsonValueKind.Object, whole.RootElement.ValueKind);
        }

        Directory.Delete(run.PathOf("out/checkpoints"), recursive: true);
        before = TinyFolder.Snapshot(run.Out);
        Ending without = await run.RunAsync(Resume);
        Assert.True(without.ExitCode == 2, without.ToString());
        Assert.Contains("out holds the result of this run, and no intact checkpoint of it is left in ", without.Error, StringComparison.Ordinal);
        Assert.All(before, file => Assert.Equal(file.Value, TinyFolder.Snapshot(run.Out)[file.Key]));
    }

    [Theory]
    [InlineData("micro_batch_size=4", "gradient_accumulation_steps=2", false)]
    [InlineData("micro_batch_size=1", "gradient_accumulation_steps=8", false)]
    [InlineData("threads=2", "threads=3", true)]
    public async Task Resume_CutAnotherWay_GivesTheSameCurve(string first, string second, bool isExact)
    {
        Dictionary<string, string> expected = await ExpectedAsync();
        await KillInTheMiddleAsync();

        Ending end = await run.RunAsync("resume", "out", "--set", first, "--set", second);

        Assert.True(end.ExitCode == 0, end.ToString());
        Dictionary<string, string> result = run.Result();
        if (isExact)
        {
            Assert.Equal(expected, result);
        }

        string[] curve = expected["log.jsonl"].Split('\n');
        string[] got = result["log.jsonl"].Split('\n');
        Assert.Equal(curve.Length, got.Length);
        for (int i = 0; i < curve.Length; i++)
        {
            double loss = Number(curve[i], 2);
            Assert.True(Math.Abs(Number(got[i], 2) - loss) <= 1e-6 * loss, $"step {i + 1}: loss {Number(got[i], 2)}, expected {loss}");
        }
    }

    private static double Number(string line, int field) => double.Parse(line.Split(' ')[field], System.Globalization.CultureInfo.InvariantCulture);

    [Fact]
    public async Task Resume_WithOtherSettings_RefusesWithATable()
    {
        await KillInTheMiddleAsync();
        Ending refused = await RefusedAsync(run, "out holds a run with other settings:", "resume", "out", "--set", "learning_rate=1e-3", "--set", "lora_r=8");
        Assert.Contains("\n  learning_rate: 0.005 -> 0.001 (needs --force", refused.Error, StringComparison.Ordinal);
        Assert.Contains("\n  lora_r: 4 -> 8 (refused: the checkpoints do not fit it)", refused.Error, StringComparison.Ordinal);
        await RefusedAsync(run, "lora_r: 4 -> 8", "resume", "out", "--force", "--set", "lora_r=8");

        Ending forced = await run.RunAsync("resume", "out", "--force", "--set", "learning_rate=1e-3");
        Assert.True(forced.ExitCode == 0, forced.ToString());
        Assert.Contains("learning_rate was 0.005 and is 0.001 now.", forced.Error, StringComparison.Ordinal);
        Assert.NotEqual((await ExpectedAsync())["adapter_model.safetensors"], run.Result()["adapter_model.safetensors"]);
    }

    [Theory]
    [InlineData("there")]
    [InlineData("there", "--set", "output_dir=out")]
    public async Task Resume_FromTheCheckpointsAlone_IsExact(params string[] how)
    {
        Dictionary<string, string> expected = await ExpectedAsync();
        await KillInTheMiddleAsync();
        Directory.CreateDirectory(run.PathOf("there"));
        Directory.Move(run.Checkpoints, run.PathOf("there/tiny"));
        Directory.Delete(run.Out, recursive: true);

        Ending end = await run.RunAsync(["resume", $"{how[0]}/tiny", .. how[1..]]);

        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Contains("Resumed after step ", end.Error, StringComparison.Ordinal);
        Assert.Equal(expected["adapter_model.safetensors"], TinyFolder.Hash(run.PathOf("out/adapter_model.safetensors")));
        Assert.Equal(expected["optimizer.safetensors"], TinyFolder.Hash(Path.Combine(run.CheckpointFolders(run.PathOf("there/tiny"))[^1], "optimizer.safetensors")));
    }

    [Fact]
    public async Task Resume_IntoAnotherOutputDir_IsExact()
    {
        Dictionary<string, string> expected = await ExpectedAsync();
        await KillInTheMiddleAsync();

        Ending end = await run.RunAsync("resume", "out", "--set", "output_dir=second");

        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Contains("Resumed after step ", end.Error, StringComparison.Ordinal);
        Assert.Equal(expected["adapter_model.safetensors"], TinyFolder.Hash(run.PathOf("second/adapter_model.safetensors")));
    }

    [Theory]
    [InlineData("flip")]
    [InlineData("truncate")]
    [InlineData("delete file")]
    [InlineData("delete manifest")]
    [InlineData("tear manifest")]
    public async Task DamagedNewestCheckpoint_FallsBackAndIsExact(string damage)
    {
        await KillInTheMiddleAsync();
        string[] checkpoints = run.CheckpointFolders();
        Damage(checkpoints[^1], damage);

        Ending end = await EndsAsExpectedAsync(Resume);

        Assert.Contains($"Resumed after step {StepOf(checkpoints[0])} of ", end.Error, StringComparison.Ordinal);
        if (damage != "delete manifest")
        {
            Assert.Contains($"The checkpoint {Path.GetFileName(checkpoints[^1])} {(damage == "tear manifest" ? "has an unreadable manifest" : "is damaged")} (", end.Error, StringComparison.Ordinal);
        }
    }

    [Theory]
    [InlineData("flip")]
    [InlineData("delete manifest")]
    public async Task AllCheckpointsDamaged_StartsAtStep0AndSaysSo(string damage)
    {
        await KillInTheMiddleAsync();
        foreach (string checkpoint in run.CheckpointFolders())
        {
            Damage(checkpoint, damage);
        }

        Ending end = await EndsAsExpectedAsync(Resume);

        Assert.Contains("There is no intact checkpoint of this run: it starts at step 0.", end.Error, StringComparison.Ordinal);
    }

    private static void Damage(string checkpoint, string damage)
    {
        string file = Path.Combine(checkpoint, "optimizer.safetensors");
        string manifest = Path.Combine(checkpoint, "manifest.json");
        switch (damage)
        {
            case "flip":
                byte[] bytes = File.ReadAllBytes(file);
                bytes[^100] ^= 1;
                File.WriteAllBytes(file, bytes);
                break;
            case "truncate":
                File.WriteAllBytes(file, File.ReadAllBytes(file)[..^4]);
                break;
            case "delete file":
                File.Delete(file);
                break;
            case "delete manifest":
                File.Delete(manifest);
                break;
            case "tear manifest":
                File.WriteAllBytes(manifest, File.ReadAllBytes(manifest)[..^40]);
                break;
            default:
                throw new ArgumentOutOfRangeException(nameof(damage), damage, "no such damage");
        }
    }

    [Fact]
    public async Task KeepOne_AfterADamagedNewest_KeepsTheSoundOne()
    {
        await KillInTheMiddleAsync(latest: 8);
        string[] checkpoints = run.CheckpointFolders();
        int newest = StepOf(checkpoints[^1]);
        string ahead = Path.Combine(run.Checkpoints, Path.GetFileName(checkpoints[^1]).Replace($"{newest:D8}", "00000010", StringComparison.Ordinal));
        Directory.Move(checkpoints[^1], ahead);
        string manifest = Path.Combine(ahead, "manifest.json");
        File.WriteAllText(manifest, File.ReadAllText(manifest).Replace($"\"step\": {newest}", "\"step\": 10", StringComparison.Ordinal));
        Damage(ahead, "flip");

        Ending stopped = await run.RunAsync(["resume", "out", "--set", "checkpoint.keep=1"], new Moment("step ", 2, 0), [TinyFolder.SignalTerminate]);

        Assert.True(stopped.ExitCode == 75, stopped.ToString());

        // How far the run came before the signal was seen differs; beyond step 10 the damaged one ahead is an old one like any other.
        Assert.Contains(run.CheckpointFolders(), folder => folder != ahead);
        await EndsAsExpectedAsync("resume", "out", "--set", "checkpoint.keep=1");
        Assert.Single(run.CheckpointFolders());
    }

    [Fact]
    public async Task AnotherBaseOrOtherData_AreRefused()
    {
        await KillInTheMiddleAsync();
        TinyRun.WriteBase(run.PathOf("otherbase"), seed: 9);
        TinyRun.WriteData(run.PathOf("other.jsonl"), 43, seed: 9);
        await RefusedAsync(run, "otherbase is not the base model that this run was started with", "resume", "out", "--set", "base_model=otherbase");
        await RefusedAsync(run, "The training data are not those that this run was started with", "resume", "out", "--set", "datasets.0.path=other.jsonl");

        // The same content elsewhere is the same.
        Directory.Move(run.PathOf("base"), run.PathOf("moved"));
        File.Move(run.PathOf("train.jsonl"), run.PathOf("moved.jsonl"));
        await EndsAsExpectedAsync("resume", "out", "--set", "base_model=moved", "--set", "datasets.0.path=moved.jsonl");
    }

    [Fact]
    public async Task Retention_KeepsNAndTouchesNothingElse()
    {
        string[] foreign = ["out/checkpoints/other/step-00000001-1-00000000/x", "out/checkpoints/tiny2/step-00000002-1-00000000/manifest.json", "out/checkpoints/tiny/notes/mine.txt", "out/.staging-area/mine.txt", "out/.hidden.tmp"];
        foreach (string name in foreign)
        {
            Directory.CreateDirectory(Path.GetDirectoryName(run.PathOf(name))!);
            File.WriteAllText(run.PathOf(name), "mine");
        }

        // Left by processes that died: these go.
        foreach (string name in (string[])["out/.staging-123/adapter_model.safetensors", "out/.log.jsonl.0123456789abcdef0123456789abcdef.tmp", "out/checkpoints/tiny/step-00000001-1-0badcafe/optimizer.safetensors"])
        {
            Directory.CreateDirectory(Path.GetDirectoryName(run.PathOf(name))!);
            File.WriteAllText(run.PathOf(name), "left over");
        }

        await EndsAsExpectedAsync("train", "tiny.yaml", "--set", "checkpoint.keep=3", "--set", "checkpoint.every_steps=1");

        Assert.Equal(3, run.CheckpointFolders().Length);
        Assert.All(foreign, name => Assert.Equal("mine", File.ReadAllText(run.PathOf(name))));
        Assert.False(Directory.Exists(run.PathOf("out/.staging-123")));
        Assert.False(Directory.Exists(run.PathOf("out/checkpoints/tiny/step-00000001-1-0badcafe")));
        Assert.False(File.Exists(run.PathOf("out/.log.jsonl.0123456789abcdef0123456789abcdef.tmp")));
    }

    /// <summary>A process may be killed between its last save and the deletion of what that save made superfluous.</summary>
    [Fact]
    public async Task Resume_OfAllSteps_AppliesRetention()
    {
        await EndsAsExpectedAsync("train", "tiny.yaml", "--set", "checkpoint.keep=3");
        Assert.Equal(3, run.CheckpointFolders().Length);
        await EndsAsExpectedAsync("resume", "out", "--set", "checkpoint.keep=2");
        Assert.Equal(2, run.CheckpointFolders().Length);
    }

    [Fact]
    public async Task SecondProcess_IsRefusedOrWaitsWhileTheFirstWorks()
    {
        Dictionary<string, string> expected = await ExpectedAsync();
        using Process first = run.Start(Train, null);
        while (await first.StandardOutput.ReadLineAsync(TestContext.Current.CancellationToken) is { } line && !line.StartsWith("step ", StringComparison.Ordinal))
        {
        }

        // Stopped, it holds the lock however long the second one takes.
        Assert.Equal(0, TinyFolder.SendSignal(first.Id, 19));
        Ending refused = await run.RunAsync(Train);
        Ending second = await run.RunAsync(Resume, new Moment("starting", 1, 1500), [TinyFolder.SignalTerminate]);
        Ending third = await run.RunAsync(["resume", "out/checkpoints/tiny", "--set", "output_dir=elsewhere"], new Moment("starting", 1, 1500), [TinyFolder.SignalTerminate]);
        Assert.Equal(0, TinyFolder.SendSignal(first.Id, 18));
        Task<string> rest = first.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        Task<string> error = first.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        await first.WaitForExitAsync(TestContext.Current.CancellationToken);

        Assert.True(refused.ExitCode == 2, refused.ToString());
        Assert.True(second.ExitCode == 75, second.ToString());
        Assert.Contains("Another process is working on the run in out. This process waits", second.Error, StringComparison.Ordinal);
        Assert.True(third.ExitCode == 75, third.ToString());
        Assert.Contains($"process {first.Id} on {Environment.MachineName} works on the run tiny. This process waits;", third.Error, StringComparison.Ordinal);
        Assert.True(first.ExitCode == 0, await rest + await error);
        Assert.Equal(expected, run.Result());
    }

    /// <summary>Every process that began to work on the run counts, wherever it was killed; one that was refused does not.</summary>
    [Fact]
    public async Task Attempts_CountEveryProcess()
    {
        string[] late = ["--set", "checkpoint.every_steps=4"];
        Assert.Equal(137, (await run.RunAsync(["train", "tiny.yaml", .. late], new Moment("tokenizing", 1, 0))).ExitCode);
        Assert.Equal(137, (await run.RunAsync(Resume, new Moment("step ", 2, 0))).ExitCode);
        Assert.Empty(Directory.EnumerateDirectories(run.Checkpoints, "step-*"));

        // Refused: other data, another base, a wrong setting.
        Assert.Equal(2, (await run.RunAsync("resume", "out", "--set", "base_model=nowhere")).ExitCode);
        Assert.Equal(2, (await run.RunAsync("resume", "out", "--set", "lora_r=8")).ExitCode);
        Assert.Equal(137, (await run.RunAsync(Resume, new Moment("step ", 5, 0))).ExitCode);
        Assert.Equal(137, (await run.RunAsync(Resume, new Moment("tokenizing", 1, 0))).ExitCode);

        Ending end = await run.RunAsync("resume", "out", "--json");

        Assert.True(end.ExitCode == 0, end.ToString());
        using JsonDocument document = JsonDocument.Parse(end.Output);
        Assert.Equal(5, document.RootElement.GetProperty("attempts").GetInt32());
    }

    [Fact]
    public async Task Resume_Json_IsOneDocument()
    {
        await KillInTheMiddleAsync();
        Ending end = await run.RunAsync("resume", "out", "--json");
        Assert.True(end.ExitCode == 0, end.ToString());
        using JsonDocument document = JsonDocument.Parse(end.Output);
        Assert.Equal(2, document.RootElement.GetProperty("attempts").GetInt32());
        Assert.Equal(TinyFolder.Hash(run.PathOf("out/adapter_model.safetensors")), document.RootElement.GetProperty("adapter").GetProperty("sha256").GetString());
    }

    [Fact]
    public async Task NonFiniteLoss_StopsAndKeepsTheGoodCheckpoint()
    {
        Ending end = await run.RunAsync("train", "tiny.yaml", "--set", "loraplus_lr_ratio=1e38", "--set", "lr_scheduler=constant", "--set", "warmup_steps=0", "--set", "checkpoint.every_steps=1");

        Assert.True(end.ExitCode == 1, end.ToString());
        Assert.Matches(@"error: Step 2: the (loss|gradient norm) is (NaN|∞|-∞|Infinity), first in the (output|gradient) of model\.layers\.[01].* Rows of the step: .*train\.jsonl.* The step was not applied\.", end.Error);
        Assert.Equal("step-00000001", Path.GetFileName(Assert.Single(run.CheckpointFolders()))[..13]);
        Assert.False(File.Exists(run.PathOf("out/adapter_model.safetensors")));
        Assert.Single(run.Log());
    }
}
