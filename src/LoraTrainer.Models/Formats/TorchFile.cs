using System.Collections.Frozen;
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace LoraTrainer.Models.Formats;

/// <summary>
/// Reads a dictionary of tensors that torch.save wrote, since release 1.6 a zip file: <c>NAME/data.pkl</c> describes the tensors, <c>NAME/data/KEY</c> are their numbers
/// (torch/serialization.py). Nothing in it is executed (<see cref="TorchPickle"/>), and tensors are read in pieces. One whose numbers do not lie in its own
/// order, as after a transposition, is put in order; the part of the storage that it uses is in memory meanwhile.
/// </summary>
public sealed class TorchFile : IWeightFile
{
    private readonly SafeFileHandle handle;
    private readonly FrozenDictionary<string, (SafetensorsEntry Entry, TorchView View, long StorageOffset)> byName;
    private readonly Lock gate = new();
    private (SafetensorsEntry? Entry, byte[] Storage) scattered = (null, []);

    private TorchFile(string path, SafeFileHandle handle, List<(SafetensorsEntry Entry, TorchView View, long StorageOffset)> tensors)
    {
        Path = path;
        this.handle = handle;
        Entries = [.. tensors.Select(tensor => tensor.Entry)];
        byName = tensors.ToFrozenDictionary(tensor => tensor.Entry.Name, StringComparer.Ordinal);
    }

    public string Path { get; }

    /// <summary>All tensors, in the order of the dictionary.</summary>
    public IReadOnlyList<SafetensorsEntry> Entries { get; }

    public SafetensorsEntry? Find(string name) => byName.TryGetValue(name, out var tensor) ? tensor.Entry : null;

    /// <summary>Opens the file and checks what it says about its tensors.</summary>
    /// <exception cref="TorchFormatException">the file breaks a rule of the format, or asks for more than tensors</exception>
    public static TorchFile Open(string path)
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

    public void ReadInto(SafetensorsEntry entry, long offsetInTensor, Span<byte> destination)
    {
        ArgumentNullException.ThrowIfNull(entry);
        int size = entry.DType.Bits() / 8;
        if (offsetInTensor < 0 || offsetInTensor > entry.ByteLength || destination.Length > entry.ByteLength - offsetInTensor || offsetInTensor % size != 0 || destination.Length % size != 0)
        {
            throw new ArgumentOutOfRangeException(
                nameof(offsetInTensor),
                $"tensor '{entry.Name}' has {entry.ByteLength} bytes in elements of {size}; {destination.Length} bytes from byte {offsetInTensor} on are not whole elements of it");
        }

        (_, TorchView view, long start) = byName[entry.Name];
        if (IsInOrder(view))
        {
            TorchArchive.Fill(Path, handle, destination, start + view.Offset * size + offsetInTensor);
        }
        else if (destination.Length > 0)
        {
            Gather(view, UsedPart(entry, view, start), offsetInTensor / size, size, destination);
        }

        if (offsetInTensor + destination.Length == entry.ByteLength)
        {
            Forget(entry);
        }
    }

    public void Dispose() => handle.Dispose();

    private static TorchFile Open(string path, SafeFileHandle handle)
    {
        Dictionary<string, TorchArchive.Part> records = TorchArchive.Read(path, handle);
        string[] descriptions = [.. records.Keys.Where(name => name.EndsWith("/data.pkl", StringComparison.Ordinal) && name.IndexOf('/', StringComparison.Ordinal) == name.Length - "/data.pkl".Length)];
        if (descriptions.Length != 1)
        {
            throw new TorchFormatException($"{path}: the zip file has {descriptions.Length} records data.pkl in a folder; torch.save writes one. It is no file of weights; get the model's own.");
        }

        string prefix = descriptions[0][..^"data.pkl".Length];
        if (records.Keys.Any(name => name == prefix + "constants.pkl" || name.StartsWith(prefix + "code/", StringComparison.Ordinal)))
        {
            throw new TorchFormatException($"{path}: the file is a program (TorchScript), not weights alone. Get the model's own weights.");
        }

        if (records.TryGetValue(prefix + "byteorder", out TorchArchive.Part order))
        {
            byte[] word = Read(path, handle, order, 16, "byteorder");
            if (!word.AsSpan().SequenceEqual("little"u8))
            {
                throw new TorchFormatException($"{path}: its numbers are stored with their bytes in another order than little-endian, which is not read. Save the model again on a usual machine.");
            }
        }

        byte[] pickle = Read(path, handle, records[descriptions[0]], TorchPickle.LargestBytes, "data.pkl");
        var tensors = new List<(SafetensorsEntry Entry, TorchView View, long StorageOffset)>();
        foreach ((string name, TorchView view) in TorchPickle.Read(path, pickle))
        {
            (TorchStorage storage, int size) = (view.Storage, view.Storage.DType.Bits() / 8);
            string record = $"{prefix}data/{storage.Key}", shown = SafetensorsFile.Shorten(record);
            if (!records.TryGetValue(record, out TorchArchive.Part part))
            {
                throw new TorchFormatException($"{path}: tensor '{SafetensorsFile.Shorten(name)}' lies in the record '{shown}', which is not in the file. The file is damaged; fetch it again.");
            }

            if (part.Length % size != 0 || part.Length / size != storage.Elements)
            {
                throw new TorchFormatException($"{path}: the record '{shown}' has {part.Length} bytes; {storage.Elements} elements of type {storage.DType.Name()} are said to be in it. The file is damaged; fetch it again.");
            }

            long bytes = SafetensorsEntry.SizeOf(storage.DType, view.Shape)!.Value;
            tensors.Add((new SafetensorsEntry(name, storage.DType, view.Shape, part.Offset + view.Offset * size, bytes), view, part.Offset));
        }

        return new TorchFile(path, handle, tensors);
    }

    private static byte[] Read(string path, SafeFileHandle handle, TorchArchive.Part part, int largest, string name)
    {
        if (part.Length > largest)
        {
            throw new TorchFormatException($"{path}: the record {name} has {part.Length} bytes; at most {largest} are accepted. It is no model, or it is damaged; fetch it again.");
        }

        byte[] bytes = new byte[part.Length];
        TorchArchive.Fill(path, handle, bytes, part.Offset);
        return bytes;
    }

    /// <summary>True where the elements lie one after the other as the tensor has them.</summary>
    private static bool IsInOrder(TorchView view)
    {
        long expected = 1;
        for (int axis = view.Shape.Length - 1; axis >= 0; axis--)
        {
            if (view.Shape[axis] != 1 && view.Strides[axis] != expected)
            {
                return view.Shape.Contains(0);
            }

            expected *= view.Shape[axis];
        }

        return true;
    }

    /// <summary>The bytes of the storage from the tensor's first element to its last; kept until the tensor was read to its end.</summary>
    private byte[] UsedPart(SafetensorsEntry entry, TorchView view, long storageOffset)
    {
        lock (gate)
        {
            if (scattered.Entry == entry)
            {
                return scattered.Storage;
            }

            int size = entry.DType.Bits() / 8;
            long bytes = (1 + view.Shape.Zip(view.Strides, (extent, stride) => (extent - 1) * stride).Sum()) * size;
            if (bytes > Array.MaxLength)
            {
                throw new TorchFormatException($"{Path}: tensor '{SafetensorsFile.Shorten(entry.Name)}' lies scattered over {bytes} bytes; at most {Array.MaxLength} are put in order. Save the model again with contiguous tensors.");
            }

            byte[] part = GC.AllocateUninitializedArray<byte>((int)bytes);
            TorchArchive.Fill(Path, handle, part, storageOffset + view.Offset * size);
            scattered = (entry, part);
            return part;
        }
    }

    private void Forget(SafetensorsEntry entry)
    {
        lock (gate)
        {
            scattered = scattered.Entry == entry ? (null, []) : scattered;
        }
    }

    private static void Gather(TorchView view, byte[] source, long first, int size, Span<byte> destination)
    {
        switch (size)
        {
            case 1:
                Gather(view, source, first, destination);
                break;
            case 2:
                Gather(view, MemoryMarshal.Cast<byte, ushort>(source), first, MemoryMarshal.Cast<byte, ushort>(destination));
                break;
            case 4:
                Gather(view, MemoryMarshal.Cast<byte, uint>(source), first, MemoryMarshal.Cast<byte, uint>(destination));
                break;
            default:
                Gather(view, MemoryMarshal.Cast<byte, ulong>(source), first, MemoryMarshal.Cast<byte, ulong>(destination));
                break;
        }
    }

    /// <summary>The elements from number <paramref name="first"/> on, counted in C order.</summary>
    private static void Gather<T>(TorchView view, ReadOnlySpan<T> source, long first, Span<T> destination)
        where T : unmanaged
    {
        int last = view.Shape.Length - 1;
        Span<long> place = stackalloc long[view.Shape.Length];
        for (int axis = last; axis >= 0; axis--)
        {
            (first, place[axis]) = Math.DivRem(first, view.Shape[axis]);
        }

        for (int done = 0; done < destination.Length;)
        {
            long at = 0;
            for (int axis = 0; axis <= last; axis++)
            {
                at += place[axis] * view.Strides[axis];
            }

            // To the end of the last axis, then one further on the axis before it.
            int count = (int)Math.Min(destination.Length - done, view.Shape[last] - place[last]);
            for (int i = 0; i < count; i++)
            {
                destination[done + i] = source[(int)(at + i * view.Strides[last])];
            }

            done += count;
            place[last] += count;
            for (int axis = last; axis > 0 && place[axis] == view.Shape[axis]; axis--)
            {
                place[axis] = 0;
                place[axis - 1]++;
            }
        }
    }
}
