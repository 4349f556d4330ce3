using System.IO.Compression;
using ZstdSharp;

namespace LoraTrainer.Data.Datasets;

/// <summary>The content of a file, unpacked on the way where its first bytes say that it is gzip or Zstandard. Forward only. Damage is a <see cref="DatasetException"/>.</summary>
internal sealed class DecodedFile : Stream
{
    private const int LargestWindowLog = 27;

    private readonly string path;
    private readonly Stream content;

    private DecodedFile(string path, Stream content, string? compression)
    {
        this.path = path;
        this.content = content;
        Compression = compression;
    }

    /// <summary>gzip or Zstandard; null where it is stored as it is.</summary>
    public string? Compression { get; }

    public override bool CanRead => true;

    public override bool CanSeek => false;

    public override bool CanWrite => false;

    public override long Length => throw new NotSupportedException();

    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    /// <exception cref="DatasetException">The file cannot be opened.</exception>
    public static DecodedFile Open(string path)
    {
        FileStream file;
        try
        {
            file = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, 1 << 16, FileOptions.SequentialScan);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new DatasetException($"{path}: the file cannot be opened ({exception.Message})", exception);
        }

        Span<byte> head = stackalloc byte[4];
        int read = file.ReadAtLeast(head, head.Length, throwOnEndOfStream: false);
        if (!file.CanSeek)
        {
            file.Dispose();
            throw new DatasetException($"{path}: this is a pipe or a device; the data are read more than once and must be in a file");
        }

        file.Position = 0;
        return head[..read] switch
        {
            [0x1F, 0x8B, ..] => new DecodedFile(path, new GZipStream(file, CompressionMode.Decompress), "gzip"),
            [0x28, 0xB5, 0x2F, 0xFD] => new DecodedFile(path, Zstandard(file), "Zstandard"),
            _ => new DecodedFile(path, file, null),
        };
    }

    public override int Read(Span<byte> buffer)
    {
        try
        {
            return content.Read(buffer);
        }
        catch (Exception exception) when (exception is InvalidDataException or EndOfStreamException or ZstdException)
        {
            throw new DatasetException($"{path}: the compressed data are damaged or cut off ({exception.Message}). Fetch the file again.", exception);
        }
        catch (IOException exception)
        {
            throw new DatasetException($"{path}: the file cannot be read ({exception.Message})", exception);
        }
    }

    public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));

    public override void Flush()
    {
    }

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void SetLength(long value) => throw new NotSupportedException();

    public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            content.Dispose();
        }

        base.Dispose(disposing);
    }

    private static DecompressionStream Zstandard(FileStream file)
    {
        var stream = new DecompressionStream(file, leaveOpen: false);
        stream.SetParameter(ZstdSharp.Unsafe.ZSTD_dParameter.ZSTD_d_windowLogMax, LargestWindowLog);
        return stream;
    }
}
