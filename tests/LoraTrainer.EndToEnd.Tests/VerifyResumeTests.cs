using System.Diagnostics;
using System.Text.Json;
using LoraTrainer.Cli;
using LoraTrainer.Cli.Verbs;
using LoraTrainer.TestSupport;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>verify-resume: it says identical where runs are, says otherwise where they are not, and touches nothing of the user's.</summary>
[Trait("Category", "Crash")]
public sealed class VerifyResumeTests : IDisposable
{
    private readonly TinyFolder run = new();

    public VerifyResumeTests() => Directory.CreateDirectory(run.PathOf("tmp"));

    public void Dispose() => run.Dispose();

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    private Dictionary<string, string> Environment => new() { ["TMPDIR"] = run.PathOf("tmp") };

    private Task<Ending> RunAsync(params string[] arguments) => run.RunAsync(["verify-resume", .. arguments], environment: Environment);

    private void AssertNothingIsLeft()
    {
        // The runtime keeps files of its own among the temporary ones.
        Assert.Empty(Directory.EnumerateFileSystemEntries(run.PathOf("tmp"), "lora-trainer-*"));
        Assert.False(Directory.Exists(run.Out));
    }

    [Fact]
    public async Task Tiny_IsIdentical_AndEveryKindOfMomentIsHit()
    {
        Ending end = await RunAsync("tiny.yaml", "--seed", "5", "--json");

        Assert.True(end.ExitCode == 0, end.ToString());
        using JsonDocument document = JsonDocument.Parse(end.Output);
        JsonElement root = document.RootElement;
        Assert.True(root.GetProperty("identical").GetBoolean());
        Assert.Equal(0, root.GetProperty("differences").GetArrayLength());
        Assert.True(root.GetProperty("kills").GetInt32() >= 3);
        Assert.Equal(5, root.GetProperty("seed").GetInt32());
        string[] moments = [.. root.GetProperty("moments").EnumerateArray().Select(moment => moment.GetString()!)];
        Assert.Equal(root.GetProperty("kills").GetInt32(), moments.Length);
        Assert.All((string[])["into loading", "into the save after step ", "into step "], what => Assert.Contains(moments, moment => moment.StartsWith("SIGKILL ", StringComparison.Ordinal) && moment.Contains(what, StringComparison.Ordinal)));
        Assert.Contains("steps are run", end.Error, StringComparison.Ordinal);
        AssertNothingIsLeft();
    }

    [Fact]
    public async Task Keep_LeavesBothRuns_AndNothingElseIsTouched()
    {
        Ending end = await RunAsync(
            "tiny.yaml", "--kills", "4", "--steps", "30", "--seed", "9", "--keep", "trial", "--set", "checkpoint.uri=ckpt", "--set", "on_finish.command=touch finished", "--set", "adapter=qlora", "--set", "load_in_4bit=true");

        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Contains("Moments chosen by --seed 9; ", end.Output, StringComparison.Ordinal);
        Assert.Matches(@"Identical: .* \(30 steps, 4 kills, ", end.Output);
        Assert.Equal(TinyFolder.Hash(run.PathOf("trial/uninterrupted/adapter_model.safetensors")), TinyFolder.Hash(run.PathOf("trial/killed/adapter_model.safetensors")));
        JsonElement attempts = JsonDocument.Parse(File.ReadAllText(run.PathOf("trial/killed/summary.json"))).RootElement.GetProperty("attempts");
        Assert.True(attempts.GetInt32() >= 2, $"{attempts.GetInt32()} attempts");
        Assert.All((string[])["ckpt", "finished"], name => Assert.False(Path.Exists(run.PathOf(name)), name));
        AssertNothingIsLeft();

        Ending again = await RunAsync("tiny.yaml", "--keep", "trial");
        Assert.Equal((2, "error: --keep trial is there already and not empty. Give a new folder.\n"), (again.ExitCode, again.Error));
    }

    /// <summary>The data change while the first run trains, which has them in memory: the second one reads others.</summary>
    [Fact]
    public async Task OtherDataForTheSecondRun_IsNotIdentical()
    {
        TinyRun.WriteData(run.PathOf("other.jsonl"), 43, seed: 9);
        using Process process = run.Start(["verify-resume", "tiny.yaml", "--steps", "30", "--seed", "1"], Environment);
        Task<string> error = process.StandardError.ReadToEndAsync(Cancellation);
        string? line;
        while ((line = await process.StandardOutput.ReadLineAsync(Cancellation)) is not null && !line.StartsWith("uninterrupted: step ", StringComparison.Ordinal))
        {
        }

        Assert.NotNull(line);
        File.Move(run.PathOf("other.jsonl"), run.PathOf("train.jsonl"), overwrite: true);
        string output = await process.StandardOutput.ReadToEndAsync(Cancellation);
        await process.WaitForExitAsync(Cancellation);

        var end = new Ending(process.ExitCode, output, await error);
        Assert.True(end.ExitCode == 1, end.ToString());
        Assert.Contains("NOT identical: the run that was killed and resumed ended otherwise than the one that was not (30 steps, ", end.Error, StringComparison.Ordinal);
        Assert.Matches(@"adapter_model\.safetensors differs: \d+ of 28 tensors, the first is base_model\.\S+, the largest difference \d\.\de-?\d\.\n", end.Error);
        Assert.Matches(@"log\.jsonl differs from line 1 on: step 1, epoch 0, loss ", end.Error);
        Assert.Contains("The losses differ from step 1 on: ", end.Error, StringComparison.Ordinal);
        Assert.Contains("--seed 1 --steps 30 --keep FOLDER", end.Error, StringComparison.Ordinal);
        AssertNothingIsLeft();
    }

    [Theory]
    [InlineData("error: --kills must be 1..1000, got 0.", "--kills", "0")]
    [InlineData("error: --steps must be 1 or more, got 0.", "--steps", "0")]
    [InlineData("lora_r must be", "--set", "lora_r=0")]
    [InlineData("nowhere.jsonl", "--set", "datasets.0.path=nowhere.jsonl")]
    [InlineData("error: --kills must be a whole number, got 'many'.", "--kills", "many")]
    public async Task WrongInput_IsSaid(string sentence, params string[] arguments)
    {
        Ending end = await RunAsync(["tiny.yaml", .. arguments]);
        Assert.True(end.ExitCode == 2, end.ToString());
        Assert.Contains(sentence, end.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", end.Error, StringComparison.Ordinal);
        AssertNothingIsLeft();
    }

    [Fact]
    public async Task Interrupted_LeavesNothing()
    {
        Ending end = await run.RunAsync(["verify-resume", "tiny.yaml", "--steps", "5000"], new Moment("uninterrupted: step ", 1, 0), [TinyFolder.SignalInterrupt], Environment);
        Assert.True(end.ExitCode == 75, end.ToString());
        AssertNothingIsLeft();
    }

    [Fact]
    public void TooFewKills_AreAFailure_EvenWhereAllIsIdentical()
    {
        using StringWriter output = new(), error = new();
        ExitCode code = VerifyResumeVerb.Tell(new Terminal(output, error), new TrialResult(4, 4, ["SIGKILL 1.0 ms into loading"], [], TimeSpan.FromSeconds(5)), kills: 3, seed: 1, keep: null);
        Assert.Equal(ExitCode.Failed, code);
        Assert.Equal("error: Only 1 of 3 kills hit a running process (4 steps, 1 kill, 0:00:05); what was compared is identical. More steps leave more room: --steps 50.\n", error.ToString());
    }

    /// <summary>Everything that counts is seen where it changes; times and places are not.</summary>
    [Theory]
    [InlineData("out/adapter_model.safetensors", "adapter_model.safetensors differs: 1 of 28 tensors, the first is ")]
    [InlineData("checkpoint/optimizer.safetensors", null)]
    [InlineData("out/adapter_config.json", "adapter_config.json differs.")]
    [InlineData("out/tokenizer.json", "tokenizer.json is only in the one run.")]
    [InlineData("out/log.jsonl", "log.jsonl differs from line 2 on: step 2, ")]
    [InlineData("out/summary.json", "")]
    public async Task Comparison_SeesWhatDiffers(string what, string? expected)
    {
        Ending train = await run.RunAsync("train", "tiny.yaml");
        Assert.True(train.ExitCode == 0, train.ToString());
        Assert.Equal(0, Tool.Run("cp", "-r", run.Out, run.PathOf("copy")).ExitCode);
        TrainingConfig one = RunFolder.ConfigOf(run.Out, []), other = RunFolder.ConfigOf(run.PathOf("copy"), []);
        Assert.Empty(await RunComparison.DifferencesAsync(one, other, Assert.Fail));

        string file = what.StartsWith("out/", StringComparison.Ordinal) ? run.PathOf("copy" + what[3..]) : Path.Combine(run.CheckpointFolders(run.PathOf("copy/checkpoints/tiny"))[^1], Path.GetFileName(what));
        switch (Path.GetExtension(file))
        {
            case ".safetensors":
                byte[] bytes = File.ReadAllBytes(file);
                bytes[^3] ^= 1;
                File.WriteAllBytes(file, bytes);
                break;
            case ".jsonl":
                string[] lines = File.ReadAllLines(file);
                lines[1] = lines[1].Replace("\"loss\":", "\"loss\":1", StringComparison.Ordinal);
                File.WriteAllLines(file, lines);
                break;
            default:
                if (what == "out/tokenizer.json")
                {
                    File.Delete(file);
                }
                else
                {
                    File.AppendAllText(file, " ");
                }

                break;
        }

        var notices = new List<string>();
        IReadOnlyList<string> differences = await RunComparison.DifferencesAsync(one, other, notices.Add);
        if (expected is null)
        {
            // A damaged checkpoint is passed over, so the last one is another.
            Assert.Contains("is damaged", Assert.Single(notices), StringComparison.Ordinal);
            Assert.StartsWith("The last checkpoint is of step ", Assert.Single(differences), StringComparison.Ordinal);
        }
        else if (expected.Length == 0)
        {
            Assert.Empty(differences);
        }
        else
        {
            Assert.StartsWith(expected, Assert.Single(differences), StringComparison.Ordinal);
        }
    }

    [Theory]
    [InlineData(1.0, 0.05, 0.01, 1067)]
    [InlineData(20, 2.0, 0.5, 30)]
    [InlineData(60, 10.0, 5, 6)]
    [InlineData(600, 60.0, 60, 4)]
    public void Steps_AreThoseThatFitTheTime(double loading, double step, double save, int expected) =>
        Assert.InRange(ResumeTrial.StepsFor(new TrialPace(loading, step, save), kills: 3), expected - 1, expected + 1);

    [Fact]
    public void Moments_DependOnTheSeedAlone()
    {
        Assert.Equal(Plan(7, 5, 100), Plan(7, 5, 100));
        Assert.NotEqual(Plan(7, 5, 100), Plan(8, 5, 100));
        foreach (KillMoment[] plan in Enumerable.Range(0, 50).Select(seed => Plan((ulong)seed, 3, 13)))
        {
            Assert.Equal(3, plan.Select(moment => moment.Place).Distinct().Count());
            Assert.All(plan, moment => Assert.True(moment is { AfterStep: >= 0 and < 13, Fraction: >= 0 and < 1 }));
        }

        static KillMoment[] Plan(ulong seed, int kills, int steps) => new ResumeTrial(new TrainingConfig(), "", kills, seed, null, _ => { }).Plan(kills, steps);
    }
}
