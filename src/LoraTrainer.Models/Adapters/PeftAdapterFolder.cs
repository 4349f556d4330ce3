using System.Text;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.Models.Adapters;

/// <summary>
/// An adapter as PEFT saves it: adapter_config.json and adapter_model.safetensors, or else adapter_model.bin (huggingface/peft, utils/save_and_load.py).
/// Opening checks that the two belong together; tensors are read in pieces, by what they are.
/// </summary>
public sealed class PeftAdapterFolder : IDisposable
{
    public const string WeightsFileName = "adapter_model.safetensors";

    private const string TorchFileName = "adapter_model.bin";

    private const int ProblemsShown = 20;

    private readonly IWeightFile weights;
    private readonly Dictionary<PeftAdapterFolderKey, SafetensorsEntry> tensors;

    private PeftAdapterFolder(string path, AdapterConfig config, IWeightFile weights, Dictionary<PeftAdapterFolderKey, SafetensorsEntry> tensors)
    {
        Path = path;
        Config = config;
        this.weights = weights;
        this.tensors = tensors;
    }

    public string Path { get; }

    public AdapterConfig Config { get; }

    public IReadOnlyDictionary<PeftAdapterFolderKey, SafetensorsEntry> Tensors => tensors;

    /// <summary>Rows of the embedding or output layer that the adapter brings whole, which may be more than its base has; 0 where it brings neither.</summary>
    public int VocabularyRows => tensors
        .Where(item => item.Key is { Kind: PeftTensorKind.SavedWeight, Module: LoraInjection.EmbeddingModule or LoraInjection.HeadModule } && item.Value.Shape.Length == 2)
        .Select(item => (int)Math.Min(item.Value.Shape[0], ModelConfig.LargestVocabulary)).DefaultIfEmpty(0).Max();

    /// <summary>The tensor, or null.</summary>
    public ModelTensor? Find(string module, PeftTensorKind kind)
        => tensors.TryGetValue(new PeftAdapterFolderKey(module, kind), out SafetensorsEntry? entry) ? new ModelTensor(weights, entry) : null;

    /// <exception cref="ModelFormatException">a file is missing, or the two do not belong together; all problems at once</exception>
    /// <exception cref="SafetensorsFormatException">the weight file breaks a rule of its format</exception>
    /// <exception cref="TorchFormatException">the same of an adapter_model.bin, or it asks for more than tensors</exception>
    public static PeftAdapterFolder Open(string path)
    {
        AdapterConfig config = AdapterConfig.Parse(System.IO.Path.Combine(path, AdapterConfig.FileName));
        string file = System.IO.Path.Combine(path, WeightsFileName);
        bool isTorch = !File.Exists(file) && File.Exists(System.IO.Path.Combine(path, TorchFileName));
        file = isTorch ? System.IO.Path.Combine(path, TorchFileName) : file;
        if (!File.Exists(file))
        {
            throw new ModelFormatException($"{file}: there is no such file, nor {TorchFileName}. Fetch the adapter's weights into this folder.");
        }

        IWeightFile weights = isTorch ? TorchFile.Open(file) : SafetensorsFile.Open(file);
        try
        {
            return new PeftAdapterFolder(path, config, weights, Check(file, config, weights));
        }
        catch
        {
            weights.Dispose();
            throw;
        }
    }

    /// <summary>Writes both files, the config last: where it is, the weights are whole. Tensors are named by <see cref="PeftAdapterFolderKey"/>.</summary>
    /// <param name="path">The folder.</param>
    /// <param name="config">The one.</param>
    /// <param name="tensors">The other.</param>
    /// <param name="durable">As in <see cref="LoraTrainer.Storage.AtomicFile.Create"/>.</param>
    public static void Save(string path, AdapterConfig config, SafetensorsWriter tensors, bool durable = true)
    {
        ArgumentNullException.ThrowIfNull(config);
        ArgumentNullException.ThrowIfNull(tensors);
        Directory.CreateDirectory(path);
        tensors.Save(System.IO.Path.Combine(path, WeightsFileName), durable);
        config.Save(path, durable);
    }

    public void Dispose() => weights.Dispose();

    private static Dictionary<PeftAdapterFolderKey, SafetensorsEntry> Check(string file, AdapterConfig config, IWeightFile weights)
    {
        var problems = new List<string>();
        var tensors = new Dictionary<PeftAdapterFolderKey, SafetensorsEntry>();
        foreach (SafetensorsEntry entry in weights.Entries)
        {
            if (PeftAdapterFolderKey.Parse(entry.Name) is { } key)
            {
                tensors.Add(key, entry);
            }
            else
            {
                problems.Add($"tensor '{SafetensorsFile.Shorten(entry.Name)}' has a name that PEFT does not write.");
            }
        }

        foreach ((PeftAdapterFolderKey key, SafetensorsEntry entry) in tensors)
        {
            (PeftTensorKind Partner, int RankAxis)? pair = key.Kind switch
            {
                PeftTensorKind.LoraA => (PeftTensorKind.LoraB, 0),
                PeftTensorKind.LoraB => (PeftTensorKind.LoraA, 1),
                PeftTensorKind.LoraEmbeddingA => (PeftTensorKind.LoraEmbeddingB, 0),
                PeftTensorKind.LoraEmbeddingB => (PeftTensorKind.LoraEmbeddingA, 1),
                _ => null,
            };
            if (pair is not { } expected)
            {
                continue;
            }

            if (!tensors.ContainsKey(key with { Kind = expected.Partner }))
            {
                problems.Add($"tensor '{SafetensorsFile.Shorten(entry.Name)}' has no partner '{SafetensorsFile.Shorten((key with { Kind = expected.Partner }).ToString())}'.");
            }

            int rank = TargetModules.RankOf(config, key.Module);
            if (entry.Shape.Length != 2 || entry.Shape[expected.RankAxis] != rank)
            {
                string shape = expected.RankAxis == 0 ? $"({rank}, in)" : $"(out, {rank})";
                problems.Add($"tensor '{SafetensorsFile.Shorten(entry.Name)}' has the shape {SafetensorsEntry.DescribeShape(entry.Shape)}; {AdapterConfig.FileName} makes it {shape}.");
            }
        }

        if (tensors.Count == 0 && problems.Count == 0)
        {
            problems.Add("it holds no tensors.");
        }

        return problems.Count == 0 ? tensors : throw new ModelFormatException(Describe(file, problems));
    }

    private static string Describe(string file, List<string> problems)
    {
        var text = new StringBuilder($"{file}: the weights do not fit {AdapterConfig.FileName} ({problems.Count} {(problems.Count == 1 ? "problem" : "problems")}). Check that both are of the same adapter.");
        foreach (string problem in problems.Take(ProblemsShown))
        {
            text.Append("\n  ").Append(problem);
        }

        return problems.Count > ProblemsShown ? text.Append("\n  ... and ").Append(problems.Count - ProblemsShown).Append(" more.").ToString() : text.ToString();
    }
}
