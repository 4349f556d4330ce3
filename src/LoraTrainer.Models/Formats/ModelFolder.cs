namespace LoraTrainer.Models.Formats;

/// <summary>A tensor and the file that holds it.</summary>
public readonly record struct ModelTensor(IWeightFile File, SafetensorsEntry Entry)
{
    /// <summary>Reads bytes of the tensor from its byte <paramref name="offsetInTensor"/> on.</summary>
    public void ReadInto(long offsetInTensor, Span<byte> destination) => File.ReadInto(Entry, offsetInTensor, destination);

    /// <summary>All of its elements as f32: for tensors of adapters, which are small. A base is read in pieces.</summary>
    public float[] ReadSingles()
    {
        byte[] bytes = new byte[Entry.ByteLength];
        ReadInto(0, bytes);
        float[] values = new float[bytes.Length * 8L / Entry.DType.Bits()];
        FloatConversion.ToSingle(Entry.DType, bytes, values);
        return values;
    }
}

/// <summary>
/// The weights of a model: <c>model.safetensors</c>, or else the shards that <c>model.safetensors.index.json</c> names, or else the same with
/// <c>pytorch_model.bin</c> (transformers, modeling_utils.py). All headers are read and checked at the start, so that a missing shard is known before any work.
/// </summary>
public sealed class ModelFolder : IDisposable
{
    public const string SingleFileName = "model.safetensors";
    public const string IndexFileName = "model.safetensors.index.json";

    private const string TorchFileName = "pytorch_model.bin";
    private const string TorchIndexFileName = "pytorch_model.bin.index.json";

    // The first that is there is taken.
    private static readonly (string Name, bool IsIndex, Func<string, IWeightFile> Open)[] Sources =
    [
        (SingleFileName, false, SafetensorsFile.Open), (IndexFileName, true, SafetensorsFile.Open), (TorchFileName, false, TorchFile.Open), (TorchIndexFileName, true, TorchFile.Open),
    ];

    private readonly List<IWeightFile> files;
    private readonly Dictionary<string, ModelTensor> tensors;
    private readonly List<string> notices;

    private ModelFolder(string path, List<IWeightFile> files, Dictionary<string, ModelTensor> tensors, List<string> notices)
    {
        Path = path;
        this.files = files;
        this.tensors = tensors;
        this.notices = notices;
        TotalBytes = tensors.Values.Sum(tensor => tensor.Entry.ByteLength);
    }

    public string Path { get; }

    /// <summary>The weight files, in the order of their names.</summary>
    public IReadOnlyList<IWeightFile> Files => files;

    public IReadOnlyDictionary<string, ModelTensor> Tensors => tensors;

    /// <summary>Bytes of all tensors together.</summary>
    public long TotalBytes { get; }

    /// <summary>Oddities that change nothing, a sentence each.</summary>
    public IReadOnlyList<string> Notices => notices;

    /// <summary>The tensor of that name, or null.</summary>
    public ModelTensor? Find(string name) => tensors.TryGetValue(name, out ModelTensor tensor) ? tensor : null;

    /// <summary>True where the folder has weights, or says which files they should be in.</summary>
    public static bool HasWeights(string path) => Sources.Any(source => File.Exists(System.IO.Path.Combine(path, source.Name)));

    /// <exception cref="ModelFormatException">files are missing or contradict each other</exception>
    /// <exception cref="SafetensorsFormatException">a weight file breaks a rule of its format</exception>
    /// <exception cref="TorchFormatException">the same of a pytorch_model.bin, or it asks for more than tensors</exception>
    public static ModelFolder Open(string path)
    {
        RequireFolder(path);
        var files = new List<IWeightFile>();
        try
        {
            foreach ((string name, bool isIndex, Func<string, IWeightFile> open) in Sources)
            {
                string file = System.IO.Path.Combine(path, name);
                if (File.Exists(file))
                {
                    return isIndex ? OpenShards(path, file, open, files) : OpenSingle(path, file, open, files);
                }
            }

            throw new ModelFormatException(
                $"{path}: no weights here: looked for {string.Join(", ", Sources.Select(source => source.Name))}. Fetch the model's weights into this folder, or give the folder where they are.");
        }
        catch
        {
            files.ForEach(file => file.Dispose());
            throw;
        }
    }

    /// <summary>Before any file of it is looked for: a name of a hub, or a slip in the path, must not look like a damaged model.</summary>
    /// <exception cref="ModelFormatException">there is no such folder</exception>
    public static void RequireFolder(string path)
    {
        if (!Directory.Exists(path))
        {
            throw new ModelFormatException(NoSuchFolder(path));
        }
    }

    /// <summary>What is said where a model's folder is not there.</summary>
    public static string NoSuchFolder(string path) =>
        $"{path}: {(File.Exists(path) ? "this is a file" : "there is no such folder")}. A model is a folder with config.json, tokenizer.json and {SingleFileName}, "
        + "or the name of one on the hub, such as HuggingFaceTB/SmolLM2-135M; a relative path starts at the current directory.";

    public void Dispose() => files.ForEach(file => file.Dispose());

    private static ModelFolder OpenSingle(string path, string name, Func<string, IWeightFile> open, List<IWeightFile> files)
    {
        IWeightFile file = open(name);
        files.Add(file);
        return new ModelFolder(path, files, file.Entries.ToDictionary(entry => entry.Name, entry => new ModelTensor(file, entry), StringComparer.Ordinal), []);
    }

    private static ModelFolder OpenShards(string path, string index, Func<string, IWeightFile> open, List<IWeightFile> files)
    {
        JsonFields fields = JsonFields.Read(index);
        JsonFields map = fields.Object("weight_map")
            ?? throw new ModelFormatException($"{index}: the file has no weight_map, which says in which shard each tensor is. Fetch it again.");
        var shardOf = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (string name in map.Names)
        {
            string shard = map.Text(name) ?? throw map.Wrong(name, "the name of a shard file");
            if (shard.Length == 0 || shard is "." or ".." || shard.AsSpan().ContainsAny('/', '\\', '\0') || shard.Contains(':', StringComparison.Ordinal))
            {
                throw map.Wrong(name, "the name of a file in the same folder, without a path", "A file list must not reach outside its folder; do not use this model.");
            }

            shardOf.Add(name, shard);
        }

        string[] shards = [.. shardOf.Values.Distinct(StringComparer.Ordinal).Order(StringComparer.Ordinal)];
        string[] missing = [.. shards.Where(shard => !File.Exists(System.IO.Path.Combine(path, shard)))];
        if (shards.Length == 0)
        {
            throw new ModelFormatException($"{index}: weight_map names no tensor. Fetch the file again.");
        }

        if (missing.Length > 0)
        {
            throw new ModelFormatException(
                $"{path}: {missing.Length} of the {shards.Length} weight files that {System.IO.Path.GetFileName(index)} names are not there: {string.Join(", ", missing.Take(5))}{(missing.Length > 5 ? ", ..." : "")}. "
                + "Fetch them into this folder.");
        }

        var byShard = new Dictionary<string, IWeightFile>(StringComparer.Ordinal);
        foreach (string shard in shards)
        {
            IWeightFile file = open(System.IO.Path.Combine(path, shard));
            files.Add(file);
            byShard.Add(shard, file);
        }

        return Join(path, index, files, shardOf, byShard);
    }

    private static ModelFolder Join(string path, string index, List<IWeightFile> files, Dictionary<string, string> shardOf, Dictionary<string, IWeightFile> byShard)
    {
        var tensors = new Dictionary<string, ModelTensor>(StringComparer.Ordinal);
        var notices = new List<string>();
        foreach ((string name, string shard) in shardOf)
        {
            IWeightFile file = byShard[shard];
            SafetensorsEntry entry = file.Find(name)
                ?? throw new ModelFormatException($"{index}: weight_map says that tensor '{SafetensorsFile.Shorten(name)}' is in {shard}, but it is not there. The files do not belong together; fetch them again.");
            tensors.Add(name, new ModelTensor(file, entry));
        }

        foreach ((string shard, IWeightFile file) in byShard.OrderBy(pair => pair.Key, StringComparer.Ordinal))
        {
            foreach (SafetensorsEntry entry in file.Entries)
            {
                if (!shardOf.TryGetValue(entry.Name, out string? listed))
                {
                    notices.Add($"{file.Path}: tensor '{SafetensorsFile.Shorten(entry.Name)}' is not in the weight_map of {System.IO.Path.GetFileName(index)}; it is not used.");
                }
                else if (listed != shard)
                {
                    throw new ModelFormatException(
                        $"{path}: tensor '{SafetensorsFile.Shorten(entry.Name)}' is in two weight files, {listed} and {shard}. The files do not belong together; fetch them again.");
                }
            }
        }

        return new ModelFolder(path, files, tensors, notices);
    }
}
