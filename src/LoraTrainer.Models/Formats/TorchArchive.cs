using System.Buffers.Binary;
using System.Text;
using Microsoft.Win32.SafeHandles;

namespace LoraTrainer.Models.Formats;

/// <summary>
/// The table of contents of the zip file that torch.save writes (PKWARE APPNOTE 6.3; caffe2/serialize/inline_container.cc): records that are stored as they
/// are, so that each is a range of bytes of the file. Compressed, encrypted and overlapping records are refused, and no memory is asked for that the file's
/// own length does not vouch for.
/// </summary>
internal static class TorchArchive
{
    private const uint LocalHeader = 0x04034b50;
    private const uint CentralHeader = 0x02014b50;
    private const uint End = 0x06054b50;
    private const uint End64 = 0x06064b50;
    private const uint End64Locator = 0x07064b50;
    private const int LocalHeaderBytes = 30;
    private const int CentralHeaderBytes = 46;
    private const int EndBytes = 22;
    private const int End64Bytes = 56;
    private const int LocatorBytes = 20;

    // About a hundred bytes a record; a model of a thousand tensors has a thousand.
    private const long LargestDirectoryBytes = 64 << 20;

    private const string FetchAgain = "The file is damaged; fetch it again.";

    /// <summary>Where a record lies in the file.</summary>
    /// <param name="Offset">Of its first byte.</param>
    /// <param name="Length">In bytes.</param>
    public readonly record struct Part(long Offset, long Length);

    /// <summary>All records by name, with the folder that torch.save puts them in.</summary>
    /// <param name="path">For messages.</param>
    /// <param name="handle">Of the file.</param>
    /// <exception cref="TorchFormatException">It is no such file, or breaks a rule of the format.</exception>
    public static Dictionary<string, Part> Read(string path, SafeFileHandle handle)
    {
        long length = RandomAccess.GetLength(handle);
        RefuseOtherFormats(path, handle, length);
        (long start, long size, long count, long directoryEnd) = FindDirectory(path, handle, length);
        if (start < 0 || size < 0 || count < 0 || start > directoryEnd || size > directoryEnd - start || count > size / CentralHeaderBytes)
        {
            throw Damaged(path, $"its table of contents should have {count} records in {size} bytes from byte {start} on, which cannot be in a file of {length} bytes");
        }

        if (size > LargestDirectoryBytes)
        {
            throw Damaged(path, $"its table of contents has {size} bytes; at most {LargestDirectoryBytes} are accepted");
        }

        byte[] directory = GC.AllocateUninitializedArray<byte>((int)size);
        Fill(path, handle, directory, start);
        var records = new List<(string Name, long Header, Part Part)>();
        ReadOnlySpan<byte> rest = directory;
        for (long i = 0; i < count; i++)
        {
            (string name, long header, long bytes, int taken) = ReadEntry(path, rest);
            rest = rest[taken..];
            if (!name.EndsWith('/'))
            {
                records.Add((name, header, new Part(DataOffset(path, handle, name, header, start), bytes)));
            }
        }

        return Check(path, records, start);
    }

    /// <summary>Reads exactly that many bytes.</summary>
    public static void Fill(string path, SafeFileHandle handle, Span<byte> destination, long position)
    {
        int filled = 0;
        while (filled < destination.Length)
        {
            int read = RandomAccess.Read(handle, destination[filled..], position + filled);
            if (read == 0)
            {
                throw Damaged(path, $"it ends at byte {position + filled}, in the middle of what should be there");
            }

            filled += read;
        }
    }

    private static void RefuseOtherFormats(string path, SafeFileHandle handle, long length)
    {
        Span<byte> start = stackalloc byte[265];
        start = start[..(int)Math.Min(length, start.Length)];
        Fill(path, handle, start, 0);

        // The pickle of torch's magic number, and the word at its place in a tar archive.
        ReadOnlySpan<byte> magicNumber = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
        string? legacy = start.IndexOf(magicNumber) is >= 0 and <= 4 ? "several pickles behind each other" : start.Length > 262 && start.Slice(257, 5).SequenceEqual("ustar"u8) ? "a tar archive" : null;
        if (legacy is not null)
        {
            throw new TorchFormatException(
                $"{path}: the file is {legacy}, the format of torch.save before release 1.6, which is not read. Get the model's safetensors files, or save it again with a recent torch and transformers (save_pretrained).");
        }

        if (start.Length < 4 || BinaryPrimitives.ReadUInt32LittleEndian(start) != LocalHeader)
        {
            string what = start.StartsWith("version https://git-lfs"u8) ? "the file is a pointer of Git LFS, not the weights. Fetch the file that it stands for (git lfs pull)."
                : "the file does not start as torch.save's zip files do. It is another file, or it is damaged; fetch it again.";
            throw new TorchFormatException($"{path}: {what}");
        }
    }

    /// <summary>Start, size and number of the records of the table of contents, and where what comes behind it starts.</summary>
    private static (long Start, long Size, long Count, long End) FindDirectory(string path, SafeFileHandle handle, long length)
    {
        byte[] tail = new byte[(int)Math.Min(length, EndBytes + ushort.MaxValue)];
        Fill(path, handle, tail, length - tail.Length);
        for (int at = tail.Length - EndBytes; at >= 0; at--)
        {
            ReadOnlySpan<byte> end = tail.AsSpan(at);
            if (BinaryPrimitives.ReadUInt32LittleEndian(end) != End || BinaryPrimitives.ReadUInt16LittleEndian(end[20..]) != end.Length - EndBytes)
            {
                continue;
            }

            long position = length - tail.Length + at;
            ushort disk = BinaryPrimitives.ReadUInt16LittleEndian(end[4..]), count = BinaryPrimitives.ReadUInt16LittleEndian(end[10..]);
            uint size = BinaryPrimitives.ReadUInt32LittleEndian(end[12..]), start = BinaryPrimitives.ReadUInt32LittleEndian(end[16..]);
            return disk == ushort.MaxValue || count == ushort.MaxValue || size == uint.MaxValue || start == uint.MaxValue
                ? FindDirectory64(path, handle, position)
                : disk == 0 ? (start, size, count, position) : throw Damaged(path, "it is one part of a zip file of several");
        }

        throw new TorchFormatException($"{path}: the zip file has no end: its table of contents, which comes last, is not there. The file was cut short; fetch it again.");
    }

    private static (long Start, long Size, long Count, long End) FindDirectory64(string path, SafeFileHandle handle, long endPosition)
    {
        Span<byte> locator = stackalloc byte[LocatorBytes], end = stackalloc byte[End64Bytes];
        long position = -1;
        if (endPosition >= LocatorBytes)
        {
            Fill(path, handle, locator, endPosition - LocatorBytes);
            position = BinaryPrimitives.ReadUInt32LittleEndian(locator) == End64Locator ? BinaryPrimitives.ReadInt64LittleEndian(locator[8..]) : -1;
        }

        if (position < 0 || position > endPosition - LocatorBytes - End64Bytes)
        {
            throw Damaged(path, "the end of its table of contents (zip64) is not where it should be");
        }

        Fill(path, handle, end, position);
        return BinaryPrimitives.ReadUInt32LittleEndian(end) == End64 && BinaryPrimitives.ReadUInt32LittleEndian(end[16..]) == 0
            ? (BinaryPrimitives.ReadInt64LittleEndian(end[48..]), BinaryPrimitives.ReadInt64LittleEndian(end[40..]), BinaryPrimitives.ReadInt64LittleEndian(end[32..]), position)
            : throw Damaged(path, "the end of its table of contents (zip64) is not where it should be");
    }

    /// <summary>One line of the table of contents.</summary>
    private static (string Name, long Header, long Bytes, int Taken) ReadEntry(string path, ReadOnlySpan<byte> entry)
    {
        if (entry.Length < CentralHeaderBytes || BinaryPrimitives.ReadUInt32LittleEndian(entry) != CentralHeader)
        {
            throw Damaged(path, "its table of contents ends too soon");
        }

        ushort flags = BinaryPrimitives.ReadUInt16LittleEndian(entry[8..]), method = BinaryPrimitives.ReadUInt16LittleEndian(entry[10..]);
        long stored = BinaryPrimitives.ReadUInt32LittleEndian(entry[20..]), bytes = BinaryPrimitives.ReadUInt32LittleEndian(entry[24..]), header = BinaryPrimitives.ReadUInt32LittleEndian(entry[42..]);
        int nameBytes = BinaryPrimitives.ReadUInt16LittleEndian(entry[28..]), extraBytes = BinaryPrimitives.ReadUInt16LittleEndian(entry[30..]);
        int taken = CentralHeaderBytes + nameBytes + extraBytes + BinaryPrimitives.ReadUInt16LittleEndian(entry[32..]);
        if (taken > entry.Length)
        {
            throw Damaged(path, "its table of contents ends too soon");
        }

        string name = Encoding.UTF8.GetString(entry.Slice(CentralHeaderBytes, nameBytes)), shown = SafetensorsFile.Shorten(name);
        ReadOnlySpan<byte> extra = Zip64Extra(entry.Slice(CentralHeaderBytes + nameBytes, extraBytes));
        bytes = Wide(bytes, ref extra);
        stored = Wide(stored, ref extra);
        header = Wide(header, ref extra);
        return (flags & 1) != 0 ? throw Refused(path, $"the record '{shown}' is encrypted")
            : method != 0 || stored != bytes ? throw Refused(path, $"the record '{shown}' is compressed (method {method}, {stored} bytes for {bytes}), which torch.save never does")
            : bytes < 0 || header < 0 ? throw Damaged(path, $"the record '{shown}' should have {bytes} bytes at byte {header}")
            : (name, header, bytes, taken);

        // A number that 32 bits do not hold stands in the extra field, in this order.
        long Wide(long value, ref ReadOnlySpan<byte> wide)
        {
            if (value != uint.MaxValue)
            {
                return value;
            }

            long found = wide.Length >= sizeof(long) ? BinaryPrimitives.ReadInt64LittleEndian(wide) : throw Damaged(path, $"the record '{shown}' does not say how large it is");
            wide = wide[sizeof(long)..];
            return found;
        }
    }

    private static ReadOnlySpan<byte> Zip64Extra(ReadOnlySpan<byte> extra)
    {
        while (extra.Length >= 4)
        {
            ushort kind = BinaryPrimitives.ReadUInt16LittleEndian(extra), size = BinaryPrimitives.ReadUInt16LittleEndian(extra[2..]);
            if (size > extra.Length - 4)
            {
                break;
            }

            if (kind == 1)
            {
                return extra.Slice(4, size);
            }

            extra = extra[(4 + size)..];
        }

        return [];
    }

    /// <summary>Where the record's bytes start: behind its own header, whose length only it knows.</summary>
    private static long DataOffset(string path, SafeFileHandle handle, string name, long header, long directoryStart)
    {
        if (header > directoryStart - LocalHeaderBytes)
        {
            throw Damaged(path, $"the record '{SafetensorsFile.Shorten(name)}' should start at byte {header}, where there is no room for it");
        }

        Span<byte> local = stackalloc byte[LocalHeaderBytes];
        Fill(path, handle, local, header);
        return BinaryPrimitives.ReadUInt32LittleEndian(local) == LocalHeader
            ? header + LocalHeaderBytes + BinaryPrimitives.ReadUInt16LittleEndian(local[26..]) + BinaryPrimitives.ReadUInt16LittleEndian(local[28..])
            : throw Damaged(path, $"the record '{SafetensorsFile.Shorten(name)}' should start at byte {header}, but there is no header of one");
    }

    private static Dictionary<string, Part> Check(string path, List<(string Name, long Header, Part Part)> records, long directoryStart)
    {
        var byName = new Dictionary<string, Part>(StringComparer.Ordinal);
        long end = 0;
        foreach ((string name, long header, Part part) in records.OrderBy(record => record.Header))
        {
            string shown = SafetensorsFile.Shorten(name);
            if (header < end)
            {
                throw Refused(path, $"the record '{shown}' starts at byte {header}, inside of another one that ends at byte {end}");
            }

            if (part.Offset > directoryStart || part.Length > directoryStart - part.Offset)
            {
                throw Damaged(path, $"the record '{shown}' should have {part.Length} bytes from byte {part.Offset} on, but the records end at byte {directoryStart}");
            }

            end = part.Offset + part.Length;
            if (!byName.TryAdd(name, part))
            {
                throw Refused(path, $"there are two records of the name '{shown}', so it is not clear which one counts");
            }
        }

        return byName;
    }

    private static TorchFormatException Damaged(string path, string what) => new($"{path}: {what}. {FetchAgain}");

    private static TorchFormatException Refused(string path, string what) => new($"{path}: {what}. The file was not written by torch.save; do not use it.");
}
