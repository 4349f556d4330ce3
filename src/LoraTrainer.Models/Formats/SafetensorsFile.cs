using System.Buffers.Binary;
using System.Collections.Frozen;
using System.Text.Json;
using System.Text.Unicode;
using Microsoft.Win32.SafeHandles;

namespace LoraTrainer.Models.Formats;

/// <summary>
/// Reads a safetensors file: 8 bytes little-endian header length N, N bytes of JSON, then the tensors back to back
/// (huggingface/safetensors, README "Format"). Nothing of the file is believed before it is checked, and no memory is asked for that the
/// file's own length does not vouch for. Tensors are read in pieces into the caller's memory; the file is never mapped nor loaded whole.
/// </summary>
public sealed class SafetensorsFile : IWeightFile
{
    /// <summary>The reference library's own limit of the header's length.</summary>
    internal const long MaximumHeaderBytes = 100_000_000;

    private const string FetchAgain = "The file is damaged; fetch it again.";
    private const string NotWrittenProperly = "The program that wrote the file did not follow the format.";

    private readonly SafeFileHandle handle;
    private readonly long bufferStart;
    private readonly FrozenDictionary<string, SafetensorsEntry> byName;

    private SafetensorsFile(string path, SafeFileHandle handle, long bufferStart, List<SafetensorsEntry> entries, Dictionary<string, string> metadata)
    {
        Path = path;
        this.handle = handle;
        this.bufferStart = bufferStart;
        Entries = entries;
        Metadata = metadata;
        byName = entries.ToFrozenDictionary(entry => entry.Name, StringComparer.Ordinal);
    }

    public string Path { get; }

    /// <summary>All tensors, in the order in which they lie in the file.</summary>
    public IReadOnlyList<SafetensorsEntry> Entries { get; }

    /// <summary>The strings under <c>__metadata__</c>; empty where the header has none.</summary>
    public IReadOnlyDictionary<string, string> Metadata { get; }

    /// <summary>The tensor of that name, or null.</summary>
    public SafetensorsEntry? Find(string name) => byName.GetValueOrDefault(name);

    /// <summary>Opens the file and checks all of its header.</summary>
    /// <exception cref="SafetensorsFormatException">the file breaks a rule of the format</exception>
    public static SafetensorsFile Open(string path)
    {
        SafeFileHandle handle = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read | FileShare.Delete);
        try
        {
            return Open(path, handle);
        }
        catch
        {
            handle.Dispose();
            throw;
        }
    }

    /// <summary>Reads <paramref name="destination"/>.Length bytes of the tensor from its byte <paramref name="offsetInTensor"/> on. Safe to call from several threads.</summary>
    /// <exception cref="SafetensorsFormatException">the file has become shorter since it was opened</exception>
    public void ReadInto(SafetensorsEntry entry, long offsetInTensor, Span<byte> destination)
    {
        ArgumentNullException.ThrowIfNull(entry);
        if (offsetInTensor < 0 || offsetInTensor > entry.ByteLength || destination.Length > entry.ByteLength - offsetInTensor)
        {
            throw new ArgumentOutOfRangeException(
                nameof(offsetInTensor),
                $"tensor '{entry.Name}' has {entry.ByteLength} bytes; {destination.Length} bytes from byte {offsetInTensor} on are not all in it");
        }

        long position = bufferStart + entry.ByteOffset + offsetInTensor;
        int filled = Fill(handle, destination, position);
        if (filled < destination.Length)
        {
            throw new SafetensorsFormatException(
                $"{Path}: tensor '{entry.Name}' should lie at bytes {bufferStart + entry.ByteOffset} to {bufferStart + entry.ByteOffset + entry.ByteLength}, "
                + $"but the file now ends at byte {position + filled}. It was changed while it was open; fetch it again.");
        }
    }

    public void Dispose() => handle.Dispose();

    private static SafetensorsFile Open(string path, SafeFileHandle handle)
    {
        long fileLength = RandomAccess.GetLength(handle);
        if (fileLength < 8)
        {
            throw new SafetensorsFormatException($"{path}: the file has {fileLength} bytes; a safetensors file starts with the 8-byte length of its header. {FetchAgain}");
        }

        Span<byte> lengthBytes = stackalloc byte[8];
        ReadFully(path, handle, lengthBytes, 0);
        ulong headerLength = BinaryPrimitives.ReadUInt64LittleEndian(lengthBytes);
        if (headerLength > MaximumHeaderBytes)
        {
            throw new SafetensorsFormatException(
                $"{path}: the first 8 bytes give the header {headerLength} bytes; the format allows at most {MaximumHeaderBytes}. It is not a safetensors file, or it is damaged; fetch it again.");
        }

        long bufferStart = 8 + (long)headerLength;
        if (bufferStart > fileLength)
        {
            throw new SafetensorsFormatException($"{path}: the header should have {headerLength} bytes, but the file ends after {fileLength - 8} of them. {FetchAgain}");
        }

        byte[] header = GC.AllocateUninitializedArray<byte>((int)headerLength);
        ReadFully(path, handle, header, 8);
        (List<SafetensorsEntry> entries, Dictionary<string, string> metadata) = SafetensorsHeader.Parse(path, header);
        CheckLayout(path, entries, fileLength - bufferStart);
        return new SafetensorsFile(path, handle, bufferStart, entries, metadata);
    }

    /// <summary>Sorts the tensors by place and checks that they fill the buffer without hole, overlap or rest, each with as many bytes as its type and shape need.</summary>
    private static void CheckLayout(string path, List<SafetensorsEntry> entries, long bufferLength)
    {
        entries.Sort(static (a, b) => (a.ByteOffset, a.ByteLength, a.Name.Length).CompareTo((b.ByteOffset, b.ByteLength, b.Name.Length)) is var order && order != 0
            ? order
            : string.CompareOrdinal(a.Name, b.Name));
        long end = 0;
        foreach (SafetensorsEntry entry in entries)
        {
            if (entry.ByteOffset != end)
            {
                string kind = entry.ByteOffset > end ? "hole" : "overlap";
                throw new SafetensorsFormatException(
                    $"{path}: tensor '{Shorten(entry.Name)}' starts at byte {entry.ByteOffset} of the data, but the tensors before it end at byte {end}; the format allows no {kind}. {FetchAgain}");
            }

            end = checked(entry.ByteOffset + entry.ByteLength);
        }

        foreach (SafetensorsEntry entry in entries)
        {
            long? size = SafetensorsEntry.SizeOf(entry.DType, entry.Shape);
            if (size is null)
            {
                throw new SafetensorsFormatException(
                    $"{path}: tensor '{Shorten(entry.Name)}' says {entry}, whose size is no whole number of bytes below 2^60. {FetchAgain}");
            }

            if (size != entry.ByteLength)
            {
                throw new SafetensorsFormatException(
                    $"{path}: tensor '{Shorten(entry.Name)}' says {entry} = {size} bytes, but its data_offsets span {entry.ByteLength} bytes. {FetchAgain}");
            }
        }

        if (end != bufferLength)
        {
            throw new SafetensorsFormatException(
                $"{path}: the tensors end at byte {end} of the data, but the file has {bufferLength} bytes of data. "
                + (end > bufferLength ? "The file was cut short; fetch it again." : FetchAgain));
        }
    }

    private static void ReadFully(string path, SafeFileHandle handle, Span<byte> destination, long position)
    {
        int filled = Fill(handle, destination, position);
        if (filled < destination.Length)
        {
            throw new SafetensorsFormatException($"{path}: the file ended at byte {position + filled} while its header was read. It was changed while it was open; fetch it again.");
        }
    }

    private static int Fill(SafeFileHandle handle, Span<byte> destination, long position)
    {
        int filled = 0;
        while (filled < destination.Length)
        {
            int read = RandomAccess.Read(handle, destination[filled..], position + filled);
            if (read == 0)
            {
                break;
            }

            filled += read;
        }

        return filled;
    }

    /// <summary>A name as a message shows it: a hostile one may be megabytes long or hold line breaks.</summary>
    internal static string Shorten(string name)
    {
        string cut = name.Length <= 200 ? name : string.Concat(name.AsSpan(0, 200), "...");
        return string.Concat(cut.Select(letter => char.IsControl(letter) ? '?' : letter));
    }

    /// <summary>The JSON part: names, types, shapes and offsets, each checked for itself. What they mean together is the caller's to check.</summary>
    private static class SafetensorsHeader
    {
        // An entry is an object in an object with arrays in it: three. The rest is room for fields to come.
        private const int MaximumDepth = 16;

        // PyTorch's own limit; keeps a hostile shape from taking eight bytes for each two of the file.
        private const int MaximumAxes = 64;

        public static (List<SafetensorsEntry> Entries, Dictionary<string, string> Metadata) Parse(string path, ReadOnlySpan<byte> header)
        {
            if (!Utf8.IsValid(header))
            {
                throw new SafetensorsFormatException($"{path}: the header is not valid UTF-8. {FetchAgain}");
            }

            if (header.IsEmpty || header[0] != (byte)'{')
            {
                throw new SafetensorsFormatException($"{path}: the header does not start with '{{'. It is not a safetensors file, or it is damaged; fetch it again.");
            }

            try
            {
                return ParseObject(path, header);
            }
            catch (JsonException exception)
            {
                throw new SafetensorsFormatException($"{path}: the header is not valid JSON (byte {exception.BytePositionInLine} of line {exception.LineNumber + 1}). {FetchAgain}", exception);
            }
        }

        private static (List<SafetensorsEntry> Entries, Dictionary<string, string> Metadata) ParseObject(string path, ReadOnlySpan<byte> header)
        {
            var reader = new Utf8JsonReader(header, new JsonReaderOptions { MaxDepth = MaximumDepth, CommentHandling = JsonCommentHandling.Disallow });
            var entries = new List<SafetensorsEntry>();
            var metadata = new Dictionary<string, string>(StringComparer.Ordinal);
            var names = new HashSet<string>(StringComparer.Ordinal);
            reader.Read();
            while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
            {
                string name = Text(path, ref reader, "a key of the header");
                if (!names.Add(name))
                {
                    throw new SafetensorsFormatException($"{path}: the header has the key '{Shorten(name)}' twice, so it is not clear which one counts. {NotWrittenProperly}");
                }

                reader.Read();
                if (name == "__metadata__")
                {
                    ParseMetadata(path, ref reader, metadata);
                }
                else
                {
                    entries.Add(ParseEntry(path, name, ref reader));
                }
            }

            // Reads to the end, so that anything behind the object is refused.
            while (reader.Read())
            {
            }

            return (entries, metadata);
        }

        private static void ParseMetadata(string path, ref Utf8JsonReader reader, Dictionary<string, string> metadata)
        {
            if (reader.TokenType != JsonTokenType.StartObject)
            {
                throw new SafetensorsFormatException($"{path}: __metadata__ is {Kind(reader.TokenType)}; it must be an object of strings. {NotWrittenProperly}");
            }

            while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
            {
                string key = Text(path, ref reader, "a key of __metadata__");
                reader.Read();
                if (reader.TokenType != JsonTokenType.String)
                {
                    throw new SafetensorsFormatException($"{path}: __metadata__ '{Shorten(key)}' is {Kind(reader.TokenType)}; every value there must be a string. {NotWrittenProperly}");
                }

                if (!metadata.TryAdd(key, Text(path, ref reader, "a value of __metadata__")))
                {
                    throw new SafetensorsFormatException($"{path}: __metadata__ has the key '{Shorten(key)}' twice, so it is not clear which one counts. {NotWrittenProperly}");
                }
            }
        }

        private static SafetensorsEntry ParseEntry(string path, string name, ref Utf8JsonReader reader)
        {
            if (reader.TokenType != JsonTokenType.StartObject)
            {
                throw Wrong(path, name, $"is {Kind(reader.TokenType)}; it must be an object with dtype, shape and data_offsets");
            }

            SafetensorsDType? dtype = null;
            long[]? shape = null;
            long[]? offsets = null;
            var fields = new HashSet<string>(StringComparer.Ordinal);
            while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
            {
                string field = Text(path, ref reader, $"a field of tensor '{Shorten(name)}'");
                if (!fields.Add(field))
                {
                    throw Wrong(path, name, $"has the field '{Shorten(field)}' twice, so it is not clear which one counts");
                }

                reader.Read();
                switch (field)
                {
                    case "dtype":
                        dtype = ParseDType(path, name, ref reader);
                        break;
                    case "shape":
                        shape = ParseNumbers(path, name, "shape", ref reader);
                        break;
                    case "data_offsets":
                        offsets = ParseNumbers(path, name, "data_offsets", ref reader);
                        break;
                    default:
                        SkipUnknown(path, name, ref reader);
                        break;
                }
            }

            if (dtype is null || shape is null || offsets is null)
            {
                string missing = dtype is null ? "dtype" : shape is null ? "shape" : "data_offsets";
                throw Wrong(path, name, $"has no {missing}; each tensor needs dtype, shape and data_offsets");
            }

            if (offsets.Length != 2)
            {
                throw Wrong(path, name, $"has {offsets.Length} data_offsets; it must have two, begin and end");
            }

            if (offsets[1] < offsets[0])
            {
                throw Wrong(path, name, $"has data_offsets [{offsets[0]}, {offsets[1]}]; the end must not be before the begin");
            }

            return new SafetensorsEntry(name, dtype.Value, shape, offsets[0], offsets[1] - offsets[0]);
        }

        private static SafetensorsDType ParseDType(string path, string name, ref Utf8JsonReader reader)
        {
            if (reader.TokenType != JsonTokenType.String)
            {
                throw Wrong(path, name, $"has as dtype {Kind(reader.TokenType)}; it must be a string such as \"F32\"");
            }

            string spelling = Text(path, ref reader, $"the dtype of tensor '{Shorten(name)}'");
            return SafetensorsDTypes.TryParse(spelling, out SafetensorsDType dtype)
                ? dtype
                : throw new SafetensorsFormatException($"{path}: tensor '{Shorten(name)}' has the dtype '{Shorten(spelling)}'; known are {string.Join(", ", SafetensorsDTypes.Names)}. {FetchAgain}");
        }

        private static long[] ParseNumbers(string path, string name, string field, ref Utf8JsonReader reader)
        {
            if (reader.TokenType != JsonTokenType.StartArray)
            {
                throw Wrong(path, name, $"has as {field} {Kind(reader.TokenType)}; it must be an array of whole numbers");
            }

            var numbers = new List<long>();
            while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
            {
                if (reader.TokenType != JsonTokenType.Number || !reader.TryGetInt64(out long number) || number < 0)
                {
                    throw Wrong(path, name, $"has in {field} {Kind(reader.TokenType)} that is no whole number from 0 to 2^63-1");
                }

                if (numbers.Count == MaximumAxes)
                {
                    throw Wrong(path, name, $"has in {field} more than {MaximumAxes} numbers, the most axes a tensor can have");
                }

                numbers.Add(number);
            }

            return [.. numbers];
        }

        /// <summary>Steps over the value of a field that this version does not know (as the reference library does), refusing double keys in it.</summary>
        private static void SkipUnknown(string path, string name, ref Utf8JsonReader reader)
        {
            int depth = reader.CurrentDepth;
            var open = new Stack<HashSet<string>>();
            do
            {
                if (reader.TokenType == JsonTokenType.StartObject)
                {
                    open.Push(new HashSet<string>(StringComparer.Ordinal));
                }
                else if (reader.TokenType == JsonTokenType.EndObject)
                {
                    open.Pop();
                }
                else if (reader.TokenType == JsonTokenType.PropertyName)
                {
                    string key = Text(path, ref reader, $"a field of tensor '{Shorten(name)}'");
                    if (!open.Peek().Add(key))
                    {
                        throw Wrong(path, name, $"has the field '{Shorten(key)}' twice, so it is not clear which one counts");
                    }
                }
            }
            while ((reader.CurrentDepth > depth || reader.TokenType is JsonTokenType.StartObject or JsonTokenType.StartArray) && reader.Read());
        }

        /// <summary>The string at the reader; one with half of a surrogate pair, which is no text, is refused.</summary>
        private static string Text(string path, ref Utf8JsonReader reader, string what)
        {
            try
            {
                return reader.GetString()!;
            }
            catch (InvalidOperationException exception)
            {
                throw new SafetensorsFormatException($"{path}: {what} holds an escape that is half a character (a lone surrogate). {FetchAgain}", exception);
            }
        }

        private static SafetensorsFormatException Wrong(string path, string name, string what) => new($"{path}: tensor '{Shorten(name)}' {what}. {FetchAgain}");

        private static string Kind(JsonTokenType token) => token switch
        {
            JsonTokenType.StartObject => "an object",
            JsonTokenType.StartArray => "an array",
            JsonTokenType.String => "a string",
            JsonTokenType.Number => "a number",
            JsonTokenType.True or JsonTokenType.False => "a truth value",
            _ => "null",
        };
    }
}
