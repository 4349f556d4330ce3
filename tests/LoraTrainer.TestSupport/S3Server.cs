using System.Net;
using System.Net.Sockets;
using Amazon.Runtime;
using Amazon.S3;
using Amazon.S3.Model;
using Xunit;

namespace LoraTrainer.TestSupport;

/// <summary>
/// A real S3 server for the tests of one collection: Ceph's RADOS Gateway on loopback, started by scripts/s3-server.sh and stopped at the end. Where its
/// packages are not there its tests are skipped with that reason, or fail under CI=true. Accounts are profiles of a file of its own, which
/// the environment of this process and of its children names.
/// </summary>
public sealed class S3Server : IAsyncLifetime
{
    /// <summary>The profile that owns the bucket.</summary>
    public const string Owner = "tester";

    /// <summary>A second account, which may nothing in the owner's bucket.</summary>
    public const string Stranger = "stranger";

    /// <summary>The owner's access key with another secret.</summary>
    public const string WrongSecret = "wrong-secret";

    /// <summary>An access key that the server does not know.</summary>
    public const string Unknown = "unknown";

    /// <summary>An account with a bucket of its own, <see cref="SmallBucket"/>, and a quota of <see cref="SmallBytes"/>.</summary>
    public const string Limited = "limited";

    public const string Bucket = "lora-runs";
    public const string SmallBucket = "lora-small";
    public const long SmallBytes = 2 << 20;

    private const string OwnerKey = "LTOWNERKEY";
    private const string OwnerSecret = "owner/secret+of=tests";

    private static readonly string Script = Path.Combine(Fixtures.RepositoryRoot, "scripts", "s3-server.sh");
    private static readonly string[] Programs = ["radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool"];

    private readonly string profiles = Directory.CreateTempSubdirectory("lt-s3-").FullName;
    private string? missing;
    private string? failure;

    public int Port { get; private set; }

    /// <summary>The folder of the server; short, because sockets lie in it.</summary>
    public string Folder { get; } = Path.Combine("/tmp", "lt" + Guid.NewGuid().ToString("N")[..8]);

    /// <summary>What a child process needs to find the accounts.</summary>
    public IReadOnlyDictionary<string, string> Variables => new Dictionary<string, string>(StringComparer.Ordinal)
    {
        ["AWS_SHARED_CREDENTIALS_FILE"] = Path.Combine(profiles, "credentials"),
        ["AWS_CONFIG_FILE"] = Path.Combine(profiles, "config"),
        ["AWS_EC2_METADATA_DISABLED"] = "true",
    };

    /// <summary>The file of <c>AWS_CONFIG_FILE</c>; tests may add profiles.</summary>
    public string ConfigFile => Path.Combine(profiles, "config");

    public async ValueTask InitializeAsync()
    {
        string[] absent = [.. Programs.Where(program => Tool.Run("bash", "-c", $"command -v {program}").ExitCode != 0)];
        if (absent.Length > 0)
        {
            missing = $"the S3 server of the tests is not here ({string.Join(", ", absent)}): the packages radosgw, ceph-mon, ceph-osd and ceph-common have it, and with CI=true scripts/install-test-dependencies.sh installs them where it may";
            return;
        }

        WriteProfiles();
        Port = FreePorts();
        (int code, string output) = Tool.Run(Script, "start", Folder, $"{Port}", OwnerKey, OwnerSecret);
        if (code == 0)
        {
            // As children of one: each takes a second.
            (int Code, string Output)[] users = await Task.WhenAll(
                Task.Run(() => Tool.Run(Script, "user", Folder, Stranger, "LTSTRANGERKEY", "strangersecret")),
                Task.Run(() => Tool.Run(Script, "user", Folder, Limited, "LTLIMITEDKEY", "limitedsecret")));
            (code, output) = users.FirstOrDefault(user => user.Code != 0);
        }

        if (code == 0)
        {
            (code, output) = Tool.Run(Script, "quota", Folder, Limited, $"{SmallBytes}");
        }

        if (code != 0)
        {
            failure = $"{Script} failed with {code}: {output}";
            return;
        }

        using AmazonS3Client owner = Client(OwnerKey, OwnerSecret);
        using AmazonS3Client limited = Client("LTLIMITEDKEY", "limitedsecret");
        await owner.PutBucketAsync(new PutBucketRequest { BucketName = Bucket });
        await limited.PutBucketAsync(new PutBucketRequest { BucketName = SmallBucket });
    }

    public ValueTask DisposeAsync()
    {
        if (Port != 0)
        {
            Tool.Run(Script, "stop", Folder);
        }

        Directory.Delete(profiles, recursive: true);
        return ValueTask.CompletedTask;
    }

    /// <summary>Skips the running test where there is no server, or fails it under CI=true.</summary>
    public void Require()
    {
        Assert.True(failure is null, failure);
        if (missing is not null && Fixtures.IsContinuousIntegration)
        {
            Assert.Fail(missing);
        }

        Assert.SkipWhen(missing is not null, missing ?? string.Empty);
    }

    /// <summary>A URI of the bucket. <paramref name="options"/> follow: <c>&amp;name=value</c>.</summary>
    public string Uri(string prefix, string options = "", int? port = null, string profile = Owner, string bucket = Bucket)
        => $"s3://{bucket}/{prefix}?endpoint=http://127.0.0.1:{port ?? Port}&profile={profile}{options}";

    /// <summary>The SDK's own client, as the owner: to look at what the store did.</summary>
    public AmazonS3Client Client() => Client(OwnerKey, OwnerSecret);

    /// <summary>kill -9 of these, or of all.</summary>
    public void Kill(params string[] daemons) => Ran("kill", [Folder, .. daemons]);

    /// <summary>Starts what does not run.</summary>
    public void Again() => Ran("again", Folder, $"{Port}");

    /// <summary>Adds a profile whose credentials a program prints.</summary>
    public void AddProcessProfile(string name, string command) => File.AppendAllText(ConfigFile, $"[profile {name}]\ncredential_process = {command}\n\n");

    /// <summary>Credentials as a program of a profile prints them, of the owner or such as are not valid any more.</summary>
    public static string ProcessOutput(DateTimeOffset expiration, bool valid)
        => $$"""{"Version":1,"AccessKeyId":"{{(valid ? OwnerKey : "LTOLDKEY")}}","SecretAccessKey":"{{OwnerSecret}}","Expiration":"{{expiration.UtcDateTime:yyyy-MM-ddTHH:mm:ssZ}}"}""";

    /// <summary>True where the text holds a secret of an account.</summary>
    public static bool HoldsSecret(string text)
        => new[] { OwnerSecret, OwnerKey, "strangersecret", "limitedsecret", "Signature=", "Authorization" }.Any(secret => text.Contains(secret, StringComparison.Ordinal));

    private static void Ran(string action, params string[] arguments)
    {
        (int code, string output) = Tool.Run(Script, [action, .. arguments]);
        Assert.True(code == 0, $"{Script} {action} failed with {code}: {output}");
    }

    private AmazonS3Client Client(string key, string secret) => new(
        new BasicAWSCredentials(key, secret),
        new AmazonS3Config
        {
            ServiceURL = $"http://127.0.0.1:{Port}",
            ForcePathStyle = true,
            AuthenticationRegion = "us-east-1",
            RequestChecksumCalculation = RequestChecksumCalculation.WHEN_REQUIRED,
            ResponseChecksumValidation = ResponseChecksumValidation.WHEN_REQUIRED,
        });

    private void WriteProfiles()
    {
        (string Name, string Key, string Secret)[] accounts =
        [
            (Owner, OwnerKey, OwnerSecret), (Stranger, "LTSTRANGERKEY", "strangersecret"), (WrongSecret, OwnerKey, "another"), (Unknown, "LTUNKNOWNKEY", "any"), (Limited, "LTLIMITEDKEY", "limitedsecret"),
        ];
        File.WriteAllText(Variables["AWS_SHARED_CREDENTIALS_FILE"], string.Concat(accounts.Select(account => $"[{account.Name}]\naws_access_key_id = {account.Key}\naws_secret_access_key = {account.Secret}\n\n")));
        File.WriteAllText(ConfigFile, string.Empty);
        foreach ((string name, string value) in Variables)
        {
            Environment.SetEnvironmentVariable(name, value);
        }
    }

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
