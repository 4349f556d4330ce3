using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Storage.Tests;

/// <summary>Data from a real S3 server.</summary>
[Collection(S3Tests.Name)]
[Trait("Category", "S3")]
public sealed class S3DownloadTests : IDisposable
{
    private readonly TemporaryFolder folder = new();
    private readonly S3Server server;
    private readonly string prefix = $"downloads/{Guid.NewGuid():N}";

    public S3DownloadTests(S3Server server)
    {
        this.server = server;
        server.Require(ownServer: false);
    }

    public void Dispose() => folder.Dispose();

    [Fact]
    public async Task Fetch_ObjectPrefixAndPattern_KeepsThemUntilTheyChange()
    {
        CancellationToken stop = TestContext.Current.CancellationToken;
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix));
        await PutAsync(store, "data/a.jsonl", "a", stop);
        await PutAsync(store, "data/x/b.csv", "b", stop);
        using var cache = new DownloadCache(folder.File("cache"));

        Assert.Equal("a", await TextAsync("data/a.jsonl"));
        Assert.Equal("a|b", await TextAsync("data"));
        Assert.Equal("b", await TextAsync("data/**/*.csv"));
        await PutAsync(store, "data/a.jsonl", "changed", stop);
        Assert.Equal("changed|b", await TextAsync("data"));
        Assert.Equal(StoreProblem.Missing, (await Assert.ThrowsAsync<StoreException>(() => TextAsync("nothing"))).Problem);

        async Task<string> TextAsync(string key) => string.Join('|', (await cache.FetchAsync(ObjectStore.Append(server.Uri(prefix), key), stop)).Select(File.ReadAllText));
    }

    private static async Task PutAsync(IObjectStore store, string key, string text, CancellationToken stop)
    {
        using var content = new MemoryStream(System.Text.Encoding.UTF8.GetBytes(text));
        await store.PutAsync(key, content, cancellation: stop);
    }
}
