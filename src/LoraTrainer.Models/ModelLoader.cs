using System.Buffers;
using System.Globalization;
using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;

namespace LoraTrainer.Models;

/// <summary>How the frozen linear layers of the blocks are kept; embeddings, norms and the output layer stay as stored.</summary>
public enum BaseFormat
{
    /// <summary>As the files have them: bf16 or f32 (f16 is widened to f32).</summary>
    AsStored,

    /// <summary>4-bit NormalFloat, one f32 scale per 64 weights.</summary>
    Nf4,

    /// <summary>4-bit NormalFloat with the scales themselves quantized to 8 bits.</summary>
    Nf4DoubleQuantized,

    /// <summary>4-bit floating point, one f32 scale per 64 weights.</summary>
    Fp4,

    /// <summary>4-bit floating point with the scales themselves quantized to 8 bits.</summary>
    Fp4DoubleQuantized,

    /// <summary>Signed bytes with one f32 scale a row, made from the weights in f16.</summary>
    EightBit,
}

/// <summary>
/// Builds a model on a device and streams its weights in, tensor by tensor and piece by piece: on the host there is never more than one small
/// buffer beside what the device keeps. On a <see cref="MeasureDevice"/> only the memory is laid out, and the folder may be missing.
/// </summary>
public sealed class ModelLoader
{
    /// <summary>Large enough for the disk, small beside any model.</summary>
    private const int ChunkElements = FourBitQuantizer.PieceElements;

    /// <summary>Host memory that loading takes beside the device's: one piece as stored (at most f32) and once more as f32.</summary>
    public const long HostBufferBytes = 2L * ChunkElements * sizeof(float);

    private readonly ModelConfig config;
    private readonly ModelFolder? folder;
    private readonly ModelTensorLayout layout;
    private readonly Device device;
    private readonly AdapterStart? start;
    private readonly Action<string, double>? progress;
    private readonly long totalBytes;
    private long doneBytes;

    // A tensor that an adapter has taken its start from, as it is stored: read instead of the file's.
    private (string Name, byte[] Bytes)? changed;

    // What is left of it to use; null once a part of it was found to be damaged.
    private QuantizedBaseFile? quantized;
    private Action<string>? damage;

    internal ModelLoader(ModelConfig config, ModelFolder? folder, Device device, AdapterStart? start, Action<string, double>? progress, QuantizedBaseFile? quantized = null)
    {
        this.config = config;
        this.folder = folder;
        this.device = device;
        this.start = start;
        this.progress = progress;
        layout = folder is null
            ? new ModelTensorLayout(ModelConfig.EmbeddingTensor, config.TieWordEmbeddings ? null : ModelConfig.HeadTensor, [])
            : config.CheckTensors(folder);
        this.quantized = quantized;
        totalBytes = Math.Max(1, folder is null ? 1 : quantized is null ? folder.TotalBytes
            : quantized.Entries.Sum(entry => entry.ByteLength) + folder.Tensors.Values.Where(tensor => quantized.Find(tensor.Entry.Name) is null).Sum(tensor => tensor.Entry.ByteLength));
    }

    /// <summary>A model whose base is frozen.</summary>
    /// <param name="config">The model's shape.</param>
    /// <param name="folder">Its weights (checked against the shape); may be null on a device that only measures.</param>
    /// <param name="device">Where it is built.</param>
    /// <param name="format">How the blocks' linear layers are kept. Of a base that is quantized already it is <see cref="StoredQuantization.Format"/>.</param>
    /// <param name="start">Adapters that start from the base's weights, which it changes; null for all others.</param>
    /// <param name="progress">Is told the tensor that is being loaded and the fraction that is done.</param>
    /// <param name="quantized">What quantizing these weights so gave before, or null; not with a <paramref name="start"/>, which changes them. The matrices that it has not, or has damaged, are quantized.</param>
    /// <param name="damage">Is told why <paramref name="quantized"/> was of no use, or not of all.</param>
    /// <param name="headInEightBits">Keep the output layer as <see cref="BaseFormat.EightBit"/> keeps matrices, whatever <paramref name="format"/> says of the blocks.</param>
    /// <param name="embeddingOnHost">Keep the embedding in the host's memory, where the device is a GPU and reads its rows from there.</param>
    /// <exception cref="ModelFormatException">The folder does not fit the shape, a weight is not finite, or the output layer that is to be quantized or the embedding that is to be on the host is both of them.</exception>
    public static CausalLanguageModel LoadFrozen(
        ModelConfig config, ModelFolder? folder, Device device, BaseFormat format, AdapterStart? start = null, Action<string, double>? progress = null, QuantizedBaseFile? quantized = null, Action<string>? damage = null, bool headInEightBits = false,
        bool embeddingOnHost = false) =>
        new ModelLoader(config, folder, device, start, progress, quantized) { damage = damage }.LoadFrozen(format, headInEightBits, embeddingOnHost && device.Platform == DevicePlatform.Cuda);

    /// <summary>A model every weight of which is trained: all live as f32 in the flat parameter buffer.</summary>
    /// <param name="config">The model's shape.</param>
    /// <param name="folder">Its weights, or null on a device that only measures.</param>
    /// <param name="device">Where it is built.</param>
    /// <param name="progress">Is told the tensor that is being loaded and the fraction that is done.</param>
    public static CausalLanguageModel LoadTrainable(ModelConfig config, ModelFolder? folder, Device device, Action<string, double>? progress = null) =>
        new ModelLoader(config, folder, device, start: null, progress).LoadTrainable();

    private CausalLanguageModel LoadFrozen(BaseFormat format, bool headInEightBits, bool embeddingOnHost)
    {
        if (config.Quantization is { } stored && stored.Format != format)
        {
            throw new ArgumentException($"The base is quantized already, {stored.Description}; it cannot be loaded as {format}.", nameof(format));
        }

        if (quantized is not null && start is not null)
        {
            throw new ArgumentException("What was quantized before is not what this start leaves of the base.", nameof(format));
        }

        if (config.Quantization is not null && start is not null)
        {
            throw new ModelFormatException("The adapter starts from the base's weights and changes them (pissa, olora), but this base is quantized already. Use the model's original weights.");
        }

        var model = new CausalLanguageModel(config, device) { Notices = layout.Notices };
        if (embeddingOnHost && layout.HeadName is null)
        {
            throw new ModelFormatException("The embedding of this model is its output layer too (tie_word_embeddings), with which the GPU multiplies: it cannot be on the host. Use embeddings: device.");
        }

        model.EmbeddingTable = LoadDense(layout.EmbeddingName, config.VocabSize, config.HiddenSize, embeddingOnHost ? device.HostArena : device.Arena);
        foreach (DecoderLayer layer in model.Layers)
        {
            foreach (AdaptedLinear linear in layer.Linears)
            {
                TakeStart(linear);
                linear.Weight = LoadLinear(format, linear.Name + ".weight", linear.Out, linear.In);
                changed = null;
                if (linear.HasBias)
                {
                    linear.Bias = LoadVector(linear.Name + ".bias", linear.Out);
                }
            }

            foreach (RmsNormLayer norm in layer.Norms)
            {
                norm.Weight = LoadVector(norm.Name + ".weight", norm.Width);
            }
        }

        model.FinalNorm.Weight = LoadVector(model.FinalNorm.Name + ".weight", model.FinalNorm.Width);
        model.Head = LoadHead(model.EmbeddingTable, headInEightBits);
        return model;
    }

    private WeightMatrix LoadHead(Tensor embedding, bool inEightBits)
    {
        if (layout.HeadName is not { } name)
        {
            return inEightBits
                ? throw new ModelFormatException("The output layer of this model is its embedding (tie_word_embeddings), so in 8 bits it would be kept twice. Use lm_head: bf16.")
                : new DenseMatrix(embedding);
        }

        return inEightBits ? LoadInt8(name, config.VocabSize, config.HiddenSize, "Use lm_head: bf16.") : new DenseMatrix(LoadDense(name, config.VocabSize, config.HiddenSize));
    }

    /// <summary>Lets the adapters take their start values out of the layer's weight; what is left is loaded in its place.</summary>
    private void TakeStart(AdaptedLinear linear)
    {
        if (start is null || folder is null || device is MeasureDevice || !start.Applies(linear.Name))
        {
            return;
        }

        string name = linear.Name + ".weight";
        float[] weight = new float[checked(linear.Out * linear.In)];
        ForEachChunk(name, (first, values) => values.CopyTo(weight.AsSpan((int)first)));
        start.Take(linear.Name, weight, linear.Out, linear.In, device.ThreadCount);
        byte[] stored = new byte[weight.LongLength * StoredType(name).Bits() / 8];
        FloatConversion.FromSingle(StoredType(name), weight, stored);
        changed = (name, stored);
    }

    private CausalLanguageModel LoadTrainable()
    {
        if (config.Quantization is { } stored)
        {
            throw new ArgumentException($"The base is quantized already, {stored.Description}; it cannot be trained itself.");
        }

        var model = new CausalLanguageModel(config, device) { Notices = layout.Notices };
        ParameterStore store = model.Parameters;
        Parameter embedding = store.Declare(ModelConfig.EmbeddingTensor, new Shape(config.VocabSize, config.HiddenSize));
        var linears = new List<(AdaptedLinear Linear, Parameter Weight, Parameter? Bias)>();
        var norms = new List<(RmsNormLayer Norm, Parameter Weight)>();
        foreach (DecoderLayer layer in model.Layers)
        {
            foreach (AdaptedLinear linear in layer.Linears)
            {
                Parameter weight = store.Declare(linear.Name + ".weight", new Shape(linear.Out, linear.In));
                linears.Add((linear, weight, linear.HasBias ? store.Declare(linear.Name + ".bias", new Shape(linear.Out), decays: false) : null));
            }

            norms.AddRange(layer.Norms.Select(norm => (norm, DeclareNorm(store, norm))));
        }

        norms.Add((model.FinalNorm, DeclareNorm(store, model.FinalNorm)));
        Parameter head = layout.HeadName is null ? embedding : store.Declare(ModelConfig.HeadTensor, new Shape(config.VocabSize, config.HiddenSize));
        store.Allocate(device);
        foreach (Parameter parameter in store.Parameters)
        {
            Fill(parameter.Value, parameter == embedding ? layout.EmbeddingName : parameter.Name);
        }

        model.EmbeddingTable = embedding.Operand;
        model.TrainedEmbedding = embedding;
        model.Head = new DenseMatrix(head.Operand);
        model.TrainedHead = head;
        foreach ((AdaptedLinear linear, Parameter weight, Parameter? bias) in linears)
        {
            linear.Weight = new DenseMatrix(weight.Operand);
            linear.TrainedWeight = weight;
            linear.Bias = bias?.Value ?? Tensor.None;
            linear.TrainedBias = bias;
        }

        foreach ((RmsNormLayer norm, Parameter weight) in norms)
        {
            norm.Weight = weight.Value;
            norm.TrainedWeight = weight;
        }

        return model;
    }

    private static Parameter DeclareNorm(ParameterStore store, RmsNormLayer norm) => store.Declare(norm.Name + ".weight", new Shape(norm.Width), decays: false);

    /// <summary>A matrix as stored: bf16 stays bf16, everything else becomes f32; all of it bf16 on a device that computes in bf16.</summary>
    private Tensor LoadDense(string name, int rows, int columns, Arena? arena = null)
    {
        DType dtype = device.ComputesInBF16 || StoredType(name) == SafetensorsDType.BF16 ? DType.BF16 : DType.F32;
        Tensor tensor = (arena ?? device.Arena).Allocate(MemoryKind.Weights, dtype, new Shape(rows, columns));
        Fill(tensor, name);
        return tensor;
    }

    private Tensor LoadVector(string name, int length)
    {
        Tensor tensor = device.Arena.Allocate(MemoryKind.Weights, DType.F32, new Shape(length));
        Fill(tensor, name);
        return tensor;
    }

    /// <summary>One linear layer of the blocks, as the format keeps it.</summary>
    internal WeightMatrix LoadLinear(BaseFormat format, string name, int rows, int columns)
    {
        if (config.Quantization is not { } quantization)
        {
            return LoadQuantized(format, name, rows, columns) ?? Quantize(format, name, rows, columns);
        }

        StoredMatrix? stored = layout.Quantized.GetValueOrDefault(name);
        bool isPlain = folder is null ? quantization.Skips(name[..name.LastIndexOf('.')]) : stored is null;
        return isPlain ? new DenseMatrix(LoadDense(name, rows, columns))
            : format == BaseFormat.EightBit ? LoadStoredInt8(stored as StoredMatrix.StoredInt8, rows, columns)
            : LoadStoredFourBit(format, stored as StoredMatrix.StoredFourBit, rows, columns);
    }

    /// <summary>The matrix as it was quantized before; null where that is not known, or is damaged.</summary>
    private WeightMatrix? LoadQuantized(BaseFormat format, string name, int rows, int columns)
    {
        if (quantized is null)
        {
            return null;
        }

        ArenaFrame frame = device.Arena.Frame();
        try
        {
            StoredMatrix? stored = quantized.Find(name, rows, columns);
            return stored?.Format != format ? throw new ModelFormatException($"{quantized.Path}: it has no '{name}' of this kind.")
                : stored is StoredMatrix.StoredInt8 eight ? LoadStoredInt8(eight, rows, columns)
                : LoadStoredFourBit(format, (StoredMatrix.StoredFourBit)stored, rows, columns);
        }
        catch (Exception exception) when (exception is FormatException or IOException)
        {
            // What the matrix took is free again; quantizing takes the same memory.
            frame.Dispose();
            damage?.Invoke(exception.Message);
            quantized = null;
            return null;
        }
    }

    /// <summary>As the file has it. Memory is laid out as <see cref="FourBitQuantizer"/> does.</summary>
    /// <param name="format">How it is stored.</param>
    /// <param name="stored">Null on a device that only measures, where there are no files.</param>
    /// <param name="rows">Out</param>
    /// <param name="columns">In</param>
    private FourBitMatrix LoadStoredFourBit(BaseFormat format, StoredMatrix.StoredFourBit? stored, int rows, int columns)
    {
        FourBitMatrix matrix = FourBitMatrix.Allocate(
            device, format is BaseFormat.Nf4 or BaseFormat.Nf4DoubleQuantized ? FourBitCode.Nf4 : FourBitCode.Fp4, rows, columns,
            isDoubleQuantized: format is BaseFormat.Nf4DoubleQuantized or BaseFormat.Fp4DoubleQuantized, stored?.Nested?.Offset ?? 0);
        if (stored is not null)
        {
            Copy(stored.Packed, matrix.Packed);
            Copy(stored.Absmax, matrix.IsDoubleQuantized ? matrix.AbsmaxCodes : matrix.Absmax);
            if (stored.Nested is { } nested)
            {
                Copy(nested.Absmax, matrix.NestedAbsmax);
                Copy(nested.Map, matrix.NestedMap);
            }
        }

        return matrix;
    }

    private Int8Matrix LoadStoredInt8(StoredMatrix.StoredInt8? stored, int rows, int columns)
    {
        Int8Matrix matrix = Int8Matrix.Allocate(device, rows, columns);
        if (stored is not null)
        {
            Copy(stored.Codes, matrix.Codes);
            ForEachChunk(stored.Scales, (first, values) =>
            {
                float[] scales = new float[values.Length];
                for (int i = 0; i < scales.Length; i++)
                {
                    scales[i] = values[i] / stored.Divisor;
                }

                device.Upload(matrix.Scales, MemoryMarshal.AsBytes(scales.AsSpan()), first);
            });
        }

        return matrix;
    }

    /// <summary>Bytes as they are; numbers in f32 must be finite.</summary>
    private void Copy(ModelTensor source, Tensor target)
    {
        if (target.DType == DType.F32)
        {
            ForEachChunk(source, (first, values) => device.Upload(target, MemoryMarshal.AsBytes(values), first));
        }
        else
        {
            // Packed codes may have a wider type in the file; here an element is a byte.
            int size = source.Entry.DType.Bits() / 8;
            ForEachRawChunk(source, (first, count, bytes) => device.Upload(target, bytes, first * size));
        }
    }

    private WeightMatrix Quantize(BaseFormat format, string name, int rows, int columns) => format switch
    {
        BaseFormat.AsStored => new DenseMatrix(LoadDense(name, rows, columns)),
        BaseFormat.Nf4 => LoadFourBit(FourBitCode.Nf4, name, rows, columns, doubleQuantized: false),
        BaseFormat.Nf4DoubleQuantized => LoadFourBit(FourBitCode.Nf4, name, rows, columns, doubleQuantized: true),
        BaseFormat.Fp4 => LoadFourBit(FourBitCode.Fp4, name, rows, columns, doubleQuantized: false),
        BaseFormat.Fp4DoubleQuantized => LoadFourBit(FourBitCode.Fp4, name, rows, columns, doubleQuantized: true),
        BaseFormat.EightBit => LoadInt8(name, rows, columns, "Use load_in_4bit: true, or neither."),
        _ => throw new ArgumentOutOfRangeException(nameof(format), format, "not a format"),
    };

    private FourBitMatrix LoadFourBit(FourBitCode code, string name, int rows, int columns, bool doubleQuantized)
    {
        var quantizer = new FourBitQuantizer(device, code, rows, columns, doubleQuantized);
        ForEachChunk(name, (first, values) => quantizer.Add(values));
        return quantizer.Finish();
    }

    private Int8Matrix LoadInt8(string name, int rows, int columns, string instead)
    {
        var quantizer = new Int8Quantizer(device, rows, columns);
        ForEachChunk(
            name,
            (first, values) =>
            {
                for (int i = 0; i < values.Length; i++)
                {
                    if (Math.Abs(values[i]) >= Int8Quantizer.FirstTooLarge)
                    {
                        throw new ModelFormatException(string.Create(
                            CultureInfo.InvariantCulture,
                            $"{folder!.Path}: tensor '{name}' holds {values[i]} at element {first + i}; a base in 8 bits is made from f16, which ends at 65504. {instead}"));
                    }
                }

                quantizer.Add(values);
            },
            // Whole rows, because each has its scale.
            Int8Quantizer.RowsOfAPiece(columns) * columns);
        return quantizer.Finish();
    }

    /// <summary>Copies the stored tensor into memory of type f32 or bf16.</summary>
    private void Fill(Tensor target, string name)
    {
        if (target.DType == DType.F32)
        {
            ForEachChunk(name, (first, values) => device.Upload(target, MemoryMarshal.AsBytes(values), first));
        }
        else if (StoredType(name) != SafetensorsDType.BF16)
        {
            ushort[] rounded = ArrayPool<ushort>.Shared.Rent(ChunkElements);
            ForEachChunk(name, (first, values) =>
            {
                Span<ushort> piece = rounded.AsSpan(0, values.Length);
                FloatConversion.FromSingle(SafetensorsDType.BF16, values, MemoryMarshal.AsBytes(piece));
                device.Upload(target, MemoryMarshal.AsBytes(piece), first);
            });
            ArrayPool<ushort>.Shared.Return(rounded);
        }
        else if (folder is not null)
        {
            ForEachRawChunk(folder.Find(name)!.Value, (first, count, bytes) =>
            {
                CheckFinite(name, first, bytes);
                device.Upload(target, bytes, first);
            });
        }

        FillAddedRows(target, name);
    }

    /// <summary>Rows that the file does not have (of added tokens) start as the mean of those that it has, as transformers makes them.</summary>
    private void FillAddedRows(Tensor target, string name)
    {
        if (folder is null || device is MeasureDevice || Elements(folder.Find(name)!.Value.Entry) is var stored && stored >= target.ElementCount)
        {
            return;
        }

        int width = (int)target.Shape[1];
        double[] sums = new double[width];
        ForEachChunk(name, (first, values) =>
        {
            for (int i = 0; i < values.Length; i++)
            {
                sums[(first + i) % width] += values[i];
            }
        });
        float[] mean = [.. sums.Select(sum => (float)(sum / (stored / width)))];
        byte[] row = new byte[width * target.DType.SizeBytes()];
        FloatConversion.FromSingle(target.DType == DType.BF16 ? SafetensorsDType.BF16 : SafetensorsDType.F32, mean, row);
        for (long first = stored; first < target.ElementCount; first += width)
        {
            device.Upload(target, row, first);
        }
    }

    private delegate void ChunkAction(long firstElement, ReadOnlySpan<float> values);

    private delegate void RawChunkAction(long firstElement, int count, ReadOnlySpan<byte> bytes);

    private void ForEachChunk(string name, ChunkAction action, int chunkElements = ChunkElements)
    {
        if (folder is not null)
        {
            ForEachChunk(folder.Find(name)!.Value, action, chunkElements);
        }
    }

    /// <summary>Reads the tensor in pieces, widened to f32; every value is checked to be finite.</summary>
    private void ForEachChunk(ModelTensor tensor, ChunkAction action, int chunkElements = ChunkElements)
    {
        float[] values = ArrayPool<float>.Shared.Rent(chunkElements);
        ForEachRawChunk(tensor, (first, count, bytes) =>
        {
            Span<float> piece = values.AsSpan(0, count);
            FloatConversion.ToSingle(tensor.Entry.DType, bytes, piece);
            for (int i = 0; i < count; i++)
            {
                if (!float.IsFinite(piece[i]))
                {
                    throw NotFinite(tensor.Entry.Name, first + i, piece[i]);
                }
            }

            action(first, piece);
        }, chunkElements);
        ArrayPool<float>.Shared.Return(values);
    }

    private void ForEachRawChunk(ModelTensor tensor, RawChunkAction action, int chunkElements = ChunkElements)
    {
        if (device is MeasureDevice)
        {
            return;
        }

        int size = tensor.Entry.DType.Bits() / 8;
        long elements = tensor.Entry.ByteLength / size;
        byte[] buffer = ArrayPool<byte>.Shared.Rent(chunkElements * size);
        for (long first = 0; first < elements; first += chunkElements)
        {
            int count = (int)Math.Min(chunkElements, elements - first);
            Span<byte> bytes = buffer.AsSpan(0, count * size);
            if (changed is var (changedName, stored) && changedName == tensor.Entry.Name)
            {
                stored.AsSpan((int)(first * size), bytes.Length).CopyTo(bytes);
            }
            else
            {
                tensor.ReadInto(first * size, bytes);
                doneBytes += bytes.Length;
            }

            action(first, count, bytes);
            progress?.Invoke(tensor.Entry.Name, Math.Min(1, (double)doneBytes / totalBytes));
        }

        ArrayPool<byte>.Shared.Return(buffer);
    }

    private SafetensorsDType StoredType(string name) => folder is null ? config.DType ?? SafetensorsDType.BF16 : folder.Find(name)!.Value.Entry.DType;

    private void CheckFinite(string name, long first, ReadOnlySpan<byte> brainFloats)
    {
        ReadOnlySpan<ushort> values = MemoryMarshal.Cast<byte, ushort>(brainFloats);
        for (int i = 0; i < values.Length; i++)
        {
            // All exponent bits set: infinity or NaN.
            if ((values[i] & 0x7F80) == 0x7F80)
            {
                throw NotFinite(name, first + i, BitConverter.UInt32BitsToSingle((uint)values[i] << 16));
            }
        }
    }

    private ModelFormatException NotFinite(string name, long element, float value) => new(
        $"{folder!.Path}: tensor '{name}' holds {value} at element {element}; weights must be finite. The file is damaged or comes from a run that diverged; fetch it again or choose another base.");

    private static long Elements(SafetensorsEntry entry)
    {
        long count = 1;
        foreach (long extent in entry.Shape)
        {
            count *= extent;
        }

        return count;
    }
}
