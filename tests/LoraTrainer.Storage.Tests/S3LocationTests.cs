using Amazon.S3.Model;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Storage.Tests;

public sealed class S3LocationTests
{
    [Fact]
    public void Parse_Everything_IsReadAndWrittenAgain()
    {
        const string uri = "s3://my.bucket-1/runs/a%20b?endpoint=https://host:8443&region=eu-west-1&profile=lab&path_style=false&checksums=supported&chunk_encoding=false&encryption=aws:kms&kms_key=alias/k"
            + "&storage_class=STANDARD_IA&parallel=8&part_mib=16&max_mib_per_s=12.5&retry_seconds=5&timeout_seconds=7";
        S3Location location = S3Location.Parse(uri);
        Assert.Equal(("my.bucket-1", "runs/a b"), (location.Bucket, location.Prefix));
        Assert.Equal(("https://host:8443", "eu-west-1", "lab"), (location.Endpoint, location.Region, location.Profile));
        Assert.Equal((false, S3Checksums.Supported, "aws:kms", "alias/k", "STANDARD_IA"), (location.PathStyle, location.Checksums, location.Encryption, location.KmsKey, location.StorageClass));
        Assert.False(location.ChunkEncoding);
        Assert.Equal((8, 16, 12.5, 5.0, 7.0), (location.Parallel, location.PartMib, location.MaxMibPerSecond, location.RetrySeconds, location.TimeoutSeconds));
        Assert.Equal(uri, location.ToString());
        Assert.Equal(location, S3Location.Parse(location.ToString()));
    }

    [Theory]
    [InlineData("s3://bucket", "s3://bucket", "")]
    [InlineData("S3://bucket/", "s3://bucket", "")]
    [InlineData("s3://bucket/a/b/", "s3://bucket/a/b", "a/b")]
    [InlineData("s3://bucket/a?parallel=4&part_mib=8", "s3://bucket/a", "a")]
    [InlineData("s3://bucket/100%25?", "s3://bucket/100%25", "100%")]
    [InlineData("s3://bucket/a#b+c&d", "s3://bucket/a%23b%2Bc%26d", "a#b+c&d")]
    public void Parse_Defaults_AreNotWritten(string uri, string written, string prefix)
    {
        S3Location location = S3Location.Parse(uri);
        Assert.Equal(prefix, location.Prefix);
        Assert.Equal(written, location.ToString());
        Assert.Equal(location, S3Location.Parse(written));
    }

    [Fact]
    public void Append_AndWithKey_KeepTheOptions()
    {
        S3Location location = S3Location.Parse("s3://bucket/a?profile=p");
        Assert.Equal("s3://bucket/a/run-1/x?profile=p", location.Append("run-1/x").ToString());
        Assert.Equal("s3://bucket/other?profile=p", location.WithKey("other").ToString());
        Assert.Equal("s3://bucket/x?profile=p", location.WithKey("").Append("x").ToString());
        Assert.Equal("s3://bucket/a/me%40home?profile=p", location.Append("me@home").ToString());
        Assert.Equal("a/me@home", S3Location.Parse(location.Append("me@home").ToString()).Prefix);
        Assert.Throws<ArgumentException>(() => location.Append("../x"));
    }

    [Theory]
    [InlineData("s3:bucket", "An S3 store is written s3://bucket/prefix?option=value.")]
    [InlineData("s3://", "The bucket '' is missing: write s3://bucket/prefix.")]
    [InlineData("s3://ab", "The bucket 'ab' has 2 characters; 3 to 63 are allowed.")]
    [InlineData("s3://Bucket/x", "The bucket 'Bucket' may hold lower-case letters, digits, '.' and '-' only, and starts and ends with a letter or digit.")]
    [InlineData("s3://bucket-/x", "The bucket 'bucket-' may hold lower-case letters, digits, '.' and '-' only, and starts and ends with a letter or digit.")]
    [InlineData("s3://buc..ket/x", "The bucket 'buc..ket' has two dots in a row.")]
    [InlineData("s3://127.0.0.1/x", "The bucket '127.0.0.1' looks like an IP address. A server is named with endpoint=http://host:port behind the '?'.")]
    [InlineData("s3://xn--abc/x", "The bucket 'xn--abc' starts with letters that S3 keeps for itself.")]
    [InlineData("s3://bucket/a//b", "The prefix of an S3 store is not accepted: the key 'a//b' has an empty part.")]
    [InlineData("s3://bucket/a/../b", "The prefix of an S3 store is not accepted: the key 'a/../b' has a part that starts with a dot; '..' would leave the store, and the others are for files being written.")]
    [InlineData("s3://bucket/a%2", "In the prefix of an S3 store a '%' is not followed by two hexadecimal digits; a percent sign itself is written %25.")]
    [InlineData("s3://bucket/a%00", "There is a control character in the prefix of an S3 store.")]
    [InlineData("s3://bucket/x?region", "The option region of an S3 store has no value: write region=value.")]
    [InlineData("s3://bucket/x?region=a&region=b", "The option region of an S3 store is given twice.")]
    [InlineData("s3://bucket/x?part_mb=8", "'part_mb' is not an option of an S3 store. Did you mean part_mib? The options are endpoint, region, profile, path_style, checksums, chunk_encoding, encryption, kms_key, storage_class, parallel, part_mib, max_mib_per_s, retry_seconds, timeout_seconds.")]
    [InlineData("s3://bucket/x?something=8", "'something' is not an option of an S3 store. The options are endpoint, region, profile, path_style, checksums, chunk_encoding, encryption, kms_key, storage_class, parallel, part_mib, max_mib_per_s, retry_seconds, timeout_seconds.")]
    [InlineData("s3://bucket/x?part_mib=4", "The option part_mib of an S3 store must be a whole number of 5 to 1024, got '4'.")]
    [InlineData("s3://bucket/x?parallel=1.5", "The option parallel of an S3 store must be a whole number of 1 to 64, got '1.5'.")]
    [InlineData("s3://bucket/x?max_mib_per_s=0", "The option max_mib_per_s of an S3 store must be a number of 0.01 to 1000000, got '0'.")]
    [InlineData("s3://bucket/x?retry_seconds=NaN", "The option retry_seconds of an S3 store must be a number of 0 to 86400, got 'NaN'.")]
    [InlineData("s3://bucket/x?path_style=yes", "The option path_style of an S3 store must be true or false, got 'yes'.")]
    [InlineData("s3://bucket/x?checksums=none", "The option checksums of an S3 store must be supported or required, got 'none'.")]
    [InlineData("s3://bucket/x?encryption=aes256", "The option encryption of an S3 store must be AES256 or aws:kms, got 'aes256'.")]
    [InlineData("s3://bucket/x?kms_key=k", "The option kms_key of an S3 store needs encryption=aws:kms.")]
    [InlineData("s3://bucket/x?storage_class=GLACIER", "storage_class=GLACIER is not accepted: objects of that class cannot be read before they are restored. Typical: STANDARD, STANDARD_IA, INTELLIGENT_TIERING, GLACIER_IR.")]
    [InlineData("s3://bucket/x?endpoint=host:80", "The option endpoint of an S3 store must be a server such as http://host:port or https://host.")]
    [InlineData("s3://bucket/x?endpoint=http://host/path", "The option endpoint of an S3 store holds more than the server. It is http://host:port or https://host, without credentials, path or query.")]
    public void Parse_Wrong_SaysWhat(string uri, string message)
    {
        var error = Assert.Throws<StoreException>(() => S3Location.Parse(uri));
        Assert.Equal(StoreProblem.Unsupported, error.Problem);
        Assert.Equal(message, error.Message);
    }

    [Theory]
    [InlineData("s3://AKIAHIDDEN:hidden@bucket/x")]
    [InlineData("s3://AKIAHIDDEN:hid/den@bucket/x")]
    [InlineData("s3://bucket:hidden/x")]
    [InlineData("s3://bucket/x?secret_access_key=hidden")]
    [InlineData("s3://bucket/x?AWS_SESSION_TOKEN=hidden")]
    [InlineData("s3://bucket/x?accesskey=hidden&profile=x")]
    [InlineData("s3://bucket/x?endpoint=http://user:hidden@host")]
    public void Parse_Credentials_AreRefusedAndNotRepeated(string uri)
    {
        var error = Assert.Throws<StoreException>(() => S3Location.Parse(uri));
        Assert.Contains("redentials", error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain("hid", error.ToString(), StringComparison.OrdinalIgnoreCase);
    }

    [Fact]
    public async Task Open_ByScheme()
    {
        using var folder = new TemporaryFolder();
        Assert.IsType<FolderStore>(ObjectStore.Open(folder.Path));
        Assert.Equal(folder.Path, ObjectStore.Open("file://" + folder.Path).Location);
        await using IObjectStore store = ObjectStore.Open("s3://bucket/runs?endpoint=http://127.0.0.1:1");
        Assert.Equal("s3://bucket/runs?endpoint=http://127.0.0.1:1", Assert.IsType<S3Store>(store).Location);
        Assert.True(ObjectStore.IsUri("s3://bucket"));
        Assert.False(ObjectStore.IsUri("/data/s3"));
        Assert.False(ObjectStore.IsUri("runs/s3:/x"));
    }

    [Theory]
    [InlineData("http://host/bucket", "A store is not named by http:// or https://. An S3 server is written s3://bucket/prefix?endpoint=http://host:port, and AWS itself s3://bucket/prefix.")]
    [InlineData("gs://bucket/x", "There is no store for gs://. Known are paths, file:// and s3://; other services are reached through their S3 interface, with endpoint=.")]
    [InlineData("file://host/x", "A file:// URI has three slashes and a path of this machine: file:///data/runs.")]
    public void Open_Others_AreRefused(string uri, string message) => Assert.Equal(message, Assert.Throws<StoreException>(() => ObjectStore.Open(uri)).Message);

    [Theory]
    [InlineData("s3://bucket/x?region=eu-central-1", "https://bucket.s3.eu-central-1.amazonaws.com/")]
    [InlineData("s3://buck.et/x?region=eu-central-1", "https://s3.eu-central-1.amazonaws.com/buck.et")]
    [InlineData("s3://bucket/x?path_style=true&region=us-west-2", "https://s3.us-west-2.amazonaws.com/bucket")]
    [InlineData("s3://bucket/x?endpoint=http://127.0.0.1:9000", "http://127.0.0.1:9000/bucket")]
    [InlineData("s3://bucket/x?endpoint=https://storage.example&path_style=false", "https://bucket.storage.example/")]
    public void Connection_Endpoint_FitsTheServer(string uri, string expected)
    {
        using var connection = new S3Connection(S3Location.Parse(uri), TimeProvider.System);
        string url = connection.Client.DetermineServiceOperationEndpoint(new GetObjectRequest { BucketName = connection.Location.Bucket, Key = "k" }).URL;
        Assert.Equal(expected.TrimEnd('/'), url.TrimEnd('/'));
    }

    [Fact]
    public async Task Limit_OfManyTransfers_IsShared()
    {
        var limit = new TransferLimit(8, TimeProvider.System);
        long start = TimeProvider.System.GetTimestamp();
        await Task.WhenAll(Enumerable.Range(0, 4).Select(_ => Task.Run(async () =>
        {
            for (int moved = 0; moved < 1 << 20;)
            {
                int portion = limit.Portion((1 << 20) - moved);
                await limit.TakeAsync(portion, TestContext.Current.CancellationToken);
                moved += portion;
            }
        })));
        Assert.InRange(TimeProvider.System.GetElapsedTime(start).TotalSeconds, 0.35, 2);
    }
}
