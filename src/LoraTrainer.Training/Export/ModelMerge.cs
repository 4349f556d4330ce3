using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Export;

/// <summary>How a merged model is made and stored.</summary>
public sealed record MergeOptions
{
    /// <summary>How the adapter's training kept the base: the update is added to what the adapter was trained on.</summary>
    public BaseFormat Format { get; init; } = BaseFormat.AsStored;

    /// <summary>F32, BF16 or F16: of all tensors of the result.</summary>
    public SafetensorsDType DType { get; init; } = SafetensorsDType.BF16;

    /// <summary>The most bytes of a weight file; a single larger tensor gets a file of its own.</summary>
    public long LargestFileBytes { get; init; } = 5_000_000_000;

    /// <summary>The adapter as its training started, for a start that was taken out of the base (PiSSA, OLoRA); else null.</summary>
    public string? StartAdapter { get; init; }

    /// <summary>0: one for each core.</summary>
    public int Threads { get; init; }
}

/// <summary>
/// A base with an adapter written into its weights: a folder that is loaded like any model. Everything is checked when it is opened; then it is written tensor by
/// tensor and piece by piece, so that host memory holds the adapter, one quantized matrix at most, and a few megabytes, whatever the size of the model.
/// </summary>
public sealed class ModelMerge : IDisposable
{
    private const string StagingPrefix = ".merging-";

    /// <summary>Elements that are computed at a time.</summary>
    private const int PieceElements = 1 << 20;

    /// <summary>Room for config, index and the heads of the files.</summary>
    private const long SmallFilesBytes = 16 << 20;

    private readonly MergeOptions options;
    private readonly ModelFolder folder;
    private readonly PeftAdapterFolder adapter;
    private readonly PeftAdapterFolder? start;
    private readonly DequantizedBase values;
    private readonly List<MergedTensor> tensors = [];
    private readonly List<string> notices = [];
    private readonly int threads;
    private readonly bool isUntied;
    private readonly long vocabularySize;

    private ModelMerge(ModelConfig shape, ModelFolder folder, PeftAdapterFolder adapter, PeftAdapterFolder? start, MergeOptions options)
    {
        this.options = options;
        this.folder = folder;
        this.adapter = adapter;
        this.start = start;
        threads = options.Threads > 0 ? options.Threads : Environment.ProcessorCount;
        ModelTensorLayout layout = shape.CheckTensors(folder);
        notices.AddRange(layout.Notices);
        notices.AddRange(adapter.Config.Notices);
        if (adapter.Config.DoubtAbout(folder.Path) is { } doubt)
        {
            notices.Add(doubt);
        }

        AdapterPlan plan = AdapterPlan.Make(shape, adapter, start, options.Format);
        notices.AddRange(plan.Notices);
        UpdatedModules = plan.Updates.Count;
        ReplacedModules = plan.Replaced.Count;

        // Where the two are one matrix in the base, training changes one of them or each by itself; or other bits lie beside it already.
        bool isTied = shape.TieWordEmbeddings && layout.HeadName is null;
        isUntied = shape.TieWordEmbeddings && (layout.HeadName is not null || plan.Changes(AdapterPlan.HeadModule) || (!adapter.Config.EnsureWeightTying && plan.Changes(AdapterPlan.EmbeddingModule)));
        IEnumerable<ExpectedTensor> written = shape.ExpectedTensors();
        foreach (ExpectedTensor tensor in isUntied ? written.Append(new ExpectedTensor(ModelConfig.HeadTensor, [shape.VocabSize, shape.HiddenSize])) : written)
        {
            string source = tensor.Name == ModelConfig.EmbeddingTensor || (isTied && tensor.Name == ModelConfig.HeadTensor) ? layout.EmbeddingName : tensor.Name;
            tensors.Add(plan.Apply(tensor, source));
        }

        if (isUntied)
        {
            notices.Add($"Input embedding and output layer are one matrix in the base and differ now: the result has both, and tie_word_embeddings is false.");
        }

        vocabularySize = RequireOneVocabulary(shape);
        values = new DequantizedBase(shape, folder, options.Format, threads);
    }

    /// <summary>Matrices that A and B were written into.</summary>
    public int UpdatedModules { get; }

    /// <summary>Modules whose weights were trained whole and replace those of the base.</summary>
    public int ReplacedModules { get; }

    /// <summary>Tensors of the result.</summary>
    public int TensorCount => tensors.Count;

    public long ParameterCount => tensors.Sum(tensor => tensor.Elements);

    /// <summary>Bytes of the weights that will be written.</summary>
    public long OutputBytes => ParameterCount * options.DType.Bits() / 8;

    /// <summary>What the user should know, a sentence each.</summary>
    public IReadOnlyList<string> Notices => notices;

    /// <summary>Opens base and adapter and checks that they belong together.</summary>
    /// <param name="baseFolder">The model that the adapter was trained on.</param>
    /// <param name="adapterFolder">In PEFT's form.</param>
    /// <param name="options">See there.</param>
    /// <exception cref="ModelFormatException">A file is damaged, or the adapter is another model's.</exception>
    public static ModelMerge Open(string baseFolder, string adapterFolder, MergeOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        ModelConfig shape = ModelConfig.Parse(baseFolder);
        if (shape.Quantization is { } stored)
        {
            options = options.Format == BaseFormat.AsStored || options.Format == stored.Format
                ? options with { Format = stored.Format }
                : throw new ModelFormatException($"{baseFolder} is quantized already, {stored.Description}, and is taken as it is. Leave --quantization out.");
        }

        var opened = new Stack<IDisposable>();
        try
        {
            ModelFolder folder = Opened(ModelFolder.Open(baseFolder));
            PeftAdapterFolder adapter = Opened(PeftAdapterFolder.Open(adapterFolder));
            PeftAdapterFolder? start = options.StartAdapter is null ? null : Opened(PeftAdapterFolder.Open(options.StartAdapter));
            return new ModelMerge(shape, folder, adapter, start, options);
        }
        catch
        {
            foreach (IDisposable item in opened)
            {
                item.Dispose();
            }

            throw;
        }

        T Opened<T>(T item)
            where T : IDisposable
        {
            opened.Push(item);
            return item;
        }
    }

    /// <summary>Writes the folder. It is made in a folder of its own inside, and given its names last, config.json at the very end: a merge that was killed leaves nothing that a program would load.</summary>
    /// <param name="output">Is made where it is not there; must be empty.</param>
    /// <param name="progress">Is told the tensor and the fraction that is done.</param>
    /// <param name="check">Is called with the finished folder before it gets its names; null: nothing is checked. What it throws leaves nothing behind.</param>
    /// <param name="cancellation">Stops between pieces, and leaves nothing behind.</param>
    /// <returns>The names of the weight files.</returns>
    /// <exception cref="TrainingSetupException">The folder is not empty, or its disk too small.</exception>
    public IReadOnlyList<string> Write(string output, Action<string, double> progress, Action<string>? check = null, CancellationToken cancellation = default)
    {
        RefuseOccupied(output);
        bool isNew = !Directory.Exists(output);
        PathTrouble.MakeFolder("OUT", output);
        using var staging = new StagingFolder(Path.Combine(output, string.Create(CultureInfo.InvariantCulture, $"{StagingPrefix}{Environment.ProcessId}")));
        bool isDone = false;
        try
        {
            RequireSpace(output, OutputBytes + SmallFilesBytes, new DriveInfo(Path.GetFullPath(output)).AvailableFreeSpace);
            IReadOnlyList<string> files = WriteWeights(staging.Path, progress, cancellation);
            RunFolder.CopyTokenizer(folder.Path, staging.Path);
            if (Tokenizer.IsIn(adapter.Path))
            {
                // Training may have added tokens to it.
                RunFolder.CopyTokenizer(adapter.Path, staging.Path);
            }

            AtomicFile.WriteAllBytes(Path.Combine(staging.Path, ConfigName), ConfigJson());
            check?.Invoke(staging.Path);
            foreach (string file in Directory.EnumerateFiles(staging.Path).Order(StringComparer.Ordinal).OrderBy(file => Path.GetFileName(file) == ConfigName))
            {
                File.Move(file, Path.Combine(output, Path.GetFileName(file)));
            }

            isDone = true;
            return files;
        }
        finally
        {
            staging.Dispose();
            if (!isDone && isNew)
            {
                Directory.Delete(output);
            }
        }
    }

    public void Dispose()
    {
        values.Dispose();
        start?.Dispose();
        adapter.Dispose();
        folder.Dispose();
    }

    /// <summary>Before anything is written.</summary>
    /// <exception cref="TrainingSetupException">The folder is not empty.</exception>
    public static void RefuseOccupied(string output)
    {
        if (File.Exists(output))
        {
            throw new TrainingSetupException($"{output} is a file. Choose another name for the folder of the merged model.");
        }

        if (!Directory.Exists(output))
        {
            return;
        }

        string[] entries = [.. Directory.EnumerateFileSystemEntries(output).Select(Path.GetFileName).OfType<string>().Order(StringComparer.Ordinal)];
        if (entries.FirstOrDefault(name => name.StartsWith(StagingPrefix, StringComparison.Ordinal)) is { } left)
        {
            throw new TrainingSetupException($"{output} holds {left}: another merge writes there, or one was killed. If none runs any more, delete {output}; or choose another folder.");
        }

        if (entries.Length > 0)
        {
            throw new TrainingSetupException($"{output} is not empty (it holds {entries[0]}), and nothing is overwritten. Choose another folder.");
        }
    }

    internal static void RequireSpace(string output, long need, long have)
    {
        if (have < need)
        {
            throw new TrainingSetupException(string.Create(
                CultureInfo.InvariantCulture, $"The merged model needs {need / 1e9:0.0} GB, and the disk of {output} has {have / 1e9:0.0} GB left. Free some space, choose a folder on another disk, or a smaller --dtype."));
        }
    }

    private const string ConfigName = "config.json";

    private IReadOnlyList<string> WriteWeights(string target, Action<string, double> progress, CancellationToken cancellation)
    {
        long done = 0, all = ParameterCount;
        return ModelFolderWriter.Write(target, tensors.Select(Written), options.DType, options.LargestFileBytes);

        WrittenTensor Written(MergedTensor tensor)
        {
            TensorPieces? pieces = null;
            return new WrittenTensor(tensor.Name, tensor.Shape, (offset, destination) =>
            {
                cancellation.ThrowIfCancellationRequested();
                pieces = offset == 0 ? new TensorPieces(this, tensor) : pieces;
                pieces!.Fill(destination);
                done += destination.Length * 8L / options.DType.Bits();
                progress(tensor.Name, (double)done / all);
                if (offset + destination.Length == tensor.Elements * options.DType.Bits() / 8)
                {
                    pieces = null;
                }
            });
        }
    }

    /// <summary>The base's config.json with what is different now; all else, also what is not known here, stays as it is.</summary>
    private byte[] ConfigJson()
    {
        string file = Path.Combine(folder.Path, ConfigName);
        JsonObject config = JsonNode.Parse(File.ReadAllBytes(file)) as JsonObject ?? throw new ModelFormatException($"{file}: expected an object. Fetch the file again.");
        string dtype = options.DType switch { SafetensorsDType.F32 => "float32", SafetensorsDType.F16 => "float16", _ => "bfloat16" };
        string key = config.ContainsKey("dtype") ? "dtype" : "torch_dtype";
        config[key] = dtype;
        config.Remove("quantization_config");
        if (isUntied)
        {
            config["tie_word_embeddings"] = false;
        }

        config["vocab_size"] = vocabularySize;
        return Encoding.UTF8.GetBytes(config.ToJsonString(new JsonSerializerOptions { WriteIndented = true, Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping }) + "\n");
    }

    /// <summary>Training may have added tokens: then the embedding has more rows than config.json says, and the output layer as many.</summary>
    private long RequireOneVocabulary(ModelConfig shape)
    {
        long rows = tensors.Single(tensor => tensor.Name == ModelConfig.EmbeddingTensor).Shape[0];
        if (tensors.FirstOrDefault(tensor => tensor.Name == ModelConfig.HeadTensor) is { } head && head.Shape[0] != rows)
        {
            throw new ModelFormatException(
                $"{adapter.Path}: the embedding would have {rows} rows and the output layer {head.Shape[0]}. An adapter with added tokens has both (modules_to_save: [embed_tokens, lm_head]).");
        }

        if (rows != shape.VocabSize)
        {
            notices.Add($"The adapter brings an embedding of {rows} rows; the base has {shape.VocabSize}. vocab_size is {rows} in the result.");
        }

        return rows;
    }

    private sealed class TensorPieces(ModelMerge merge, MergedTensor tensor)
    {
        private readonly long columns = tensor.Shape.Length > 1 ? tensor.Shape[1] : 1;
        private readonly LowRankUpdate[] updates = [.. tensor.Updates.Select(update => update())];
        private float[] rows = [];
        private byte[] bytes = [];
        private int position;
        private int filled;
        private long nextRow;

        public void Fill(Span<byte> destination)
        {
            while (destination.Length > 0)
            {
                if (position == filled)
                {
                    Compute();
                }

                int count = Math.Min(destination.Length, filled - position);
                bytes.AsSpan(position, count).CopyTo(destination);
                position += count;
                destination = destination[count..];
            }
        }

        private void Compute()
        {
            long count = Math.Min(Math.Max(1, PieceElements / columns), tensor.Shape[0] - nextRow);
            int elements = checked((int)(count * columns));
            int size = merge.options.DType.Bits() / 8;
            if (rows.Length < elements)
            {
                rows = GC.AllocateUninitializedArray<float>(elements);
                bytes = GC.AllocateUninitializedArray<byte>(elements * size);
            }

            Span<float> piece = rows.AsSpan(0, elements);
            if (tensor.Replacement is { } replacement)
            {
                byte[] stored = new byte[(long)elements * replacement.Entry.DType.Bits() / 8];
                replacement.ReadInto(nextRow * columns * replacement.Entry.DType.Bits() / 8, stored);
                FloatConversion.ToSingle(replacement.Entry.DType, stored, piece);
            }
            else
            {
                merge.values.Read(tensor.Source, columns, nextRow, piece);
            }

            foreach (LowRankUpdate update in updates)
            {
                update.Apply(piece, nextRow, merge.threads);
            }

            RequireFinite(piece);
            FloatConversion.FromSingle(merge.options.DType, piece, bytes.AsSpan(0, elements * size));
            nextRow += count;
            position = 0;
            filled = elements * size;
        }

        private void RequireFinite(ReadOnlySpan<float> piece)
        {
            // From here on a number is infinite in f16, and in bf16 above the middle between its largest number and the next power of two.
            float limit = merge.options.DType switch { SafetensorsDType.F16 => 65520, SafetensorsDType.BF16 => 3.3961775e38f, _ => float.PositiveInfinity };
            for (int i = 0; i < piece.Length; i++)
            {
                if (!(MathF.Abs(piece[i]) < limit))
                {
                    throw new ModelFormatException(string.Create(
                        CultureInfo.InvariantCulture,
                        $"{merge.folder.Path} with {merge.adapter.Path}: element {nextRow * columns + i} of {tensor.Name} becomes {piece[i]}, which {(float.IsFinite(piece[i]) ? $"{merge.options.DType.Name()} cannot hold; use --dtype bfloat16 or float32" : "is no weight; the training diverged, or a file is damaged")}."));
                }
            }
        }
    }
}

/// <summary>A tensor of the merged model.</summary>
/// <param name="Name">In the result.</param>
/// <param name="Shape">(Out, In), or (Out).</param>
/// <param name="Source">The base's tensor that it starts from.</param>
/// <param name="Replacement">The adapter's tensor that it starts from instead, or null.</param>
/// <param name="Updates">What is added, one after the other; read from the adapter when their turn comes.</param>
internal sealed record MergedTensor(string Name, long[] Shape, string Source, ModelTensor? Replacement, IReadOnlyList<Func<LowRankUpdate>> Updates)
{
    public long Elements { get; } = Shape.Aggregate(1L, (product, extent) => product * extent);
}
