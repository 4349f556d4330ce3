using System.Diagnostics;
using System.Globalization;
using LoraTrainer.Storage;
using LoraTrainer.Training.Checkpoints;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>Two processes that want the same run, in a folder that both see, each with a folder of its own for its outputs.</summary>
[Trait("Category", "Crash")]
public sealed class SharedRunTests
{
    private const string TakenOver = "Another process has taken this run over and goes on with it. This one stops and writes nothing more to it.";

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    private static TinyFolder Folder(double leaseSeconds) => new(changes:
    [
        ("resume", "auto"),
        ("checkpoint", string.Create(CultureInfo.InvariantCulture, $"{{every_steps: 2, keep: 2, uri: shared, lease_seconds: {leaseSeconds}}}")),
    ]);

    private static string[] Train(string output, string uri = "shared") => ["train", "tiny.yaml", "--set", $"output_dir={output}", "--set", $"checkpoint.uri={uri}"];

    private static Dictionary<string, string> Result(TinyFolder folder, string output, string uri = "shared") => folder.Result(folder.PathOf(output), folder.PathOf($"{uri}/tiny"));

    private static async Task<Dictionary<string, string>> ExpectedAsync(TinyFolder folder)
    {
        Ending whole = await folder.RunAsync(Train("expected", "undisturbed"));
        Assert.True(whole.ExitCode == 0, whole.ToString());
        return Result(folder, "expected", "undisturbed");
    }

    private static async Task<string?> ChosenAsync(TinyFolder folder)
    {
        await using var store = new FolderStore(folder.PathOf("shared"));
        return (await new CheckpointStore(store, "tiny", TimeProvider.System).FindNewestIntactAsync(_ => { }, Cancellation))?.Name;
    }

    [Fact]
    public async Task StartedTogether_OneTrains_AndBothEndWithTheSameBytes()
    {
        const int times = 20;
        using TinyFolder folder = Folder(leaseSeconds: 3);
        Dictionary<string, string> expected = await ExpectedAsync(folder);
        int[] steps = [.. Enumerable.Range(1, folder.Log(folder.PathOf("expected")).Length)];
        int waited = 0;
        for (int i = 0; i < times; i++)
        {
            string uri = $"shared{i}";
            await using Child a = Child.Start(folder, Train($"a{i}", uri));
            await using Child b = Child.Start(folder, Train($"b{i}", uri));
            Ending endA = await a.EndAsync(), endB = await b.EndAsync();
            string story = $"pair {i}\n{endA}\n{endB}";
            Assert.True(endA.ExitCode == 0 && endB.ExitCode == 0, story);

            // All that either did together is one run: no step was done by both.
            Assert.True(steps.SequenceEqual(a.Said("step ").Concat(b.Said("step ")).Where(line => line.Contains("  loss ", StringComparison.Ordinal)).Select(line => int.Parse(line.Split(' ', '/')[1], CultureInfo.InvariantCulture)).Order()), story);
            Assert.Equal(expected, Result(folder, $"a{i}", uri));
            Assert.Equal(expected, Result(folder, $"b{i}", uri));
            Assert.Equal(["1.json", "2.json"], Directory.EnumerateFiles(folder.PathOf($"{uri}/tiny/attempts")).Select(path => Path.GetFileName(path)!).Order(StringComparer.Ordinal));
            waited += a.Count("works on the run tiny. This process waits;") + b.Count("works on the run tiny. This process waits;");
        }

        TestContext.Current.SendDiagnosticMessage($"{waited} of {times} pairs met while one of them worked");
        Assert.True(waited >= times / 2, $"only {waited} of {times} pairs met");
    }

    /// <summary>On the same machine it is certain that the holder is dead: nobody waits for its lease of ten minutes.</summary>
    [Fact]
    public async Task HolderKilled_TheOtherGoesOnAtOnce()
    {
        using TinyFolder folder = Folder(leaseSeconds: 600);
        Dictionary<string, string> expected = await ExpectedAsync(folder);
        await using Child first = Child.Start(folder, Train("a"));
        await first.SeesAsync("is safe, after");
        first.Signal(TinyFolder.SignalStop);
        await using Child second = Child.Start(folder, Train("b"));
        await second.SeesAsync($"process {first.Id} on {Environment.MachineName} works on the run tiny. This process waits; it goes on when that one ends, or has given no sign of life for 600 s.");
        first.Signal(TinyFolder.SignalKill);
        long killed = Stopwatch.GetTimestamp();
        await second.SeesAsync("Resumed after step ");
        TimeSpan taken = Stopwatch.GetElapsedTime(killed);

        Ending end = await second.EndAsync();

        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Equal(expected, Result(folder, "b"));
        Assert.True(taken < TimeSpan.FromSeconds(30), $"{taken.TotalSeconds:0.0} s");
        TestContext.Current.SendDiagnosticMessage($"resumed {taken.TotalSeconds:0.0} s after the kill");
    }

    /// <summary>A machine that sleeps through its lease wakes up in the middle of something. The run is another's by then.</summary>
    [Theory]
    [InlineData("loading", 1, 5)]
    [InlineData("step ", 1, 0)]
    [InlineData("step ", 4, 3)]
    [InlineData("saving", 1, 1)]
    [InlineData("saving", 3, 2)]
    [InlineData("evaluating", 2, 1)]
    public async Task HolderAsleep_TheOtherTakesOver_AndTheFirstStopsWhenItWakes(string line, int occurrence, double milliseconds)
    {
        using TinyFolder folder = Folder(leaseSeconds: 1);
        Dictionary<string, string> expected = await ExpectedAsync(folder);
        await using Child first = Child.Start(folder, Train("a"));
        await first.SeesAsync(line, occurrence);
        await Task.Delay(TimeSpan.FromMilliseconds(milliseconds), Cancellation);
        first.Signal(TinyFolder.SignalStop);

        // So far it was the first's alone; whether it got as far as to have it depends on the moment.
        await using Child second = Child.Start(folder, Train("b"));
        Ending end = await second.EndAsync();
        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Equal(expected, Result(folder, "b"));
        Assert.Contains($"The run's lease, of process {first.Id} on {Environment.MachineName}, has not been renewed for", end.Error, StringComparison.Ordinal);
        string? chosen = await ChosenAsync(folder);
        Assert.StartsWith("step-000000", chosen, StringComparison.Ordinal);
        string lease = File.ReadAllText(folder.PathOf("shared/tiny/lease.json"));

        first.Signal(TinyFolder.SignalContinue);
        Ending woken = await first.EndAsync();

        Assert.True(woken.ExitCode == 75, woken.ToString());
        Assert.Contains(TakenOver, woken.Error, StringComparison.Ordinal);
        Assert.Equal(lease, File.ReadAllText(folder.PathOf("shared/tiny/lease.json")));
        Assert.Equal(chosen, await ChosenAsync(folder));
        Ending again = await folder.RunAsync(["resume", "shared/tiny", "--set", "output_dir=c"]);
        Assert.True(again.ExitCode == 0, again.ToString());
        Assert.Equal(expected, Result(folder, "c"));
    }
}
