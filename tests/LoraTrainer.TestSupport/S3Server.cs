using System.Net;
using System.Net.Sockets;
using Amazon.Runtime;
using Amazon.S3;
using Amazon.S3.Model;
using Xunit;

namespace LoraTrainer.TestSupport;

/// <summary>
/// A real S3 server for the tests of one collection: Ceph's RADOS Gateway on loopback, started by scripts/s3-server.sh and stopped at the end. Where its
/// packages are not there its tests are skipped with that reason, or fail under CI=true. Its accounts are those of <see cref="S3Profiles"/>.
/// LT_S3_ENDPOINT names another server instead, with LT_S3_ACCESS_KEY, LT_S3_SECRET_KEY and LT_S3_OPTIONS (<c>&amp;name=value</c>): what can run there runs.
/// </summary>
public sealed class S3Server : IAsyncLifetime
{
    public const string Bucket = "lora-runs";
    public const string SmallBucket = "lora-small";

    /// <summary>What the account <see cref="S3Profiles.Limited"/> may store, in <see cref="SmallBucket"/>.</summary>
    public const long SmallBytes = 2 << 20;

    private static readonly string Script = Path.Combine(Fixtures.RepositoryRoot, "scripts", "s3-server.sh");
    private static readonly string[] Programs = ["radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool"];

    private static readonly string? Another = Environment.GetEnvironmentVariable("LT_S3_ENDPOINT");

    private string? missing;
    private string? failure;

    public int Port { get; private set; }

    /// <summary>The folder of the server; short, because sockets lie in it.</summary>
    public string Folder { get; } = Path.Combine("/tmp", "lt" + Guid.NewGuid().ToString("N")[..8]);

    /// <summary>What a child process needs to find the accounts.</summary>
    public static IReadOnlyDictionary<string, string> Variables => S3Profiles.Variables;

    private string Endpoint => Another ?? $"http://127.0.0.1:{Port}";

    public async ValueTask InitializeAsync()
    {
        if (Another is not null)
        {
            using AmazonS3Client client = Client();
            await client.PutBucketAsync(new PutBucketRequest { BucketName = Bucket });
            return;
        }

        string[] absent = [.. Programs.Where(program => Tool.Run("bash", "-c", $"command -v {program}").ExitCode != 0)];
        if (absent.Length > 0)
        {
            missing = $"the S3 server of the tests is not here ({string.Join(", ", absent)}): the packages radosgw, ceph-mon, ceph-osd and ceph-common have it, and with CI=true scripts/install-test-dependencies.sh installs them where it may";
            return;
        }

        S3Profiles.Write();
        Port = FreePorts();
        (int code, string output) = Tool.Run(Script, "start", Folder, $"{Port}", S3Profiles.Key(S3Profiles.Owner), S3Profiles.Secret(S3Profiles.Owner), $"{Environment.ProcessId}");
        if (code == 0)
        {
            // As children of one: each takes a second.
            (int Code, string Output)[] users = await Task.WhenAll(
                Task.Run(() => AddUser(S3Profiles.Stranger)),
                Task.Run(() => AddUser(S3Profiles.Limited)));
            (code, output) = users.FirstOrDefault(user => user.Code != 0);
        }

        if (code == 0)
        {
            (code, output) = Tool.Run(Script, "quota", Folder, S3Profiles.Limited, $"{SmallBytes}");
        }

        if (code != 0)
        {
            failure = $"{Script} failed with {code}: {output}";
            return;
        }

        using AmazonS3Client owner = Client();
        using AmazonS3Client limited = Client(S3Profiles.Limited);
        await owner.PutBucketAsync(new PutBucketRequest { BucketName = Bucket });
        await limited.PutBucketAsync(new PutBucketRequest { BucketName = SmallBucket });
    }

    public ValueTask DisposeAsync()
    {
        if (Port != 0)
        {
            Tool.Run(Script, "stop", Folder);
        }

        return ValueTask.CompletedTask;
    }

    /// <summary>Skips the running test where there is no server, or fails it under CI=true.</summary>
    /// <param name="ownServer">The test does something to the server, or knows its accounts: another one does not do.</param>
    public void Require(bool ownServer = true)
    {
        Assert.SkipWhen(ownServer && Another is not null, "LT_S3_ENDPOINT names another server");
        Assert.True(failure is null, failure);
        if (missing is not null && Fixtures.IsContinuousIntegration)
        {
            Assert.Fail(missing);
        }

        Assert.SkipWhen(missing is not null, missing ?? string.Empty);
    }

    /// <summary>A URI of the bucket. <paramref name="options"/> follow: <c>&amp;name=value</c>.</summary>
    public string Uri(string prefix, string options = "", int? port = null, string profile = S3Profiles.Owner, string bucket = Bucket)
        => $"s3://{bucket}/{prefix}?endpoint={(port is null ? Endpoint : $"http://127.0.0.1:{port}")}&profile={profile}{options}{Environment.GetEnvironmentVariable("LT_S3_OPTIONS")}";

    /// <summary>The SDK's own client: to look at what the store did.</summary>
    public AmazonS3Client Client(string profile = S3Profiles.Owner) => new(
        new BasicAWSCredentials(S3Profiles.Key(profile), S3Profiles.Secret(profile)),
        new AmazonS3Config
        {
            ServiceURL = Endpoint,
            ForcePathStyle = true,
            AuthenticationRegion = "us-east-1",
            RequestChecksumCalculation = RequestChecksumCalculation.WHEN_REQUIRED,
            ResponseChecksumValidation = ResponseChecksumValidation.WHEN_REQUIRED,
        });

    /// <summary>kill -9 of these, or of all.</summary>
    public void Kill(params string[] daemons) => Ran("kill", [Folder, .. daemons]);

    /// <summary>Starts what does not run.</summary>
    public void Again() => Ran("again", Folder, $"{Port}");

    private static void Ran(string action, params string[] arguments)
    {
        (int code, string output) = Tool.Run(Script, [action, .. arguments]);
        Assert.True(code == 0, $"{Script} {action} failed with {code}: {output}");
    }

    private (int Code, string Output) AddUser(string profile) => Tool.Run(Script, "user", Folder, profile, S3Profiles.Key(profile), S3Profiles.Secret(profile));

    // Three in a row: the gateway's and two of the monitor.
    private static int FreePorts()
    {
        for (int first = 21000 + (Environment.ProcessId % 1000 * 8); ; first += 8)
        {
            if (Enumerable.Range(first, 3).All(IsFree))
            {
                return first;
            }
        }
    }

    private static bool IsFree(int port)
    {
        using var listener = new TcpListener(IPAddress.Loopback, port);
        try
        {
            listener.Start();
            return true;
        }
        catch (SocketException)
        {
            return false;
        }
    }
}
