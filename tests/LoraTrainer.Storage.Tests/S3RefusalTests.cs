using Amazon;
using Amazon.S3;
using Amazon.S3.Model;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Storage.Tests;

/// <summary>What a real server refuses, and what is said about it.</summary>
[Collection(S3Tests.Name)]
[Trait("Category", "S3")]
public sealed class S3RefusalTests
{
    private readonly S3Server server;
    private readonly S3FaultTable table;
    private readonly string prefix = $"faults/{Guid.NewGuid():N}";

    public S3RefusalTests(S3Server server, S3FaultTable table)
    {
        this.server = server;
        this.table = table;
        server.Require();
    }

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    [Fact]
    public Task Quota_UsedUp_IsSaid() => table.Error("the account's quota is used up", StoreProblem.Full, ["quota", "QuotaExceeded"], async () =>
    {
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, profile: S3Profiles.Limited, bucket: S3Server.SmallBucket));
        Assert.NotNull(await store.PutAsync("fits", new MemoryStream(new byte[S3Server.SmallBytes / 2]), cancellation: Cancellation));
        try
        {
            await store.PutAsync("does-not", new MemoryStream(new byte[S3Server.SmallBytes]), cancellation: Cancellation);
        }
        finally
        {
            Assert.Equal(["fits"], await ObjectStoreContract.Keys(store, ""));
        }
    });

    [Theory]
    [InlineData("put", "s3:PutObject")]
    [InlineData("list", "s3:ListBucket")]
    public Task Account_MayNot_IsSaid(string what, string action) => table.Error($"an account without permission: {what}", StoreProblem.Denied, [action, S3Server.Bucket, "AccessDenied"], async () =>
    {
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, profile: S3Profiles.Stranger));
        await (what == "put" ? (Task)ObjectStoreContract.Put(store, "a", "x") : store.ListAsync(cancellation: Cancellation));
    });

    [Theory]
    [InlineData("put")]
    [InlineData("get")]
    [InlineData("list")]
    [InlineData("exists")]
    public Task Bucket_Unknown_IsSaid(string what) => table.Error($"a bucket that does not exist: {what}", StoreProblem.Missing, ["There is no bucket no-such-bucket"], async () =>
    {
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, bucket: "no-such-bucket"));
        await (what switch
        {
            "put" => ObjectStoreContract.Put(store, "a", "x"),
            "get" => (Task)store.GetAsync("a", Cancellation),
            "list" => store.ListAsync(cancellation: Cancellation),
            _ => store.ExistsAsync("a", Cancellation),
        });
    });

    [Fact]
    public Task Secret_Wrong_IsSaid() => table.Error("wrong secret key", StoreProblem.Credentials, ["signature", "AWS_SECRET_ACCESS_KEY"], async () =>
    {
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, profile: S3Profiles.WrongSecret));
        await ObjectStoreContract.Put(store, "a", "x");
    });

    [Fact]
    public Task AccessKey_Unknown_IsSaid() => table.Error("unknown access key", StoreProblem.Credentials, ["access key is not known"], async () =>
    {
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, profile: S3Profiles.Unknown));
        await store.GetAsync("a", Cancellation);
    });

    [Fact]
    public Task Profile_Unknown_IsSaid() => table.Error("a profile that does not exist", StoreProblem.Credentials, ["The profile nobody gives no credentials"], async () =>
    {
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, profile: "nobody"));
        await store.GetAsync("a", Cancellation);
    });

    [Fact]
    public Task Credentials_None_IsSaid() => table.Error("no credentials anywhere", StoreProblem.Credentials, ["There are no credentials", "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"], async () =>
    {
        await using IObjectStore store = ObjectStore.Open($"s3://{S3Server.Bucket}/x?endpoint=http://127.0.0.1:{server.Port}");
        await store.GetAsync("a", Cancellation);
    });

    [Fact]
    public Task Program_OfCredentialsFails_IsSaid() => table.Error("the program that gives credentials fails", StoreProblem.Credentials, ["credential_process"], async () =>
    {
        S3Profiles.AddProgram("failing", "/bin/false");
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, profile: "failing"));
        await store.GetAsync("a", Cancellation);
    });

    [Theory]
    [InlineData(20, "20 minutes behind")]
    [InlineData(-180, "3 hours ahead of")]
    public Task Clock_Off_IsSaid(int minutes, string words) => table.Error($"the clock is {words} the server's", StoreProblem.Clock, [words, "timedatectl"], async () =>
    {
        AWSConfigs.ManualClockCorrection = TimeSpan.FromMinutes(-minutes);
        try
        {
            await using IObjectStore store = ObjectStore.Open(server.Uri(prefix));
            await ObjectStoreContract.Put(store, "a", "x");
        }
        finally
        {
            AWSConfigs.ManualClockCorrection = null;
        }
    });

    [Fact]
    public Task Credentials_Refused_AreReadAgain() => table.Row("access key not valid any more, a new one is there", async () =>
    {
        using var folder = new TemporaryFolder();
        string program = folder.File("credentials.sh");
        string asked = folder.File("asked");
        string old = S3Profiles.Printed(DateTimeOffset.UtcNow.AddHours(1), valid: false);
        string renewed = S3Profiles.Printed(DateTimeOffset.UtcNow.AddHours(1), valid: true);
        await File.WriteAllTextAsync(program, $"#!/bin/sh\nif [ -e {asked} ]; then echo '{renewed}'; else echo '{old}'; fi\ntouch {asked}\n", Cancellation);
        S3Profiles.AddProgram("renewed", $"/bin/sh {program}");
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, profile: "renewed"));
        Assert.NotNull(await ObjectStoreContract.Put(store, "a", "x"));
        return "success: they are read again when the server refuses those at hand";
    });

    [Fact]
    public Task Credentials_Expire_AreFetchedAgain() => table.Row("credentials of a program expire during a run", async () =>
    {
        using var folder = new TemporaryFolder();
        string program = folder.File("credentials.sh");
        string asked = folder.File("asked");
        string output = S3Profiles.Printed(DateTimeOffset.UnixEpoch, valid: true).Replace("1970-01-01T00:00:00Z", "'$(date -u -d '+2 seconds' +%Y-%m-%dT%H:%M:%SZ)'", StringComparison.Ordinal);
        await File.WriteAllTextAsync(program, $"#!/bin/sh\necho x >> {asked}\necho '{output}'\n", Cancellation);
        S3Profiles.AddProgram("expiring", $"/bin/sh {program}");
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, profile: "expiring"));
        Assert.NotNull(await ObjectStoreContract.Put(store, "a", "1"));
        int before = (await File.ReadAllLinesAsync(asked, Cancellation)).Length;
        await Task.Delay(TimeSpan.FromSeconds(3), Cancellation);
        Assert.NotNull(await ObjectStoreContract.Put(store, "a", "2"));
        Assert.True((await File.ReadAllLinesAsync(asked, Cancellation)).Length > before, "the program was not asked again");
        return "success: the program is asked again";
    });

    [Fact]
    public Task Encryption_WithoutKeys_IsSaid() => table.Error("encryption=aws:kms on a server without keys", StoreProblem.Unsupported, ["s3:PutObject"], async () =>
    {
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, "&encryption=aws:kms&kms_key=none"));
        await ObjectStoreContract.Put(store, "a", "x");
    });

    [Fact]
    public Task Checksums_OfAnotherForm_AreExplained() => table.Error("a server that does not take the form of AWS's checksums", StoreProblem.Unsupported, ["checksums=required"], async () =>
    {
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, "&checksums=supported"));
        await ObjectStoreContract.Put(store, "a", "x");
    });

    [Fact]
    public async Task Put_LargeOnCondition_IsRefused()
    {
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, "&part_mib=5"));
        var error = await Assert.ThrowsAsync<StoreException>(() => store.PutAsync("a", new MemoryStream(new byte[(5 << 20) + 1]), PutCondition.IfAbsent, cancellation: Cancellation));
        Assert.Equal(StoreProblem.Unsupported, error.Problem);
        Assert.Contains("part_mib=5", error.Message, StringComparison.Ordinal);
        Assert.Empty(await store.ListAsync(cancellation: Cancellation));
    }

    [Fact]
    public async Task List_MoreThanAPage_IsWhole()
    {
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix));
        string[] keys = [.. Enumerable.Range(0, 1234).Select(number => $"page/{number:0000}")];
        await Parallel.ForEachAsync(keys, new ParallelOptions { MaxDegreeOfParallelism = 16, CancellationToken = Cancellation }, async (key, _) => await ObjectStoreContract.Put(store, key, ""));
        Assert.Equal(keys, await ObjectStoreContract.Keys(store, "page/"));
    }

    [Fact]
    public async Task Put_Marks_AreStored()
    {
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix, "&part_mib=5"));
        byte[] bytes = ObjectStoreContract.Bytes(6 << 20, 9);
        string? version = await store.PutAsync("a", new MemoryStream(bytes), cancellation: Cancellation);
        using AmazonS3Client client = server.Client();
        GetObjectMetadataResponse stored = await client.GetObjectMetadataAsync(S3Server.Bucket, $"{prefix}/a", Cancellation);
        Assert.Equal(ContentHash.OfBytes(bytes), stored.Metadata["x-amz-meta-sha256"]);
        Assert.Equal(stored.ETag.Trim('"'), version);
        Assert.EndsWith("-2", version, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Get_ObjectOfAnother_IsReadWithoutAHash()
    {
        using AmazonS3Client client = server.Client();
        await client.PutObjectAsync(new PutObjectRequest { BucketName = S3Server.Bucket, Key = $"{prefix}/foreign", ContentBody = "hello" }, Cancellation);
        await client.PutObjectAsync(new PutObjectRequest { BucketName = S3Server.Bucket, Key = $"{prefix}/folder/", ContentBody = "" }, Cancellation);
        await using IObjectStore store = ObjectStore.Open(server.Uri(prefix));
        Assert.Equal("hello", await ObjectStoreContract.Get(store, "foreign"));
        Assert.Equal(["foreign"], await ObjectStoreContract.Keys(store, ""));
    }
}
