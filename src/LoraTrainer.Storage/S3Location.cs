using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;

namespace LoraTrainer.Storage;

/// <summary>Which checksums are computed over what is sent.</summary>
public enum S3Checksums
{
    /// <summary>Whenever the operation has one, as AWS does it. Older servers refuse the form in which they are sent.</summary>
    Supported,

    /// <summary>Only where the operation demands one.</summary>
    Required,
}

/// <summary>
/// Everything about an S3 store but the credentials: <c>s3://bucket/prefix?option=value&amp;option=value</c>. Who has the URI needs no other setting, today or when
/// a run is taken up again. Immutable; <see cref="ToString"/> gives a URI that parses to the same.
/// </summary>
public sealed partial record S3Location
{
    public const string Scheme = "s3://";

    private const int LongestKeyBytes = 1024;

    private static readonly string[] CredentialWords = ["secret", "token", "password", "access_key", "accesskey", "credential"];

    private S3Location()
    {
    }

    /// <summary>The bucket.</summary>
    public required string Bucket { get; init; }

    /// <summary>What all keys start with, without a '/' at its ends; may be empty.</summary>
    public required string Prefix { get; init; }

    /// <summary>The server, as <c>http://host:port</c>; null for the environment's, the profile's, or AWS itself.</summary>
    public string? Endpoint { get; private init; }

    public string? Region { get; private init; }

    /// <summary>The profile of the AWS configuration files that credentials come from.</summary>
    public string? Profile { get; private init; }

    /// <summary>The bucket is in the path rather than in the host name; null for what fits the server.</summary>
    public bool? PathStyle { get; private init; }

    /// <summary>Null for what fits the server.</summary>
    public S3Checksums? Checksums { get; private init; }

    /// <summary>What is sent is signed in chunks; servers that do not know this take it signed as a whole, which means that each part is read twice.</summary>
    public bool ChunkEncoding { get; private init; } = true;

    /// <summary><c>AES256</c> or <c>aws:kms</c>; null for the bucket's own setting.</summary>
    public string? Encryption { get; private init; }

    /// <summary>The key of <c>aws:kms</c>; null for the account's.</summary>
    public string? KmsKey { get; private init; }

    public string? StorageClass { get; private init; }

    /// <summary>Parts of one object that are sent at the same time.</summary>
    public int Parallel { get; private init; } = 4;

    /// <summary>Objects above this size are sent in parts of it.</summary>
    public int PartMib { get; private init; } = 8;

    /// <summary>Of all transfers of the store together; null for no limit.</summary>
    public double? MaxMibPerSecond { get; private init; }

    /// <summary>How long failures that may pass are tried again, counted from the last progress.</summary>
    public double RetrySeconds { get; private init; } = 60;

    /// <summary>How long a request may go without a byte, and a second more for each of its MiB.</summary>
    public double TimeoutSeconds { get; private init; } = 30;

    /// <summary>Reads a URI.</summary>
    /// <exception cref="StoreException">it says what is wrong; credentials in the URI are never repeated</exception>
    public static S3Location Parse(string uri)
    {
        if (!uri.StartsWith(Scheme, StringComparison.OrdinalIgnoreCase))
        {
            throw Wrong("An S3 store is written s3://bucket/prefix?option=value.");
        }

        string rest = uri[Scheme.Length..];
        int question = rest.IndexOf('?', StringComparison.Ordinal);
        string path = question < 0 ? rest : rest[..question];
        int slash = path.IndexOf('/', StringComparison.Ordinal);
        string bucket = slash < 0 ? path : path[..slash];
        if (bucket.AsSpan().ContainsAny('@', ':') || path.Contains('@', StringComparison.Ordinal))
        {
            throw Wrong("The URI of an S3 store holds ':' or '@' before its options, as if it had credentials or a port in it. Credentials are never taken from a URI, which ends "
                + "up in logs and in run folders: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile. A server is named with endpoint=http://host:port behind the '?'.");
        }

        CheckBucket(bucket);
        string prefix = slash < 0 ? string.Empty : Decode(path[(slash + 1)..], "the prefix").Trim('/');
        CheckPrefix(prefix);
        var location = new S3Location { Bucket = bucket, Prefix = prefix };
        var seen = new HashSet<string>(StringComparer.Ordinal);
        foreach (string pair in question < 0 ? [] : rest[(question + 1)..].Split('&', StringSplitOptions.RemoveEmptyEntries))
        {
            int equals = pair.IndexOf('=', StringComparison.Ordinal);
            string name = equals < 0 ? pair : pair[..equals];
            CheckOption(name);
            if (equals < 0)
            {
                throw Wrong($"The option {name} of an S3 store has no value: write {name}=value.");
            }

            if (!seen.Add(name))
            {
                throw Wrong($"The option {name} of an S3 store is given twice.");
            }

            location = S3Options.All[name].Read(location, Decode(pair[(equals + 1)..], $"the option {name}"));
        }

        if (location.KmsKey is not null && location.Encryption != "aws:kms")
        {
            throw Wrong("The option kms_key of an S3 store needs encryption=aws:kms.");
        }

        return location;
    }

    /// <summary>The same store with another prefix.</summary>
    public S3Location WithKey(string prefix)
    {
        CheckPrefix(prefix);
        return this with { Prefix = prefix };
    }

    /// <summary>The store of the keys that start with <paramref name="key"/> in this one.</summary>
    public S3Location Append(string key) => WithKey(FullKey(key));

    /// <summary>The whole key of an object in the bucket.</summary>
    public string FullKey(string key)
    {
        ObjectKey.Validate(key);
        string full = Prefix.Length == 0 ? key : $"{Prefix}/{key}";
        return Encoding.UTF8.GetByteCount(full) <= LongestKeyBytes
            ? full
            : throw new ArgumentException($"the key '{key}' has, with the prefix of the store, more than {LongestKeyBytes} bytes", nameof(key));
    }

    /// <summary>The URI without options, for messages about single objects.</summary>
    internal string PathOf(string fullKey) => $"{Scheme}{Bucket}/{fullKey}";

    /// <summary>The URI; holds no secret, because none can be in it.</summary>
    public override string ToString()
    {
        var text = new StringBuilder(Scheme).Append(Bucket);
        if (Prefix.Length > 0)
        {
            text.Append('/').Append(Encode(Prefix));
        }

        char separator = '?';
        foreach ((string name, S3Options option) in S3Options.All)
        {
            if (option.Write(this) is { } value)
            {
                text.Append(separator).Append(name).Append('=').Append(Encode(value));
                separator = '&';
            }
        }

        return text.ToString();
    }

    internal static StoreException Wrong(string message) => new(StoreProblem.Unsupported, message);

    private static void CheckBucket(string bucket)
    {
        string? wrong = bucket switch
        {
            "" => "is missing: write s3://bucket/prefix",
            _ when bucket.Length is < 3 or > 63 => $"has {bucket.Length} characters; 3 to 63 are allowed",
            _ when !BucketLetters().IsMatch(bucket) => "may hold lower-case letters, digits, '.' and '-' only, and starts and ends with a letter or digit",
            _ when bucket.Contains("..", StringComparison.Ordinal) => "has two dots in a row",
            _ when LooksLikeAddress().IsMatch(bucket) => "looks like an IP address. A server is named with endpoint=http://host:port behind the '?'",
            _ when bucket.StartsWith("xn--", StringComparison.Ordinal) || bucket.StartsWith("sthree-", StringComparison.Ordinal) => "starts with letters that S3 keeps for itself",
            _ => null,
        };
        if (wrong is not null)
        {
            throw Wrong($"The bucket '{bucket}' {wrong}.");
        }
    }

    private static void CheckPrefix(string prefix)
    {
        try
        {
            if (prefix.Length > 0)
            {
                ObjectKey.Validate(prefix);
            }
        }
        catch (ArgumentException exception)
        {
            throw Wrong($"The prefix of an S3 store is not accepted: {exception.Message[..exception.Message.LastIndexOf(" (", StringComparison.Ordinal)]}.");
        }
    }

    private static void CheckOption(string name)
    {
        if (S3Options.All.ContainsKey(name))
        {
            return;
        }

        if (Array.Exists(CredentialWords, word => name.Contains(word, StringComparison.OrdinalIgnoreCase)))
        {
            throw Wrong($"The option {Printable(name)} is not accepted: credentials are never taken from a URI, which ends up in logs and in run folders. Set AWS_ACCESS_KEY_ID and "
                + "AWS_SECRET_ACCESS_KEY, or name a profile with profile=NAME.");
        }

        string nearest = S3Options.All.Keys.MinBy(known => Distance(known, name))!;
        string suggestion = Distance(nearest, name) <= 3 ? $" Did you mean {nearest}?" : string.Empty;
        throw Wrong($"'{Printable(name)}' is not an option of an S3 store.{suggestion} The options are {string.Join(", ", S3Options.All.Keys)}.");
    }

    private static string Printable(string name) => name.Length <= 40 && OptionName().IsMatch(name) ? name : "...";

    private static string Decode(string text, string what)
    {
        if (BadEscape().IsMatch(text))
        {
            throw Wrong($"In {what} of an S3 store a '%' is not followed by two hexadecimal digits; a percent sign itself is written %25.");
        }

        string decoded = Uri.UnescapeDataString(text);
        return decoded.Any(char.IsControl) ? throw Wrong($"There is a control character in {what} of an S3 store.") : decoded;
    }

    private static string Encode(string text) => Reserved().Replace(text, match => Uri.HexEscape(match.Value[0]));

    // The number of letters to insert, remove or replace.
    private static int Distance(string a, string b)
    {
        int[] row = [.. Enumerable.Range(0, b.Length + 1)];
        for (int i = 1; i <= a.Length; i++)
        {
            int diagonal = row[0];
            row[0] = i;
            for (int j = 1; j <= b.Length; j++)
            {
                int above = row[j];
                row[j] = Math.Min(Math.Min(row[j], row[j - 1]) + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1));
                diagonal = above;
            }
        }

        return row[b.Length];
    }

    [GeneratedRegex(@"^[a-z0-9][a-z0-9.-]*[a-z0-9]\z")]
    private static partial Regex BucketLetters();

    [GeneratedRegex(@"^\d+\.\d+\.\d+\.\d+\z")]
    private static partial Regex LooksLikeAddress();

    [GeneratedRegex(@"^[A-Za-z0-9_-]+\z")]
    private static partial Regex OptionName();

    [GeneratedRegex("%(?![0-9A-Fa-f]{2})")]
    private static partial Regex BadEscape();

    [GeneratedRegex("[%?#&+@ ]")]
    private static partial Regex Reserved();

    /// <summary>How each option is read and written; the only list of them.</summary>
    private sealed partial record S3Options(Func<S3Location, string, S3Location> Read, Func<S3Location, string?> Write)
    {
        public static OrderedDictionary<string, S3Options> All { get; } = new(StringComparer.Ordinal)
        {
            ["endpoint"] = new((to, value) => to with { Endpoint = CheckedEndpoint(value) }, from => from.Endpoint),
            ["region"] = new((to, value) => to with { Region = Matching("region", value, Word(), "a region such as us-east-1") }, from => from.Region),
            ["profile"] = new((to, value) => to with { Profile = Matching("profile", value, AnyText(), "the name of a profile") }, from => from.Profile),
            ["path_style"] = new(
                (to, value) => to with { PathStyle = value switch { "true" => true, "false" => false, _ => throw NotOne("path_style", value, "true or false") } },
                from => from.PathStyle switch { true => "true", false => "false", _ => null }),
            ["checksums"] = new(
                (to, value) => to with { Checksums = value switch { "supported" => S3Checksums.Supported, "required" => S3Checksums.Required, _ => throw NotOne("checksums", value, "supported or required") } },
                from => from.Checksums switch { S3Checksums.Supported => "supported", S3Checksums.Required => "required", _ => null }),
            ["chunk_encoding"] = new(
                (to, value) => to with { ChunkEncoding = value switch { "true" => true, "false" => false, _ => throw NotOne("chunk_encoding", value, "true or false") } },
                from => from.ChunkEncoding ? null : "false"),
            ["encryption"] = new((to, value) => to with { Encryption = value is "AES256" or "aws:kms" ? value : throw NotOne("encryption", value, "AES256 or aws:kms") }, from => from.Encryption),
            ["kms_key"] = new((to, value) => to with { KmsKey = Matching("kms_key", value, AnyText(), "the id or ARN of a key") }, from => from.KmsKey),
            ["storage_class"] = new(
                (to, value) => value is "GLACIER" or "DEEP_ARCHIVE"
                    ? throw Wrong($"storage_class={value} is not accepted: objects of that class cannot be read before they are restored. Typical: STANDARD, STANDARD_IA, INTELLIGENT_TIERING, GLACIER_IR.")
                    : to with { StorageClass = Matching("storage_class", value, UpperWord(), "a storage class such as STANDARD_IA") },
                from => from.StorageClass),
            ["parallel"] = new((to, value) => to with { Parallel = (int)Number("parallel", value, 1, 64, whole: true) }, from => from.Parallel == 4 ? null : Text(from.Parallel)),
            ["part_mib"] = new((to, value) => to with { PartMib = (int)Number("part_mib", value, 5, 1024, whole: true) }, from => from.PartMib == 8 ? null : Text(from.PartMib)),
            ["max_mib_per_s"] = new((to, value) => to with { MaxMibPerSecond = Number("max_mib_per_s", value, 0.01, 1e6) }, from => from.MaxMibPerSecond is { } rate ? Text(rate) : null),
            ["retry_seconds"] = new((to, value) => to with { RetrySeconds = Number("retry_seconds", value, 0, 86400) }, from => from.RetrySeconds == 60 ? null : Text(from.RetrySeconds)),
            ["timeout_seconds"] = new((to, value) => to with { TimeoutSeconds = Number("timeout_seconds", value, 0.1, 3600) }, from => from.TimeoutSeconds == 30 ? null : Text(from.TimeoutSeconds)),
        };

        private static string Text(double number) => number.ToString("R", CultureInfo.InvariantCulture);

        private static StoreException NotOne(string option, string value, string expected) => Wrong($"The option {option} of an S3 store must be {expected}, got '{value}'.");

        private static string Matching(string option, string value, Regex pattern, string expected) => pattern.IsMatch(value) ? value : throw NotOne(option, value, expected);

        private static double Number(string option, string value, double least, double most, bool whole = false)
        {
            bool read = double.TryParse(value, NumberStyles.AllowDecimalPoint | NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out double number);
            return read && number >= least && number <= most && (!whole || number == Math.Floor(number))
                ? number
                : throw NotOne(option, value, string.Create(CultureInfo.InvariantCulture, $"{(whole ? "a whole number" : "a number")} of {least} to {most}"));
        }

        private static string CheckedEndpoint(string value)
        {
            if (!Uri.TryCreate(value, UriKind.Absolute, out Uri? uri) || uri.Scheme is not ("http" or "https") || uri.Host.Length == 0)
            {
                throw Wrong("The option endpoint of an S3 store must be a server such as http://host:port or https://host.");
            }

            return uri.UserInfo.Length > 0 || uri.AbsolutePath != "/" || uri.Query.Length > 0 || uri.Fragment.Length > 0
                ? throw Wrong("The option endpoint of an S3 store holds more than the server. It is http://host:port or https://host, without credentials, path or query.")
                : value.TrimEnd('/');
        }

        [GeneratedRegex(@"^[A-Za-z0-9-]{1,64}\z")]
        private static partial Regex Word();

        [GeneratedRegex(@"^[A-Z][A-Z0-9_-]{0,63}\z")]
        private static partial Regex UpperWord();

        [GeneratedRegex(@"^.{1,512}\z")]
        private static partial Regex AnyText();
    }
}
