using System.Net;
using System.Security.Cryptography;
using Amazon.Runtime;
using Amazon.S3.Model;

namespace LoraTrainer.Storage;

/// <summary>
/// An object that is being read, forward only. A connection that breaks is made again where it was, for exactly the object that was begun; too few, too many
/// or other bytes than were stored are an <see cref="IOException"/>, the last at the end, when the SHA-256 that was stored with the object is known to differ.
/// </summary>
internal sealed class S3ReadStream : Stream
{
    private readonly S3Connection connection;
    private readonly TransferLimit limit;
    private readonly S3Action action;
    private readonly string? expectedSha256;
    private readonly IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
    private GetObjectResponse? response;
    private long position;
    private bool isChecked;

    private S3ReadStream(S3Connection connection, TransferLimit limit, S3Action action, GetObjectResponse response)
    {
        this.connection = connection;
        this.limit = limit;
        this.action = action;
        this.response = response;
        Length = response.ContentLength;
        Version = S3Marks.Bare(response.ETag);
        expectedSha256 = S3Marks.Sha256Of(response.Metadata);
    }

    /// <summary>Null where there is no such object.</summary>
    public static async Task<S3ReadStream?> OpenAsync(S3Connection connection, TransferLimit limit, string fullKey, CancellationToken cancellation)
    {
        var action = new S3Action("s3:GetObject", fullKey);
        GetObjectResponse? response = await connection.CallAsync(
            action,
            0,
            async (_, watch) =>
            {
                try
                {
                    return await connection.Client.GetObjectAsync(new GetObjectRequest { BucketName = connection.Location.Bucket, Key = fullKey }, watch.Token).ConfigureAwait(false);
                }
                catch (Exception exception) when (S3Failure.IsNoObject(exception))
                {
                    return null;
                }
            },
            cancellation).ConfigureAwait(false);
        return response is null ? null : new S3ReadStream(connection, limit, action, response);
    }

    public string Version { get; }

    public override bool CanRead => true;

    public override bool CanSeek => false;

    public override bool CanWrite => false;

    public override long Length { get; }

    public override long Position
    {
        get => position;
        set => throw new NotSupportedException();
    }

    public override async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
    {
        int wanted = limit.Portion((int)Math.Min(buffer.Length, Length - position));
        if (wanted == 0)
        {
            if (position == Length)
            {
                Check();
            }

            return 0;
        }

        await limit.TakeAsync(wanted, cancellationToken).ConfigureAwait(false);
        int read = await connection.CallAsync(action, 0, (_, watch) => ReadOnceAsync(buffer[..wanted], watch.Token), cancellationToken).ConfigureAwait(false);
        hash.AppendData(buffer.Span[..read]);
        position += read;
        if (position == Length)
        {
            Check();
        }

        return read;
    }

    public override Task<int> ReadAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken) => ReadAsync(buffer.AsMemory(offset, count), cancellationToken).AsTask();

    public override int Read(byte[] buffer, int offset, int count) => ReadAsync(buffer.AsMemory(offset, count)).AsTask().GetAwaiter().GetResult();

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void Flush()
    {
    }

    public override void SetLength(long value) => throw new NotSupportedException();

    public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            Drop();
            hash.Dispose();
        }

        base.Dispose(disposing);
    }

    private async Task<int> ReadOnceAsync(Memory<byte> buffer, CancellationToken cancellation)
    {
        response ??= await OpenAgainAsync(cancellation).ConfigureAwait(false);
        try
        {
            int read = await response.ResponseStream.ReadAsync(buffer, cancellation).ConfigureAwait(false);
            return read > 0 ? read : throw new EndOfStreamException($"the server ended the object after {position} of {Length} bytes");
        }
        catch (AmazonClientException)
        {
            // The SDK compares a checksum of its own where there is one, with the last bytes.
            Drop();
            throw Damaged();
        }
        catch
        {
            Drop();
            throw;
        }
    }

    private async Task<GetObjectResponse> OpenAgainAsync(CancellationToken cancellation)
    {
        // A range may be checked by no checksum of the whole: ask for one even from the first byte on.
        var request = new GetObjectRequest { BucketName = connection.Location.Bucket, Key = action.FullKey, EtagToMatch = $"\"{Version}\"", ByteRange = new ByteRange(position, Length - 1) };
        GetObjectResponse again;
        try
        {
            again = await connection.Client.GetObjectAsync(request, cancellation).ConfigureAwait(false);
        }
        catch (Exception exception) when (S3Failure.IsStatus(exception, HttpStatusCode.PreconditionFailed) || S3Failure.IsNoObject(exception))
        {
            throw new StoreException(StoreProblem.Missing, $"{connection.Location.PathOf(action.FullKey)} was replaced or deleted while it was being read, after {position} of {Length} bytes.");
        }

        if (again.HttpStatusCode == HttpStatusCode.PartialContent && again.ContentLength == Length - position && again.ContentRange?.StartsWith($"bytes {position}-", StringComparison.Ordinal) == true)
        {
            return again;
        }

        again.Dispose();
        throw new StoreException(StoreProblem.Unsupported, $"{connection.Location.PathOf(action.FullKey)} cannot be read on after a broken connection: the server did not send the range that was asked for.");
    }

    private void Check()
    {
        if (!isChecked && expectedSha256 is not null && Convert.ToHexStringLower(hash.GetCurrentHash()) != expectedSha256)
        {
            throw Damaged();
        }

        isChecked = true;
    }

    private DamagedContentException Damaged()
        => new($"{connection.Location.PathOf(action.FullKey)} arrived with other bytes than were stored: its checksum differs. It was damaged on the way or at the server; read it again.");

    private void Drop()
    {
        GetObjectResponse? old = response;
        response = null;
        try
        {
            old?.Dispose();
        }
        catch (AmazonClientException)
        {
            // The SDK compares its checksum once more as it closes; what that means is said where the bytes are read.
        }
    }
}
