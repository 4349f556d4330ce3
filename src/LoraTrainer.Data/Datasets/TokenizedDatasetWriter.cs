using System.Buffers;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Data.Datasets;

/// <summary>Writes a <see cref="TokenizedDataset"/> row by row; holds an index entry of 24 bytes for each. The file appears whole or not at all.</summary>
public sealed unsafe class TokenizedDatasetWriter : IDisposable
{
    private const int BufferBytes = 1 << 20;

    private readonly string path;
    private readonly bool isTemporary;
    private readonly AtomicFile file;
    private readonly IncrementalHash content = IncrementalHash.CreateHash(HashAlgorithmName.SHA256), whole = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
    private readonly ArrayBufferWriter<byte> buffer = new(BufferBytes);
    private readonly List<TokenizedDataset.IndexEntry> index = [];
    private readonly List<string> files = [];
    private readonly Dictionary<string, int> fileNumbers = new(StringComparer.Ordinal);
    private long position, tokens, targets;

    private TokenizedDatasetWriter(string path, bool isTemporary)
    {
        this.path = path;
        this.isTemporary = isTemporary;
        file = AtomicFile.Create(path, durable: false);
    }

    /// <summary>Rows in the file so far.</summary>
    public int RowCount => index.Count;

    /// <summary>A file that stays, for <see cref="TokenizedDataset.Open"/>. Its folder must exist.</summary>
    public static TokenizedDatasetWriter At(string path) => new(path, isTemporary: false);

    /// <summary>A file that goes when it is no longer used. Its name is that of one being written, so that the next run removes what a process left that was killed before it could.</summary>
    /// <param name="folder">Where; it must exist.</param>
    public static TokenizedDatasetWriter Temporary(string folder) => new(Path.Combine(folder, $".tokens.{Guid.NewGuid():N}.tmp"), isTemporary: true);

    /// <exception cref="IOException">The disk is full.</exception>
    public void Add(in TokenizedRow row)
    {
        int length = row.Tokens.Length;
        string name = row.Source.File ?? "";
        if (!fileNumbers.TryGetValue(name, out int number))
        {
            fileNumbers.Add(name, number = files.Count);
            files.Add(name);
        }

        index.Add(new TokenizedDataset.IndexEntry { Start = position, Length = length, File = number, Line = row.Source.Line, Row = row.Source.Row });
        ReadOnlySpan<byte> ids = MemoryMarshal.AsBytes(row.Tokens.AsSpan()), flags = MemoryMarshal.AsBytes(row.IsSupervised.AsSpan());
        content.AppendData(MemoryMarshal.AsBytes(new ReadOnlySpan<int>(in length)));
        content.AppendData(ids);
        content.AppendData(flags);
        Write(ids);
        Write(flags);
        Pad(sizeof(int));
        tokens += length;
        targets += row.TargetCount;
    }

    /// <summary>Ends the file and opens it.</summary>
    /// <param name="audit">Kept with the rows.</param>
    public TokenizedDataset Finish(AuditReport audit)
    {
        Pad(sizeof(long));
        var trailer = new TokenizedDataset.Trailer { Magic = TokenizedDataset.Magic, Rows = index.Count, Tokens = tokens, Targets = targets, IndexStart = position };
        Write(MemoryMarshal.AsBytes(CollectionsMarshal.AsSpan(index)));
        trailer.MetadataStart = position;
        Write(Metadata(audit));
        Flush();
        content.GetHashAndReset().CopyTo(new Span<byte>(trailer.ContentHash, SHA256.HashSizeInBytes));
        whole.GetHashAndReset().CopyTo(new Span<byte>(trailer.FileHash, SHA256.HashSizeInBytes));
        file.Append(MemoryMarshal.AsBytes(new ReadOnlySpan<TokenizedDataset.Trailer>(in trailer)));
        file.Commit();
        TokenizedDataset dataset = TokenizedDataset.Reopen(path);
        if (isTemporary)
        {
            // The mapping keeps the content; the name goes at once, so that nothing is left behind however the process ends.
            File.Delete(path);
        }

        return dataset;
    }

    public void Dispose()
    {
        file.Dispose();
        content.Dispose();
        whole.Dispose();
    }

    private byte[] Metadata(AuditReport audit)
    {
        var bytes = new ArrayBufferWriter<byte>();
        using var json = new Utf8JsonWriter(bytes);
        json.WriteStartObject();
        json.WriteStartArray("files");
        files.ForEach(json.WriteStringValue);
        json.WriteEndArray();
        json.WritePropertyName("audit");
        audit.Write(json);
        json.WriteEndObject();
        json.Flush();
        return bytes.WrittenSpan.ToArray();
    }

    private void Pad(int alignment)
    {
        ReadOnlySpan<byte> zeros = stackalloc byte[sizeof(long)];
        Write(zeros[..(int)((alignment - (position % alignment)) % alignment)]);
    }

    private void Write(ReadOnlySpan<byte> bytes)
    {
        position += bytes.Length;
        buffer.Write(bytes);
        if (buffer.WrittenCount >= BufferBytes)
        {
            Flush();
        }
    }

    private void Flush()
    {
        whole.AppendData(buffer.WrittenSpan);
        file.Append(buffer.WrittenSpan);
        buffer.ResetWrittenCount();
    }
}
