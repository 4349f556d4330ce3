using System.Buffers.Binary;
using System.Text;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.TestSupport;

/// <summary>
/// Writes files as torch.save does: a dictionary of tensors in protocol 2 of pickle with the memo of CPython's pickler, in a zip file whose records are aligned to
/// 64 bytes and followed by descriptors, with the end of zip64.
/// </summary>
public sealed class TorchWriter
{
    private readonly List<(string Name, View View)> tensors = [];
    private readonly Dictionary<string, byte[]> storages = new(StringComparer.Ordinal);

    /// <summary>A tensor in a storage; strides and offset count elements.</summary>
    public sealed record View(string Storage, SafetensorsDType DType, long StorageElements, long Offset, long[] Shape, long[] Strides, bool IsParameter = false);

    /// <summary>Adds a storage; its key is the next number.</summary>
    public string AddStorage(byte[] bytes)
    {
        string key = storages.Count.ToString(System.Globalization.CultureInfo.InvariantCulture);
        storages.Add(key, bytes);
        return key;
    }

    public void Add(string name, View view) => tensors.Add((name, view));

    /// <summary>Adds a tensor with a storage of its own, in C order.</summary>
    public void Add(string name, SafetensorsDType dtype, long[] shape, byte[] bytes) =>
        Add(name, new View(AddStorage(bytes), dtype, bytes.Length * 8 / dtype.Bits(), 0, shape, StridesOf(shape)));

    /// <summary>Adds a matrix with a storage of its own that holds its columns one after the other.</summary>
    public void AddTransposed(string name, SafetensorsDType dtype, long rows, long columns, byte[] bytes)
    {
        int size = dtype.Bits() / 8;
        byte[] transposed = new byte[bytes.Length];
        for (long row = 0; row < rows; row++)
        {
            for (long column = 0; column < columns; column++)
            {
                bytes.AsSpan((int)((row * columns + column) * size), size).CopyTo(transposed.AsSpan((int)((column * rows + row) * size)));
            }
        }

        Add(name, new View(AddStorage(transposed), dtype, rows * columns, 0, [rows, columns], [1, rows]));
    }

    public static long[] StridesOf(long[] shape)
    {
        long[] strides = new long[shape.Length];
        long step = 1;
        for (int axis = shape.Length - 1; axis >= 0; axis--)
        {
            strides[axis] = step;
            step *= shape[axis];
        }

        return strides;
    }

    /// <summary>The record data.pkl.</summary>
    public byte[] Pickle() => PickleOf(tensors);

    public static byte[] PickleOf(IEnumerable<(string Name, View View)> tensors)
    {
        var pickle = new PickleText();
        pickle.Put([0x80, 2]).Put("}"u8).Memoize().Put("("u8);
        foreach ((string name, View view) in tensors)
        {
            pickle.Text(name);
            if (view.IsParameter)
            {
                pickle.Global("torch._utils", "_rebuild_parameter");
            }

            pickle.Global("torch._utils", "_rebuild_tensor_v2").Put("(("u8).Text("storage").Global("torch", StorageName(view.DType)).Text(view.Storage).Text("cpu").Number(view.StorageElements).Put("t"u8).Memoize().Put("Q"u8);
            pickle.Number(view.Offset).Numbers(view.Shape).Numbers(view.Strides).Put([0x89]).EmptyOrderedDict().Put("t"u8).Memoize().Put("R"u8).Memoize();
            if (view.IsParameter)
            {
                pickle.Put([0x88]).EmptyOrderedDict().Put([0x87]).Memoize().Put("R"u8).Memoize();
            }
        }

        return pickle.Put("u."u8).ToArray();
    }

    public void Save(string path) => File.WriteAllBytes(path, ToBytes(Path.GetFileNameWithoutExtension(path)));

    public byte[] ToBytes(string name = "archive") => Zip(Records(Pickle(), name));

    /// <summary>The records of the file, around a description.</summary>
    public IEnumerable<(string Name, byte[] Content)> Records(byte[] pickle, string name = "archive") =>
    [
        ($"{name}/data.pkl", pickle), ($"{name}/.format_version", [(byte)'1']), ($"{name}/.storage_alignment", "64"u8.ToArray()), ($"{name}/byteorder", "little"u8.ToArray()),
        .. storages.Select(storage => ($"{name}/data/{storage.Key}", storage.Value)), ($"{name}/version", "3\n"u8.ToArray()), ($"{name}/.data/serialization_id", "0"u8.ToArray()),
    ];

    /// <summary>A zip file of records that are stored as they are.</summary>
    /// <param name="records">In this order.</param>
    /// <param name="wide">Sizes and places of records stand in the fields of zip64 too.</param>
    public static byte[] Zip(IEnumerable<(string Name, byte[] Content)> records, bool wide = false)
    {
        var file = new MemoryStream();
        var directory = new MemoryStream();
        int count = 0;
        foreach ((string name, byte[] content) in records)
        {
            long header = file.Position;
            byte[] nameBytes = Encoding.UTF8.GetBytes(name);
            long start = header + 30 + nameBytes.Length + 4;
            int padding = (int)((64 - start % 64) % 64);
            Write(file, 0x04034b50u, (ushort)20, (ushort)0x0808, (ushort)0, 0u, 0u, 0u, 0u, (ushort)nameBytes.Length, (ushort)(4 + padding));
            file.Write(nameBytes);
            Write(file, (ushort)0x4246, (ushort)padding);
            file.Write(Encoding.ASCII.GetBytes(new string('Z', padding)));
            file.Write(content);
            Write(file, 0x08074b50u, 0u, (uint)content.Length, (uint)content.Length);
            uint length = wide ? uint.MaxValue : (uint)content.Length, place = wide ? uint.MaxValue : (uint)header;
            Write(directory, 0x02014b50u, (ushort)0, (ushort)20, (ushort)0x0808, (ushort)0, 0u, 0u, length, length, (ushort)nameBytes.Length, (ushort)(wide ? 28 : 0), (ushort)0, (ushort)0, (ushort)0, 0u, place);
            directory.Write(nameBytes);
            if (wide)
            {
                Write(directory, (ushort)1, (ushort)24, (ulong)content.Length, (ulong)content.Length, (ulong)header);
            }

            count++;
        }

        ulong directoryStart = (ulong)file.Position, size = (ulong)directory.Length;
        directory.WriteTo(file);
        ulong end = (ulong)file.Position;
        Write(file, 0x06064b50u, 44ul, (ushort)45, (ushort)45, 0u, 0u, (ulong)count, (ulong)count, size, directoryStart);
        Write(file, 0x07064b50u, 0u, end, 1u);
        Write(file, 0x06054b50u, wide ? ushort.MaxValue : (ushort)0, (ushort)0, wide ? ushort.MaxValue : (ushort)count, wide ? ushort.MaxValue : (ushort)count, wide ? uint.MaxValue : (uint)size, wide ? uint.MaxValue : (uint)directoryStart, (ushort)0);
        return file.ToArray();
    }

    private static string StorageName(SafetensorsDType dtype) => dtype switch
    {
        SafetensorsDType.F32 => "FloatStorage",
        SafetensorsDType.F16 => "HalfStorage",
        SafetensorsDType.BF16 => "BFloat16Storage",
        SafetensorsDType.F64 => "DoubleStorage",
        SafetensorsDType.I64 => "LongStorage",
        SafetensorsDType.I32 => "IntStorage",
        SafetensorsDType.I16 => "ShortStorage",
        SafetensorsDType.I8 => "CharStorage",
        SafetensorsDType.U8 => "ByteStorage",
        SafetensorsDType.Bool => "BoolStorage",
        _ => throw new ArgumentOutOfRangeException(nameof(dtype), dtype, "torch has no such storage"),
    };

    private static void Write(Stream stream, params object[] numbers)
    {
        Span<byte> bytes = stackalloc byte[8];
        foreach (object number in numbers)
        {
            (ulong value, int size) = number switch
            {
                ushort two => (two, 2),
                uint four => (four, 4),
                ulong eight => (eight, 8),
                _ => throw new ArgumentException($"{number.GetType()} has no place in a zip file", nameof(numbers)),
            };
            BinaryPrimitives.WriteUInt64LittleEndian(bytes, value);
            stream.Write(bytes[..size]);
        }
    }

    /// <summary>Instructions of protocol 2, with the memo that CPython keeps: what comes again is fetched from it.</summary>
    public sealed class PickleText
    {
        private readonly List<byte> written = [];
        private readonly Dictionary<string, int> memo = new(StringComparer.Ordinal);
        private int memoized;

        public PickleText Put(ReadOnlySpan<byte> bytes)
        {
            written.AddRange(bytes);
            return this;
        }

        public PickleText Memoize()
        {
            if (memoized < 256)
            {
                return Put([(byte)'q', (byte)memoized++]);
            }

            Span<byte> index = stackalloc byte[4];
            BinaryPrimitives.WriteInt32LittleEndian(index, memoized++);
            return Put("r"u8).Put(index);
        }

        public PickleText Text(string text)
        {
            if (Recall("text " + text))
            {
                return this;
            }

            byte[] bytes = Encoding.UTF8.GetBytes(text);
            Span<byte> length = stackalloc byte[4];
            BinaryPrimitives.WriteInt32LittleEndian(length, bytes.Length);
            return Put("X"u8).Put(length).Put(bytes).Memoize();
        }

        public PickleText Global(string module, string name) =>
            Recall($"global {module} {name}") ? this : Put(Encoding.ASCII.GetBytes($"c{module}\n{name}\n")).Memoize();

        public PickleText EmptyOrderedDict() => Global("collections", "OrderedDict").Put(")R"u8).Memoize();

        public PickleText Number(long value)
        {
            Span<byte> bytes = stackalloc byte[8];
            BinaryPrimitives.WriteInt64LittleEndian(bytes, value);
            return value switch
            {
                >= 0 and < 256 => Put("K"u8).Put(bytes[..1]),
                >= 0 and < 65536 => Put("M"u8).Put(bytes[..2]),
                >= int.MinValue and <= int.MaxValue => Put("J"u8).Put(bytes[..4]),
                _ => Put([0x8a, 8]).Put(bytes),
            };
        }

        /// <summary>A tuple.</summary>
        public PickleText Numbers(long[] values)
        {
            if (values.Length is 0 or > 3)
            {
                Put(values.Length == 0 ? ")"u8 : "("u8);
            }

            Array.ForEach(values, value => Number(value));
            return values.Length == 0 ? this : Put(values.Length > 3 ? "t"u8 : [(byte)(0x84 + values.Length)]).Memoize();
        }

        public byte[] ToArray() => [.. written];

        private bool Recall(string what)
        {
            if (memo.TryGetValue(what, out int index))
            {
                Span<byte> bytes = stackalloc byte[4];
                BinaryPrimitives.WriteInt32LittleEndian(bytes, index);
                Put(index < 256 ? "h"u8 : "j"u8).Put(index < 256 ? bytes[..1] : bytes);
                return true;
            }

            memo.Add(what, memoized);
            return false;
        }
    }
}
