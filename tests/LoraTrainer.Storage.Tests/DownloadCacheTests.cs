using System.Collections.Concurrent;
using System.Security.Cryptography;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Storage.Tests;

/// <summary>Files of web addresses and of stores, kept and checked.</summary>
public sealed class DownloadCacheTests : IAsyncDisposable
{
    private static readonly HttpPatience Impatient = new() { Silence = TimeSpan.FromSeconds(2), Failures = TimeSpan.FromSeconds(3), FirstDelay = TimeSpan.FromMilliseconds(20) };

    private readonly TemporaryFolder folder = new();
    private readonly HubServer server = new();
    private readonly ConcurrentQueue<string> told = [];
    private readonly byte[] content = [.. Enumerable.Range(0, 200_000).Select(i => (byte)(i * 7))];

    public DownloadCacheTests() => server.Plain["/data/train.jsonl"] = content;

    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    private string Address => $"{server.Address}/data/train.jsonl";

    public async ValueTask DisposeAsync()
    {
        await server.DisposeAsync();
        folder.Dispose();
    }

    [Fact]
    public async Task Fetch_Address_IsKeptUnderItsName()
    {
        string file = await FetchAsync(Address + "?key=secret-in-address");
        Assert.Equal(content, await File.ReadAllBytesAsync(file, Stop));
        Assert.Equal("train.jsonl", Path.GetFileName(file));
        Assert.All(told, line => Assert.DoesNotContain("secret-in-address", line, StringComparison.Ordinal));
        Assert.DoesNotContain("secret-in-address", await File.ReadAllTextAsync(Path.Combine(Path.GetDirectoryName(file)!, "entry.json"), Stop), StringComparison.Ordinal);
        Assert.Equal(2, Directory.GetFiles(Path.GetDirectoryName(file)!).Length);
    }

    [Fact]
    public async Task Fetch_Unchanged_IsAskedForAndNotFetched()
    {
        string file = await FetchAsync(Address);
        DateTime written = File.GetLastWriteTimeUtc(file);
        server.Fail("train.jsonl", new HubFault.Status(304));
        Assert.Equal(file, await FetchAsync(Address));
        Assert.Equal(written, File.GetLastWriteTimeUtc(file));
        Assert.Equal(2, server.Requests.Count);
    }

    [Fact]
    public async Task Fetch_Changed_IsFetchedAnew()
    {
        await FetchAsync(Address);
        server.Plain["/data/train.jsonl"] = content[..500];
        Assert.Equal(500, new FileInfo(await FetchAsync(Address)).Length);
    }

    [Fact]
    public async Task Fetch_Cut_GoesOnForTheSameContentOnly()
    {
        server.Fail("train.jsonl", new HubFault.Cut(100_000));
        string file = await FetchAsync(Address);
        Assert.Equal(content, await File.ReadAllBytesAsync(file, Stop));
        Assert.Equal("bytes=100000-", server.Requests.Last().Range);
        Assert.NotNull(server.Requests.Last().IfRange);
    }

    /// <summary>A process gave up in the middle; the content at the server is another one when the next process comes.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task Fetch_NextProcess_GoesOnUnlessTheContentChanged(bool changes)
    {
        server.Fail("train.jsonl", [new HubFault.Cut(100_000), .. Enumerable.Repeat(new HubFault.Status(403), 1)]);
        await Assert.ThrowsAsync<StoreException>(() => FetchAsync(Address));
        byte[] now = changes ? [.. content.Select(value => (byte)(value + 1))] : content;
        server.Plain["/data/train.jsonl"] = now;
        Assert.Equal(now, await File.ReadAllBytesAsync(await FetchAsync(Address), Stop));
        Assert.Equal("bytes=100000-", server.Requests.Last().Range);
    }

    [Fact]
    public async Task Fetch_Checksum_IsCheckedAndSparesTheNetwork()
    {
        string right = $"{Address}#sha256={Convert.ToHexString(SHA256.HashData(content))}";
        string file = await FetchAsync(right);
        Assert.Equal(file, await FetchAsync(right));
        Assert.Single(server.Requests);
        IOException failure = await Assert.ThrowsAnyAsync<IOException>(() => FetchAsync($"{Address}#sha256={new string('0', 64)}"));
        Assert.Contains("another checksum", failure.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Fetch_ServerIsAway_UsesWhatWasFetchedBefore()
    {
        string file = await FetchAsync(Address);
        server.Fail("train.jsonl", [.. Enumerable.Repeat(new HubFault.Status(502), 1000)]);
        Assert.Equal(file, await FetchAsync(Address));
        Assert.Contains(told, line => line.Contains("what was fetched before is used", StringComparison.Ordinal));
    }

    [Fact]
    public async Task Fetch_NotThere_SaysSo()
    {
        StoreException failure = await Assert.ThrowsAsync<StoreException>(() => FetchAsync($"{server.Address}/not/there.jsonl"));
        Assert.Contains("cannot be fetched: the server answered 404", failure.Message, StringComparison.Ordinal);
        failure = await Assert.ThrowsAsync<StoreException>(() => FetchAsync("http://127.0.0.1:1/x.jsonl"));
        Assert.Contains("the connection was refused", failure.Message, StringComparison.Ordinal);
        failure = await Assert.ThrowsAsync<StoreException>(() => FetchAsync("http://user:secret@host/x.jsonl"));
        Assert.DoesNotContain("secret", failure.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Fetch_ManyAtOnce_FetchOnce()
    {
        string right = $"{Address}#sha256={Convert.ToHexString(SHA256.HashData(content))}";
        string[] files = await Task.WhenAll(Enumerable.Range(0, 6).Select(_ => FetchAsync(right)));
        Assert.Single(files.Distinct());
        Assert.Single(server.Requests);
    }

    /// <summary>A folder stands for the bucket: stores have one interface.</summary>
    [Theory]
    [InlineData("s3://bucket/data/a.jsonl", "data/a.jsonl")]
    [InlineData("s3://bucket/data/?region=eu-west-1", "data/a.jsonl data/b.csv data/x/c.jsonl")]
    [InlineData("s3://bucket/data/*.jsonl", "data/a.jsonl")]
    [InlineData("s3://bucket/**/*.jsonl", "data/a.jsonl data/x/c.jsonl other/d.jsonl")]
    public async Task Fetch_Objects_ByKeyPrefixAndPattern(string address, string keys)
    {
        await using IObjectStore bucket = await BucketAsync();
        using var cache = new DownloadCache(folder.File("cache"), told.Enqueue, Impatient, null) { OpenStore = uri => Opened(uri) };
        IReadOnlyList<string> files = await cache.FetchAsync(address, Stop);
        Assert.Equal(keys.Split(' '), files.Select(File.ReadAllText));
        Assert.Equal(keys.Split(' ').Select(Path.GetFileName), files.Select(Path.GetFileName));
    }

    [Fact]
    public async Task Fetch_Object_IsFetchedAgainOnlyIfItChanged()
    {
        await using IObjectStore bucket = await BucketAsync();
        using var cache = new DownloadCache(folder.File("cache"), told.Enqueue, Impatient, null) { OpenStore = uri => Opened(uri) };
        string file = Assert.Single(await cache.FetchAsync("s3://bucket/data/a.jsonl", Stop));
        DateTime written = File.GetLastWriteTimeUtc(file);
        await cache.FetchAsync("s3://bucket/data/a.jsonl", Stop);
        Assert.Equal(written, File.GetLastWriteTimeUtc(file));
        using var other = new MemoryStream("changed"u8.ToArray());
        await bucket.PutAsync("data/a.jsonl", other, cancellation: Stop);
        Assert.Equal("changed", await File.ReadAllTextAsync(Assert.Single(await cache.FetchAsync("s3://bucket/data/a.jsonl", Stop)), Stop));
        Assert.Contains("no object of that name, and none below it", (await Assert.ThrowsAsync<StoreException>(() => cache.FetchAsync("s3://bucket/gone", Stop))).Message, StringComparison.Ordinal);
        Assert.Contains("names a bucket", (await Assert.ThrowsAsync<StoreException>(() => cache.FetchAsync("s3://bucket", Stop))).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("data/*.json", "data/a.json:true data/b.json:true data/.c.json:false data/x/a.json:false data/a.jsonl:false")]
    [InlineData("data/**/*.json", "data/a.json:true data/x/y/a.json:true data/.x/a.json:false other/a.json:false")]
    [InlineData("data/**", "data/a:true data/x/b.c:true data:false")]
    [InlineData("d?ta/[a-c]_[!0].txt", "data/b_1.txt:true data/b_0.txt:false data/d_1.txt:false dta/b_1.txt:false")]
    [InlineData("data/train-*-of-*.parquet", "data/train-00000-of-00001.parquet:true data/test-00000-of-00001.parquet:false")]
    [InlineData("a+(b)/*.x", "a+(b)/1.x:true aab/1.x:false")]
    [InlineData("a/[", "a/[:true a/b:false")]
    public void Glob_Pattern_MatchesAsInAShell(string pattern, string cases)
    {
        var glob = new GlobPattern(pattern);
        Assert.Equal(cases, string.Join(' ', cases.Split(' ').Select(item => item[..item.IndexOf(':', StringComparison.Ordinal)]).Select(path => $"{path}:{(glob.IsMatch(path) ? "true" : "false")}")));
    }

    private FolderStore Opened(string uri)
    {
        Assert.StartsWith("s3://bucket", uri, StringComparison.Ordinal);
        return new FolderStore(folder.File("bucket"));
    }

    /// <summary>Objects whose contents are their keys.</summary>
    private async Task<IObjectStore> BucketAsync()
    {
        FolderStore bucket = Opened("s3://bucket");
        foreach (string key in new[] { "data/a.jsonl", "data/b.csv", "data/x/c.jsonl", "other/d.jsonl" })
        {
            using var written = new MemoryStream(System.Text.Encoding.UTF8.GetBytes(key));
            await bucket.PutAsync(key, written, cancellation: Stop);
        }

        return bucket;
    }

    private async Task<string> FetchAsync(string address)
    {
        using var cache = new DownloadCache(folder.File("cache"), told.Enqueue, Impatient, null);
        return Assert.Single(await cache.FetchAsync(address, Stop));
    }
}
