using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;

namespace LoraTrainer.Storage;

/// <summary>
/// Files of http(s):// and s3:// addresses, kept on this disk and fetched again only when they changed. An address has a folder of its own, named by its hash:
/// <c>entry.json</c> says what is there, the content beside it has the address's last name. Whole files appear by rename and under a lock, so several processes may use it at once.
/// </summary>
public sealed partial class DownloadCache : IDisposable
{
    private const string EntryName = "entry.json";
    private const int Version = 1;

    private readonly string folder;
    private readonly Action<string>? tell;
    private readonly TimeProvider time;
    private readonly HttpConnection http;

    /// <param name="folder">Usually <see cref="DefaultFolder"/>.</param>
    /// <param name="tell">Is told how downloads come on, a line at a time.</param>
    public DownloadCache(string folder, Action<string>? tell = null)
        : this(folder, tell, null, null)
    {
    }

    internal DownloadCache(string folder, Action<string>? tell, HttpPatience? patience, TimeProvider? time)
    {
        this.folder = Path.GetFullPath(folder);
        this.tell = tell;
        this.time = time ?? TimeProvider.System;
        http = new HttpConnection(patience, time);
    }

    /// <summary>Opens the store of a bucket; another one in tests.</summary>
    internal Func<string, IObjectStore> OpenStore { get; init; } = ObjectStore.Open;

    /// <summary>LT_CACHE, or <c>lora-trainer</c> in XDG_CACHE_HOME or ~/.cache.</summary>
    public static string DefaultFolder
    {
        get
        {
            static string? Given(string name) => Environment.GetEnvironmentVariable(name) is { Length: > 0 } value ? value : null;
            return Given("LT_CACHE") ?? Path.Combine(Given("XDG_CACHE_HOME") ?? Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".cache"), "lora-trainer");
        }
    }

    /// <summary>True for addresses that <see cref="FetchAsync"/> takes.</summary>
    public static bool IsAddress(string text) => AddressShape().IsMatch(text);

    /// <summary>What is wrong with an address, as the rest of a sentence that begins with its key; null: nothing. Nothing is asked of any server.</summary>
    public static string? Wrong(string address)
    {
        if (address.StartsWith("s3://", StringComparison.OrdinalIgnoreCase))
        {
            return null;
        }

        return !Uri.TryCreate(address, UriKind.Absolute, out Uri? uri) || uri.Host.Length == 0 ? "is no address"
            : uri.UserInfo.Length > 0 ? "holds a user or a password; the configuration is copied into every run, so leave it out"
            : uri.Fragment.Length > 0 && !ChecksumShape().IsMatch(uri.Fragment) ? "has a '#' that is not followed by sha256= and 64 hexadecimal digits"
            : null;
    }

    /// <summary>An address without what may be secret in it.</summary>
    public static string Shown(string address) => address.IndexOfAny(['?', '#']) is >= 0 and int cut ? address[..cut] : address;

    /// <summary>The local files of what an address names: a file of a web server, an object, or all objects below a prefix or matching a pattern, in the order of their keys.</summary>
    /// <param name="address">http(s)://, with <c>#sha256=HEX</c> where the content is to be checked, or s3://.</param>
    /// <param name="cancellation">Leaves what has arrived.</param>
    /// <exception cref="IOException">it cannot be fetched; says what to do</exception>
    public async Task<IReadOnlyList<string>> FetchAsync(string address, CancellationToken cancellation)
    {
        if (Wrong(address) is { } wrong)
        {
            throw new StoreException(StoreProblem.Unsupported, $"the address {wrong}.");
        }

        return address.StartsWith("s3://", StringComparison.OrdinalIgnoreCase)
            ? await FetchObjectsAsync(address, cancellation).ConfigureAwait(false)
            : [await FetchPageAsync(address, cancellation).ConfigureAwait(false)];
    }

    public void Dispose() => http.Dispose();

    private async Task<string> FetchPageAsync(string address, CancellationToken cancellation)
    {
        var uri = new Uri(address);
        string? sha256 = ChecksumShape().Match(uri.Fragment) is { Success: true } checksum ? checksum.Groups[1].Value.ToLowerInvariant() : null;
        string shown = Shown(address);
        (string place, string file, DownloadLock held) = await OpenAsync(uri.GetLeftPart(UriPartial.Query), uri.AbsolutePath, shown, cancellation).ConfigureAwait(false);
        using DownloadLock lockOfEntry = held;
        Entry? known = Read(place, file);
        if (known is not null && sha256 is not null && known.Sha256 == sha256)
        {
            return file;
        }

        string? partialTag = ReadTag(file);
        var ask = new HttpAsk(new UriBuilder(uri) { Fragment = "" }.Uri, shown)
        {
            IfRange = partialTag,
            IfNoneMatch = sha256 is null ? known?.ETag : null,
            IfModifiedSince = sha256 is null && known?.ETag is null ? known?.LastModified : null,
        };
        try
        {
            var progress = new DownloadProgress(shown, 1, null, tell, time);
            bool began = false;
            DownloadResult result = await DownloadedFile.FetchAsync(
                http, ask, file, null, sha256 is null ? null : ExpectedHash.Sha256(sha256), mayResume: partialTag is not null || sha256 is not null,
                tag => KeepTag(file, tag),
                bytes =>
                {
                    if (!began)
                    {
                        began = true;
                        progress.Begin(0, place);
                    }

                    progress.Add(bytes);
                },
                cancellation).ConfigureAwait(false);
            File.Delete(TagPath(file));
            if (result.NotModified)
            {
                return file;
            }

            Write(place, new Entry(shown, result.ETag, result.LastModified, result.SizeBytes, result.Sha256));
            progress.End();
            return file;
        }
        catch (IOException exception) when (known is not null && sha256 is null && (exception is StoreException { Problem: StoreProblem.Unreachable } || HttpFailure.MayPass(exception)))
        {
            tell?.Invoke($"{shown}: the server does not answer; what was fetched before is used, {file}");
            return file;
        }
        catch (HttpStatusException refused)
        {
            throw new StoreException(
                refused.Status == System.Net.HttpStatusCode.NotFound ? StoreProblem.Missing : StoreProblem.Denied,
                $"{shown} cannot be fetched: {refused.Message}.{(refused.Status is System.Net.HttpStatusCode.Unauthorized or System.Net.HttpStatusCode.Forbidden ? " It asks for a login or a signature, which may have expired; download it and give its path." : " Check the address.")}");
        }
    }

    private async Task<IReadOnlyList<string>> FetchObjectsAsync(string address, CancellationToken cancellation)
    {
        (string path, string options) = address.IndexOf('?', StringComparison.Ordinal) is >= 0 and int cut ? (address[..cut], address[cut..]) : (address, "");
        const string scheme = "s3://";
        string afterScheme = path[scheme.Length..];
        int slash = afterScheme.IndexOf('/', StringComparison.Ordinal);
        string key = slash < 0 ? "" : afterScheme[(slash + 1)..];
        if (key.Length == 0)
        {
            throw new StoreException(StoreProblem.Unsupported, $"{path} names a bucket. Behind it stands an object, a prefix or a pattern: s3://bucket/data/train.jsonl, s3://bucket/data/ or s3://bucket/data/*.jsonl.");
        }

        string bucket = scheme + afterScheme[..slash];
        await using IObjectStore store = OpenStore(bucket + options);
        if (!GlobPattern.HasWildcards(key) && !key.EndsWith('/') && await FetchObjectAsync(store, bucket, key, options, cancellation).ConfigureAwait(false) is { } file)
        {
            return [file];
        }

        var pattern = GlobPattern.HasWildcards(key) ? new GlobPattern(key) : null;
        string prefix = pattern is null ? key.TrimEnd('/') + "/" : pattern.FixedPart.Length > 0 ? pattern.FixedPart + "/" : "";
        string[] keys = [.. (await store.ListAsync(prefix, cancellation).ConfigureAwait(false)).Select(item => item.Key).Where(item => ObjectKey.IsValid(item) && (pattern is null || pattern.IsMatch(item)))];
        if (keys.Length == 0)
        {
            throw new StoreException(StoreProblem.Missing, pattern is null ? $"{path}: no object of that name, and none below it." : $"{path}: no object matches this pattern.");
        }

        var files = new List<string>();
        foreach (string item in keys)
        {
            files.Add(await FetchObjectAsync(store, bucket, item, options, cancellation).ConfigureAwait(false)
                ?? throw new StoreException(StoreProblem.Missing, $"{bucket}/{item} was deleted while the objects beside it were fetched. Start again."));
        }

        return files;
    }

    /// <summary>Null where there is no such object.</summary>
    private async Task<string?> FetchObjectAsync(IObjectStore store, string bucket, string key, string options, CancellationToken cancellation)
    {
        string shown = $"{bucket}/{key}";
        await using StoredContent? content = await store.GetAsync(key, cancellation).ConfigureAwait(false);
        if (content is null)
        {
            return null;
        }

        (string place, string file, DownloadLock held) = await OpenAsync(shown + options, key, shown, cancellation).ConfigureAwait(false);
        using DownloadLock lockOfEntry = held;
        if (Read(place, file) is { } known && content.Version.Length > 0 && known.ETag == content.Version && known.SizeBytes == content.SizeBytes)
        {
            return file;
        }

        DownloadProgress.RequireSpace(place, content.SizeBytes, shown, "LT_CACHE");
        var progress = new DownloadProgress(shown, 1, content.SizeBytes, tell, time);
        progress.Begin(0, place);
        try
        {
            using AtomicFile whole = AtomicFile.Create(file);
            byte[] buffer = new byte[1 << 18];
            while (await content.Content.ReadAsync(buffer, cancellation).ConfigureAwait(false) is > 0 and int read)
            {
                whole.Append(buffer.AsSpan(0, read));
                progress.Add(read);
            }

            whole.Commit();
        }
        catch (Exception exception) when (HttpFailure.OfDisk(exception, file) is { } disk)
        {
            throw disk;
        }

        Write(place, new Entry(shown, content.Version, null, content.SizeBytes, ContentHash.OfFile(file, cancellation)));
        progress.End();
        return file;
    }

    /// <summary>What the server says of the content is kept beside its beginning, so that another process may go on with it.</summary>
    private static void KeepTag(string file, string? tag)
    {
        if (tag is null)
        {
            File.Delete(TagPath(file));
        }
        else
        {
            AtomicFile.WriteAllBytes(TagPath(file), Encoding.UTF8.GetBytes(tag), durable: false);
        }
    }

    private static string? ReadTag(string file) => File.Exists(TagPath(file)) && File.ReadAllText(TagPath(file)) is { Length: > 0 and < 1024 } tag && !tag.Any(char.IsControl) ? tag : null;

    private static string TagPath(string file) => file + ".etag";

    /// <summary>The folder of an address, the file that its content has there, and the right to write both.</summary>
    private async Task<(string Place, string File, DownloadLock Held)> OpenAsync(string identity, string path, string shown, CancellationToken cancellation)
    {
        string place = Path.Combine(folder, "downloads", ContentHash.OfBytes(Encoding.UTF8.GetBytes(identity))[..32]);
        string name = Uri.UnescapeDataString(path.TrimEnd('/').Split('/')[^1]);
        name = string.Concat(name.Select(character => char.IsAsciiLetterOrDigit(character) || character is '.' or '-' or '_' ? character : '_')).TrimStart('.');
        name = name.Length > 120 ? name[^120..].TrimStart('.') : name;
        DownloadLock held = await DownloadLock.TakeAsync(place + ".lock", shown, tell, cancellation).ConfigureAwait(false);
        try
        {
            Directory.CreateDirectory(place);
        }
        catch (Exception exception)
        {
            held.Dispose();
            throw HttpFailure.OfDisk(exception, place) ?? exception;
        }

        return (place, Path.Combine(place, name.Length > 0 ? name : "content"), held);
    }

    private static Entry? Read(string place, string file)
    {
        try
        {
            string path = Path.Combine(place, EntryName);
            if (!File.Exists(path) || !File.Exists(file))
            {
                return null;
            }

            using JsonDocument json = JsonDocument.Parse(File.ReadAllBytes(path));
            JsonElement root = json.RootElement;
            var entry = new Entry(
                root.GetProperty("address").GetString() ?? "",
                root.GetProperty("etag").GetString(),
                root.GetProperty("last_modified").GetString() is { } date ? DateTimeOffset.Parse(date, CultureInfo.InvariantCulture) : null,
                root.GetProperty("size").GetInt64(),
                root.GetProperty("sha256").GetString() ?? "");
            return root.GetProperty("version").GetInt32() == Version && new FileInfo(file).Length == entry.SizeBytes ? entry : null;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or JsonException or KeyNotFoundException or InvalidOperationException or FormatException)
        {
            // What is damaged is fetched again.
            return null;
        }
    }

    private static void Write(string place, Entry entry)
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteNumber("version", Version);
            json.WriteString("address", entry.Address);
            json.WriteString("etag", entry.ETag);
            json.WriteString("last_modified", entry.LastModified?.ToString("o", CultureInfo.InvariantCulture));
            json.WriteNumber("size", entry.SizeBytes);
            json.WriteString("sha256", entry.Sha256);
            json.WriteEndObject();
        }

        AtomicFile.WriteAllBytes(Path.Combine(place, EntryName), buffer.ToArray(), durable: false);
    }

    /// <param name="Address">Without what may be secret, for people who look into the folder.</param>
    /// <param name="ETag">Of the server; the version of an object.</param>
    /// <param name="LastModified">Of the server.</param>
    /// <param name="SizeBytes">Of the content.</param>
    /// <param name="Sha256">Of the content.</param>
    private sealed record Entry(string Address, string? ETag, DateTimeOffset? LastModified, long SizeBytes, string Sha256);

    [GeneratedRegex("^(?:https?|s3)://", RegexOptions.IgnoreCase | RegexOptions.CultureInvariant)]
    private static partial Regex AddressShape();

    [GeneratedRegex(@"^#sha256=([0-9a-fA-F]{64})\z", RegexOptions.CultureInvariant)]
    private static partial Regex ChecksumShape();
}
