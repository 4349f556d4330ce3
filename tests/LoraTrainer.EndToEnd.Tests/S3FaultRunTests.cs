using LoraTrainer.TestSupport;
using LoraTrainer.Training.Checkpoints;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>Whole runs whose S3 server is late, dies, is out of reach, or refuses.</summary>
[Collection(S3Runs.Name)]
[Trait("Category", "S3")]
[Trait("Category", "Crash")]
public sealed class S3FaultRunTests
{
    private static readonly SemaphoreSlim Gate = new(1);
    private static readonly Dictionary<int, Dictionary<string, string>> Uninterrupted = [];

    private readonly S3Server server;

    public S3FaultRunTests(S3Server server)
    {
        this.server = server;
        server.Require();
    }

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    /// <summary>Epochs make it as long as a test needs.</summary>
    private static (string Key, object? Value)[] Changes(int epochs) => [("num_epochs", epochs), ("evaluate_before", "false"), ("evaluate_after", "false")];

    private static async Task<Dictionary<string, string>> ExpectedAsync(int epochs)
    {
        await Gate.WaitAsync(Cancellation);
        try
        {
            if (!Uninterrupted.TryGetValue(epochs, out Dictionary<string, string>? result))
            {
                using var folder = new TinyFolder(changes: Changes(epochs));
                Ending whole = await folder.RunAsync(S3Run.Train);
                Assert.True(whole.ExitCode == 0, whole.ToString());
                Uninterrupted[epochs] = result = folder.Result();
            }

            return result;
        }
        finally
        {
            Gate.Release();
        }
    }

    /// <summary>No store can refuse a put that was sent in time and arrives late: the readers must.</summary>
    [Fact]
    public async Task ManifestThatArrivesAfterATakeover_IsNotChosen()
    {
        Dictionary<string, string> expected = await ExpectedAsync(2);
        await using var run = new S3Run(server, Changes(2), leaseSeconds: 1);
        int manifests = 0;
        string late = string.Empty;
        var held = new Fault(FaultKind.HoldUp)
        {
            Request = line =>
            {
                // The second one; which step it is of depends on how long the first took.
                bool isIt = line.StartsWith("PUT ", StringComparison.Ordinal) && line.Contains("/manifest.json", StringComparison.Ordinal) && Interlocked.Increment(ref manifests) == 2;
                late = isIt ? line.Split('/')[^3] + "/manifest.json" : late;
                return isIt;
            },
        };
        run.Proxy.Set(held);
        await using Child first = Child.Start(run.Folder, S3Run.Train);
        await Task.WhenAny(held.Reached, first.EndAsync());
        Assert.Equal(1, held.Hits);
        first.Signal(TinyFolder.SignalStop);
        Assert.Matches(@"^step-\d{8}-1-[0-9a-f]{8}/manifest\.json$", late);

        // Another machine, with its own way to the server.
        Ending second = await run.Folder.RunAsync(["train", "tiny.yaml", "--set", "resume=auto", "--set", "output_dir=second", "--set", $"checkpoint.uri={server.Uri(run.Prefix)}"]);
        Assert.True(second.ExitCode == 0, second.ToString());
        Checkpoint chosen = (await run.ChosenAsync())!;
        Assert.Equal(2, chosen.Epoch);
        Assert.DoesNotContain(await run.KeysAsync(), IsLate);

        held.Release();
        first.Signal(TinyFolder.SignalContinue);
        Ending woken = await first.EndAsync();

        Assert.True(woken.ExitCode == 75, woken.ToString());
        Assert.Contains("Another process has taken this run over", woken.Error, StringComparison.Ordinal);
        Assert.Contains(await run.KeysAsync(), IsLate);
        Assert.Equal(chosen.Name, (await run.ChosenAsync())!.Name);

        // Whoever comes next goes on from the new one, and clears the late one away.
        run.LoseDisk();
        Ending third = await run.Folder.RunAsync([.. run.Resume, "--set", "output_dir=out"]);
        Assert.True(third.ExitCode == 0, third.ToString());
        Assert.Contains($"from the checkpoint {chosen.Name}.", third.Error, StringComparison.Ordinal);
        Assert.Equal(expected, await run.ResultAsync());
        await run.AssertNothingIsLeftOverAsync();

        bool IsLate(string key) => key == late;
    }

    [Theory]
    [InlineData("client.rgw")]
    [InlineData("client.rgw", "osd.0", "mon.a")]
    public async Task ServerKilledInMidUpload_AndStartedAgain_TheRunGoesOn(params string[] daemons)
    {
        Dictionary<string, string> expected = await ExpectedAsync(2);
        await using var run = new S3Run(server, Changes(2));
        await using Child child = Child.Start(run.Folder, S3Run.Train);
        await child.SeesAsync("step ", 1);
        Fault held = run.Proxy.Set(new Fault(FaultKind.HoldUp) { After = 40_000 })!;
        await Task.WhenAny(held.Reached, child.EndAsync());
        Assert.Equal(1, held.Hits);
        server.Kill(daemons);
        held.Release();
        await Task.Delay(TimeSpan.FromSeconds(1), Cancellation);
        server.Again();

        Ending end = await child.EndAsync();

        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Equal(expected, await run.ResultAsync());
        await run.AssertNothingIsLeftOverAsync();
    }

    /// <summary>Longer than the store's patience and longer than the lease: nobody else came, so the run is still this process's when the store is back.</summary>
    [Fact]
    public async Task StoreOutOfReach_OnErrorContinue_TheRunGoesOnAndSavesWhenItIsBack()
    {
        // Long enough for three saves that fail and two that do not, on a fast machine too.
        const int epochs = 200;
        Dictionary<string, string> expected = await ExpectedAsync(epochs);
        await using var run = new S3Run(server, Changes(epochs), "&retry_seconds=0.5", leaseSeconds: 2, saves: "every_steps: 5, keep: 2, on_error: continue");
        await using Child child = Child.Start(run.Folder, S3Run.Train);
        await child.SeesAsync("is safe, after", 2);
        Fault gone = run.Proxy.Set(new Fault(FaultKind.CutUp) { Times = int.MaxValue })!;
        await child.SeesAsync("could not be saved:", 3);
        int safe = child.Count("is safe, after");
        run.Proxy.Set(null);
        await child.SeesAsync("is safe, after", safe + 2);

        Ending end = await child.EndAsync();

        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.True(gone.Hits > 3, $"{gone.Hits} connections were cut");
        Assert.Contains("The last one that is safe is of step ", end.Error, StringComparison.Ordinal);
        Assert.Equal(expected, await run.ResultAsync());
        await run.AssertNothingIsLeftOverAsync();
    }

    [Fact]
    public async Task StoreOutOfReach_OnErrorStop_TheRunEndsAndIsResumed()
    {
        const int epochs = 60;
        Dictionary<string, string> expected = await ExpectedAsync(epochs);
        await using var run = new S3Run(server, Changes(epochs), "&retry_seconds=0.5", leaseSeconds: 2, saves: "every_steps: 5, keep: 2, on_error: stop");
        await using Child child = Child.Start(run.Folder, S3Run.Train);
        await child.SeesAsync("is safe, after", 2);
        run.Proxy.Set(new Fault(FaultKind.CutUp) { Times = int.MaxValue });

        Ending end = await child.EndAsync();

        Assert.True(end.ExitCode == 1, end.ToString());
        Assert.Contains("error: The state of the run could not be saved: ", end.Error, StringComparison.Ordinal);
        run.Proxy.Set(null);
        Ending resumed = await run.Folder.RunAsync(run.Resume);
        Assert.True(resumed.ExitCode == 0, resumed.ToString());
        Assert.Equal(expected, await run.ResultAsync());
    }

    [Theory]
    [InlineData("wrong secret", "AWS_SECRET_ACCESS_KEY")]
    [InlineData("unknown key", "The access key is not known to the server")]
    [InlineData("no permission", "are not allowed")]
    [InlineData("no bucket", "There is no bucket no-such-bucket")]
    [InlineData("no profile", "The profile nobody gives no credentials")]
    [InlineData("no compare-and-swap", "checkpoint.single_writer: true")]
    [InlineData("no server", "Nothing listens there")]
    public async Task StoreThatRefuses_TheRunDoesNotStart(string what, string words)
    {
        await using var simple = new SimpleS3();
        await using var run = new S3Run(server, Changes(2));
        string uri = what switch
        {
            "wrong secret" => server.Uri(run.Prefix, profile: S3Profiles.WrongSecret),
            "unknown key" => server.Uri(run.Prefix, profile: S3Profiles.Unknown),
            "no permission" => server.Uri(run.Prefix, profile: S3Profiles.Stranger),
            "no bucket" => server.Uri(run.Prefix, bucket: "no-such-bucket"),
            "no profile" => server.Uri(run.Prefix, profile: "nobody"),
            "no compare-and-swap" => server.Uri(run.Prefix, port: simple.Port),
            _ => server.Uri(run.Prefix, "&retry_seconds=0", port: 1),
        };

        Ending end = await run.Folder.RunAsync("train", "tiny.yaml", "--set", $"checkpoint.uri={uri}");

        Assert.True(end.ExitCode == (what == "no server" ? 1 : 2), end.ToString());
        string error = Assert.Single(end.Error.Split('\n', StringSplitOptions.RemoveEmptyEntries), line => !line.StartsWith("note: ", StringComparison.Ordinal));
        Assert.StartsWith("error: ", error, StringComparison.Ordinal);
        Assert.Contains(words, error, StringComparison.Ordinal);
        Assert.False(S3Profiles.AppearIn(end.ToString()), end.ToString());
        Assert.False(File.Exists(run.Folder.PathOf("out/config.resolved.yaml")));
        Assert.Empty(await run.KeysAsync());
        Assert.DoesNotContain(simple.Keys, key => !key.Contains("/tiny/probe/", StringComparison.Ordinal));

        // The place is as it was: the same command with the right store starts the run.
        Ending right = await run.Folder.RunAsync(S3Run.Train);
        Assert.True(right.ExitCode == 0, right.ToString());
    }
}
