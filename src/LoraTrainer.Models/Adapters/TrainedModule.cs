using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;

namespace LoraTrainer.Models.Adapters;

/// <summary>
/// A module that is trained in full beside an adapter (PEFT's modules_to_save): a trained copy takes the place of the base's own weights, which stay.
/// An embedding and an output layer that are tied in the base become two, as in PEFT.
/// </summary>
internal sealed class TrainedModule
{
    private const int ChunkElements = 1 << 16;

    private readonly CausalLanguageModel model;
    private readonly Tensor baseWeight;
    private readonly Tensor baseBias;
    private readonly Action<Parameter?, Parameter?> place;
    private readonly Action restore;

    private TrainedModule(CausalLanguageModel model, string path, Tensor weight, Tensor bias, Action<Parameter?, Parameter?> place, Action restore, LoraPlusRates rates, bool isEmbedding = false, bool isNorm = false)
    {
        this.model = model;
        Path = path;
        baseWeight = weight;
        baseBias = bias;
        this.place = place;
        this.restore = restore;
        Weight = model.Parameters.Declare(path + ".weight", weight.Shape, isEmbedding ? rates.Embedding : isNorm ? rates.B : 1, decays: !isNorm);
        Bias = bias.IsNone ? null : model.Parameters.Declare(path + ".bias", bias.Shape, rates.B, decays: false);
    }

    /// <summary>Module path, as in <c>lm_head</c>.</summary>
    public string Path { get; }

    public Parameter Weight { get; }

    /// <summary>Null where the module has none.</summary>
    public Parameter? Bias { get; }

    /// <summary>Declares the copy's parameters; <see cref="Attach"/> puts it into the model once they are allocated.</summary>
    /// <param name="model">With its base loaded.</param>
    /// <param name="path">Of the module.</param>
    /// <param name="rates">LoRA+ has rates of its own for vectors and embeddings.</param>
    /// <exception cref="ModelFormatException">The module's weight is quantized.</exception>
    public static TrainedModule Declare(CausalLanguageModel model, string path, LoraPlusRates rates)
    {
        if (path == LoraInjection.EmbeddingModule)
        {
            Tensor table = model.EmbeddingTable;
            return new TrainedModule(model, path, table, Tensor.None, (weight, _) => SetEmbedding(model, weight!.Operand, weight), () => SetEmbedding(model, table, null), rates, isEmbedding: true);
        }

        if (path == LoraInjection.HeadModule)
        {
            WeightMatrix head = model.Head;
            return new TrainedModule(model, path, Dense(path, head), Tensor.None, (weight, _) => SetHead(model, new DenseMatrix(weight!.Operand), weight), () => SetHead(model, head, null), rates);
        }

        if (model.Linears.FirstOrDefault(linear => linear.Name == path) is { } layer)
        {
            WeightMatrix matrix = layer.Weight;
            Tensor bias = layer.Bias;
            return new TrainedModule(model, path, Dense(path, matrix), bias, (weight, own) => SetLinear(layer, new DenseMatrix(weight!.Operand), own?.Value ?? Tensor.None, weight, own), () => SetLinear(layer, matrix, bias, null, null), rates);
        }

        RmsNormLayer norm = model.Layers.SelectMany(block => block.Norms).Append(model.FinalNorm).First(item => item.Name == path);
        Tensor gain = norm.Weight;
        return new TrainedModule(model, path, gain, Tensor.None, (weight, _) => SetNorm(norm, weight!.Value, weight), () => SetNorm(norm, gain, null), rates, isNorm: true);
    }

    /// <summary>Copies the base's values into the parameters.</summary>
    public void Initialize()
    {
        Copy(baseWeight, Weight);
        if (Bias is not null)
        {
            Copy(baseBias, Bias);
        }
    }

    /// <summary>The model computes with the trained copy.</summary>
    public void Attach() => place(Weight, Bias);

    /// <summary>The model computes with the base's own weights.</summary>
    public void Detach() => restore();

    private void Copy(Tensor source, Parameter target)
    {
        Device device = model.Device;
        if (device is MeasureDevice)
        {
            return;
        }

        bool isBF16 = source.DType == DType.BF16;
        int size = isBF16 ? sizeof(ushort) : sizeof(float);
        float[] values = new float[ChunkElements];
        byte[] stored = new byte[ChunkElements * size];
        for (long first = 0; first < source.ElementCount; first += ChunkElements)
        {
            int count = (int)Math.Min(ChunkElements, source.ElementCount - first);
            Span<byte> bytes = stored.AsSpan(0, count * size);
            device.Download(source, bytes, first);
            FloatConversion.ToSingle(isBF16 ? SafetensorsDType.BF16 : SafetensorsDType.F32, bytes, values.AsSpan(0, count));
            device.Upload(target.Value, MemoryMarshal.AsBytes(values.AsSpan(0, count)), first);
        }
    }

    private static Tensor Dense(string path, WeightMatrix matrix) => matrix is DenseMatrix dense
        ? dense.Values
        : throw new ModelFormatException($"modules_to_save: {path} is quantized in this run, and a quantized weight cannot be trained. Leave it out of lora_modules_to_save, or load the base unquantized.");

    private static void SetEmbedding(CausalLanguageModel model, Tensor table, Parameter? trained)
    {
        model.EmbeddingTable = table;
        model.TrainedEmbedding = trained;
    }

    private static void SetHead(CausalLanguageModel model, WeightMatrix head, Parameter? trained)
    {
        model.Head = head;
        model.TrainedHead = trained;
    }

    private static void SetLinear(AdaptedLinear layer, WeightMatrix weight, Tensor bias, Parameter? trainedWeight, Parameter? trainedBias)
    {
        layer.Weight = weight;
        layer.Bias = bias;
        layer.TrainedWeight = trainedWeight;
        layer.TrainedBias = trainedBias;
    }

    private static void SetNorm(RmsNormLayer norm, Tensor weight, Parameter? trained)
    {
        norm.Weight = weight;
        norm.TrainedWeight = trained;
    }
}
