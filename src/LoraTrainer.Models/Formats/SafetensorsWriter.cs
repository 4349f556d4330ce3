using System.Buffers;
using System.Buffers.Binary;
using System.Globalization;
using System.Text;
using LoraTrainer.Storage;

namespace LoraTrainer.Models.Formats;

/// <summary>Gives the bytes of a tensor that is being written, piece by piece, from its first byte to its last.</summary>
/// <param name="offsetInTensor">where in the tensor the piece starts</param>
/// <param name="destination">to be filled completely</param>
public delegate void SafetensorsBytes(long offsetInTensor, Span<byte> destination);

/// <summary>
/// Writes a safetensors file, byte for byte as the reference library does: larger types first, then names in ordinal order, back to back;
/// compact JSON with <c>__metadata__</c> first, padded with spaces to a multiple of 8 (safetensors/src/tensor.rs, prepare and serialize).
/// The same tensors give the same bytes, in whatever order they were added. The file appears whole or not at all.
/// </summary>
public sealed class SafetensorsWriter
{
    private const int PieceBytes = 1 << 20;

    private readonly SortedDictionary<string, string> metadata;
    private readonly List<(SafetensorsEntry Entry, SafetensorsBytes Bytes)> tensors = [];
    private readonly HashSet<string> names = new(StringComparer.Ordinal);

    /// <param name="metadata">strings for <c>__metadata__</c>; null gives what loaders look for, {"format": "pt"}; an empty one leaves it out</param>
    public SafetensorsWriter(IReadOnlyDictionary<string, string>? metadata = null)
        => this.metadata = new SortedDictionary<string, string>(metadata?.ToDictionary() ?? new Dictionary<string, string> { ["format"] = "pt" }, StringComparer.Ordinal);

    /// <summary>Adds a tensor whose bytes are asked for when the file is saved.</summary>
    public void Add(string name, SafetensorsDType dtype, ReadOnlySpan<long> shape, SafetensorsBytes bytes)
    {
        ArgumentNullException.ThrowIfNull(bytes);
        if (name == "__metadata__" || !names.Add(name))
        {
            throw new ArgumentException($"a tensor cannot be named '{name}' here: the name is {(name == "__metadata__" ? "the format's own" : "taken")}", nameof(name));
        }

        foreach (long axis in shape)
        {
            ArgumentOutOfRangeException.ThrowIfNegative(axis, nameof(shape));
        }

        long size = SafetensorsEntry.SizeOf(dtype, shape)
            ?? throw new ArgumentException($"tensor '{name}': {SafetensorsEntry.Describe(dtype, shape)} is no whole number of bytes below 2^60", nameof(shape));
        tensors.Add((new SafetensorsEntry(name, dtype, shape.ToArray(), 0, size), bytes));
    }

    /// <summary>Adds a tensor that lies in memory. The bytes are read when the file is saved.</summary>
    public void Add(string name, SafetensorsDType dtype, ReadOnlySpan<long> shape, ReadOnlyMemory<byte> bytes)
    {
        long? size = SafetensorsEntry.SizeOf(dtype, shape);
        if (size != bytes.Length)
        {
            throw new ArgumentException($"tensor '{name}': {SafetensorsEntry.Describe(dtype, shape)} needs {size} bytes, got {bytes.Length}", nameof(bytes));
        }

        Add(name, dtype, shape, (offset, destination) => bytes.Span.Slice((int)offset, destination.Length).CopyTo(destination));
    }

    /// <summary>Writes all tensors to <paramref name="path"/>, over whatever has that name.</summary>
    /// <param name="path">The file.</param>
    /// <param name="durable">As in <see cref="AtomicFile.Create"/>.</param>
    public void Save(string path, bool durable = true)
    {
        List<(SafetensorsEntry Entry, SafetensorsBytes Bytes)> ordered = [.. tensors
            .OrderByDescending(tensor => tensor.Entry.DType)
            .ThenBy(tensor => tensor.Entry.Name, StringComparer.Ordinal)];
        byte[] header = Header(ordered);
        if (header.Length - 8 > SafetensorsFile.MaximumHeaderBytes)
        {
            throw new InvalidOperationException($"{path}: {ordered.Count} tensors need a header of {header.Length - 8} bytes; the format allows at most {SafetensorsFile.MaximumHeaderBytes}. Write several files.");
        }

        using AtomicFile file = AtomicFile.Create(path, durable);
        file.Append(header);
        byte[] piece = ArrayPool<byte>.Shared.Rent(PieceBytes);
        try
        {
            foreach ((SafetensorsEntry entry, SafetensorsBytes bytes) in ordered)
            {
                for (long offset = 0; offset < entry.ByteLength; offset += PieceBytes)
                {
                    Span<byte> part = piece.AsSpan(0, (int)Math.Min(PieceBytes, entry.ByteLength - offset));
                    bytes(offset, part);
                    file.Append(part);
                }
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(piece);
        }

        file.Commit();
    }

    /// <summary>The 8 bytes of length and the JSON behind them.</summary>
    private byte[] Header(List<(SafetensorsEntry Entry, SafetensorsBytes Bytes)> ordered)
    {
        var json = new StringBuilder("{");
        if (metadata.Count > 0)
        {
            json.Append("\"__metadata__\":{");
            foreach ((string key, string value) in metadata)
            {
                AppendText(json, key);
                json.Append(':');
                AppendText(json, value);
                json.Append(',');
            }

            json.Length--;
            json.Append("},");
        }

        long begin = 0;
        foreach ((SafetensorsEntry entry, _) in ordered)
        {
            AppendText(json, entry.Name);
            json.Append(CultureInfo.InvariantCulture, $":{{\"dtype\":\"{entry.DType.Name()}\",\"shape\":[");
            json.AppendJoin(',', entry.Shape.ToArray());
            long end = checked(begin + entry.ByteLength);
            json.Append(CultureInfo.InvariantCulture, $"],\"data_offsets\":[{begin},{end}]}},");
            begin = end;
        }

        if (json[^1] == ',')
        {
            json.Length--;
        }

        json.Append('}');
        byte[] text = Encoding.UTF8.GetBytes(json.ToString());
        int padded = (text.Length + 7) / 8 * 8;
        byte[] header = new byte[8 + padded];
        BinaryPrimitives.WriteInt64LittleEndian(header, padded);
        text.CopyTo(header, 8);
        header.AsSpan(8 + text.Length).Fill((byte)' ');
        return header;
    }

    /// <summary>A JSON string as serde_json writes it: only quotes, backslashes and control characters are escaped, the rest stays UTF-8.</summary>
    private static void AppendText(StringBuilder json, string text)
    {
        json.Append('"');
        foreach (char letter in text)
        {
            _ = letter switch
            {
                '"' => json.Append("\\\""),
                '\\' => json.Append("\\\\"),
                '\b' => json.Append("\\b"),
                '\f' => json.Append("\\f"),
                '\n' => json.Append("\\n"),
                '\r' => json.Append("\\r"),
                '\t' => json.Append("\\t"),
                < ' ' => json.Append(CultureInfo.InvariantCulture, $"\\u{(int)letter:x4}"),
                _ => json.Append(letter),
            };
        }

        json.Append('"');
    }
}
