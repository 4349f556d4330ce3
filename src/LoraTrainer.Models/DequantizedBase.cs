using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.Models;

/// <summary>
/// The base as training computes with it, read back tensor by tensor as f32: linear layers of the blocks quantized and dequantized as
/// <see cref="BaseFormat"/> says, everything else as stored. One quantized matrix is in memory at a time.
/// </summary>
public sealed class DequantizedBase : IDisposable
{
    private readonly ModelFolder folder;
    private readonly BaseFormat format;
    private readonly Dictionary<string, int> rowsOfQuantized;
    private readonly CpuDevice device;
    private readonly ModelLoader loader;
    private string? current;
    private WeightMatrix? matrix;
    private byte[] raw = [];

    /// <param name="config">The base's shape.</param>
    /// <param name="folder">Its weights, which fit the shape.</param>
    /// <param name="format">How training keeps the blocks' linear layers; of a base that is quantized already, as its files do.</param>
    /// <param name="threads">That quantize; 0: one for each core.</param>
    public DequantizedBase(ModelConfig config, ModelFolder folder, BaseFormat format, int threads)
    {
        this.folder = folder;
        this.format = format;
        using var measure = new MeasureDevice(1, DevicePlatform.Cpu);
        CausalLanguageModel shape = ModelLoader.LoadFrozen(config with { Quantization = null }, null, measure, BaseFormat.AsStored);
        rowsOfQuantized = format == BaseFormat.AsStored ? [] : shape.Linears.ToDictionary(linear => linear.Name + ".weight", linear => linear.Out, StringComparer.Ordinal);

        // A quantized matrix and the scratch of its making stay below f32; of the arena only what is touched exists.
        long largest = shape.Linears.Max(linear => (long)linear.In * linear.Out);
        device = new CpuDevice(threads, rowsOfQuantized.Count == 0 ? 1 : largest * sizeof(float) + (1 << 20));
        loader = new ModelLoader(config, folder, device, start: null, progress: null);
    }

    /// <summary>Reads whole rows of a matrix, or elements of a vector, which is one column.</summary>
    /// <param name="name">The tensor in the base's files.</param>
    /// <param name="columns">Elements of a row.</param>
    /// <param name="firstRow">Of the tensor.</param>
    /// <param name="rows">(count, columns); overwritten</param>
    public void Read(string name, long columns, long firstRow, Span<float> rows)
    {
        if (!rowsOfQuantized.TryGetValue(name, out int allRows))
        {
            ReadStored(folder.Find(name)!.Value, firstRow * columns, rows);
            return;
        }

        if (current != name)
        {
            Load(name, allRows, checked((int)columns));
        }

        Linear.ReadRows(rows, matrix!, firstRow);
    }

    public void Dispose() => device.Dispose();

    private void Load(string name, int rows, int columns)
    {
        device.Arena.Clear();
        current = null;
        matrix = loader.LoadLinear(format, name, rows, columns);
        current = name;
    }

    private void ReadStored(ModelTensor tensor, long firstElement, Span<float> values)
    {
        int size = tensor.Entry.DType.Bits() / 8;
        if (raw.Length < values.Length * size)
        {
            raw = GC.AllocateUninitializedArray<byte>(values.Length * size);
        }

        Span<byte> bytes = raw.AsSpan(0, values.Length * size);
        tensor.ReadInto(firstElement * size, bytes);
        FloatConversion.ToSingle(tensor.Entry.DType, bytes, values);
    }
}
