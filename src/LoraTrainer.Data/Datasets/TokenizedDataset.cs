using System.IO.MemoryMappedFiles;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text.Json;

namespace LoraTrainer.Data.Datasets;

/// <summary>
/// All rows of a data set as tokens, in a file that is mapped into memory: the system reads what is used and may forget it again, so a data set can be
/// larger than memory. Written by <see cref="TokenizedDatasetWriter"/>. The file: for each row its ids (int32) and one flag per token, padded to four
/// bytes; then one <see cref="IndexEntry"/> per row; the names of the source files and the audit as JSON; and a trailer with the places of these,
/// the hash of the content and the hash of all before it. Little-endian.
/// </summary>
public sealed unsafe class TokenizedDataset : IDisposable
{
    internal const ulong Magic = 0x3130_4B54_4C54_444Cul; // "LDTLTK01"

    private readonly MemoryMappedFile file;
    private readonly MemoryMappedViewAccessor view;
    private byte* bytes;
    private readonly IndexEntry* index;
    private readonly string[] files;

    private TokenizedDataset(string path, bool verifies)
    {
        if (!BitConverter.IsLittleEndian)
        {
            throw new PlatformNotSupportedException("Tokenized data is stored as little-endian numbers.");
        }

        long length = new FileInfo(path).Length;
        if (length < sizeof(Trailer))
        {
            throw new DatasetException($"{path}: not tokenized data: it has {length} bytes");
        }

        file = MemoryMappedFile.CreateFromFile(path, FileMode.Open, null, 0, MemoryMappedFileAccess.Read);
        try
        {
            view = file.CreateViewAccessor(0, length, MemoryMappedFileAccess.Read);
            view.SafeMemoryMappedViewHandle.AcquirePointer(ref bytes);
            Trailer trailer = *(Trailer*)(bytes + length - sizeof(Trailer));
            long end = length - sizeof(Trailer);
            bool isWhole = trailer.Magic == Magic && trailer.Rows is >= 0 and <= int.MaxValue && trailer.IndexStart >= 0 && trailer.IndexStart % 8 == 0
                && trailer.MetadataStart == trailer.IndexStart + trailer.Rows * sizeof(IndexEntry) && trailer.MetadataStart <= end;
            if (!isWhole || (verifies && !Hash(bytes, end).AsSpan().SequenceEqual(new ReadOnlySpan<byte>(trailer.FileHash, SHA256.HashSizeInBytes))))
            {
                throw new DatasetException($"{path}: damaged, or not tokenized data of this version");
            }

            RowCount = (int)trailer.Rows;
            TokenCount = trailer.Tokens;
            TargetCount = trailer.Targets;
            ContentHash = Convert.ToHexStringLower(new ReadOnlySpan<byte>(trailer.ContentHash, SHA256.HashSizeInBytes));
            index = (IndexEntry*)(bytes + trailer.IndexStart);
            using JsonDocument metadata = JsonDocument.Parse(new ReadOnlySpan<byte>(bytes + trailer.MetadataStart, (int)(end - trailer.MetadataStart)).ToArray());
            files = [.. metadata.RootElement.GetProperty("files").EnumerateArray().Select(name => name.GetString()!)];
            Audit = AuditReport.Read(metadata.RootElement.GetProperty("audit"));
        }
        catch (Exception exception)
        {
            Dispose();
            if (exception is JsonException or KeyNotFoundException or InvalidOperationException or FormatException)
            {
                throw new DatasetException($"{path}: damaged, or not tokenized data of this version", exception);
            }

            throw;
        }
    }

    public int RowCount { get; }

    public long TokenCount { get; }

    /// <summary>Tokens that are scored, which is what a mean loss is divided by. The first token of a row never counts: nothing predicts it.</summary>
    public long TargetCount { get; }

    /// <summary>SHA-256 over the lengths, tokens and flags of all rows, in hexadecimal.</summary>
    public string ContentHash { get; }

    /// <summary>What was found when the rows were read.</summary>
    public AuditReport Audit { get; }

    /// <summary>Opens a file that was written before, after reading all of it: a damaged one is refused.</summary>
    /// <exception cref="DatasetException">It is damaged.</exception>
    public static TokenizedDataset Open(string path) => new(path, verifies: true);

    /// <summary>Opens what this process has just written.</summary>
    internal static TokenizedDataset Reopen(string path) => new(path, verifies: false);

    /// <summary>The ids of row <paramref name="row"/>.</summary>
    public ReadOnlySpan<int> Tokens(int row)
    {
        IndexEntry entry = Entry(row);
        return new ReadOnlySpan<int>(bytes + entry.Start, entry.Length);
    }

    /// <summary>Per token of row <paramref name="row"/>, whether it is scored.</summary>
    public ReadOnlySpan<bool> IsSupervised(int row)
    {
        IndexEntry entry = Entry(row);
        return new ReadOnlySpan<bool>(bytes + entry.Start + ((long)entry.Length * sizeof(int)), entry.Length);
    }

    public int Length(int row) => Entry(row).Length;

    public RowSource Source(int row)
    {
        IndexEntry entry = Entry(row);
        return new RowSource(files[entry.File], entry.Line, entry.Row);
    }

    public void Dispose()
    {
        if (bytes != null)
        {
            bytes = null;
            view.SafeMemoryMappedViewHandle.ReleasePointer();
        }

        view?.Dispose();
        file?.Dispose();
    }

    private IndexEntry Entry(int row)
    {
        ObjectDisposedException.ThrowIf(bytes == null, this);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual((uint)row, (uint)RowCount, nameof(row));
        return index[row];
    }

    private static byte[] Hash(byte* start, long length)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        const int piece = 1 << 20;
        for (long at = 0; at < length; at += piece)
        {
            hash.AppendData(new ReadOnlySpan<byte>(start + at, (int)Math.Min(piece, length - at)));
        }

        return hash.GetHashAndReset();
    }

    /// <summary>Where a row lies, and where it came from.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct IndexEntry
    {
        public long Start;
        public int Length, File, Line, Row;
    }

    /// <summary>The end of the file.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct Trailer
    {
        public ulong Magic;
        public long Rows, Tokens, Targets, IndexStart, MetadataStart;
        public fixed byte ContentHash[SHA256.HashSizeInBytes];
        public fixed byte FileHash[SHA256.HashSizeInBytes];
    }
}
