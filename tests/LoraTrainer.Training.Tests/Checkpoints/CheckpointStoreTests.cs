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
}
