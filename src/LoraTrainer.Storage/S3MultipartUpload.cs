using System.Runtime.ExceptionServices;
using Amazon.S3.Model;

namespace LoraTrainer.Storage;

/// <summary>
/// One object sent in parts. When a part fails in a way that may pass, no further one is started; then the server is asked which parts it has, and only
/// the others are sent. A part counts as arrived when the server named its tag for exactly these bytes. What fails for good is aborted, so that no parts
/// are left behind that cost money.
/// </summary>
internal sealed class S3MultipartUpload(S3Connection connection, S3Source source, string fullKey, S3Marks marks, IProgress<long>? progress)
{
    private const int MostParts = 10_000;
    private const long Mib = 1 << 20;

    private static readonly TimeSpan LongestAbort = TimeSpan.FromSeconds(10);

    private readonly S3Action action = new("s3:PutObject", fullKey);
    private readonly long partBytes = Math.Max(connection.Location.PartMib * Mib, (((source.Length + MostParts - 1) / MostParts) + Mib - 1) / Mib * Mib);
    private readonly Lock reporting = new();
    private PartETag?[] arrived = [];
    private long arrivedBytes;
    private string uploadId = string.Empty;

    private string Bucket => connection.Location.Bucket;

    /// <summary>The version of the object.</summary>
    public async Task<string> RunAsync(CancellationToken cancellation)
    {
        arrived = new PartETag?[(source.Length + partBytes - 1) / partBytes];
        InitiateMultipartUploadResponse begun = await connection.CallAsync(
            action,
            0,
            (_, watch) => connection.Client.InitiateMultipartUploadAsync(marks.Mark(new InitiateMultipartUploadRequest { BucketName = Bucket, Key = fullKey }, connection.Location), watch.Token),
            cancellation).ConfigureAwait(false);
        uploadId = begun.UploadId;
        try
        {
            await connection.RetryAsync(action, SendMissingAsync, cancellation).ConfigureAwait(false);
            return await CompleteAsync(cancellation).ConfigureAwait(false);
        }
        catch
        {
            await AbortAsync().ConfigureAwait(false);
            throw;
        }
    }

    private async Task<bool> SendMissingAsync(S3Call call, CancellationToken cancellation)
    {
        if (call.Try > 1)
        {
            await AskWhatArrivedAsync(cancellation).ConfigureAwait(false);
        }

        ExceptionDispatchInfo? failed = null;
        int[] missing = [.. Enumerable.Range(0, arrived.Length).Where(index => arrived[index] is null)];
        await System.Threading.Tasks.Parallel.ForEachAsync(
            missing,
            new ParallelOptions { MaxDegreeOfParallelism = connection.Location.Parallel, CancellationToken = cancellation },
            async (index, token) =>
            {
                if (Volatile.Read(ref failed) is not null)
                {
                    return;
                }

                try
                {
                    arrived[index] = await connection.WatchAsync(SizeOf(index), watch => SendPartAsync(index, watch), token).ConfigureAwait(false);
                    call.Progressed();
                    Report(SizeOf(index));
                }
                catch (Exception exception) when (!token.IsCancellationRequested && S3Failure.KindOf(exception) != S3FailureKind.Final)
                {
                    Interlocked.CompareExchange(ref failed, ExceptionDispatchInfo.Capture(exception), null);
                }
            }).ConfigureAwait(false);
        failed?.Throw();
        return true;
    }

    private async Task<PartETag> SendPartAsync(int index, S3Watch watch)
    {
        using Stream content = source.Window(index * partBytes, SizeOf(index), watch);
        var request = new UploadPartRequest
        {
            BucketName = Bucket,
            Key = fullKey,
            UploadId = uploadId,
            PartNumber = index + 1,
            PartSize = SizeOf(index),
            InputStream = content,
            UseChunkEncoding = connection.Location.ChunkEncoding,
        };
        return new PartETag(await connection.Client.UploadPartAsync(request, watch.Token).ConfigureAwait(false));
    }

    private async Task AskWhatArrivedAsync(CancellationToken cancellation)
    {
        var listed = new PartETag?[arrived.Length];
        string? marker = null;
        bool more = true;
        while (more)
        {
            ListPartsResponse page = await connection.WatchAsync(
                0,
                watch => connection.Client.ListPartsAsync(new ListPartsRequest { BucketName = Bucket, Key = fullKey, UploadId = uploadId, PartNumberMarker = marker }, watch.Token),
                cancellation).ConfigureAwait(false);
            foreach (PartDetail part in page.Parts ?? [])
            {
                int index = (part.PartNumber ?? 0) - 1;
                if (index >= 0 && index < listed.Length && part.Size == SizeOf(index) && await IsOurPartAsync(index, part, cancellation).ConfigureAwait(false))
                {
                    listed[index] = arrived[index] ?? new PartETag
                    {
                        PartNumber = part.PartNumber,
                        ETag = part.ETag,
                        ChecksumCRC32 = part.ChecksumCRC32,
                        ChecksumCRC32C = part.ChecksumCRC32C,
                        ChecksumCRC64NVME = part.ChecksumCRC64NVME,
                        ChecksumSHA1 = part.ChecksumSHA1,
                        ChecksumSHA256 = part.ChecksumSHA256,
                    };
                }
            }

            more = page.IsTruncated == true;
            marker = page.NextPartNumberMarker?.ToString(System.Globalization.CultureInfo.InvariantCulture);
        }

        arrived = listed;
        lock (reporting)
        {
            arrivedBytes = Enumerable.Range(0, arrived.Length).Where(index => arrived[index] is not null).Sum(SizeOf);
            progress?.Report(arrivedBytes);
        }
    }

    // A part whose answer was lost is known by its tag alone, which is the MD5 of its bytes where nothing is encrypted; else it is sent again.
    private async Task<bool> IsOurPartAsync(int index, PartDetail part, CancellationToken cancellation)
    {
        string tag = S3Marks.Bare(part.ETag);
        return arrived[index] is { } known
            ? S3Marks.Bare(known.ETag) == tag
            : tag.Length == 32 && tag == await source.PartTagAsync(index * partBytes, SizeOf(index), cancellation).ConfigureAwait(false);
    }

    private async Task<string> CompleteAsync(CancellationToken cancellation)
    {
        var request = new CompleteMultipartUploadRequest { BucketName = Bucket, Key = fullKey, UploadId = uploadId, PartETags = [.. arrived.Select(part => part!)] };
        string version = await connection.CallAsync(
            action with { Stores = true },
            source.Length,
            async (call, watch) =>
            {
                try
                {
                    return S3Marks.Bare((await connection.Client.CompleteMultipartUploadAsync(request, watch.Token).ConfigureAwait(false)).ETag);
                }
                catch (Exception exception) when (call.MayHaveBeenDone && S3Failure.IsNoObject(exception))
                {
                    // The try whose answer was lost had completed it, or else the object below is another one.
                    return string.Empty;
                }
            },
            cancellation).ConfigureAwait(false);

        GetObjectMetadataResponse stored = await connection.CallAsync(
            new S3Action("s3:GetObject", fullKey),
            0,
            (_, watch) => connection.Client.GetObjectMetadataAsync(new GetObjectMetadataRequest { BucketName = Bucket, Key = fullKey }, watch.Token),
            cancellation).ConfigureAwait(false);
        if (marks.Are(stored.Metadata))
        {
            return stored.ContentLength == source.Length
                ? S3Marks.Bare(stored.ETag)
                : throw new StoreException(StoreProblem.Unsupported, $"{connection.Location.PathOf(fullKey)} has {stored.ContentLength} bytes after {source.Length} were stored in parts. The server put them together wrongly.");
        }

        // Another writer came after; that is its right, for nothing was demanded of what is there.
        return version.Length > 0
            ? version
            : throw new StoreException(StoreProblem.Unreachable, $"{connection.Location.PathOf(fullKey)} was sent in parts, and another object is there. Another writer replaced it, or the upload was aborted from outside.");
    }

    private async Task AbortAsync()
    {
        try
        {
            using var patience = new CancellationTokenSource(LongestAbort);
            await connection.Client.AbortMultipartUploadAsync(new AbortMultipartUploadRequest { BucketName = Bucket, Key = fullKey, UploadId = uploadId }, patience.Token).ConfigureAwait(false);
        }
        catch (Exception exception) when (exception is not OutOfMemoryException)
        {
            // The failure that led here is the one to tell; RemoveUnfinishedAsync removes what is left.
        }
    }

    private long SizeOf(int index) => Math.Min(partBytes, source.Length - (index * partBytes));

    private void Report(long bytes)
    {
        lock (reporting)
        {
            arrivedBytes += bytes;
            progress?.Report(arrivedBytes);
        }
    }
}
