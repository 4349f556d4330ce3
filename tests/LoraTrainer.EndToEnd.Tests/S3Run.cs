using System.Globalization;
using Amazon.S3;
using Amazon.S3.Model;
using LoraTrainer.Storage;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Checkpoints;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>The tests that share the real S3 server; one after the other.</summary>
[CollectionDefinition(Name)]
public sealed class S3Runs : ICollectionFixture<S3Server>
{
    public const string Name = "runs in S3";
}

/// <summary>A tiny run whose checkpoints lie in a real S3 server, behind a proxy that can break the connections. Its local folder can be lost.</summary>
internal sealed class S3Run : IAsyncDisposable
{
    private readonly S3Server server;
    private readonly (string Key, object? Value)[] changes;
    private readonly string options;
    private readonly double leaseSeconds;
    private readonly string saves;
    private string prefix = string.Empty;

    /// <param name="server">Runs.</param>
    /// <param name="changes">To the config.</param>
    /// <param name="options">Of the store: <c>&amp;name=value</c>.</param>
    /// <param name="leaseSeconds">Of the lease.</param>
    /// <param name="saves">More keys of <c>checkpoint</c>, in YAML.</param>
    public S3Run(S3Server server, (string Key, object? Value)[] changes, string options = "", double leaseSeconds = 5, string saves = "every_steps: 2, keep: 2")
    {
        this.server = server;
        this.changes = changes;
        this.options = options;
        this.leaseSeconds = leaseSeconds;
        this.saves = saves;
        Folder = new TinyFolder(changes: changes);
        Proxy = new FaultProxy(server.Port);
        StartAnew();
    }

    public TinyFolder Folder { get; }

    public FaultProxy Proxy { get; }

    /// <summary>The run as it is named to <c>resume</c>.</summary>
    public string Uri => server.Uri($"{prefix}/tiny", options, Proxy.Port);

    /// <summary>Of the keys in the bucket.</summary>
    public string Prefix => prefix;

    public static string[] Train { get; } = ["train", "tiny.yaml"];

    public string[] Resume => ["resume", Uri];

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    /// <summary>Another run: a new place in the bucket, and nothing of the old one here.</summary>
    public void StartAnew()
    {
        prefix = $"runs/{Guid.NewGuid():N}";
        LoseDisk();
        File.WriteAllText(Folder.PathOf("tiny.yaml"), TinyRun.Config("", [.. changes, ("checkpoint", Checkpoint(Proxy.Port))]));
    }

    /// <summary>The <c>checkpoint</c> of the config, by another way to the same place.</summary>
    public string Checkpoint(int port) => string.Create(CultureInfo.InvariantCulture, $"{{{saves}, lease_seconds: {leaseSeconds}, uri: '{server.Uri(prefix, options, port)}'}}");

    /// <summary>All that the machine had of the run is gone; config, base and data are there as on a new one.</summary>
    public void LoseDisk()
    {
        if (Directory.Exists(Folder.Out))
        {
            Directory.Delete(Folder.Out, recursive: true);
        }
    }

    /// <summary>What a user does next: the store knows the run, or only the folder here does, or it was killed before it was one.</summary>
    public async Task<string[]> NextAsync()
    {
        await using IObjectStore store = Open();
        return await store.ExistsAsync("tiny/config.resolved.yaml", Cancellation) ? Resume
            : File.Exists(Folder.PathOf("out/config.resolved.yaml")) ? ["resume", "out"]
            : Train;
    }

    /// <summary>As <see cref="TinyFolder.Result"/>, with the optimizer's moments from the store.</summary>
    public async Task<Dictionary<string, string>> ResultAsync()
    {
        string copy = Folder.PathOf("copy/step-newest");
        Directory.CreateDirectory(copy);
        await using IObjectStore store = Open();
        var checkpoints = new CheckpointStore(store, "tiny", TimeProvider.System);
        await checkpoints.DownloadAsync((await ChosenAsync())!, copy, Cancellation);
        File.WriteAllText(Path.Combine(copy, "manifest.json"), string.Empty);
        Dictionary<string, string> result = Folder.Result(checkpoints: Folder.PathOf("copy"));
        Directory.Delete(Folder.PathOf("copy"), recursive: true);
        return result;
    }

    /// <summary>The checkpoint that a machine would go on from; null where there is none.</summary>
    public async Task<Checkpoint?> ChosenAsync()
    {
        await using IObjectStore store = Open();
        return await new CheckpointStore(store, "tiny", TimeProvider.System).FindNewestIntactAsync(_ => { }, Cancellation);
    }

    public async Task<string[]> KeysAsync()
    {
        await using IObjectStore store = Open();
        return [.. (await store.ListAsync("tiny/", Cancellation)).Select(item => item.Key["tiny/".Length..])];
    }

    /// <summary>Of killed processes nothing remains: no half checkpoint, no unfinished upload, no probe, no staging folder.</summary>
    public async Task AssertNothingIsLeftOverAsync()
    {
        string[] keys = await KeysAsync();
        string[] checkpoints = [.. keys.Where(key => key.StartsWith("step-", StringComparison.Ordinal)).Select(key => key.Split('/')[0]).Distinct()];
        Assert.Equal(2, checkpoints.Length);
        Assert.All(checkpoints, name => Assert.Contains($"{name}/manifest.json", keys));
        Assert.All(keys, key => Assert.Matches(@"^(step-\d{8}-\d+-[0-9a-f]{8}/[a-z_.]+\.(json|jsonl|safetensors|yaml|txt)|attempts/\d+\.json|config\.resolved\.yaml|lease\.json)$", key));
        using AmazonS3Client client = server.Client();
        ListMultipartUploadsResponse uploads = await client.ListMultipartUploadsAsync(new ListMultipartUploadsRequest { BucketName = S3Server.Bucket, Prefix = prefix }, Cancellation);
        Assert.Equal(0, uploads.MultipartUploads?.Count ?? 0);
        Assert.DoesNotContain(Directory.EnumerateFileSystemEntries(Folder.Out, ".*"), path => Path.GetFileName(path) != ".lock");
    }

    public async ValueTask DisposeAsync()
    {
        await Proxy.DisposeAsync();
        Folder.Dispose();
    }

    private IObjectStore Open() => ObjectStore.Open(server.Uri(prefix, options));
}
