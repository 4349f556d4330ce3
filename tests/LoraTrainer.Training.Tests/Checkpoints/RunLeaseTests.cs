using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using System.Text;
using LoraTrainer.Storage;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests.Checkpoints;

/// <summary>One writer at a time, in a real folder, with clocks that the test moves and answers that it loses.</summary>
public sealed class RunLeaseTests : IAsyncDisposable
{
    private const double LeaseSeconds = 9;
    private const string PutLease = "put run/lease.json";
    private const string GetLease = "get run/lease.json";

    private static readonly TimeSpan Third = TimeSpan.FromSeconds(LeaseSeconds / 3);
    private static readonly TimeSpan Poll = TimeSpan.FromSeconds(LeaseSeconds / 10);
    private static readonly LeaseHolder Elsewhere = new("elsewhere", "another boot", 1, 1);

    private readonly TemporaryFolder folder = new();
    private readonly FaultyStore store;
    private readonly ManualTime time = new();
    private readonly ConcurrentQueue<string> notices = [];
    private readonly ConcurrentQueue<string> warnings = [];

    public RunLeaseTests() => store = new FaultyStore(new FolderStore(folder.Path));

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    private string LeaseFile => folder.File("run/lease.json");

    public async ValueTask DisposeAsync()
    {
        await store.DisposeAsync();
        folder.Dispose();
    }

    private Task<RunLease> AcquireAsync(bool waits = true, int floor = 0, ManualTime? clock = null) => RunLease.AcquireAsync(
        store,
        "run",
        new LeaseRequest { Seconds = LeaseSeconds, Waits = waits, IsSwapped = true, EpochFloor = floor, Time = clock ?? time, OnNotice = notices.Enqueue, OnWarning = warnings.Enqueue },
        Cancellation);

    /// <summary>The lease as another machine would write it.</summary>
    private void WriteForeign(int epoch = 1, LeaseState state = LeaseState.Held, string nonce = "n1", LeaseHolder? holder = null, TimeSpan wall = default)
    {
        Directory.CreateDirectory(folder.File("run"));
        File.WriteAllBytes(LeaseFile, new LeaseRecord("id", epoch, state, nonce, LeaseSeconds, holder ?? Elsewhere, time.GetUtcNow() + wall).ToJson());
    }

    private LeaseRecord Stored() => LeaseRecord.Parse("lease.json", File.ReadAllBytes(LeaseFile));

    private static async Task Until(Func<bool> isSo, string what)
    {
        long start = Stopwatch.GetTimestamp();
        while (!isSo())
        {
            Assert.True(Stopwatch.GetElapsedTime(start) < TimeSpan.FromSeconds(20), $"never came: {what}");
            await Task.Delay(2, Cancellation);
        }
    }

    /// <summary>Moves the clock by one look of the waiter, and waits until it has looked.</summary>
    private async Task LookAgainAsync(Task waiter)
    {
        await Until(() => time.Pending is [{ } left] && left == Poll, "the waiter's pause");
        int looks = store.Count(GetLease);
        time.Advance(Poll);
        await Until(() => waiter.IsCompleted || (store.Count(GetLease) > looks && time.Pending.Length == 1), "the waiter's next look");
    }

    /// <summary>Waits until the holder does nothing but wait for its next renewal.</summary>
    private Task AtRestAsync(TimeSpan? pause = null) => Until(() => time.Pending is [{ } left] && left == (pause ?? Third), $"the holder's pause of {pause ?? Third}");

    private async Task RenewAsync()
    {
        int puts = store.Count(PutLease);
        time.Advance(Third);
        await Until(() => store.Count(PutLease) > puts, "a renewal");
        await AtRestAsync();
    }

    [Theory]
    [InlineData(LeaseState.Released)]
    [InlineData(LeaseState.Stopped)]
    [InlineData(LeaseState.Finished)]
    public async Task Epoch_GrowsWithEachTakeover_AndTheRunStaysTheSame(LeaseState state)
    {
        string? run = null;
        for (int epoch = 1; epoch <= 3; epoch++)
        {
            // Without waiting: what was given back is free at once.
            await using RunLease lease = await AcquireAsync(waits: false);
            Assert.Equal(epoch, lease.Epoch);
            Assert.Equal(run ??= lease.RunId, lease.RunId);
            Assert.Equal((lease.Epoch, LeaseState.Held, LeaseHolder.Current), (Stored().Epoch, Stored().State, Stored().Holder));
            Assert.Equal(epoch == 1 ? null : state, lease.Previous?.State);
            await lease.ReleaseAsync(state);
            Assert.Equal((epoch, state), (Stored().Epoch, Stored().State));
        }

        Assert.Empty(notices);
        Assert.Empty(warnings);
    }

    [Fact]
    public async Task Held_AndNotWaitedFor_IsRefused()
    {
        await using RunLease lease = await AcquireAsync();
        TrainingSetupException refused = await Assert.ThrowsAsync<TrainingSetupException>(() => AcquireAsync(waits: false));
        Assert.Equal(
            $"Another process works on the run run in {folder.Path}: process {Environment.ProcessId} on {Environment.MachineName}. Stop it first, or use resume: auto, which waits until it has ended or died.", refused.Message);
    }

    /// <summary>Of twenty that come at once one gets it, and the next only when it is given back.</summary>
    [Fact]
    public async Task TwentyAtOnce_HaveItOneAfterTheOther()
    {
        int holders = 0, most = 0;
        var epochs = new ConcurrentBag<int>();
        await Task.WhenAll(Enumerable.Range(0, 20).Select(_ => Task.Run(async () =>
        {
            await using RunLease lease = await RunLease.AcquireAsync(
                store, "run", new LeaseRequest { Seconds = 1, Waits = true, IsSwapped = true, Time = TimeProvider.System, OnNotice = _ => { }, OnWarning = warnings.Enqueue }, Cancellation);
            most = Math.Max(most, Interlocked.Increment(ref holders));
            epochs.Add(lease.Epoch);
            await Task.Yield();
            Interlocked.Decrement(ref holders);
            await lease.ReleaseAsync(LeaseState.Released);
        })));
        Assert.Equal(1, most);
        Assert.Equal(Enumerable.Range(1, 20), epochs.Order());
        Assert.Empty(warnings);
    }

    /// <summary>The holder's and the waiter's wall clocks may be any time apart: only the waiter's own count of seconds without a change decides.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(-5)]
    [InlineData(7)]
    [InlineData(90_000)]
    public async Task Waiter_TakesOver_AfterTheWholeTimeWithoutAChange(int wallHoursApart)
    {
        WriteForeign(epoch: 4, wall: TimeSpan.FromHours(wallHoursApart));
        Task<RunLease> waiter = AcquireAsync();
        for (int look = 1; look < 10; look++)
        {
            await LookAgainAsync(waiter);
            Assert.False(waiter.IsCompleted, $"it took over after {look * Poll.TotalSeconds} of {LeaseSeconds} s");
        }

        Assert.Equal(4, Stored().Epoch);
        await LookAgainAsync(waiter);
        await using RunLease lease = await waiter;
        Assert.Equal((5, "id"), (lease.Epoch, lease.RunId));
        Assert.Equal(
            ["process 1 on elsewhere works on the run run. This process waits; it goes on when that one ends, or has given no sign of life for 9 s.",
            "The run's lease, of process 1 on elsewhere, has not been renewed for 9 s: this process takes the run over."], notices);
    }

    [Fact]
    public async Task Waiter_NeverTakesOver_WhileTheLeaseIsRenewed()
    {
        WriteForeign();
        Task<RunLease> waiter = AcquireAsync();
        for (int look = 1; look <= 60; look++)
        {
            await LookAgainAsync(waiter);
            Assert.False(waiter.IsCompleted, $"look {look}");
            if (look % 9 == 0)
            {
                // Just in time, by a clock that stands still.
                WriteForeign(nonce: $"n{look}");
            }
        }

        WriteForeign(state: LeaseState.Released, nonce: "given back");
        await LookAgainAsync(waiter);
        await using RunLease lease = await waiter;
        Assert.Equal(2, lease.Epoch);
    }

    [Fact]
    public async Task Holder_ThatHasEndedOnThisMachine_IsNotWaitedFor()
    {
        using Process process = Process.Start(new ProcessStartInfo("sleep", "60"))!;
        string stat = File.ReadAllText($"/proc/{process.Id}/stat");
        long start = long.Parse(stat[(stat.LastIndexOf(')') + 2)..].Split(' ')[19], CultureInfo.InvariantCulture);
        LeaseHolder holder = LeaseHolder.Current with { ProcessId = process.Id, ProcessStart = start };
        WriteForeign(holder: holder);
        await Assert.ThrowsAsync<TrainingSetupException>(() => AcquireAsync(waits: false));

        // Another process that has the number by now is not the holder.
        WriteForeign(holder: holder with { ProcessStart = start - 1 });
        await using (RunLease lease = await AcquireAsync(waits: false))
        {
            Assert.Equal(2, lease.Epoch);
        }

        process.Kill();
        await process.WaitForExitAsync(Cancellation);
        WriteForeign(holder: holder);
        await using (RunLease lease = await AcquireAsync(waits: false))
        {
            Assert.Equal(2, lease.Epoch);
        }

        // The same number on another machine, or after a reboot, says nothing; nor does a lease from where no boot is known.
        WriteForeign(holder: holder with { BootId = "another boot" });
        await Assert.ThrowsAsync<TrainingSetupException>(() => AcquireAsync(waits: false));
        WriteForeign(holder: holder with { BootId = string.Empty });
        await Assert.ThrowsAsync<TrainingSetupException>(() => AcquireAsync(waits: false));
    }

    [Fact]
    public async Task Acquire_WhoseAnswerWasLost_IsRecognised()
    {
        store.AnswersItsOwnRetry = true;
        await using RunLease lease = await AcquireAsync(waits: false);
        Assert.Equal(1, lease.Epoch);
        Assert.Equal(1, store.Count(PutLease));

        // It has the version of what is there: it can renew.
        await lease.ReleaseAsync(LeaseState.Released);
        Assert.Equal(LeaseState.Released, Stored().State);
        Assert.False(lease.Lost.IsCancellationRequested);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Renewal_WhoseAnswerWasLost_IsRecognised(bool storeRetries)
    {
        await using RunLease lease = await AcquireAsync();
        lease.StartRenewing(_ => Task.CompletedTask);
        await AtRestAsync();
        string before = Stored().Nonce;
        if (storeRetries)
        {
            store.AnswersItsOwnRetry = true;
            await RenewAsync();
            Assert.Empty(warnings);
        }
        else
        {
            store.After = (call, _) => call == PutLease ? throw new IOException("The answer was lost.") : Task.CompletedTask;
            time.Advance(Third);
            await Until(() => !warnings.IsEmpty, "the warning");
            await AtRestAsync(Third / 4);
            store.Mend();
            time.Advance(Third / 4);
            await AtRestAsync();
            Assert.Equal(["The run's lease could not be renewed: The answer was lost. Training goes on; it is tried again.", "The run's lease is renewed again."], warnings);
        }

        Assert.NotEqual(before, Stored().Nonce);
        Assert.True(lease.IsHeld);
        Assert.False(lease.Lost.IsCancellationRequested);

        // And it goes on from there.
        await RenewAsync();
        await RenewAsync();
        await lease.ReleaseAsync(LeaseState.Finished);
        Assert.Equal((LeaseState.Finished, 1), (Stored().State, Stored().Epoch));
    }

    /// <summary>What was lost was a renewal; what is to be said next is that the lease is given back.</summary>
    [Fact]
    public async Task Release_AfterARenewalWhoseAnswerWasLost_IsWritten()
    {
        await using RunLease lease = await AcquireAsync();
        lease.StartRenewing(_ => Task.CompletedTask);
        await AtRestAsync();
        store.After = (call, _) => call == PutLease ? throw new IOException("The answer was lost.") : Task.CompletedTask;
        time.Advance(Third);
        await Until(() => !warnings.IsEmpty, "the warning");
        store.Mend();
        await lease.ReleaseAsync(LeaseState.Released);
        Assert.Equal(LeaseState.Released, Stored().State);
        Assert.False(lease.Lost.IsCancellationRequested);
    }

    /// <summary>A renewal counts from when it was sent: its holder knows no better when it arrived.</summary>
    [Fact]
    public async Task Renewal_CountsFromItsSending()
    {
        await using RunLease lease = await AcquireAsync();
        lease.StartRenewing(_ => Task.CompletedTask);
        await AtRestAsync();
        var arrived = new TaskCompletionSource();
        store.Before = (call, cancellation) => call == PutLease ? arrived.Task.WaitAsync(cancellation) : Task.CompletedTask;
        time.Advance(Third);
        await Until(() => time.Pending is [{ } limit] && limit == Third * 1.5, "the renewal on its way");
        TimeSpan onItsWay = TimeSpan.FromSeconds(4);
        time.Advance(onItsWay);
        int puts = store.Count(PutLease);
        arrived.SetResult();
        await Until(() => store.Count(PutLease) > puts, "the renewal");
        await AtRestAsync();

        // Three seconds later the next renewal is due; it does not get through.
        store.Cut();
        time.Advance(TimeSpan.FromSeconds(LeaseSeconds) - onItsWay - TimeSpan.FromMilliseconds(1));
        Assert.True(lease.IsHeld);
        time.Advance(TimeSpan.FromMilliseconds(1));
        Assert.False(lease.IsHeld);
    }

    [Fact]
    public async Task Holder_ThatCouldNotRenew_WritesNothing_AndGoesOnWhenTheStoreIsBack()
    {
        await using RunLease lease = await AcquireAsync();
        var checkpoints = new CheckpointStore(store, "run", time);
        checkpoints.WriteUnder(lease, new StoreAbilities(PutIfAbsent: true, CompareAndSwap: true, Lacking: null));
        int told = 0;
        lease.StartRenewing(_ =>
        {
            told++;
            return Task.CompletedTask;
        });
        await AtRestAsync();
        await RenewAsync();
        Assert.Equal(1, told);
        store.Cut();
        for (int second = 0; second < LeaseSeconds + 3; second++)
        {
            time.Advance(TimeSpan.FromSeconds(1));
            await Until(() => time.Pending.Length == 1, "the next try");
            Assert.Equal(second + 1 < LeaseSeconds, lease.IsHeld);
        }

        LeaseLostException refused = Assert.Throws<LeaseLostException>(lease.RequireHeld);
        Assert.Equal("The run's lease could not be renewed in time, so another machine may work on the run by now: nothing is written until it is renewed.", refused.Message);
        string[] before = [.. store.Done];
        await Assert.ThrowsAsync<StoreException>(() => SaveAsync(checkpoints, 1));
        await Assert.ThrowsAsync<StoreException>(() => checkpoints.WriteConfigAsync([1], Cancellation));
        Assert.Equal(before, store.Done);
        Assert.False(lease.Lost.IsCancellationRequested);
        Assert.Equal(1, told);

        // Back again: the first who wants to write does not wait for the next round of renewals.
        store.Mend();
        string nonce = Stored().Nonce;
        Checkpoint saved = await SaveAsync(checkpoints, 1);
        Assert.NotEqual(nonce, Stored().Nonce);
        Assert.True(lease.IsHeld);
        Assert.True(File.Exists(folder.File($"run/{saved.Name}/manifest.json")));
        time.Advance(Third / 4);
        await AtRestAsync();
        Assert.Contains("The run's lease is renewed again.", warnings);
        Assert.Equal(2, told);
    }

    /// <summary>A process that slept through the takeover: whatever it does first, it learns of it and writes nothing.</summary>
    [Theory]
    [InlineData("renews")]
    [InlineData("saves")]
    [InlineData("withdraws")]
    [InlineData("releases")]
    public async Task TakenOver_LostFires_AndNothingMoreIsWritten(string first)
    {
        await using RunLease lease = await AcquireAsync();
        var checkpoints = new CheckpointStore(store, "run", time);
        checkpoints.WriteUnder(lease, new StoreAbilities(PutIfAbsent: true, CompareAndSwap: true, Lacking: null));
        await checkpoints.WriteConfigAsync("a: 1"u8.ToArray(), Cancellation);
        await SaveAsync(checkpoints, 1);
        Checkpoint mine = await SaveAsync(checkpoints, 2);
        int told = 0;
        if (first == "renews")
        {
            lease.StartRenewing(_ => Task.FromResult(told++));
            await AtRestAsync();
        }

        WriteForeign(epoch: 2);
        Dictionary<string, string> before = Contents();
        time.Advance(TimeSpan.FromSeconds(LeaseSeconds));
        switch (first)
        {
            case "renews":
                await Until(() => lease.Lost.IsCancellationRequested, "the loss");
                break;
            case "saves":
                await Assert.ThrowsAsync<LeaseLostException>(() => SaveAsync(checkpoints, 3));
                break;
            case "withdraws":
                await Assert.ThrowsAsync<LeaseLostException>(() => checkpoints.WithdrawAsync(isNew: true, Cancellation));
                break;
        }

        if (first != "releases")
        {
            Assert.True(lease.Lost.IsCancellationRequested);
            Assert.False(lease.IsHeld);
            Assert.Contains("Another machine has taken this run over", (await Assert.ThrowsAsync<LeaseLostException>(() => SaveAsync(checkpoints, 4))).Message, StringComparison.Ordinal);
            await Assert.ThrowsAsync<LeaseLostException>(() => checkpoints.ApplyRetentionAsync(1, mine, Cancellation));
        }

        await lease.ReleaseAsync(LeaseState.Finished);
        Assert.True(lease.Lost.IsCancellationRequested);
        Assert.Equal(0, told);
        Assert.Equal(before, Contents());
        Assert.Empty(warnings);
    }

    /// <summary>What is said beside the lease may wait for ever: the lease does not.</summary>
    [Fact]
    public async Task Renewal_DoesNotWaitForWhatIsSaidBesideIt()
    {
        await using RunLease lease = await AcquireAsync();
        lease.StartRenewing(cancellation => Task.Delay(Timeout.Infinite, cancellation));
        await AtRestAsync();
        for (int i = 0; i < 12; i++)
        {
            time.Advance(Third);
            await Until(() => time.Pending is [{ } left] && left == Third, "the next pause");
            Assert.True(lease.IsHeld);
        }

        Assert.True(store.Count(PutLease) >= 6);
        Assert.Empty(warnings);
    }

    [Fact]
    public async Task DeletedLease_TheEpochStillGrows()
    {
        var checkpoints = new CheckpointStore(store, "run", time);
        Assert.Equal(0, await checkpoints.HighestEpochAsync(Cancellation));
        for (int epoch = 1; epoch <= 3; epoch++)
        {
            await using RunLease lease = await AcquireAsync(floor: await checkpoints.HighestEpochAsync(Cancellation));
            Assert.Equal(epoch, lease.Epoch);
            var under = new CheckpointStore(store, "run", time);
            under.WriteUnder(lease, new StoreAbilities(PutIfAbsent: true, CompareAndSwap: true, Lacking: null));
            if (epoch < 3)
            {
                await SaveAsync(under, epoch);
            }
            else
            {
                // Killed before its first checkpoint, an attempt alone shows that there was one.
                await under.WriteAttemptAsync(Attempt(lease), Cancellation);
            }

            await lease.StopRenewingAsync();
            File.Delete(LeaseFile);
            Assert.Equal(epoch, await checkpoints.HighestEpochAsync(Cancellation));
        }
    }

    [Fact]
    public async Task HighestEpoch_PassesOverWhatIsNoEpoch()
    {
        foreach (string name in (string[])["step-00000001-7-0000abcd/x", "step-00000001-99999999999-0000abcd/x", "step-00000001-2147483647-0000abcd/x", "step-1/x", "attempts/6.json", "attempts/2147483647.json", "attempts/-9.json", "other/8"])
        {
            Directory.CreateDirectory(Path.GetDirectoryName(folder.File($"run/{name}"))!);
            File.WriteAllText(folder.File($"run/{name}"), "x");
        }

        Assert.Equal(7, await new CheckpointStore(store, "run", time).HighestEpochAsync(Cancellation));
    }

    [Theory]
    [InlineData("", null)]
    [InlineData("garbage", null)]
    [InlineData("[]", null)]
    [InlineData("{}", null)]
    [InlineData("\"epoch\": 1", "\"epoch\": 99999999999999999999")]
    [InlineData("\"epoch\": 1", "\"epoch\": 2147483647")]
    [InlineData("\"epoch\": 1", "\"epoch\": 0")]
    [InlineData("\"epoch\": 1", "\"epoch\": 1.5")]
    [InlineData("\"seconds\": 9", "\"seconds\": 1e999")]
    [InlineData("\"seconds\": 9", "\"seconds\": 0")]
    [InlineData("\"seconds\": 9", "\"seconds\": 1000000")]
    [InlineData("\"seconds\": 9", "\"seconds\": null")]
    [InlineData("\"held\"", "\"99999999999999999999\"")]
    [InlineData("\"held\"", "\"1\"")]
    [InlineData("\"held\"", "\"held, released\"")]
    [InlineData("\"held\"", "null")]
    [InlineData("\"another boot\"", "null")]
    [InlineData("\"elsewhere\"", "null")]
    [InlineData("\"process\": 1", "\"process\": 99999999999")]
    [InlineData("\"start\": 1", "\"start\": 99999999999999999999")]
    [InlineData("\"run_id\": \"id\"", "\"run_id\": null")]
    [InlineData("\"run_id\": \"id\"", "\"run_id\": \"\"")]
    [InlineData("\"nonce\": \"n1\"", "\"nonce\": 5")]
    [InlineData("\"written\": \"2030", "\"written\": \"99999")]
    [InlineData("\"holder\": {", "\"holder\": 7, \"was\": {")]
    public async Task HostileLease_IsAnErrorThatSaysWhatToDo(string part, string? replacement)
    {
        WriteForeign();
        string text = File.ReadAllText(LeaseFile);
        Assert.True(replacement is null || text.Contains(part, StringComparison.Ordinal), text);
        File.WriteAllText(LeaseFile, replacement is null ? part : text.Replace(part, replacement, StringComparison.Ordinal));
        await IsRefusedAsync();
    }

    [Fact]
    public async Task HugeLease_IsNotReadWhole()
    {
        Directory.CreateDirectory(folder.File("run"));
        using (FileStream file = File.Create(LeaseFile))
        {
            file.SetLength(1L << 36);
        }

        await IsRefusedAsync();
    }

    private async Task IsRefusedAsync()
    {
        CheckpointFormatException refused = await Assert.ThrowsAsync<CheckpointFormatException>(() => AcquireAsync());
        Assert.StartsWith($"{folder.Path}/run/lease.json is not a lease of this program (", refused.Message, StringComparison.Ordinal);
        Assert.EndsWith("). If no machine works on this run, delete it and try again.", refused.Message, StringComparison.Ordinal);
        Assert.Equal(0, store.Count(PutLease));
    }

    [Fact]
    public void Lease_IsReadAsItWasWritten()
    {
        var record = new LeaseRecord("id", 1_000_000_000, LeaseState.Stopped, "n", 3600, new LeaseHolder("höst \"x\"", "b s", 7, long.MaxValue), new DateTimeOffset(2030, 1, 1, 0, 0, 0, TimeSpan.Zero));
        Assert.Equal(record, LeaseRecord.Parse("x", record.ToJson()));
        Assert.Contains("\"state\": \"stopped\"", Encoding.UTF8.GetString(record.ToJson()), StringComparison.Ordinal);
    }

    private async Task<Checkpoint> SaveAsync(CheckpointStore checkpoints, int step)
    {
        string files = folder.File("files");
        Directory.CreateDirectory(files);
        File.WriteAllText(Path.Combine(files, "state.json"), $"state of step {step}");
        return await checkpoints.SaveAsync(step, files, cancellation: Cancellation);
    }

    private static AttemptRecord Attempt(RunLease lease) => new()
    {
        RunId = lease.RunId,
        Epoch = lease.Epoch,
        Holder = LeaseHolder.Current,
        Started = DateTimeOffset.UnixEpoch,
        LastSeen = DateTimeOffset.UnixEpoch,
        Seconds = 1,
        PhaseSeconds = new Dictionary<TrainingPhase, double>(),
        Phase = TrainingPhase.Training,
    };

    private Dictionary<string, string> Contents() => Directory.EnumerateFiles(folder.File("run"), "*", SearchOption.AllDirectories).ToDictionary(path => path, File.ReadAllText);
}
