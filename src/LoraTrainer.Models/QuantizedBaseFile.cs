using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;

namespace LoraTrainer.Models;

/// <summary>
/// What quantizing a base on load gave, kept in a file, so that the next load reads it instead: the matrices of the blocks, with the tensors of bitsandbytes where those
/// have a name for them, in a safetensors file. <c>__metadata__</c> holds the key that the file was made under and the SHA-256 of each tensor, which is checked
/// when the tensor was read to its end. So a file that is torn, changed or of something else is noticed before any of its matrices is used.
/// </summary>
public sealed class QuantizedBaseFile : IWeightFile
{
    /// <summary>To be raised whenever a quantizer gives other bits than before, or this file changes.</summary>
    private const int Version = 1;

    private const string KindKey = "kind";
    private const string Kind = "lora-trainer quantized base";
    private const string KeyKey = "key";
    private const string HashPrefix = "sha256 ";
    private const int PieceBytes = 1 << 20;

    private readonly SafetensorsFile file;
    private readonly IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
    private (SafetensorsEntry? Entry, long Offset) next;

    private QuantizedBaseFile(SafetensorsFile file) => this.file = file;

    public string Path => file.Path;

    public IReadOnlyList<SafetensorsEntry> Entries => file.Entries;

    public SafetensorsEntry? Find(string name) => file.Find(name);

    /// <summary>Names one content: the base, how it is quantized and by what. 64 hexadecimal digits.</summary>
    /// <param name="baseHash">Over all of the base's files.</param>
    /// <param name="format">How its matrices are kept.</param>
    /// <param name="platform">Whose kernels quantize; they may differ in last bits.</param>
    public static string KeyOf(string baseHash, BaseFormat format, DevicePlatform platform) =>
        Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes($"{Kind} {Version}\n{platform}\n{format}\n{baseHash}\n")));

    /// <summary>Opens the file that was made under that key.</summary>
    /// <exception cref="FormatException">It is damaged, or another one.</exception>
    public static QuantizedBaseFile Open(string path, string key)
    {
        SafetensorsFile file = SafetensorsFile.Open(path);
        bool isIt = file.Metadata.GetValueOrDefault(KindKey) == Kind && file.Metadata.GetValueOrDefault(KeyKey) == key;
        if (isIt && file.Entries.All(entry => file.Metadata.ContainsKey(HashPrefix + entry.Name)))
        {
            return new QuantizedBaseFile(file);
        }

        file.Dispose();
        throw new ModelFormatException($"{path}: the file is not the one that its name says: it belongs to {(isIt ? "it in part" : "another base, other settings or another program")}.");
    }

    /// <summary>The matrix, if the file has it.</summary>
    /// <exception cref="FormatException">Its tensors are damaged or contradict each other.</exception>
    internal StoredMatrix? Find(string name, int rows, int columns) => StoredMatrix.Find(tensor => file.Find(tensor) is { } entry ? new ModelTensor(this, entry) : null, name, rows, columns);

    /// <summary>Reads a tensor from its start to its end, piece by piece; after the last one its hash is checked. For one thread at a time.</summary>
    /// <exception cref="ModelFormatException">The tensor is not what was written.</exception>
    public void ReadInto(SafetensorsEntry entry, long offsetInTensor, Span<byte> destination)
    {
        ArgumentNullException.ThrowIfNull(entry);
        if (offsetInTensor == 0)
        {
            hash.TryGetHashAndReset(stackalloc byte[SHA256.HashSizeInBytes], out _);
        }
        else if (next != (entry, offsetInTensor))
        {
            throw new InvalidOperationException($"Tensor '{entry.Name}' is read out of order; its hash could not be checked.");
        }

        file.ReadInto(entry, offsetInTensor, destination);
        hash.AppendData(destination);
        next = (entry, offsetInTensor + destination.Length);
        if (next.Offset == entry.ByteLength && Convert.ToHexStringLower(hash.GetHashAndReset()) != file.Metadata[HashPrefix + entry.Name])
        {
            throw new ModelFormatException($"{Path}: tensor '{SafetensorsFile.Shorten(entry.Name)}' is not what was written: the file is damaged.");
        }
    }

    public void Dispose()
    {
        file.Dispose();
        hash.Dispose();
    }

    /// <summary>Bytes of the file of a model, its header not counted.</summary>
    public static long SizeOf(CausalLanguageModel model) => model.Linears.Sum(linear => linear.Weight.SizeBytes);

    /// <summary>Writes the quantized matrices of a model. The file appears whole or not at all; after a power cut it may be there and be damaged, which is noticed.</summary>
    /// <param name="path">Where; a file of that name is replaced.</param>
    /// <param name="model">Loaded, every matrix of its blocks quantized.</param>
    /// <param name="key">See <see cref="KeyOf"/>.</param>
    /// <exception cref="IOException">The disk is full or fails.</exception>
    public static void Write(string path, CausalLanguageModel model, string key)
    {
        var parts = model.Linears.SelectMany(PartsOf).ToList();
        var metadata = new Dictionary<string, string>(StringComparer.Ordinal) { [KindKey] = Kind, [KeyKey] = key };
        byte[] piece = new byte[PieceBytes];
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (Part part in parts)
        {
            for (long offset = 0; offset < part.SizeBytes; offset += PieceBytes)
            {
                Span<byte> bytes = piece.AsSpan(0, (int)Math.Min(PieceBytes, part.SizeBytes - offset));
                part.CopyTo(offset, bytes);
                hash.AppendData(bytes);
            }

            metadata.Add(HashPrefix + part.Name, Convert.ToHexStringLower(hash.GetHashAndReset()));
        }

        var writer = new SafetensorsWriter(metadata);
        foreach (Part part in parts)
        {
            writer.Add(part.Name, part.DType, part.Shape, part.CopyTo);
        }

        writer.Save(path, durable: false);
    }

    private static IEnumerable<Part> PartsOf(AdaptedLinear linear)
    {
        string name = linear.Name + ".weight";
        switch (linear.Weight)
        {
            case Int8Matrix matrix:
                yield return Part.Of(name, SafetensorsDType.I8, [matrix.Out, matrix.In], matrix.Codes);
                yield return Part.Of(linear.Name + StoredMatrix.StoredInt8.ScalesSuffix, SafetensorsDType.F32, [matrix.Out], matrix.Scales);
                break;
            case FourBitMatrix matrix:
                yield return Part.Of(name, SafetensorsDType.U8, [matrix.Packed.ElementCount, 1], matrix.Packed);
                yield return Part.Of(name + ".quant_map", SafetensorsDType.F32, MemoryMarshal.AsBytes(matrix.Code.Table).ToArray());
                (string suffix, byte[] text) = StoredMatrix.Describe(matrix, "float32");
                yield return Part.Of(name + suffix, SafetensorsDType.U8, text);
                if (!matrix.IsDoubleQuantized)
                {
                    yield return Part.Of(name + ".absmax", SafetensorsDType.F32, [matrix.Absmax.ElementCount], matrix.Absmax);
                    break;
                }

                yield return Part.Of(name + ".absmax", SafetensorsDType.U8, [matrix.AbsmaxCodes.ElementCount], matrix.AbsmaxCodes);
                yield return Part.Of(name + ".nested_absmax", SafetensorsDType.F32, [matrix.NestedAbsmax.ElementCount], matrix.NestedAbsmax);
                yield return Part.Of(name + ".nested_quant_map", SafetensorsDType.F32, [matrix.NestedMap.ElementCount], matrix.NestedMap);
                break;
            default:
                throw new ArgumentException($"{linear.Name} is not quantized.", nameof(linear));
        }
    }

    /// <summary>A tensor that is written: on the device, or a few bytes here.</summary>
    private sealed record Part(string Name, SafetensorsDType DType, long[] Shape, long SizeBytes, SafetensorsBytes CopyTo)
    {
        public static Part Of(string name, SafetensorsDType dtype, long[] shape, Tensor tensor)
        {
            int size = tensor.DType.SizeBytes();
            return new Part(name, dtype, shape, tensor.SizeBytes, (offset, destination) => tensor.Device.Download(tensor, destination, offset / size));
        }

        public static Part Of(string name, SafetensorsDType dtype, byte[] bytes) =>
            new(name, dtype, [bytes.Length * 8 / dtype.Bits()], bytes.Length, (offset, destination) => bytes.AsSpan((int)offset, destination.Length).CopyTo(destination));
    }
}
