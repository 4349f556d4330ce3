namespace LoraTrainer.TestSupport;

/// <summary>
/// The accounts of the S3 server of the tests, as profiles in files of their own. The SDK looks once, when it is first used, where its files are; so a test
/// program that uses it writes them as it starts, in a module initializer.
/// </summary>
public static class S3Profiles
{
    /// <summary>The account that owns the bucket.</summary>
    public const string Owner = "tester";

    /// <summary>An account that may do nothing in the owner's bucket.</summary>
    public const string Stranger = "stranger";

    /// <summary>The owner's access key with another secret.</summary>
    public const string WrongSecret = "wrong-secret";

    /// <summary>An access key that the server does not know.</summary>
    public const string Unknown = "unknown";

    /// <summary>An account with a quota and a bucket of its own.</summary>
    public const string Limited = "limited";

    private static readonly Lazy<string> Folder = new(Make);

    private static readonly Dictionary<string, (string Key, string Secret)> Accounts = new(StringComparer.Ordinal)
    {
        [Owner] = (Environment.GetEnvironmentVariable("LT_S3_ACCESS_KEY") ?? "LTOWNERKEY", Environment.GetEnvironmentVariable("LT_S3_SECRET_KEY") ?? "owner/secret+of=tests"),
        [Stranger] = ("LTSTRANGERKEY", "stranger/secret+of=tests"),
        [WrongSecret] = ("LTOWNERKEY", "wrong/secret+of=tests"),
        [Unknown] = ("LTUNKNOWNKEY", "unknown/secret+of=tests"),
        [Limited] = ("LTLIMITEDKEY", "limited/secret+of=tests"),
    };

    /// <summary>What a child process needs to find the accounts.</summary>
    public static IReadOnlyDictionary<string, string> Variables => new Dictionary<string, string>(StringComparer.Ordinal)
    {
        ["AWS_SHARED_CREDENTIALS_FILE"] = Path.Combine(Folder.Value, "credentials"),
        ["AWS_CONFIG_FILE"] = Path.Combine(Folder.Value, "config"),
        ["AWS_EC2_METADATA_DISABLED"] = "true",
    };

    /// <summary>Writes the files and has this process use them; nothing of the machine's own accounts is seen any more.</summary>
    public static void Write() => _ = Folder.Value;

    public static string Key(string profile) => Accounts[profile].Key;

    public static string Secret(string profile) => Accounts[profile].Secret;

    /// <summary>Adds a profile whose credentials a program prints.</summary>
    public static void AddProgram(string name, string command) => File.AppendAllText(Variables["AWS_CONFIG_FILE"], $"[profile {name}]\ncredential_process = {command}\n\n");

    /// <summary>The owner's credentials as a program of a profile prints them, or such with an access key that is not valid any more.</summary>
    public static string Printed(DateTimeOffset expiration, bool valid)
        => $$"""{"Version":1,"AccessKeyId":"{{(valid ? Key(Owner) : "LTOLDKEY")}}","SecretAccessKey":"{{Secret(Owner)}}","Expiration":"{{expiration.UtcDateTime:yyyy-MM-ddTHH:mm:ssZ}}"}""";

    /// <summary>True where the text holds a key of an account, or a signature.</summary>
    public static bool AppearIn(string text)
        => Accounts.Values.SelectMany(account => new[] { account.Key, account.Secret }).Concat(["Signature=", "Authorization"]).Any(secret => text.Contains(secret, StringComparison.Ordinal));

    private static string Make()
    {
        string folder = Directory.CreateTempSubdirectory("lt-s3-").FullName;
        AppDomain.CurrentDomain.ProcessExit += (_, _) => Directory.Delete(folder, recursive: true);
        File.WriteAllText(
            Path.Combine(folder, "credentials"),
            string.Concat(Accounts.Select(account => $"[{account.Key}]\naws_access_key_id = {account.Value.Key}\naws_secret_access_key = {account.Value.Secret}\n\n")));
        File.WriteAllText(Path.Combine(folder, "config"), string.Empty);
        Environment.SetEnvironmentVariable("AWS_SHARED_CREDENTIALS_FILE", Path.Combine(folder, "credentials"));
        Environment.SetEnvironmentVariable("AWS_CONFIG_FILE", Path.Combine(folder, "config"));
        Environment.SetEnvironmentVariable("AWS_EC2_METADATA_DISABLED", "true");
        foreach (string ambient in (string[])["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
        {
            Environment.SetEnvironmentVariable(ambient, null);
        }

        return folder;
    }
}
