using System.Buffers;
using System.Security.Cryptography;

namespace LoraTrainer.Storage;

/// <summary>The content of one put: a stream of the caller, read in windows by several requests at once, one read at a time.</summary>
internal sealed class S3Source : IDisposable
{
    private const int BufferBytes = 1 << 17;

    private readonly Stream content;
    private readonly long start;
    private readonly TransferLimit limit;
    private readonly SemaphoreSlim gate = new(1, 1);

    public S3Source(Stream content, TransferLimit limit)
    {
        this.content = content;
        this.limit = limit;
        try
        {
            start = content.Position;
            Length = content.Length - start;
        }
        catch (Exception exception) when (exception is not OutOfMemoryException)
        {
            throw new SourceException(exception);
        }
    }

    public long Length { get; }

    /// <summary>SHA-256 of all of it, as lower-case hexadecimal digits.</summary>
    public Task<string> HashAsync(CancellationToken cancellation) => HashAsync(HashAlgorithmName.SHA256, 0, Length, cancellation);

    /// <summary>MD5 of a part, as servers have it in the ETag of one; not for security.</summary>
    public Task<string> PartTagAsync(long offset, long length, CancellationToken cancellation) => HashAsync(HashAlgorithmName.MD5, offset, length, cancellation);

    /// <summary>A stream of a part, for one try.</summary>
    public Stream Window(long offset, long length, S3Watch watch) => new SourceWindow(this, offset, length, watch);

    /// <summary>The caller's stream is left where a single reading would have left it.</summary>
    public void MoveToEnd() => content.Position = start + Length;

    public void Dispose() => gate.Dispose();

    private async Task<string> HashAsync(HashAlgorithmName algorithm, long offset, long length, CancellationToken cancellation)
    {
        using var hash = IncrementalHash.CreateHash(algorithm);
        byte[] buffer = ArrayPool<byte>.Shared.Rent(BufferBytes);
        try
        {
            long done = 0;
            while (done < length)
            {
                int read = await ReadAsync(offset + done, buffer.AsMemory(0, (int)Math.Min(buffer.Length, length - done)), cancellation).ConfigureAwait(false);
                hash.AppendData(buffer, 0, read);
                done += read;
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }

        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }

    private async ValueTask<int> ReadAsync(long offset, Memory<byte> buffer, CancellationToken cancellation)
    {
        await gate.WaitAsync(cancellation).ConfigureAwait(false);
        try
        {
            content.Position = start + offset;
            int read = await content.ReadAsync(buffer, cancellation).ConfigureAwait(false);
            return read > 0 || buffer.Length == 0 ? read : throw new EndOfStreamException($"the content to be stored ended after {offset} of its {Length} bytes");
        }
        catch (Exception exception) when (exception is not OperationCanceledException)
        {
            throw new SourceException(exception);
        }
        finally
        {
            gate.Release();
        }
    }

    private sealed class SourceWindow(S3Source source, long offset, long length, S3Watch watch) : Stream
    {
        private long position;

        public override bool CanRead => true;

        public override bool CanSeek => true;

        public override bool CanWrite => false;

        public override long Length => length;

        public override long Position
        {
            get => position;
            set => position = value >= 0 && value <= length ? value : throw new ArgumentOutOfRangeException(nameof(value));
        }

        public override async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
        {
            int count = source.limit.Portion((int)Math.Min(buffer.Length, length - position));
            if (count == 0)
            {
                return 0;
            }

            await source.limit.TakeAsync(count, cancellationToken).ConfigureAwait(false);
            int read = await source.ReadAsync(offset + position, buffer[..count], cancellationToken).ConfigureAwait(false);
            watch.Touch();
            position += read;
            return read;
        }

        public override Task<int> ReadAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken) => ReadAsync(buffer.AsMemory(offset, count), cancellationToken).AsTask();

        public override int Read(byte[] buffer, int offset, int count) => ReadAsync(buffer.AsMemory(offset, count), watch.Token).AsTask().GetAwaiter().GetResult();

        public override long Seek(long offset, SeekOrigin origin) => Position = origin switch
        {
            SeekOrigin.Begin => offset,
            SeekOrigin.Current => position + offset,
            _ => length + offset,
        };

        public override void Flush()
        {
        }

        public override void SetLength(long value) => throw new NotSupportedException();

        public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();
    }
}
