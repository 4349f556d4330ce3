using System.Collections.Concurrent;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;

namespace LoraTrainer.TestSupport;

/// <summary>What goes wrong with one answer.</summary>
public abstract record HubFault
{
    /// <summary>The connection is closed after so many bytes of the content.</summary>
    public sealed record Cut(int AfterBytes) : HubFault;

    /// <summary>Another status in the place of the content.</summary>
    public sealed record Status(int Code, params (string Name, string Value)[] Headers) : HubFault;

    /// <summary>Other bytes of the same length.</summary>
    public sealed record Wrong : HubFault;

    /// <summary>The answer never comes.</summary>
    public sealed record Hang : HubFault;
}

/// <summary>One request: its method, its target and the headers that tests look at.</summary>
public sealed record HubRequest(string Method, string Target, string? Authorization, string? Range, string? IfRange);

/// <summary>
/// A real HTTP server on loopback that speaks what a client needs of a model hub: the list of a repository at a revision, and its files with ranges, ETags and redirects of large
/// files to a second host, as huggingface.co/docs/hub/api has them. It serves plain files too. Each answer closes its connection.
/// </summary>
public sealed class HubServer : IAsyncDisposable
{
    private readonly TcpListener listener = new(IPAddress.Loopback, 0);
    private readonly TcpListener other = new(IPAddress.Loopback, 0);
    private readonly CancellationTokenSource ending = new();
    private readonly ConcurrentDictionary<string, Repository> repositories = new(StringComparer.Ordinal);
    private readonly ConcurrentDictionary<string, ConcurrentQueue<HubFault>> faults = new(StringComparer.Ordinal);
    private readonly Task serving;

    public HubServer()
    {
        listener.Start();
        other.Start();
        serving = Task.WhenAll(AcceptAsync(listener, Requests), AcceptAsync(other, OtherRequests));
    }

    public string Address => $"http://127.0.0.1:{((IPEndPoint)listener.LocalEndpoint).Port}";

    /// <summary>Where large files are redirected to.</summary>
    public string OtherAddress => $"http://localhost:{((IPEndPoint)other.LocalEndpoint).Port}";

    public ConcurrentQueue<HubRequest> Requests { get; } = [];

    public ConcurrentQueue<HubRequest> OtherRequests { get; } = [];

    /// <summary>Files that are no repository's, by their path from '/' on.</summary>
    public ConcurrentDictionary<string, byte[]> Plain { get; } = new(StringComparer.Ordinal);

    /// <summary>Lists tell neither sizes nor hashes, as some mirrors have it.</summary>
    public bool TellsNoHashes { get; set; }

    /// <summary>The token that opens gated and private repositories.</summary>
    public string Token { get; } = "hf_sEcReT0123456789";

    /// <param name="path">models/org/name or datasets/org/name.</param>
    /// <param name="files">By their path. Those of 1,000 bytes and more are large files.</param>
    /// <param name="access">open, gated or private.</param>
    /// <param name="branch">That the commit is on.</param>
    /// <returns>The commit.</returns>
    public string Add(string path, IReadOnlyDictionary<string, byte[]> files, string access = "open", string branch = "main")
    {
        string commit = Sha1(Encoding.UTF8.GetBytes(path + branch + string.Join('|', files.Select(file => file.Key + Convert.ToHexString(SHA256.HashData(file.Value))))));
        repositories[$"{path}@{branch}"] = repositories[$"{path}@{commit}"] = new Repository(commit, files, access);
        return commit;
    }

    /// <summary>The next answers whose target ends so have these faults, one each.</summary>
    public void Fail(string targetEnd, params HubFault[] next)
    {
        ConcurrentQueue<HubFault> queue = faults.GetOrAdd(targetEnd, _ => new ConcurrentQueue<HubFault>());
        Array.ForEach(next, queue.Enqueue);
    }

    public async ValueTask DisposeAsync()
    {
        // Stopped when nothing waits for a connection any more, or the next wait would find them stopped.
        await ending.CancelAsync();
        await serving;
        listener.Stop();
        other.Stop();
        ending.Dispose();
    }

    private async Task AcceptAsync(TcpListener from, ConcurrentQueue<HubRequest> log)
    {
        List<Task> served = [];
        try
        {
            while (!ending.IsCancellationRequested)
            {
                served.Add(ServeAsync(await from.AcceptTcpClientAsync(ending.Token), from == other, log));
            }
        }
        catch (Exception exception) when (exception is OperationCanceledException or SocketException)
        {
        }

        await Task.WhenAll(served);
    }

    private async Task ServeAsync(TcpClient client, bool isOther, ConcurrentQueue<HubRequest> log)
    {
        using TcpClient closed = client;
        try
        {
            NetworkStream stream = client.GetStream();
            if (await RequestAsync(stream) is { } request)
            {
                log.Enqueue(request);
                await AnswerAsync(stream, request, isOther);
                client.Client.Shutdown(SocketShutdown.Send);
            }
        }
        catch (Exception exception) when (exception is IOException or SocketException or OperationCanceledException)
        {
            // The client has gone, or the test is over.
        }
    }

    private async Task<HubRequest?> RequestAsync(NetworkStream stream)
    {
        var head = new StringBuilder();
        byte[] one = new byte[1];
        while (!head.ToString().EndsWith("\r\n\r\n", StringComparison.Ordinal))
        {
            if (await stream.ReadAsync(one, ending.Token) == 0)
            {
                return null;
            }

            head.Append((char)one[0]);
        }

        string[] lines = head.ToString().Split("\r\n");
        string? Header(string name) => lines.Skip(1).FirstOrDefault(line => line.StartsWith(name + ":", StringComparison.OrdinalIgnoreCase))?[(name.Length + 1)..].Trim();
        string[] first = lines[0].Split(' ');
        return new HubRequest(first[0], first[1], Header("Authorization"), Header("Range"), Header("If-Range"));
    }

    private async Task AnswerAsync(NetworkStream stream, HubRequest request, bool isOther)
    {
        string path = Uri.UnescapeDataString(request.Target.Split('?')[0]);
        HubFault? fault = null;
        if (request.Method == "GET")
        {
            ConcurrentQueue<HubFault>? queue = faults.FirstOrDefault(item => path.EndsWith(item.Key, StringComparison.Ordinal) && (isOther || !IsRedirected(path))).Value;
            queue?.TryDequeue(out fault);
        }

        switch (fault)
        {
            case HubFault.Hang:
                await Task.Delay(Timeout.Infinite, ending.Token);
                return;
            case HubFault.Status status:
                await SendAsync(stream, request, status.Code, "no"u8.ToArray(), null, status.Headers);
                return;
        }

        if (Plain.TryGetValue(path, out byte[]? plain))
        {
            await ContentAsync(stream, request, plain, $"\"{Sha256(plain)[..16]}\"", fault);
        }
        else if (path.StartsWith("/api/", StringComparison.Ordinal))
        {
            await ListAsync(stream, request, path["/api/".Length..]);
        }
        else
        {
            await FileAsync(stream, request, path, isOther, fault);
        }
    }

    private async Task ListAsync(NetworkStream stream, HubRequest request, string path)
    {
        int cut = path.IndexOf("/revision/", StringComparison.Ordinal);
        string name = path[..cut], revision = path[(cut + "/revision/".Length)..];
        if (await OpenAsync(stream, request, name, revision, isList: true) is not { } repository)
        {
            return;
        }

        object[] siblings = [.. repository.Files.Select(file => TellsNoHashes ? (object)new { rfilename = file.Key }
            : file.Value.Length >= 1000 ? new { rfilename = file.Key, blobId = GitHash(Encoding.ASCII.GetBytes(Sha256(file.Value))), size = file.Value.Length, lfs = new { sha256 = Sha256(file.Value), size = file.Value.Length, pointerSize = 130 } }
            : new { rfilename = file.Key, blobId = GitHash(file.Value), size = file.Value.Length })];
        await SendAsync(stream, request, 200, JsonSerializer.SerializeToUtf8Bytes(new { sha = repository.Commit, siblings }), null, [("Content-Type", "application/json")]);
    }

    private async Task FileAsync(NetworkStream stream, HubRequest request, string path, bool isOther, HubFault? fault)
    {
        int cut = path.IndexOf("/resolve/", StringComparison.Ordinal);
        string[] rest = cut < 0 ? [] : path[(cut + "/resolve/".Length)..].Split('/', 2);
        string name = cut < 0 ? "" : path[1..cut].StartsWith("datasets/", StringComparison.Ordinal) ? path[1..cut] : "models/" + path[1..cut];
        if (rest.Length < 2)
        {
            await SendAsync(stream, request, 404, [], null, []);
            return;
        }

        if ((!isOther ? await OpenAsync(stream, request, name, rest[0], isList: false) : Of(name, rest[0])) is not { } repository)
        {
            return;
        }

        if (!repository.Files.TryGetValue(rest[1], out byte[]? content))
        {
            await SendAsync(stream, request, 404, [], null, [("X-Error-Code", "EntryNotFound")]);
            return;
        }

        bool isLarge = content.Length >= 1000;
        string tag = isLarge ? Sha256(content) : GitHash(content);
        if (isLarge && !isOther)
        {
            await SendAsync(stream, request, 302, [], null, [("Location", $"{OtherAddress}{request.Target}?signature=secret-signature"), ("X-Linked-Etag", $"\"{tag}\""), ("X-Linked-Size", content.Length.ToString(CultureInfo.InvariantCulture)), ("X-Repo-Commit", repository.Commit)]);
            return;
        }

        await ContentAsync(stream, request, content, $"\"{tag}\"", fault);
    }

    /// <summary>Null where a refusal was sent.</summary>
    private async Task<Repository?> OpenAsync(NetworkStream stream, HubRequest request, string name, string revision, bool isList)
    {
        bool hasToken = request.Authorization == $"Bearer {Token}";
        Repository? repository = Of(name, revision);
        Repository? any = repository ?? repositories.FirstOrDefault(item => item.Key.StartsWith(name + "@", StringComparison.Ordinal)).Value;
        (int Status, string Code)? refusal = any is null || (any.Access == "private" && !hasToken) ? (request.Authorization is null ? 401 : 404, "RepoNotFound")
            : repository is null ? (404, "RevisionNotFound")
            : repository.Access == "gated" && !hasToken && !isList ? (request.Authorization is null ? 401 : 403, "GatedRepo")
            : null;
        if (refusal is { } no)
        {
            await SendAsync(stream, request, no.Status, [], null, [("X-Error-Code", no.Code), ("X-Error-Message", "Access is restricted.")]);
            return null;
        }

        return repository;
    }

    private Repository? Of(string name, string revision) => repositories.GetValueOrDefault($"{name}@{revision}");

    private bool IsRedirected(string path)
    {
        int cut = path.IndexOf("/resolve/", StringComparison.Ordinal);
        string[] rest = cut < 0 ? [] : path[(cut + "/resolve/".Length)..].Split('/', 2);
        string name = cut < 0 ? "" : path[1..cut].StartsWith("datasets/", StringComparison.Ordinal) ? path[1..cut] : "models/" + path[1..cut];
        return rest.Length == 2 && Of(name, rest[0]) is { } repository && repository.Files.TryGetValue(rest[1], out byte[]? content) && content.Length >= 1000;
    }

    private static async Task ContentAsync(NetworkStream stream, HubRequest request, byte[] content, string tag, HubFault? fault)
    {
        byte[] sent = fault is HubFault.Wrong ? [.. content.Select(value => (byte)(value ^ 1))] : content;
        if (request.Range is { } range && (request.IfRange is null || request.IfRange == tag))
        {
            int from = int.Parse(range["bytes=".Length..].TrimEnd('-'), CultureInfo.InvariantCulture);
            if (from >= content.Length)
            {
                await SendAsync(stream, request, 416, [], null, []);
                return;
            }

            await SendAsync(stream, request, 206, sent[from..], fault, [("ETag", tag), ("Content-Range", $"bytes {from}-{content.Length - 1}/{content.Length}")]);
            return;
        }

        await SendAsync(stream, request, 200, sent, fault, [("ETag", tag), ("Accept-Ranges", "bytes")]);
    }

    private static async Task SendAsync(NetworkStream stream, HubRequest request, int status, byte[] body, HubFault? fault, (string Name, string Value)[] headers)
    {
        string head = $"HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {body.Length}\r\n{string.Concat(headers.Select(header => $"{header.Name}: {header.Value}\r\n"))}\r\n";
        await stream.WriteAsync(Encoding.ASCII.GetBytes(head));
        if (request.Method != "HEAD")
        {
            await stream.WriteAsync(fault is HubFault.Cut cut ? body.AsMemory(0, Math.Min(cut.AfterBytes, body.Length)) : body);
        }

        await stream.FlushAsync();
    }

    private static string Sha256(byte[] content) => Convert.ToHexStringLower(SHA256.HashData(content));

    private static string GitHash(byte[] content) => Sha1([.. Encoding.ASCII.GetBytes(string.Create(CultureInfo.InvariantCulture, $"blob {content.Length}\0")), .. content]);

    /// <summary>As git names contents; not for security.</summary>
    private static string Sha1(byte[] content)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA1);
        hash.AppendData(content);
        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }

    private sealed record Repository(string Commit, IReadOnlyDictionary<string, byte[]> Files, string Access);
}
