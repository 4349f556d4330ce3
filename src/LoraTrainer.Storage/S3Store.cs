using System.Net;
using Amazon.S3;
using Amazon.S3.Model;

namespace LoraTrainer.Storage;

/// <summary>
/// A store in an S3 bucket, of AWS or any server that speaks S3; see <see cref="S3Location"/> for its settings. Objects above the part size are sent in
/// parts, several at a time. Conditions are for small objects: above the part size they are refused, because not every server heeds them where parts are
/// put together. A delete says whether there was an object by looking first, so two deletes at once may both say so.
/// </summary>
/// <remarks>
/// Failures that may pass are tried again for as long as the location says. When an answer is lost, whether a write was done is found out by the name that each
/// put stores beside its content; so an own write is never taken for another's.
/// </remarks>
public sealed class S3Store : IObjectStore
{
    private const long Mib = 1 << 20;

    // Up to here a read is checked before anything of it is handed out, and done once more when it arrives damaged.
    private const long CheckedBeforehand = Mib;

    private readonly S3Connection connection;
    private readonly TransferLimit limit;
    private volatile TagForm tagForm = TagForm.NotKnown;

    /// <param name="location">Where it is and how it is spoken to; nothing is asked of it yet.</param>
    /// <param name="time">For waits and time-outs; the system's by default.</param>
    public S3Store(S3Location location, TimeProvider? time = null)
    {
        TimeProvider clock = time ?? TimeProvider.System;
        connection = new S3Connection(location, clock);
        limit = new TransferLimit(location.MaxMibPerSecond, clock);
        Where = location;
    }

    /// <summary>How servers want an entity tag in If-Match of a put: in its quotes as HTTP has it, or bare. Both are safe to try: the wrong form only never matches.</summary>
    private enum TagForm
    {
        NotKnown,
        Quoted,
        Bare,
    }

    /// <summary>The location it was made with.</summary>
    public S3Location Where { get; }

    public string Location => Where.ToString();

    private string Bucket => Where.Bucket;

    /// <inheritdoc/>
    public async Task<StoreAbilities> ProbeAsync(string prefix, CancellationToken cancellation = default)
    {
        string key = $"{prefix.TrimEnd('/')}/probe-{Guid.NewGuid():N}";
        try
        {
            string? first = await ProbePutAsync(key, "1", PutCondition.IfAbsent, cancellation).ConfigureAwait(false);
            bool ifAbsent = first is not null && await ProbePutAsync(key, "2", PutCondition.IfAbsent, cancellation).ConfigureAwait(false) is null
                && await ReadTextAsync(key, cancellation).ConfigureAwait(false) == "1";
            first = await PutTextAsync(key, "3", default, cancellation).ConfigureAwait(false);
            bool swap = await ProbePutAsync(key, "4", PutCondition.IfVersion(new string('0', 32)), cancellation).ConfigureAwait(false) is null
                && await ReadTextAsync(key, cancellation).ConfigureAwait(false) == "3"
                && await ProbePutAsync(key, "5", PutCondition.IfVersion(first!), cancellation).ConfigureAwait(false) is not null
                && await ProbePutAsync(key, "6", PutCondition.IfVersion(first!), cancellation).ConfigureAwait(false) is null
                && await ReadTextAsync(key, cancellation).ConfigureAwait(false) == "5";
            return new StoreAbilities(ifAbsent, swap, Lacking(ifAbsent, swap));
        }
        finally
        {
            await RemoveProbeAsync(key).ConfigureAwait(false);
        }
    }

    /// <inheritdoc/>
    public async Task<string?> PutAsync(string key, Stream content, PutCondition condition = default, IProgress<long>? progress = null, CancellationToken cancellation = default)
    {
        string fullKey = Where.FullKey(key);
        try
        {
            using var source = new S3Source(content, limit);
            bool inParts = source.Length > Where.PartMib * Mib;
            if (inParts && condition != default)
            {
                throw new StoreException(
                    StoreProblem.Unsupported,
                    $"{Where.PathOf(fullKey)} has {source.Length} bytes. Objects above part_mib={Where.PartMib} cannot be put on a condition: not every S3 server heeds it where parts are put together.");
            }

            var marks = new S3Marks(await source.HashAsync(cancellation).ConfigureAwait(false), Guid.NewGuid().ToString("N"));
            string? version = inParts
                ? await new S3MultipartUpload(connection, source, fullKey, marks, progress).RunAsync(cancellation).ConfigureAwait(false)
                : await PutWholeAsync(fullKey, source, marks, condition, cancellation).ConfigureAwait(false);
            source.MoveToEnd();
            if (!inParts && version is not null)
            {
                progress?.Report(source.Length);
            }

            return version;
        }
        catch (Exception exception) when (S3Failure.SourceOf(exception) is { InnerException: { } cause })
        {
            System.Runtime.ExceptionServices.ExceptionDispatchInfo.Throw(cause);
            throw;
        }
    }

    /// <inheritdoc/>
    public async Task<StoredContent?> GetAsync(string key, CancellationToken cancellation = default)
    {
        string fullKey = Where.FullKey(key);
        for (bool last = false; ; last = true)
        {
            S3ReadStream? stream = await S3ReadStream.OpenAsync(connection, limit, fullKey, cancellation).ConfigureAwait(false);
            if (stream is null || stream.Length > CheckedBeforehand)
            {
                return stream is null ? null : new StoredContent(stream, stream.Length, stream.Version);
            }

            await using (stream.ConfigureAwait(false))
            {
                byte[] bytes = new byte[stream.Length];
                try
                {
                    await stream.ReadExactlyAsync(bytes, cancellation).ConfigureAwait(false);
                    return new StoredContent(new MemoryStream(bytes, writable: false), bytes.Length, stream.Version);
                }
                catch (DamagedContentException) when (!last)
                {
                }
            }
        }
    }

    /// <inheritdoc/>
    public async Task<IReadOnlyList<StoredObject>> ListAsync(string prefix = "", CancellationToken cancellation = default)
    {
        string inner = InnerPrefix(prefix);
        int skip = Where.Prefix.Length == 0 ? 0 : Where.Prefix.Length + 1;
        var found = new List<StoredObject>();
        string? next = null;
        do
        {
            ListObjectsV2Response page = await ListPageAsync(inner, next, null, cancellation).ConfigureAwait(false);

            // What is no key of ours, the folder marks that consoles make for example, is not there.
            found.AddRange((page.S3Objects ?? []).Where(item => ObjectKey.IsValid(item.Key[skip..])).Select(item => new StoredObject(item.Key[skip..], item.Size ?? 0)));
            next = page.IsTruncated == true ? page.NextContinuationToken : null;
        }
        while (next is not null);

        // The server orders by UTF-8, which differs beyond the basic plane.
        found.Sort((a, b) => string.CompareOrdinal(a.Key, b.Key));
        return found;
    }

    /// <inheritdoc/>
    public async Task<bool> DeleteAsync(string key, CancellationToken cancellation = default)
    {
        string fullKey = Where.FullKey(key);
        if (!await ExistsAsync(key, cancellation).ConfigureAwait(false))
        {
            return false;
        }

        await connection.CallAsync(
            new S3Action("s3:DeleteObject", fullKey),
            0,
            (_, watch) => connection.Client.DeleteObjectAsync(new DeleteObjectRequest { BucketName = Bucket, Key = fullKey }, watch.Token),
            cancellation).ConfigureAwait(false);
        return true;
    }

    /// <inheritdoc/>
    public async Task<bool> ExistsAsync(string key, CancellationToken cancellation = default)
    {
        // Of all keys that start with this one it is the first. A HEAD would be answered without a word on what is wrong.
        string fullKey = Where.FullKey(key);
        ListObjectsV2Response page = await ListPageAsync(fullKey, null, 1, cancellation).ConfigureAwait(false);
        return page.S3Objects is [{ } first, ..] && first.Key == fullKey;
    }

    /// <inheritdoc/>
    public async Task<int> RemoveUnfinishedAsync(string prefix, CancellationToken cancellation = default)
    {
        ObjectKey.Validate(prefix.TrimEnd('/'));
        string inner = InnerPrefix(prefix);
        int removed = 0;
        string? keyMarker = null;
        string? uploadMarker = null;
        bool more = true;
        while (more)
        {
            var request = new ListMultipartUploadsRequest { BucketName = Bucket, Prefix = inner, KeyMarker = keyMarker, UploadIdMarker = uploadMarker };
            ListMultipartUploadsResponse page = await connection.CallAsync(
                new S3Action("s3:ListBucketMultipartUploads", inner), 0, (_, watch) => connection.Client.ListMultipartUploadsAsync(request, watch.Token), cancellation).ConfigureAwait(false);
            foreach (MultipartUpload upload in page.MultipartUploads ?? [])
            {
                removed += await AbortAsync(upload, cancellation).ConfigureAwait(false) ? 1 : 0;
            }

            more = page.IsTruncated == true;
            (keyMarker, uploadMarker) = (page.NextKeyMarker, page.NextUploadIdMarker);
        }

        return removed;
    }

    public ValueTask DisposeAsync()
    {
        connection.Dispose();
        return ValueTask.CompletedTask;
    }

    private Task<string?> PutWholeAsync(string fullKey, S3Source source, S3Marks marks, PutCondition condition, CancellationToken cancellation)
        => connection.CallAsync(
            new S3Action("s3:PutObject", fullKey, Stores: true),
            source.Length,
            async (call, watch) =>
            {
                TagForm known = tagForm;
                if (condition.Version is null)
                {
                    return await PutOnceAsync(null).ConfigureAwait(false);
                }

                if (condition.Version.Length == 0)
                {
                    return null;
                }

                string? version = await PutOnceAsync(known == TagForm.Bare ? condition.Version : $"\"{condition.Version}\"").ConfigureAwait(false);
                if (version is not null || known != TagForm.NotKnown)
                {
                    tagForm = known == TagForm.NotKnown ? TagForm.Quoted : known;
                    return version;
                }

                version = await PutOnceAsync(condition.Version).ConfigureAwait(false);
                tagForm = version is null ? known : TagForm.Bare;
                return version;

                async Task<string?> PutOnceAsync(string? ifMatch)
                {
                    using Stream content = source.Window(0, source.Length, watch);
                    PutObjectRequest request = marks.Mark(
                        new PutObjectRequest { BucketName = Bucket, Key = fullKey, InputStream = content, IfMatch = ifMatch, IfNoneMatch = condition.MustBeAbsent ? "*" : null },
                        Where);
                    try
                    {
                        return S3Marks.Bare((await connection.Client.PutObjectAsync(request, watch.Token).ConfigureAwait(false)).ETag);
                    }
                    catch (AmazonS3Exception exception) when (condition != default && S3Failure.IsStatus(exception, HttpStatusCode.NotImplemented))
                    {
                        throw new StoreException(
                            StoreProblem.Unsupported,
                            $"The server does not put {Where.PathOf(fullKey)} on a condition: it has no {(condition.MustBeAbsent ? "If-None-Match" : "If-Match")} for that ({exception.ErrorCode}).");
                    }
                    catch (AmazonS3Exception exception) when (condition != default
                        && (S3Failure.IsStatus(exception, HttpStatusCode.PreconditionFailed) || (condition.Version is not null && S3Failure.IsNoObject(exception))))
                    {
                        return call.MayHaveBeenDone ? await OwnVersionAsync(fullKey, marks, watch.Token).ConfigureAwait(false) : null;
                    }
                }
            },
            cancellation);

    /// <summary>The version of the object, if it is the one that was put with these marks.</summary>
    private async Task<string?> OwnVersionAsync(string fullKey, S3Marks marks, CancellationToken cancellation)
    {
        try
        {
            GetObjectMetadataResponse stored = await connection.Client.GetObjectMetadataAsync(new GetObjectMetadataRequest { BucketName = Bucket, Key = fullKey }, cancellation).ConfigureAwait(false);
            return marks.Are(stored.Metadata) ? S3Marks.Bare(stored.ETag) : null;
        }
        catch (Exception exception) when (S3Failure.IsNoObject(exception))
        {
            return null;
        }
    }

    private async Task<bool> AbortAsync(MultipartUpload upload, CancellationToken cancellation)
        => await connection.CallAsync(
            new S3Action("s3:AbortMultipartUpload", upload.Key),
            0,
            async (_, watch) =>
            {
                try
                {
                    await connection.Client.AbortMultipartUploadAsync(new AbortMultipartUploadRequest { BucketName = Bucket, Key = upload.Key, UploadId = upload.UploadId }, watch.Token).ConfigureAwait(false);
                    return true;
                }
                catch (Exception exception) when (S3Failure.IsNoObject(exception))
                {
                    // Another aborted it, or the try whose answer was lost did.
                    return false;
                }
            },
            cancellation).ConfigureAwait(false);

    private Task<ListObjectsV2Response> ListPageAsync(string inner, string? next, int? most, CancellationToken cancellation)
    {
        var request = new ListObjectsV2Request { BucketName = Bucket, Prefix = inner, ContinuationToken = next, MaxKeys = most };
        return connection.CallAsync(new S3Action("s3:ListBucket", inner), 0, (_, watch) => connection.Client.ListObjectsV2Async(request, watch.Token), cancellation);
    }

    private string InnerPrefix(string prefix)
    {
        if (prefix.Length == 0)
        {
            return Where.Prefix.Length == 0 ? string.Empty : Where.Prefix + "/";
        }

        return prefix.EndsWith('/') ? Where.FullKey(prefix[..^1]) + "/" : Where.FullKey(prefix);
    }

    private static string? Lacking(bool ifAbsent, bool swap) => (ifAbsent, swap) switch
    {
        (true, true) => null,
        (true, false) => "The server does not heed If-Match when an object is put, so an object cannot be replaced on the condition that nobody else replaced it.",
        (false, true) => "The server does not heed If-None-Match when an object is put, so two writers that make the same new object both succeed.",
        (false, false) => "The server heeds neither If-None-Match nor If-Match when an object is put, so nothing keeps two writers from overwriting each other's objects.",
    };

    private async Task<string?> ProbePutAsync(string key, string text, PutCondition condition, CancellationToken cancellation)
    {
        try
        {
            return await PutTextAsync(key, text, condition, cancellation).ConfigureAwait(false);
        }
        catch (StoreException exception) when (exception.Problem == StoreProblem.Unsupported)
        {
            return null;
        }
    }

    private Task<string?> PutTextAsync(string key, string text, PutCondition condition, CancellationToken cancellation)
        => PutAsync(key, new MemoryStream(System.Text.Encoding.ASCII.GetBytes(text)), condition, null, cancellation);

    private async Task<string?> ReadTextAsync(string key, CancellationToken cancellation)
    {
        StoredContent? stored = await GetAsync(key, cancellation).ConfigureAwait(false);
        if (stored is null)
        {
            return null;
        }

        await using (stored.ConfigureAwait(false))
        {
            using var reader = new StreamReader(stored.Content);
            return await reader.ReadToEndAsync(cancellation).ConfigureAwait(false);
        }
    }

    private async Task RemoveProbeAsync(string key)
    {
        try
        {
            await DeleteAsync(key, CancellationToken.None).ConfigureAwait(false);
        }
        catch (StoreException)
        {
            // What the probe met is the answer; a few bytes may be left behind.
        }
    }
}
