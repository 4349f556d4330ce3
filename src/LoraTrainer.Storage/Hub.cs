using System.Globalization;
using System.Net;
using System.Text.Json;

namespace LoraTrainer.Storage;

/// <summary>
/// A model hub that speaks Hugging Face's interface, and its cache on this disk, laid out as Python's huggingface_hub has it (huggingface.co/docs/hub/local-cache) and
/// shared with it: contents in <c>blobs</c> by their hash, <c>snapshots</c> of links to them by commit, <c>refs</c> from branches to commits. The token goes to the
/// hub's own host only and into no message.
/// </summary>
public sealed class Hub : IDisposable
{
    private const int MostListBytes = 64 << 20;
    private const int FilesAtOnce = 4;

    private readonly HubSettings settings;
    private readonly Action<string>? tell;
    private readonly TimeProvider time;
    private readonly HttpConnection connection;

    /// <param name="settings">Usually <see cref="HubSettings.FromEnvironment"/>.</param>
    /// <param name="tell">Is told how downloads come on, a line at a time, from any thread.</param>
    public Hub(HubSettings settings, Action<string>? tell = null)
        : this(settings, tell, null, null)
    {
    }

    internal Hub(HubSettings settings, Action<string>? tell, HttpPatience? patience, TimeProvider? time)
    {
        this.settings = settings;
        this.tell = tell;
        this.time = time ?? TimeProvider.System;
        connection = new HttpConnection(patience, time);
    }

    /// <summary>For tests of full disks; null: what the system says.</summary>
    internal Func<string, long?>? FreeBytes { get; init; }

    private string Host => new Uri(settings.Endpoint).Authority;

    /// <summary>Finds out which commit the revision is and what is in it; where the hub cannot be reached, what the cache knows of it.</summary>
    /// <exception cref="IOException">there is no such repository or revision, it may not be read, or the hub cannot be reached; says what to do</exception>
    public async Task<HubSnapshot> OpenAsync(HubRepository repository, CancellationToken cancellation)
    {
        if (!HubRepository.IsName(repository.Name) || !HubRepository.IsRevision(repository.Revision))
        {
            throw new StoreException(StoreProblem.Unsupported, $"'{repository.Name}' at '{repository.Revision}' cannot be the name and the revision of a repository.");
        }

        if (settings.IsOffline)
        {
            return Cached(repository) ?? throw new StoreException(StoreProblem.Missing, $"{repository} is not in the cache {settings.CacheFolder}, and HF_HUB_OFFLINE says not to fetch it. Unset it, or copy the cache from a machine that has it.");
        }

        byte[] json;
        try
        {
            string address = $"{settings.Endpoint}/{repository.ApiPath}/revision/{Uri.EscapeDataString(repository.Revision)}?blobs=true";
            json = await connection.ReadAsync(new HttpAsk(new Uri(address), $"The list of files of {repository} ({Host})") { Token = settings.Token }, MostListBytes, cancellation).ConfigureAwait(false);
        }
        catch (IOException exception) when ((exception is StoreException { Problem: StoreProblem.Unreachable } || HttpFailure.MayPass(exception)) && Cached(repository) is { } cached)
        {
            tell?.Invoke($"{Host} does not answer ({HttpFailure.Words(exception is StoreException { InnerException: { } inner } ? inner : exception)}); {repository} is taken from the cache as it was fetched before, commit {cached.Commit}.");
            return cached;
        }
        catch (HttpStatusException refused)
        {
            throw Refused(repository, refused, null);
        }

        return Parse(repository, json);
    }

    public void Dispose() => connection.Dispose();

    internal async Task FetchAsync(HubSnapshot snapshot, IReadOnlyCollection<string> paths, CancellationToken cancellation)
    {
        HubRepository repository = snapshot.Repository;
        HubFile[] missing = [.. snapshot.Files.Where(file => paths.Contains(file.Path) && !IsHere(snapshot, file))];
        string[] unknown = [.. paths.Except(snapshot.Files.Select(file => file.Path))];
        if (unknown.Length > 0)
        {
            throw new StoreException(StoreProblem.Missing, snapshot.IsCachedOnly
                ? $"{repository}: {string.Join(", ", unknown.Take(5))} {(unknown.Length == 1 ? "is" : "are")} not in the cache {settings.CacheFolder}, and the hub {(settings.IsOffline ? "is not asked (HF_HUB_OFFLINE)" : "does not answer")}."
                : $"{repository} has no file {string.Join(", ", unknown.Take(5))}.");
        }

        if (missing.Length > 0)
        {
            await FetchMissingAsync(snapshot, missing, cancellation).ConfigureAwait(false);
        }

        if (!snapshot.IsCachedOnly && !HubRepository.IsCommit(repository.Revision))
        {
            WriteReference(snapshot);
        }
    }

    private async Task FetchMissingAsync(HubSnapshot snapshot, HubFile[] missing, CancellationToken cancellation)
    {
        string folder = Path.Combine(settings.CacheFolder, snapshot.Repository.FolderName);
        string blobs = Path.Combine(folder, "blobs");
        try
        {
            Directory.CreateDirectory(blobs);
            Directory.CreateDirectory(snapshot.Folder);
        }
        catch (Exception exception) when (HttpFailure.OfDisk(exception, blobs) is { } disk)
        {
            throw disk;
        }

        for (int i = 0; i < missing.Length; i++)
        {
            if (missing[i].Sha256 is null && missing[i].BlobId is null)
            {
                missing[i] = await DescribedAsync(snapshot, missing[i], cancellation).ConfigureAwait(false);
            }
        }

        long here = missing.Sum(file => LengthOf(Path.Combine(blobs, NameOf(file))) is > 0 and long whole ? whole : LengthOf(Path.Combine(blobs, NameOf(file) + DownloadedFile.PartialEnding)));
        long? total = missing.All(file => file.SizeBytes is not null) ? missing.Sum(file => file.SizeBytes!.Value) : null;
        DownloadProgress.RequireSpace(blobs, (total ?? 0) - here, snapshot.Repository.ToString(), "HF_HUB_CACHE", FreeBytes);
        var progress = new DownloadProgress(snapshot.Repository.ToString(), missing.Length, total, tell, time);
        progress.Begin(here, folder);
        await Parallel.ForEachAsync(missing, new ParallelOptions { MaxDegreeOfParallelism = FilesAtOnce, CancellationToken = cancellation }, async (file, token) =>
        {
            await FetchOneAsync(snapshot, file, blobs, progress.Add, token).ConfigureAwait(false);
            progress.FileFinished();
        }).ConfigureAwait(false);
        progress.End();
    }

    private async Task FetchOneAsync(HubSnapshot snapshot, HubFile file, string blobs, Action<long> progress, CancellationToken cancellation)
    {
        HubRepository repository = snapshot.Repository;
        string name = NameOf(file), blob = Path.Combine(blobs, name);
        string shown = $"{file.Path} of {repository}";
        using DownloadLock held = await DownloadLock.TakeAsync(Path.Combine(settings.CacheFolder, ".locks", repository.FolderName, name + ".lock"), shown, tell, cancellation).ConfigureAwait(false);
        if (!File.Exists(blob) || (file.SizeBytes is { } size && LengthOf(blob) != size))
        {
            ExpectedHash? hash = file.Sha256 is { } sha256 ? ExpectedHash.Sha256(sha256) : file.BlobId is { } git ? ExpectedHash.GitBlob(git) : null;
            try
            {
                await DownloadedFile.FetchAsync(connection, new HttpAsk(AddressOf(snapshot, file), $"{shown} ({Host})") { Token = settings.Token }, blob, file.SizeBytes, hash, mayResume: hash is not null, _ => { }, progress, cancellation).ConfigureAwait(false);
            }
            catch (HttpStatusException refused)
            {
                throw Refused(repository, refused, file.Path);
            }
        }

        Link(blob, snapshot.PathOf(file.Path), file.Path);
    }

    /// <summary>A file whose hash the list did not tell: the server says it where the file is.</summary>
    private async Task<HubFile> DescribedAsync(HubSnapshot snapshot, HubFile file, CancellationToken cancellation)
    {
        var ask = new HttpAsk(AddressOf(snapshot, file), $"{file.Path} of {snapshot.Repository} ({Host})") { Token = settings.Token, Method = HttpMethod.Head };
        try
        {
            return await connection.RetryAsync(
                ask.Shown,
                async (_, token) =>
                {
                    using HttpResponseMessage response = await connection.SendAsync(ask, token).ConfigureAwait(false);
                    string tag = (HttpConnection.Header(response, "X-Linked-Etag") ?? response.Headers.ETag?.Tag ?? "").Replace("W/", "", StringComparison.Ordinal).Trim('"').ToLowerInvariant();
                    long? size = long.TryParse(HttpConnection.Header(response, "X-Linked-Size"), NumberStyles.None, CultureInfo.InvariantCulture, out long linked) ? linked : response.Content.Headers.ContentLength;
                    return file with { SizeBytes = file.SizeBytes ?? size, Sha256 = IsHex(tag, 64) ? tag : null, BlobId = IsHex(tag, 40) ? tag : null };
                },
                cancellation).ConfigureAwait(false);
        }
        catch (HttpStatusException refused)
        {
            throw Refused(snapshot.Repository, refused, file.Path);
        }
    }

    private Uri AddressOf(HubSnapshot snapshot, HubFile file)
        => new($"{settings.Endpoint}/{snapshot.Repository.UrlPath}/resolve/{snapshot.Commit}/{string.Join('/', file.Path.Split('/').Select(Uri.EscapeDataString))}");

    private HubSnapshot Parse(HubRepository repository, byte[] bytes)
    {
        try
        {
            using JsonDocument json = JsonDocument.Parse(bytes);
            string commit = json.RootElement.GetProperty("sha").GetString() ?? "";
            if (!HubRepository.IsCommit(commit))
            {
                throw new FormatException("sha is no commit");
            }

            var files = new List<HubFile>();
            foreach (JsonElement sibling in json.RootElement.GetProperty("siblings").EnumerateArray())
            {
                string path = sibling.GetProperty("rfilename").GetString() ?? "";
                if (IsSafePath(path))
                {
                    files.Add(FileOf(path, sibling));
                }
            }

            return new HubSnapshot(this, repository, commit, SnapshotFolder(repository, commit), files, isCachedOnly: false);
        }
        catch (Exception exception) when (exception is JsonException or KeyNotFoundException or InvalidOperationException or FormatException)
        {
            throw new StoreException(StoreProblem.Unsupported, $"{Host} answered something else than the list of files of {repository}. Check HF_ENDPOINT, and whether a proxy or a login page answers in its place.", exception);
        }
    }

    private static HubFile FileOf(string path, JsonElement sibling)
    {
        long? Size(JsonElement element) => element.TryGetProperty("size", out JsonElement size) && size.TryGetInt64(out long bytes) && bytes >= 0 ? bytes : null;
        string? Hex(JsonElement element, string name, int digits) => element.TryGetProperty(name, out JsonElement value) && value.ValueKind == JsonValueKind.String && value.GetString() is { } hex && IsHex(hex, digits) ? hex : null;

        if (sibling.TryGetProperty("lfs", out JsonElement lfs) && lfs.ValueKind == JsonValueKind.Object)
        {
            return new HubFile(path, Size(lfs) ?? Size(sibling)) { Sha256 = Hex(lfs, "sha256", 64) ?? Hex(lfs, "oid", 64) };
        }

        return new HubFile(path, Size(sibling)) { BlobId = Hex(sibling, "blobId", 40) };
    }

    private HubSnapshot? Cached(HubRepository repository)
    {
        string commit = repository.Revision;
        if (!HubRepository.IsCommit(commit))
        {
            string reference = ReferencePath(repository);
            commit = File.Exists(reference) ? File.ReadAllText(reference).Trim() : "";
        }

        string folder = SnapshotFolder(repository, commit);
        if (!HubRepository.IsCommit(commit) || !Directory.Exists(folder))
        {
            return null;
        }

        HubFile[] files = [.. Directory.EnumerateFiles(folder, "*", SearchOption.AllDirectories).Where(File.Exists)
            .Select(file => new HubFile(Path.GetRelativePath(folder, file).Replace(Path.DirectorySeparatorChar, '/'), null)).OrderBy(file => file.Path, StringComparer.Ordinal)];
        return files.Length > 0 ? new HubSnapshot(this, repository, commit, folder, files, isCachedOnly: true) : null;
    }

    private static bool IsHere(HubSnapshot snapshot, HubFile file)
    {
        string path = snapshot.PathOf(file.Path);
        return File.Exists(path) && (file.SizeBytes is not { } size || LengthOf(path) == size);
    }

    private static void Link(string blob, string path, string relative)
    {
        if (File.Exists(path) && LengthOf(path) == LengthOf(blob))
        {
            return;
        }

        Directory.CreateDirectory(Path.GetDirectoryName(path)!);
        string temporary = $"{path}.{Guid.NewGuid():N}.tmp";
        try
        {
            // From snapshots/COMMIT/a/b up to the repository's folder.
            string target = string.Concat(Enumerable.Repeat("../", relative.Split('/').Length + 1)) + "blobs/" + Path.GetFileName(blob);
            File.CreateSymbolicLink(temporary, target);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException && HttpFailure.OfDisk(exception, path) is not { Problem: StoreProblem.Full })
        {
            // A file system without links.
            File.Copy(blob, temporary);
        }

        File.Move(temporary, path, overwrite: true);
    }

    private void WriteReference(HubSnapshot snapshot)
    {
        string reference = ReferencePath(snapshot.Repository);
        try
        {
            if (!File.Exists(reference) || File.ReadAllText(reference) != snapshot.Commit)
            {
                Directory.CreateDirectory(Path.GetDirectoryName(reference)!);
                AtomicFile.WriteAllBytes(reference, System.Text.Encoding.ASCII.GetBytes(snapshot.Commit), durable: false);
            }
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // It serves machines without a network; a cache that cannot be written to is told where a file is missing.
            tell?.Invoke($"{reference} cannot be written ({exception.Message}); without a network {snapshot.Repository} will not be found by its revision.");
        }
    }

    private string SnapshotFolder(HubRepository repository, string commit) => Path.Combine(settings.CacheFolder, repository.FolderName, "snapshots", commit);

    private string ReferencePath(HubRepository repository) => Path.Combine([settings.CacheFolder, repository.FolderName, "refs", .. repository.Revision.Split('/')]);

    private static string NameOf(HubFile file) => file.Sha256 ?? file.BlobId ?? ContentHash.OfBytes(System.Text.Encoding.UTF8.GetBytes(file.Path));

    private static long LengthOf(string path) => new FileInfo(path) switch
    {
        { Exists: false } => 0,
        { LinkTarget: not null } link => link.ResolveLinkTarget(returnFinalTarget: true) is FileInfo { Exists: true } target ? target.Length : 0,
        var file => file.Length,
    };

    private static bool IsHex(string text, int digits) => text.Length == digits && text.All(char.IsAsciiHexDigitLower);

    private static bool IsSafePath(string path)
        => path.Length is > 0 and <= 1024 && !path.Contains('\\', StringComparison.Ordinal) && !path.Any(char.IsControl) && path.Split('/').All(part => part.Length > 0 && part is not ("." or ".."));

    /// <summary>What the hub's refusal means for the user.</summary>
    private StoreException Refused(HubRepository repository, HttpStatusException refused, string? file)
    {
        string page = $"{settings.Endpoint}/{repository.UrlPath}";
        string what = repository.Kind == HubKind.Model ? "model" : "data set";
        bool hasToken = settings.Token is not null;
        string says = refused.ServerMessage is { Length: > 0 } words && !(hasToken && words.Contains(settings.Token!, StringComparison.Ordinal)) ? $" The hub says: {words}" : "";
        bool isDenied = refused.Status is HttpStatusCode.Unauthorized or HttpStatusCode.Forbidden;
        return (refused.Code, refused.Status) switch
        {
            ("GatedRepo", _) when hasToken => new StoreException(StoreProblem.Denied, $"{repository.Name} is gated, and the account of your token has no access to it. Open {page} with that account, accept the terms, and start again (some owners confirm by hand). A fine-grained token also needs the permission to read gated repositories.{says}"),
            ("GatedRepo", _) => new StoreException(StoreProblem.Credentials, $"{repository.Name} is gated: its owner gives it to those who accept the terms. Open {page}, log in and accept them; make a read token at {settings.Endpoint}/settings/tokens; then set HF_TOKEN to it and start again."),
            ("RevisionNotFound", _) => new StoreException(StoreProblem.Missing, $"{repository.Name} has no revision '{repository.Revision}'. Its branches, tags and commits are at {page}/commits/{HubRepository.DefaultRevision}."),
            ("EntryNotFound", _) when file is not null => new StoreException(StoreProblem.Missing, $"{repository} has no file {file}."),
            ("RepoNotFound", _) or (null, HttpStatusCode.NotFound) => NotFound(),
            _ when isDenied && hasToken => new StoreException(StoreProblem.Credentials, $"{Host} does not accept your token (HF_TOKEN, or the file that huggingface-cli login wrote) for {repository.Name}: {refused.Message}. It may have been revoked or lack the permission to read.{says}"),
            _ when isDenied => NotFound(),
            (_, HttpStatusCode.TooManyRequests) => new StoreException(StoreProblem.Unreachable, $"{Host} refuses further requests for now: too many from here. Wait some minutes and start again; what has arrived is kept.{(hasToken ? "" : " With HF_TOKEN set the limits are higher.")}"),
            _ => new StoreException(StoreProblem.Unreachable, $"{(file is null ? repository.ToString() : $"{file} of {repository}")} cannot be fetched from {Host}: {refused.Message}.{says}"),
        };

        StoreException NotFound() => new(StoreProblem.Missing, $"{Host} has no {what} named {repository.Name}{(hasToken ? ", or your token may not read it" : ", or it is private (then set HF_TOKEN)")}. If you meant a {(repository.Kind == HubKind.Model ? "folder" : "file or folder")} of this machine: there is none of that name in {Directory.GetCurrentDirectory()}.");
    }
}
