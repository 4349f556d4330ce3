using System.Collections.Concurrent;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Storage.Tests;

/// <summary>The hub's client against a server of the hub's interface on loopback, with everything that goes wrong on the way.</summary>
public sealed class HubTests : IAsyncDisposable
{
    private const string Name = "org/tiny-model";

    private static readonly HttpPatience Impatient = new() { Silence = TimeSpan.FromSeconds(2), Failures = TimeSpan.FromSeconds(4), FirstDelay = TimeSpan.FromMilliseconds(20) };

    private readonly TemporaryFolder folder = new();
    private readonly HubServer server = new();
    private readonly ConcurrentQueue<string> told = [];

    private readonly Dictionary<string, byte[]> files = new(StringComparer.Ordinal)
    {
        ["config.json"] = "{\"a\":1}"u8.ToArray(),
        ["model.safetensors"] = Bytes(300_000),
        ["sub/extra file.txt"] = "x"u8.ToArray(),
    };

    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    private string Cache => folder.File("hub");

    public async ValueTask DisposeAsync()
    {
        await server.DisposeAsync();
        folder.Dispose();
    }

    [Fact]
    public async Task Fetch_Files_LieAsPythonKeepsThem()
    {
        string commit = server.Add("models/" + Name, files);
        HubSnapshot snapshot = await FetchAllAsync();

        string repository = Path.Combine(Cache, "models--org--tiny-model");
        Assert.Equal((commit, Path.Combine(repository, "snapshots", commit)), (snapshot.Commit, snapshot.Folder));
        Assert.Equal(commit, await File.ReadAllTextAsync(Path.Combine(repository, "refs", "main"), Stop));
        Assert.All(files, file => Assert.Equal(file.Value, File.ReadAllBytes(snapshot.PathOf(file.Key))));
        string weights = Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(files["model.safetensors"]));
        Assert.Equal($"../../blobs/{weights}", new FileInfo(snapshot.PathOf("model.safetensors")).LinkTarget);
        Assert.StartsWith("../../../blobs/", new FileInfo(snapshot.PathOf("sub/extra file.txt")).LinkTarget, StringComparison.Ordinal);
        Assert.Equal([.. new[] { weights }], Directory.GetFiles(Path.Combine(repository, "blobs")).Select(Path.GetFileName).Where(name => name!.Length == 64));
        Assert.DoesNotContain(Directory.EnumerateFiles(Cache, "*", SearchOption.AllDirectories), file => file.EndsWith(".incomplete", StringComparison.Ordinal) || file.EndsWith(".tmp", StringComparison.Ordinal));
        Assert.StartsWith("Fetching org/tiny-model: 3 files, 300 kB", told.First(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Fetch_WhatIsHere_IsNotFetchedAgain()
    {
        server.Add("models/" + Name, files);
        await FetchAllAsync();
        int before = server.Requests.Count + server.OtherRequests.Count;
        await FetchAllAsync();
        Assert.Equal(before + 1, server.Requests.Count + server.OtherRequests.Count);
    }

    /// <summary>The token is for the hub; the host that large files come from must not see it.</summary>
    [Fact]
    public async Task Fetch_RedirectToAnotherHost_DoesNotGetTheToken()
    {
        server.Add("models/" + Name, files, access: "private");
        await FetchAllAsync(token: server.Token);
        Assert.All(server.Requests, request => Assert.Equal($"Bearer {server.Token}", request.Authorization));
        Assert.NotEmpty(server.OtherRequests);
        Assert.All(server.OtherRequests, request => Assert.Null(request.Authorization));
        Assert.All(told, line => Assert.DoesNotContain(server.Token, line, StringComparison.Ordinal));
        Assert.All(told, line => Assert.DoesNotContain("signature", line, StringComparison.Ordinal));
    }

    [Fact]
    public async Task Fetch_ConnectionCut_GoesOnWhereItWas()
    {
        server.Add("models/" + Name, files);
        server.Fail("model.safetensors", new HubFault.Cut(100_000), new HubFault.Cut(50_000));
        await FetchAllAsync();
        Assert.Equal("all|bytes=100000-|bytes=150000-", string.Join('|', server.OtherRequests.Select(request => request.Range ?? "all")));
    }

    [Fact]
    public async Task Fetch_NextProcess_GoesOnWhereTheLastOneStopped()
    {
        server.Add("models/" + Name, files);
        string hash = Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(files["model.safetensors"]));
        string blobs = Path.Combine(Cache, "models--org--tiny-model", "blobs");
        Directory.CreateDirectory(blobs);
        await File.WriteAllBytesAsync(Path.Combine(blobs, hash + ".incomplete"), files["model.safetensors"][..123_456], Stop);
        await FetchAllAsync();
        Assert.Equal("bytes=123456-", Assert.Single(server.OtherRequests).Range);
        Assert.Contains("123.5 kB of it here already", told.First(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Fetch_WrongBeginningFromBefore_IsThrownAway()
    {
        server.Add("models/" + Name, files);
        string hash = Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(files["model.safetensors"]));
        string blobs = Path.Combine(Cache, "models--org--tiny-model", "blobs");
        Directory.CreateDirectory(blobs);
        await File.WriteAllBytesAsync(Path.Combine(blobs, hash + ".incomplete"), Bytes(1000, seed: 9), Stop);
        HubSnapshot snapshot = await FetchAllAsync();
        Assert.Equal(files["model.safetensors"], await File.ReadAllBytesAsync(snapshot.PathOf("model.safetensors"), Stop));
        Assert.Equal("bytes=1000-|all", string.Join('|', server.OtherRequests.Select(request => request.Range ?? "all")));
    }

    [Fact]
    public async Task Fetch_TooManyRequests_WaitsAsLongAsAsked()
    {
        server.Add("models/" + Name, files);
        server.Fail("model.safetensors", new HubFault.Status(429, ("Retry-After", "1")), new HubFault.Status(503));
        server.Fail("revision/main", new HubFault.Status(429, ("Retry-After", "0")));
        long start = System.Diagnostics.Stopwatch.GetTimestamp();
        await FetchAllAsync();
        Assert.InRange(System.Diagnostics.Stopwatch.GetElapsedTime(start).TotalSeconds, 0.9, 60);
        Assert.Equal(3, server.OtherRequests.Count);
    }

    [Theory]
    [InlineData("model.safetensors")]
    [InlineData("config.json")]
    public async Task Fetch_WrongContent_IsNoticedByItsChecksum(string file)
    {
        server.Add("models/" + Name, files);
        server.Fail(file, new HubFault.Wrong());
        HubSnapshot snapshot = await FetchAllAsync();
        Assert.Equal(files[file], await File.ReadAllBytesAsync(snapshot.PathOf(file), Stop));
    }

    [Fact]
    public async Task Fetch_AlwaysWrong_IsAnErrorAndLeavesNothing()
    {
        server.Add("models/" + Name, files);
        server.Fail("model.safetensors", new HubFault.Wrong(), new HubFault.Wrong());
        IOException failure = await Assert.ThrowsAnyAsync<IOException>(() => FetchAllAsync());
        Assert.Contains("another checksum than was promised, twice", failure.Message, StringComparison.Ordinal);
        Assert.DoesNotContain(Directory.EnumerateFiles(Cache, "*", SearchOption.AllDirectories), path => path.Contains("model.safetensors", StringComparison.Ordinal) || path.EndsWith(".incomplete", StringComparison.Ordinal));
    }

    [Fact]
    public async Task Fetch_ServerThatHangs_IsGivenUp()
    {
        server.Add("models/" + Name, files);
        server.Fail("model.safetensors", [.. Enumerable.Repeat(new HubFault.Hang(), 20)]);
        StoreException failure = await Assert.ThrowsAsync<StoreException>(() => FetchAllAsync());
        Assert.Equal(StoreProblem.Unreachable, failure.Problem);
        Assert.Contains("model.safetensors of org/tiny-model", failure.Message, StringComparison.Ordinal);
        Assert.Contains("nothing came for 2 s", failure.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Fetch_ManyAtOnce_FetchEachFileOnce()
    {
        server.Add("models/" + Name, files);
        server.Fail("model.safetensors", new HubFault.Cut(10), new HubFault.Cut(10));
        await Task.WhenAll(Enumerable.Range(0, 5).Select(_ => FetchAllAsync()));
        Assert.Equal(3, server.OtherRequests.Count);
        Assert.Single(server.Requests, request => request.Target.EndsWith("config.json", StringComparison.Ordinal));
    }

    /// <summary>The kernel's own answer of a full disk, in the middle of a file.</summary>
    [Fact]
    public async Task Fetch_FullDisk_SaysSo()
    {
        server.Add("models/" + Name, files);
        string hash = Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(files["model.safetensors"]));
        string blobs = Path.Combine(Cache, "models--org--tiny-model", "blobs");
        Directory.CreateDirectory(blobs);
        File.CreateSymbolicLink(Path.Combine(blobs, hash + ".incomplete"), "/dev/full");
        StoreException failure = await Assert.ThrowsAsync<StoreException>(() => FetchAllAsync());
        Assert.Equal(StoreProblem.Full, failure.Problem);
        Assert.Contains("the disk is full", failure.Message, StringComparison.Ordinal);
        Assert.Contains("HF_HUB_CACHE", failure.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Fetch_TooLittleSpace_IsRefusedBeforeAnyByte()
    {
        server.Add("models/" + Name, files);
        using var hub = new Hub(Settings(), told.Enqueue, Impatient, null) { FreeBytes = _ => 299_999 };
        HubSnapshot snapshot = await hub.OpenAsync(new HubRepository(HubKind.Model, Name), Stop);
        StoreException failure = await Assert.ThrowsAsync<StoreException>(() => snapshot.FetchAsync([.. files.Keys], Stop));
        Assert.StartsWith("org/tiny-model needs 300 kB and there are 300 kB on the disk", failure.Message, StringComparison.Ordinal);
        Assert.Empty(server.OtherRequests);
    }

    [Theory]
    [InlineData("gated", null, StoreProblem.Credentials, "is gated: its owner gives it to those who accept the terms")]
    [InlineData("gated", "hf_another", StoreProblem.Denied, "is gated, and the account of your token has no access")]
    [InlineData("private", null, StoreProblem.Missing, "has no model named org/tiny-model, or it is private (then set HF_TOKEN). If you meant a folder of this machine")]
    [InlineData("private", "hf_another", StoreProblem.Missing, "has no model named org/tiny-model, or your token may not read it")]
    public async Task Fetch_Refused_SaysWhatToDo(string access, string? token, StoreProblem problem, string words)
    {
        server.Add("models/" + Name, files, access);
        StoreException failure = await Assert.ThrowsAsync<StoreException>(() => FetchAllAsync(token));
        Assert.Equal(problem, failure.Problem);
        Assert.Contains(words, failure.Message, StringComparison.Ordinal);
        Assert.DoesNotContain("hf_another", failure.ToString(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Open_UnknownRevision_SaysSo()
    {
        server.Add("models/" + Name, files);
        StoreException failure = await Assert.ThrowsAsync<StoreException>(() => FetchAllAsync(revision: "v9"));
        Assert.Contains("org/tiny-model has no revision 'v9'", failure.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Open_OtherRevision_HasItsOwnSnapshot()
    {
        server.Add("models/" + Name, files);
        string old = server.Add("models/" + Name, new Dictionary<string, byte[]> { ["config.json"] = "{}"u8.ToArray() }, branch: "refs/pr/1");
        HubSnapshot snapshot = await FetchAllAsync(revision: "refs/pr/1", paths: ["config.json"]);
        Assert.Equal("{}", await File.ReadAllTextAsync(snapshot.PathOf("config.json"), Stop));
        Assert.Equal(old, await File.ReadAllTextAsync(Path.Combine(Cache, "models--org--tiny-model", "refs", "refs", "pr", "1"), Stop));
    }

    [Fact]
    public async Task Open_Offline_TakesWhatWasFetched()
    {
        server.Add("models/" + Name, files);
        StoreException missing = await Assert.ThrowsAsync<StoreException>(() => FetchAllAsync(offline: true));
        Assert.Contains("HF_HUB_OFFLINE", missing.Message, StringComparison.Ordinal);
        await FetchAllAsync(paths: ["config.json"]);
        int before = server.Requests.Count;
        HubSnapshot snapshot = await FetchAllAsync(offline: true, paths: ["config.json"]);
        Assert.True(snapshot.IsCachedOnly);
        Assert.Equal(["config.json"], snapshot.Files.Select(file => file.Path));
        StoreException partly = await Assert.ThrowsAsync<StoreException>(() => FetchAllAsync(offline: true));
        Assert.Contains("model.safetensors, sub/extra file.txt are not in the cache", partly.Message, StringComparison.Ordinal);
        Assert.Equal(before, server.Requests.Count);
    }

    [Fact]
    public async Task Open_HubIsAway_TakesWhatWasFetchedAndSaysSo()
    {
        server.Add("models/" + Name, files);
        await FetchAllAsync();
        server.Fail("revision/main", [.. Enumerable.Repeat(new HubFault.Status(503), 100)]);
        HubSnapshot snapshot = await FetchAllAsync();
        Assert.True(snapshot.IsCachedOnly);
        Assert.Contains(told, line => line.Contains("does not answer (the server answered 503", StringComparison.Ordinal) && line.Contains("taken from the cache", StringComparison.Ordinal));
    }

    [Fact]
    public async Task Fetch_MirrorWithoutHashes_AsksForThemAndChecksThem()
    {
        server.TellsNoHashes = true;
        server.Add("models/" + Name, files);
        server.Fail("model.safetensors", new HubFault.Wrong());
        HubSnapshot snapshot = await FetchAllAsync();
        Assert.All(files, file => Assert.Equal(file.Value, File.ReadAllBytes(snapshot.PathOf(file.Key))));
        Assert.Equal(2, server.OtherRequests.Count(request => request.Method == "GET"));
    }

    /// <summary>A list from a hostile server must not name files outside the cache.</summary>
    [Fact]
    public async Task Open_PathsThatLeaveTheFolder_AreNotFiles()
    {
        server.Add("models/" + Name, new Dictionary<string, byte[]> { ["../../evil"] = [1], ["/etc/evil"] = [1], ["a/../../b"] = [1], ["ok.json"] = "{}"u8.ToArray(), ["a\\b"] = [1] });
        HubSnapshot snapshot = await FetchAllAsync(paths: []);
        Assert.Equal(["ok.json"], snapshot.Files.Select(file => file.Path));
    }

    [Theory]
    [InlineData("meta-llama/Llama-3.2-1B", true)]
    [InlineData("HuggingFaceTB/SmolLM2-135M", true)]
    [InlineData("gpt2", false)]
    [InlineData("./models/x", false)]
    [InlineData("../x", false)]
    [InlineData("/data/x", false)]
    [InlineData("~/x", false)]
    [InlineData("a/b/c", false)]
    [InlineData("s3://bucket/x", false)]
    [InlineData("a/..", false)]
    [InlineData("a/b--c", false)]
    [InlineData("a/b\n", false)]
    public void IsName_Text_IsToldFromPaths(string text, bool expected) => Assert.Equal(expected, HubRepository.IsName(text));

    [Fact]
    public void Settings_Environment_AsPythonReadsIt()
    {
        HubSettings From(params (string, string)[] variables) => HubSettings.From(name => variables.FirstOrDefault(item => item.Item1 == name).Item2);

        Assert.Equal("https://huggingface.co, cache /home/u/.cache/huggingface/hub", From(("HOME", "/home/u")).ToString());
        Assert.Equal("https://huggingface.co, cache /x/huggingface/hub", From(("HOME", "/home/u"), ("XDG_CACHE_HOME", "/x")).ToString());
        Assert.Equal("http://mirror/hf, cache /home/u/h/hub, offline", From(("HOME", "/home/u"), ("HF_HOME", "~/h"), ("HF_ENDPOINT", "http://mirror/hf/"), ("HF_HUB_OFFLINE", "yes")).ToString());
        Assert.Equal("/c", From(("HOME", "/home/u"), ("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")).CacheFolder);
        Directory.CreateDirectory(folder.File("home"));
        File.WriteAllText(folder.File("home/token"), " hf_file\n");
        Assert.Equal("hf_file", From(("HF_HOME", folder.File("home"))).Token);
        Assert.Equal("hf_given", From(("HF_HOME", folder.File("home")), ("HF_TOKEN", "hf_given")).Token);
        Assert.Null(From(("HF_HOME", folder.File("home")), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")).Token);
        Assert.DoesNotContain("hf_", From(("HF_HOME", folder.File("home"))).ToString(), StringComparison.Ordinal);
        Assert.Throws<StoreException>(() => From(("HF_ENDPOINT", "http://user:secret@mirror")));
    }

    private static byte[] Bytes(int count, byte seed = 1) => [.. Enumerable.Range(0, count).Select(i => (byte)((i * 31) + (i >> 8) + seed))];

    private HubSettings Settings(string? token = null, bool offline = false) => new(server.Address, Cache, token, offline);

    private async Task<HubSnapshot> FetchAllAsync(string? token = null, string revision = "main", bool offline = false, string[]? paths = null)
    {
        using var hub = new Hub(Settings(token, offline), told.Enqueue, Impatient, null);
        HubSnapshot snapshot = await hub.OpenAsync(new HubRepository(HubKind.Model, Name, revision), Stop);
        await snapshot.FetchAsync(paths ?? [.. files.Keys], Stop);
        return snapshot;
    }
}
