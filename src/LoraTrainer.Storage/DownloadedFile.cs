using System.Buffers;
using System.Globalization;
using System.Net;
using System.Net.Http.Headers;
using System.Security.Cryptography;
using System.Text;

namespace LoraTrainer.Storage;

/// <summary>What a content must have, so that another one is noticed.</summary>
/// <param name="Algorithm">SHA-256, or git's SHA-1 of a blob: over "blob", its length and the content.</param>
/// <param name="Hex">Lower-case digits.</param>
internal readonly record struct ExpectedHash(HashAlgorithmName Algorithm, string Hex)
{
    public static ExpectedHash Sha256(string hex) => new(HashAlgorithmName.SHA256, hex);

    public static ExpectedHash GitBlob(string hex) => new(HashAlgorithmName.SHA1, hex);
}

/// <summary>What a finished download is.</summary>
internal sealed record DownloadResult(string Sha256, long SizeBytes, string? ETag, DateTimeOffset? LastModified, bool NotModified = false);

/// <summary>
/// One file on its way from a server to the disk: into <c>NAME.incomplete</c>, from which it goes on after a cut or in another process, and under its own name only when
/// it is whole and has the hash that was promised. The caller holds a lock on it.
/// </summary>
internal static class DownloadedFile
{
    private const int BufferBytes = 1 << 18;

    public const string PartialEnding = ".incomplete";

    /// <param name="connection">To the server.</param>
    /// <param name="ask">For all of the content; where to start is found out here.</param>
    /// <param name="path">The final name.</param>
    /// <param name="sizeBytes">That the content must have; null: not known before.</param>
    /// <param name="hash">That the content must have; null: not known.</param>
    /// <param name="mayResume">Whether bytes of an earlier process may be gone on with: with a hash, or with <see cref="HttpAsk.IfRange"/>.</param>
    /// <param name="seenTag">Is told the ETag of what begins to arrive, null for none or a weak one.</param>
    /// <param name="progress">Is told bytes as they arrive; negative ones where they turned out to be worthless.</param>
    /// <param name="cancellation">Leaves the bytes that arrived.</param>
    public static async Task<DownloadResult> FetchAsync(HttpConnection connection, HttpAsk ask, string path, long? sizeBytes, ExpectedHash? hash, bool mayResume, Action<string?> seenTag, Action<long> progress, CancellationToken cancellation)
    {
        string partial = path + PartialEnding;
        try
        {
            if (!mayResume)
            {
                File.Delete(partial);
            }

            string? tag = ask.IfRange;
            void Note(string? seen)
            {
                tag = seen;
                seenTag(seen);
            }

            for (bool isSecond = false; ; isSecond = true)
            {
                DownloadResult result = await connection.RetryAsync(
                    ask.Shown,
                    (call, token) => OnceAsync(connection, ask with { IfRange = tag }, partial, sizeBytes, hash, call, Note, progress, token),
                    cancellation).ConfigureAwait(false);
                if (result.NotModified)
                {
                    return result;
                }

                if (hash is null || await HasHashAsync(partial, hash.Value, result, cancellation).ConfigureAwait(false))
                {
                    File.Move(partial, path, overwrite: true);
                    FileSystemCalls.SynchronizeFolder(Path.GetDirectoryName(path)!);
                    return result;
                }

                // Once more from the first byte: an old beginning may have been the wrong one.
                File.Delete(partial);
                progress(-result.SizeBytes);
                if (isSecond)
                {
                    throw new DamagedContentException($"{ask.Shown}: what arrived has another checksum than was promised, twice. The server or something on the way damages it; nothing of it was kept. Try again later, or from another network.");
                }
            }
        }
        catch (Exception exception) when (HttpFailure.OfDisk(exception, partial) is { } disk)
        {
            throw disk;
        }
    }

    private static async Task<DownloadResult> OnceAsync(
        HttpConnection connection, HttpAsk ask, string partial, long? sizeBytes, ExpectedHash? hash, HttpCall call, Action<string?> tag, Action<long> progress, CancellationToken cancellation)
    {
        await using var file = new FileStream(partial, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.Read, bufferSize: 0);
        if (file.Length > sizeBytes || (file.Length > 0 && hash is null && ask.IfRange is null))
        {
            progress(-file.Length);
            file.SetLength(0);
        }

        if (sizeBytes is { } all && file.Length == all && (all > 0 || hash is not null))
        {
            return new DownloadResult(await Sha256Async(file, cancellation).ConfigureAwait(false), file.Length, ask.IfRange, null);
        }

        HttpResponseMessage response;
        try
        {
            response = await connection.SendAsync(ask with { From = file.Length }, cancellation).ConfigureAwait(false);
        }
        catch (HttpStatusException refused) when (refused.Status == HttpStatusCode.RequestedRangeNotSatisfiable && file.Length > 0)
        {
            // It is shorter now than what is here.
            progress(-file.Length);
            file.SetLength(0);
            response = await connection.SendAsync(ask with { From = 0 }, cancellation).ConfigureAwait(false);
        }

        using (response)
        {
            if (response.StatusCode == HttpStatusCode.NotModified)
            {
                return new DownloadResult("", 0, null, null, NotModified: true);
            }

            bool goesOn = response.StatusCode == HttpStatusCode.PartialContent && response.Content.Headers.ContentRange is { From: { } from } && from == file.Length;
            if (!goesOn && file.Length > 0)
            {
                progress(-file.Length);
                file.SetLength(0);
            }

            if (response.StatusCode == HttpStatusCode.PartialContent && !goesOn)
            {
                throw new StoreException(StoreProblem.Unsupported, $"{ask.Shown}: the server sent another range than was asked for.");
            }

            EntityTagHeaderValue? seen = response.Headers.ETag;
            tag(seen is { IsWeak: false } ? seen.ToString() : null);
            long? expected = response.Content.Headers.ContentLength is { } rest ? file.Length + rest : null;
            if (sizeBytes is { } wanted && expected is { } announced && wanted != announced)
            {
                throw new StoreException(StoreProblem.Unsupported, $"{ask.Shown}: the server announces {announced} bytes where {wanted} were promised. Its content was changed; start again, and name a revision if it happens once more.");
            }

            await CopyAsync(connection, response, file, call, progress, cancellation).ConfigureAwait(false);
            if ((sizeBytes ?? expected) is { } total && file.Length != total)
            {
                throw new EndOfStreamException(string.Create(CultureInfo.InvariantCulture, $"the connection ended after {file.Length} of {total} bytes"));
            }

            file.Flush(flushToDisk: true);
            return new DownloadResult(await Sha256Async(file, cancellation).ConfigureAwait(false), file.Length, seen?.ToString(), response.Content.Headers.LastModified);
        }
    }

    private static async Task CopyAsync(HttpConnection connection, HttpResponseMessage response, FileStream file, HttpCall call, Action<long> progress, CancellationToken cancellation)
    {
        await using Stream content = await response.Content.ReadAsStreamAsync(cancellation).ConfigureAwait(false);
        byte[] buffer = ArrayPool<byte>.Shared.Rent(BufferBytes);
        try
        {
            file.Position = file.Length;
            while (await connection.ReadSomeAsync(content, buffer, cancellation).ConfigureAwait(false) is > 0 and int read)
            {
                file.Write(buffer, 0, read);
                call.Progressed();
                progress(read);
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    private static async Task<string> Sha256Async(FileStream file, CancellationToken cancellation)
    {
        file.Position = 0;
        return Convert.ToHexStringLower(await SHA256.HashDataAsync(file, cancellation).ConfigureAwait(false));
    }

    private static async Task<bool> HasHashAsync(string partial, ExpectedHash hash, DownloadResult result, CancellationToken cancellation)
    {
        if (hash.Algorithm == HashAlgorithmName.SHA256)
        {
            return result.Sha256 == hash.Hex;
        }

        using var sha1 = IncrementalHash.CreateHash(hash.Algorithm);
        sha1.AppendData(Encoding.ASCII.GetBytes(string.Create(CultureInfo.InvariantCulture, $"blob {result.SizeBytes}\0")));
        await using FileStream file = File.OpenRead(partial);
        byte[] buffer = new byte[BufferBytes];
        while (await file.ReadAsync(buffer, cancellation).ConfigureAwait(false) is > 0 and int read)
        {
            sha1.AppendData(buffer, 0, read);
        }

        return Convert.ToHexStringLower(sha1.GetHashAndReset()) == hash.Hex;
    }
}
