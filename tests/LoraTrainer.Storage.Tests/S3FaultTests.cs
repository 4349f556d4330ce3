using System.Diagnostics;
using System.Security.Cryptography;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Storage.Tests;

/// <summary>
/// Faults of the network, against a real server behind a proxy that makes them. Each ends with the right object or with an error that says what is
/// wrong; never with another object. Each test asserts that its fault was met.
/// </summary>
[Collection(S3Tests.Name)]
[Trait("Category", "S3")]
public sealed class S3FaultTests : IAsyncLifetime
{
    private const int Mib = 1 << 20;

    // Five parts of 5 MiB, the last one smaller.
    private const int LargeBytes = (22 * Mib) + 777;

    private const string Success = "success";

    private readonly S3Server server;
    private readonly S3FaultTable table;
    private readonly string prefix = $"faults/{Guid.NewGuid():N}";
    private readonly byte[] large = ObjectStoreContract.Bytes(LargeBytes, 3);
    private readonly byte[] small = ObjectStoreContract.Bytes(2 * Mib, 4);
    private FaultProxy? proxy;
    private IObjectStore? through;
    private IObjectStore? direct;

    public S3FaultTests(S3Server server, S3FaultTable table)
    {
        this.server = server;
        this.table = table;
        server.Require();
    }

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    private FaultProxy Proxy => proxy!;

    /// <summary>The store behind the proxy.</summary>
    private IObjectStore Through => through!;

    /// <summary>The same store without the proxy.</summary>
    private IObjectStore Direct => direct!;

    public ValueTask InitializeAsync()
    {
        proxy = new FaultProxy(server.Port);
        through = Behind("");
        direct = ObjectStore.Open(server.Uri(prefix, "&part_mib=5"));
        return ValueTask.CompletedTask;
    }

    public async ValueTask DisposeAsync()
    {
        if (through is not null)
        {
            await Through.DisposeAsync();
            await Direct.DisposeAsync();
            await Proxy.DisposeAsync();
        }
    }

    [Fact]
    public Task Refuse_ThreeTimes_IsTriedAgain() => table.Row("connection reset as soon as it is made, 3 times", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.Refuse) { Times = 3 })!;
        await PutAndCompare("a", small);
        Assert.Equal(3, fault.Hits);
        return Success;
    });

    [Fact]
    public Task Nothing_Listens_IsSaid() => table.Error("nothing listens on the port", StoreProblem.Unreachable, ["Nothing listens there", "tries", "endpoint="], async () =>
    {
        int port = Proxy.Port;
        await Proxy.DisposeAsync();
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, "&retry_seconds=1", port));
        await ObjectStoreContract.Put(store, "a", "x");
    });

    [Fact]
    public Task Host_Unknown_IsSaid() => table.Error("the host does not exist", StoreProblem.Unreachable, ["tries", "no-such-host.invalid"], async () =>
    {
        await using IObjectStore store = ObjectStore.Open($"s3://{S3Server.Bucket}/x?endpoint=http://no-such-host.invalid&profile={S3Profiles.Owner}&retry_seconds=1");
        await store.GetAsync("a", Cancellation);
    });

    [Fact]
    public Task SlowDown_ThreeTimes_IsTriedAgain() => table.Row("503 SlowDown, 3 times (answered by the proxy)", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.Answer) { Times = 3 })!;
        await PutAndCompare("a", small);
        Assert.Equal(3, fault.Hits);
        return Success;
    });

    [Fact]
    public Task SlowDown_ForEver_IsSaid() => table.Error("503 SlowDown for ever (answered by the proxy)", StoreProblem.Unreachable, ["503 SlowDown", "retry_seconds="], async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.Answer) { Times = int.MaxValue })!;
        await using IObjectStore store = Behind("&retry_seconds=1");
        try
        {
            await ObjectStoreContract.Put(store, "a", "x");
        }
        finally
        {
            Assert.InRange(fault.Hits, 2, 100);
        }
    });

    [Fact]
    public Task Conflict_IsTriedAgain() => table.Row("409 ConditionalRequestConflict, once (answered by the proxy)", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.Answer) { Status = 409, Code = "ConditionalRequestConflict" })!;
        Assert.NotNull(await ObjectStoreContract.Put(Through, "a", "x", PutCondition.IfAbsent));
        Assert.Equal(1, fault.Hits);
        return Success;
    });

    [Fact]
    public Task ExpiredToken_Once_IsRenewed() => table.Row("400 ExpiredToken, once (answered by the proxy)", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.Answer) { Status = 400, Code = "ExpiredToken" })!;
        await PutAndCompare("a", small);
        Assert.Equal(1, fault.Hits);
        return "success: the credentials are read again";
    });

    [Theory]
    [InlineData(400, "ExpiredToken", StoreProblem.Credentials, "has expired")]
    [InlineData(400, "KMS.DisabledException", StoreProblem.Denied, "kms_key=")]
    [InlineData(507, "InsufficientStorage", StoreProblem.Full, "space is used up")]
    [InlineData(301, "PermanentRedirect", StoreProblem.Unsupported, "region=")]
    [InlineData(403, "InvalidObjectState", StoreProblem.Unsupported, "restored")]
    public Task Answer_ForEver_IsSaid(int status, string code, StoreProblem problem, string words) => table.Error($"{status} {code} (answered by the proxy)", problem, [words], async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.Answer) { Status = status, Code = code, Times = int.MaxValue })!;
        try
        {
            await ObjectStoreContract.Put(Through, "a", "x");
        }
        finally
        {
            Assert.InRange(fault.Hits, 1, 2);
        }
    });

    [Fact]
    public Task CutUp_InAPut_IsSentAgain() => table.Row("connection reset after 1 MiB of a put", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.CutUp) { After = Mib })!;
        await PutAndCompare("a", small);
        Assert.Equal(1, fault.Hits);
        return Success;
    });

    [Fact]
    public Task CutUp_InAPart_OnlyMissingPartsAreSentAgain() => table.Row("connection reset in a part, twice", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.CutUp) { After = 4 * Mib, Times = 2 })!;
        await PutAndCompare("a", large);
        Assert.Equal(2, fault.Hits);
        Assert.InRange(Proxy.BytesUp, LargeBytes, LargeBytes + (11 * Mib));
        return "success, only the missing parts were sent again";
    });

    [Fact]
    public Task LoseAnswer_OfACreate_OwnWriteIsKnown() => table.Row("answer lost: put of a new object (If-None-Match)", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.LoseAnswer))!;
        string? version = await ObjectStoreContract.Put(Through, "a", "mine", PutCondition.IfAbsent);
        Assert.Equal(1, fault.Hits);
        Assert.NotNull(version);
        Assert.Null(await ObjectStoreContract.Put(Through, "a", "mine", PutCondition.IfAbsent));
        Assert.NotNull(await ObjectStoreContract.Put(Through, "a", "next", PutCondition.IfVersion(version)));
        return "success, known as the own write";
    });

    [Fact]
    public Task LoseAnswer_OfACreateThatIsTaken_IsNotTheOwn() => table.Row("answer lost: put of a new object that another made", async () =>
    {
        await ObjectStoreContract.Put(Direct, "a", "same content", PutCondition.IfAbsent);
        Fault fault = Proxy.Set(new Fault(FaultKind.LoseAnswer))!;
        Assert.Null(await ObjectStoreContract.Put(Through, "a", "same content", PutCondition.IfAbsent));
        Assert.Equal(1, fault.Hits);
        return "refused: it is the other's, although the content is the same";
    });

    [Fact]
    public Task LoseAnswer_OfASwap_OwnWriteIsKnown() => table.Row("answer lost: compare-and-swap (If-Match)", async () =>
    {
        string first = (await ObjectStoreContract.Put(Direct, "a", "1"))!;
        string second = (await ObjectStoreContract.Put(Through, "a", "2", PutCondition.IfVersion(first)))!;
        Fault fault = Proxy.Set(new Fault(FaultKind.LoseAnswer))!;
        string? third = await ObjectStoreContract.Put(Through, "a", "3", PutCondition.IfVersion(second));
        Assert.Equal(1, fault.Hits);
        Assert.NotNull(third);
        Assert.Null(await ObjectStoreContract.Put(Through, "a", "4", PutCondition.IfVersion(second)));
        Assert.Equal("3", await ObjectStoreContract.Get(Direct, "a"));
        return "success, known as the own write";
    });

    [Fact]
    public Task LoseAnswer_OfTheFirstSwap_OwnWriteIsKnown() => table.Row("answer lost: compare-and-swap, form of the tag not known yet", async () =>
    {
        string first = (await ObjectStoreContract.Put(Direct, "a", "1"))!;
        Fault fault = Proxy.Set(new Fault(FaultKind.LoseAnswer))!;
        Assert.NotNull(await ObjectStoreContract.Put(Through, "a", "2", PutCondition.IfVersion(first)));
        Assert.Equal(1, fault.Hits);
        Assert.Equal("2", await ObjectStoreContract.Get(Direct, "a"));
        return "success, known as the own write";
    });

    [Fact]
    public Task LoseAnswer_OfAPart_IsNotSentAgain() => table.Row("answer lost: a part", async () =>
    {
        // Set when the first part has arrived: the next answer is another part's.
        Fault? fault = null;
        long last = 0;
        await PutAndCompare("a", large, new Told(told =>
        {
            last = told;
            fault ??= Proxy.Set(new Fault(FaultKind.LoseAnswer));
        }));
        Assert.Equal(1, fault!.Hits);
        Assert.Equal(LargeBytes, last);
        Assert.InRange(Proxy.BytesUp, LargeBytes, LargeBytes + Mib);
        return "success, the part was not sent again";
    });

    [Fact]
    public Task LoseAnswer_OfTheCompletion_IsFoundDone() => table.Row("answer lost: completion of an object sent in parts", async () =>
    {
        Fault? fault = null;
        await PutAndCompare("a", large, new Told(told => fault ??= told == LargeBytes ? Proxy.Set(new Fault(FaultKind.LoseAnswer)) : null));
        Assert.Equal(1, fault!.Hits);
        Assert.Equal(0, await Direct.RemoveUnfinishedAsync("a", Cancellation));
        return Success;
    });

    [Fact]
    public Task LoseAnswer_OfTheBeginning_LeavesOneUploadToRemove() => table.Row("answer lost: beginning of an object sent in parts", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.LoseAnswer))!;
        await PutAndCompare("a", large);
        Assert.Equal(1, fault.Hits);
        Assert.Equal(1, await Direct.RemoveUnfinishedAsync("a", Cancellation));
        return "success; an upload without parts is left, which the removal of unfinished ones finds";
    });

    [Fact]
    public Task LoseAnswer_OfADelete_IsDeleted() => table.Row("answer lost: delete", async () =>
    {
        await ObjectStoreContract.Put(Direct, "a", "x");
        Fault fault = Proxy.Set(new Fault(FaultKind.LoseAnswer))!;
        Assert.True(await Through.DeleteAsync("a", Cancellation));
        Assert.Equal(1, fault.Hits);
        Assert.False(await Direct.ExistsAsync("a", Cancellation));
        return Success;
    });

    [Fact]
    public Task StallUp_IsTimedOut() => table.Row("upload stalls (time-out 2 s)", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.StallUp) { After = Mib })!;
        await PutAndCompare("a", small);
        Assert.Equal(1, fault.Hits);
        return Success;
    });

    [Fact]
    public Task StallUp_ForEver_IsSaid() => table.Error("upload stalls for ever", StoreProblem.Unreachable, ["nothing moved for", "Whether it was stored is not known"], async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.StallUp) { After = Mib, Times = int.MaxValue })!;
        await using IObjectStore store = Behind("&retry_seconds=1&timeout_seconds=0.5");
        try
        {
            await store.PutAsync("a", new MemoryStream(small), cancellation: Cancellation);
        }
        finally
        {
            Assert.True(fault.Hits > 0);
        }
    });

    [Fact]
    public Task StallDown_IsReadOn() => table.Row("download stalls (time-out 2 s)", async () =>
    {
        await Direct.PutAsync("a", new MemoryStream(large), cancellation: Cancellation);
        Fault fault = Proxy.Set(new Fault(FaultKind.StallDown) { After = 9 * Mib })!;
        await Compare(Through, "a", large);
        Assert.Equal(1, fault.Hits);
        return "success, read on from where it was";
    });

    [Fact]
    public Task FlipUp_InAPut_IsSentAgain() => table.Row("byte changed on the way up, in a put", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.FlipUp) { After = Mib })!;
        await PutAndCompare("a", small);
        Assert.Equal(1, fault.Hits);
        return Success;
    });

    [Fact]
    public Task FlipUp_InAPart_IsSentAgain() => table.Row("byte changed on the way up, in a part", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.FlipUp) { After = 3 * Mib })!;
        await PutAndCompare("a", large);
        Assert.Equal(1, fault.Hits);
        return Success;
    });

    [Fact]
    public Task FlipDown_OfASmallObject_IsReadAgain() => table.Row("byte changed on the way down, object up to 1 MiB", async () =>
    {
        byte[] bytes = small[..900_000];
        await Direct.PutAsync("a", new MemoryStream(bytes), cancellation: Cancellation);
        Fault fault = Proxy.Set(new Fault(FaultKind.FlipDown) { After = 500_000 })!;
        await Compare(Through, "a", bytes);
        Assert.Equal(1, fault.Hits);
        return "success, read again before anything was handed out";
    });

    [Theory]
    [InlineData(5, "sent in parts")]
    [InlineData(64, "sent whole")]
    public Task FlipDown_OfALargeObject_IsReported(int partMib, string how) => table.Row($"byte changed on the way down, object {how}", async () =>
    {
        await using (IObjectStore store = ObjectStore.Open(server.Uri(prefix, $"&part_mib={partMib}")))
        {
            await store.PutAsync("a", new MemoryStream(large), cancellation: Cancellation);
        }

        Fault fault = Proxy.Set(new Fault(FaultKind.FlipDown) { After = 7 * Mib })!;
        await using StoredContent stored = (await Through.GetAsync("a", Cancellation))!;
        var error = await Assert.ThrowsAnyAsync<IOException>(() => stored.Content.CopyToAsync(Stream.Null, Cancellation));
        Assert.Equal(1, fault.Hits);
        Assert.Contains("arrived with other bytes than were stored", error.Message, StringComparison.Ordinal);
        await Compare(Through, "a", large);
        return "error at the end of the read: arrived with other bytes than were stored; read again it is right";
    });

    [Fact]
    public Task CutDown_ThreeTimes_IsReadOn() => table.Row("download cut, 3 times", async () =>
    {
        await Direct.PutAsync("a", new MemoryStream(large), cancellation: Cancellation);
        Fault fault = Proxy.Set(new Fault(FaultKind.CutDown) { After = 5 * Mib, Times = 3 })!;
        await Compare(Through, "a", large);
        Assert.Equal(3, fault.Hits);
        return "success, read on from where it was";
    });

    [Fact]
    public Task CutDown_AndReplaced_IsSaid() => table.Error("download cut, and the object replaced meanwhile", StoreProblem.Missing, ["replaced or deleted while it was being read"], async () =>
    {
        await Direct.PutAsync("a", new MemoryStream(large), cancellation: Cancellation);
        Fault fault = Proxy.Set(new Fault(FaultKind.CutDown) { After = 5 * Mib })!;
        await using StoredContent stored = (await Through.GetAsync("a", Cancellation))!;
        await ObjectStoreContract.Put(Direct, "a", "another");
        try
        {
            await stored.Content.CopyToAsync(Stream.Null, Cancellation);
        }
        finally
        {
            Assert.Equal(1, fault.Hits);
        }
    });

    [Fact]
    public Task Slow_IsNoFailure() => table.Row("slow network, each connection 3 MiB/s (time-out 2 s)", async () =>
    {
        Fault fault = Proxy.Set(new Fault(FaultKind.Slow) { BytesPerSecond = 3 * Mib, Times = int.MaxValue })!;
        await PutAndCompare("a", large);
        Assert.InRange(fault.Hits, 1, 10);
        Assert.InRange(Proxy.BytesUp, LargeBytes, LargeBytes + Mib);
        return "success, nothing was sent twice";
    });

    [Fact]
    public Task Limit_OfTheBandwidth_Holds() => table.Row("bandwidth limited to 16 MiB/s by the store itself", async () =>
    {
        await using IObjectStore store = Behind("&max_mib_per_s=16");
        long start = Stopwatch.GetTimestamp();
        await store.PutAsync("a", new MemoryStream(large), cancellation: Cancellation);
        Assert.InRange(Stopwatch.GetElapsedTime(start).TotalSeconds, (LargeBytes / (16.0 * Mib)) - 0.2, 6);
        await Compare(Direct, "a", large);
        return Success;
    });

    [Fact]
    public Task Cancel_WhileItIsTriedAgain_EndsAtOnce() => table.Row("cancelled while it is tried again", async () =>
    {
        Proxy.Set(new Fault(FaultKind.Refuse) { Times = int.MaxValue });
        using var cancel = new CancellationTokenSource(TimeSpan.FromSeconds(1));
        long start = Stopwatch.GetTimestamp();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => Through.PutAsync("a", new MemoryStream(small), cancellation: cancel.Token));
        Assert.InRange(Stopwatch.GetElapsedTime(start).TotalSeconds, 0.9, 2);
        return "cancelled at once";
    });

    [Fact]
    public Task Kill_OfTheGatewayInAnUpload_GoesOnAfterItsRestart() => table.Row("gateway killed (-9) in the middle of an upload, restarted", async () =>
    {
        await KillInAnUpload(["client.rgw"], Through, restart: true);
        await Compare(Direct, "a", large);
        return "success, and the old object until then";
    });

    [Fact]
    public Task Kill_OfAllInAnUpload_GoesOnAfterTheirRestart() => table.Row("gateway and storage killed (-9) in the middle of an upload, restarted", async () =>
    {
        await KillInAnUpload([], Through, restart: true);
        await Compare(Direct, "a", large);
        return "success, and the old object until then";
    });

    [Fact]
    public Task Kill_WithoutRestart_IsSaid_AndTheOldObjectIsThere() => table.Error("gateway killed (-9) in the middle of an upload, not restarted in time", StoreProblem.Unreachable, ["tries"], async () =>
    {
        await using IObjectStore store = Behind("&retry_seconds=1");
        try
        {
            await KillInAnUpload(["client.rgw"], store, restart: false);
        }
        finally
        {
            server.Again();
            Assert.Equal("old", await ObjectStoreContract.Get(Direct, "a"));
            Assert.Equal(1, await Direct.RemoveUnfinishedAsync("a", Cancellation));
        }
    });

    private async Task KillInAnUpload(string[] daemons, IObjectStore store, bool restart)
    {
        await ObjectStoreContract.Put(Direct, "a", "old");
        Fault fault = Proxy.Set(new Fault(FaultKind.HoldUp) { After = 4 * Mib })!;
        Task<string?> put = store.PutAsync("a", new MemoryStream(large), cancellation: Cancellation);
        await fault.Reached.WaitAsync(TimeSpan.FromSeconds(20), Cancellation);
        await Task.Run(() => server.Kill(daemons), Cancellation);
        fault.Release();
        if (restart)
        {
            await Task.Delay(500, Cancellation);
            await Task.Run(server.Again, Cancellation);

            // The put goes on at its own time: the object is the old one or already the new one, and nothing between.
            await using StoredContent stored = (await Direct.GetAsync("a", Cancellation))!;
            byte[] seen = await SHA256.HashDataAsync(stored.Content, Cancellation);
            Assert.Contains(seen, new[] { SHA256.HashData("old"u8), SHA256.HashData(large) });
        }

        Assert.NotNull(await put);
        Assert.Equal(1, fault.Hits);
    }

    private IObjectStore Behind(string options)
        => ObjectStore.Open(server.Uri(prefix, (options.Contains("timeout_seconds", StringComparison.Ordinal) ? "" : "&timeout_seconds=2") + "&part_mib=5" + options, Proxy.Port));

    private async Task PutAndCompare(string key, byte[] bytes, IProgress<long>? progress = null)
    {
        Assert.NotNull(await Through.PutAsync(key, new MemoryStream(bytes), progress: progress, cancellation: Cancellation));
        await Compare(Direct, key, bytes);
    }

    private static async Task Compare(IObjectStore store, string key, byte[] bytes)
    {
        await using StoredContent stored = (await store.GetAsync(key, Cancellation))!;
        Assert.Equal(bytes.Length, stored.SizeBytes);
        Assert.Equal(SHA256.HashData(bytes), await SHA256.HashDataAsync(stored.Content, Cancellation));
    }

    private sealed class Told(Action<long> tell) : IProgress<long>
    {
        public void Report(long value) => tell(value);
    }
}
