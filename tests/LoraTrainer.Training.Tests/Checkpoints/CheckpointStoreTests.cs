using LoraTrainer.Storage;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Checkpoints;
using Xunit;

namespace LoraTrainer.Training.Tests.Checkpoints;

public sealed class CheckpointStoreTests : IDisposable
{
    private readonly TemporaryFolder folder = new();
    private readonly List<string> told = [];

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    public void Dispose() => folder.Dispose();

    private CheckpointStore Store(int epoch = 1) => new(new FolderStore(folder.File("root")), "run", epoch, TimeProvider.System);

    private async Task<Checkpoint> SaveAsync(int step, int epoch = 1)
    {
        string files = folder.File("files");
        Directory.CreateDirectory(files);
        File.WriteAllText(Path.Combine(files, "state.json"), $"state of step {step}");
        return await Store(epoch).SaveAsync(step, files, cancellation: Cancellation);
    }

    private async Task<Checkpoint?> FindAsync()
    {
        told.Clear();
        return await Store().FindNewestIntactAsync(told.Add, Cancellation);
    }

    private string ManifestOf(Checkpoint checkpoint) => folder.File($"root/run/{checkpoint.Name}/manifest.json");

    [Fact]
    public async Task SaveFindDownload_RoundTrip()
    {
        Assert.Null(await FindAsync());
        await SaveAsync(2);
        Checkpoint newest = await SaveAsync(10);
        Checkpoint found = (await FindAsync())!;
        Assert.Equal((newest.Name, 10), (found.Name, found.Step));
        Directory.CreateDirectory(folder.File("copy"));
        await Store().DownloadAsync(found, folder.File("copy"), Cancellation);
        Assert.Equal("state of step 10", File.ReadAllText(folder.File("copy/state.json")));
        Assert.Empty(told);
    }

    [Theory]
    [InlineData("\"state.json\"", "\"../../../x\"")]
    [InlineData("\"state.json\"", "\"a/b\"")]
    [InlineData("\"state.json\"", "\"a\\\\b\"")]
    [InlineData("\"state.json\"", "\"..\"")]
    [InlineData("\"state.json\"", "\"\"")]
    [InlineData("\"state.json\"", "null")]
    [InlineData("\"state.json\"", "\"manifest.json\"")]
    [InlineData("\"state.json\"", "\"a\\u0000b\"")]
    [InlineData("\"files\": [", "\"files\": [{\"name\":\"state.json\",\"size\":1,\"sha256\":\"\"},")]
    [InlineData("\"size\": ", "\"size\": -")]
    [InlineData("\"size\": ", "\"size\": 99999999999999999999")]
    [InlineData("\"step\": 4", "\"step\": 99999999999")]
    [InlineData("\"step\": 4", "\"step\": -4")]
    [InlineData("\"step\": 4", "\"step\": 1000000")]
    [InlineData("\"epoch\": 1,\n  \"created\"", "\"epoch\": 9,\n  \"created\"")]
    [InlineData("\"epoch\": 1,\n  \"created\"", "\"epoch\": 2147483647,\n  \"created\"")]
    [InlineData("\"version\": 1", "\"version\": 2")]
    [InlineData("\"files\": [", "\"filez\": [")]
    [InlineData("{\n  \"version\"", "[\n  \"version\"")]
    public async Task FindNewestIntact_HostileManifest_IsPassedOver(string part, string replacement)
    {
        Checkpoint good = await SaveAsync(2);
        Checkpoint bad = await SaveAsync(4);
        string text = File.ReadAllText(ManifestOf(bad));
        Assert.Contains(part, text, StringComparison.Ordinal);
        File.WriteAllText(ManifestOf(bad), text.Replace(part, replacement, StringComparison.Ordinal));

        Assert.Equal(good.Name, (await FindAsync())!.Name);
        Assert.StartsWith($"The checkpoint {bad.Name} has an unreadable manifest (", Assert.Single(told), StringComparison.Ordinal);
    }

    [Fact]
    public async Task FindNewestIntact_FollowsTheLineage()
    {
        await SaveAsync(4, epoch: 1);
        Checkpoint late = await SaveAsync(9, epoch: 1);
        Checkpoint taken = await SaveAsync(6, epoch: 2);
        string text = File.ReadAllText(ManifestOf(taken));
        string lineage = text[text.IndexOf("\"lineage\"", StringComparison.Ordinal)..text.IndexOf("\"files\"", StringComparison.Ordinal)];
        File.WriteAllText(ManifestOf(taken), text.Replace(lineage, "\"lineage\": [{\"epoch\":2,\"up_to_step\":null},{\"epoch\":1,\"up_to_step\":4}],", StringComparison.Ordinal));

        // The highest epoch wins although an older one has a later step.
        Assert.Equal(6, (await FindAsync())!.Step);

        // Damaged, it still says which of the older ones count: 4, not the late 9.
        File.AppendAllText(folder.File($"root/run/{taken.Name}/state.json"), "x");
        Assert.Equal(4, (await FindAsync())!.Step);
        Assert.Contains("is damaged (state.json has 16 bytes, expected 15)", Assert.Single(told), StringComparison.Ordinal);
        Assert.True(File.Exists(ManifestOf(late)));
    }

    [Fact]
    public async Task ApplyRetention_KeepsTheNewestAndNeverCountsDamagedOnes()
    {
        Checkpoint two = await SaveAsync(2), four = await SaveAsync(4), ahead = await SaveAsync(10);
        File.AppendAllText(folder.File($"root/run/{ahead.Name}/state.json"), "x");
        CheckpointStore store = Store();
        Assert.Equal(four.Name, (await store.FindNewestIntactAsync(told.Add, Cancellation))!.Name);

        Checkpoint six = await SaveAsync(6);
        await store.ApplyRetentionAsync(1, six, Cancellation);
        Assert.Equal([six.Name, ahead.Name], Names());

        Checkpoint eleven = await SaveAsync(11);
        await store.ApplyRetentionAsync(2, eleven, Cancellation);
        Assert.Equal([six.Name, eleven.Name], Names());
        Assert.DoesNotContain(two.Name, Names());

        string[] Names() => [.. Directory.EnumerateDirectories(folder.File("root/run")).Select(path => Path.GetFileName(path)!).Order(StringComparer.Ordinal)];
    }

    /// <summary>Three machines one after the other, and what each of the first two put too late.</summary>
    [Fact]
    public async Task ContinueFrom_ChainsOverThreeEpochs()
    {
        Checkpoint first = await SaveAsync(4, epoch: 1), second = await SaveAfterAsync(first, 6, epoch: 2), third = await SaveAfterAsync(second, 8, epoch: 3);
        Assert.Equal([new LineageEntry(3, null), new LineageEntry(1, 4), new LineageEntry(2, 6)], third.Lineage);

        // The same epoch again, as after a second save of one process: nothing is listed twice.
        Checkpoint again = await SaveAfterAsync(third, 10, epoch: 3);
        Assert.Equal(third.Lineage, again.Lineage);

        // Put too late, by machines that had lost the run: the newest in time, and ahead.
        await SaveAsync(11, epoch: 1);
        await SaveAfterAsync(first, 12, epoch: 2);
        Assert.Equal([again.Name, third.Name, second.Name, first.Name], (await Store().ListAsync(told.Add, Cancellation)).Select(item => item.Name));
        Assert.Equal(again.Name, (await FindAsync())!.Name);

        // However many of the newest are damaged, none of the late ones takes their place.
        foreach (Checkpoint next in (Checkpoint[])[again, third, second])
        {
            File.AppendAllText(folder.File($"root/run/{next.Name}/state.json"), "x");
        }

        Assert.Equal(first.Name, (await FindAsync())!.Name);
        File.AppendAllText(folder.File($"root/run/{first.Name}/state.json"), "x");
        Assert.Null(await FindAsync());
        Assert.Equal(4, told.Count);
    }

    /// <summary>A fourth machine goes on from what is left after damage: what lay behind the damage is not the run's any more.</summary>
    [Fact]
    public async Task ContinueFrom_AnOlderOne_LeavesTheNewerOut()
    {
        Checkpoint first = await SaveAsync(4, epoch: 1), second = await SaveAfterAsync(first, 6, epoch: 2);
        Checkpoint third = await SaveAfterAsync(first, 5, epoch: 3);
        Assert.Equal([new LineageEntry(3, null), new LineageEntry(1, 4)], third.Lineage);
        Assert.Equal([third.Name, first.Name], (await Store().ListAsync(told.Add, Cancellation)).Select(item => item.Name));
        Assert.True(File.Exists(ManifestOf(second)));
    }

    [Fact]
    public async Task Neighbours_WithSimilarNames_AreLeftAlone()
    {
        string[] neighbours = ["ru", "run2", "run-2", "run.old", "runs"];
        foreach (string name in neighbours)
        {
            Write($"{name}/step-00000001-1-0000abcd/state.json");
            Write($"{name}/step-00000001-1-0000abcd/manifest.json");
            Write($"{name}/step-00000002-9-0000abcd/half.json");
            Write($"{name}/lease.json");
        }

        Write("step-00000001-1-0000abcd/state.json");
        Write("run/mine.txt");
        Write("run/notes/step-00000001-1-0000abcd");
        Write("run/step-00000003-1-0badcafe/half.json");
        string[] before = [.. Files().Where(path => !path.Contains("0badcafe", StringComparison.Ordinal))];
        Checkpoint old = await SaveAsync(1);
        Checkpoint newest = await SaveAsync(2);

        await Store().RemoveUnfinishedAsync(Cancellation);
        await Store().ApplyRetentionAsync(1, newest, Cancellation);

        Assert.Equal([.. before.Append($"run/{newest.Name}/manifest.json").Append($"run/{newest.Name}/state.json").Order(StringComparer.Ordinal)], Files());
        Assert.False(Directory.Exists(folder.File($"root/run/{old.Name}")));
        Assert.Equal(1, await Store().HighestEpochAsync(Cancellation));
        Assert.Equal([newest.Name], (await Store().ListAsync(told.Add, Cancellation)).Select(item => item.Name));
        Assert.Empty(told);

        void Write(string key)
        {
            Directory.CreateDirectory(Path.GetDirectoryName(folder.File($"root/{key}"))!);
            File.WriteAllText(folder.File($"root/{key}"), "x");
        }

        string[] Files() => [.. Directory.EnumerateFiles(folder.File("root"), "*", SearchOption.AllDirectories).Select(path => Path.GetRelativePath(folder.File("root"), path)).Order(StringComparer.Ordinal)];
    }

    /// <summary>What was begun and has no manifest goes; what has one stays, damaged or not.</summary>
    [Fact]
    public async Task RemoveUnfinished_TakesOnlyWhatHasNoManifest()
    {
        Checkpoint whole = await SaveAsync(2), damaged = await SaveAsync(4), begun = await SaveAsync(6), torn = await SaveAsync(8);
        File.Delete(folder.File($"root/run/{damaged.Name}/state.json"));
        File.Delete(ManifestOf(begun));
        File.WriteAllText(ManifestOf(torn), "{");

        await Store().RemoveUnfinishedAsync(Cancellation);

        Assert.Equal([whole.Name, damaged.Name, torn.Name], Directory.EnumerateDirectories(folder.File("root/run")).Select(path => Path.GetFileName(path)!).Order(StringComparer.Ordinal));
        Assert.Equal(whole.Name, (await FindAsync())!.Name);
    }

    private async Task<Checkpoint> SaveAfterAsync(Checkpoint origin, int step, int epoch)
    {
        string files = folder.File("files");
        Directory.CreateDirectory(files);
        File.WriteAllText(Path.Combine(files, "state.json"), $"state of step {step}");
        CheckpointStore store = Store(epoch);
        store.ContinueFrom(origin);
        return await store.SaveAsync(step, files, cancellation: Cancellation);
    }
}
