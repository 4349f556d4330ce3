using System.Buffers;
using System.Security.Cryptography;
using Microsoft.Win32.SafeHandles;

namespace LoraTrainer.Storage;

/// <summary>SHA-256 (FIPS 180-4) of files, read through a small buffer, as 64 lower-case hexadecimal digits.</summary>
public static class ContentHash
{
    private const int BufferBytes = 1 << 18;

    /// <summary>The digest of the whole file, read from its start to its end.</summary>
    public static string OfFile(string path, CancellationToken cancellation = default)
    {
        using SafeFileHandle handle = File.OpenHandle(path, options: FileOptions.SequentialScan);
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        byte[] buffer = ArrayPool<byte>.Shared.Rent(BufferBytes);
        try
        {
            long position = 0;
            int read;
            while ((read = RandomAccess.Read(handle, buffer, position)) > 0)
            {
                cancellation.ThrowIfCancellationRequested();
                hash.AppendData(buffer.AsSpan(0, read));
                position += read;
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }

        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }

    public static string OfBytes(ReadOnlySpan<byte> content) => Convert.ToHexStringLower(SHA256.HashData(content));
}
