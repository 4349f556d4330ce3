using System.Text.Json;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;

namespace LoraTrainer.TestSupport;

/// <summary>A model of the reference fixtures on a device: what transformers was asked, asked of this program. Disposing it disposes the device.</summary>
public sealed class ModelFixture : IDisposable
{
    /// <summary>More than any fixture takes; on a CPU only what is touched exists.</summary>
    public const long ArenaBytes = 256L << 20;

    private readonly string folder;

    /// <param name="model">A folder of models/.</param>
    /// <param name="configFile">One of the spellings of its config.</param>
    /// <param name="device">With an arena of <see cref="ArenaBytes"/>.</param>
    /// <param name="trainable">All weights are parameters.</param>
    public ModelFixture(string model, string configFile, Device device, bool trainable = false)
    {
        folder = Fixtures.Require(Path.Combine("models", model));
        Device = device;
        var config = ModelConfig.Parse(Path.Combine(folder, configFile));
        using ModelFolder files = ModelFolder.Open(folder);
        Model = trainable ? ModelLoader.LoadTrainable(config, files, Device) : ModelLoader.LoadFrozen(config, files, Device, BaseFormat.AsStored);
    }

    /// <summary>Whether the trainer knows the family of the model in this folder; true where the folder is missing, so that its tests say so.</summary>
    public static bool IsSupported(string relative)
    {
        string config = Path.Combine(Fixtures.Root ?? "", relative, "config.json");
        return Fixtures.Root is null || !File.Exists(config) || !Fixtures.FamiliesNotYetSupported.Contains(Fixtures.ModelTypeOf(relative));
    }

    public Device Device { get; }

    public CausalLanguageModel Model { get; }

    public FixtureTensors Expected(string file) => new(Path.Combine(folder, file));

    /// <summary>The prompt of expected_greedy.json, and prompt and answer together.</summary>
    public (int[] Prompt, int[] Output) ExpectedGreedy()
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "expected_greedy.json")));
        int[] Read(string name) => [.. document.RootElement.GetProperty(name).EnumerateArray().Select(item => item.GetInt32())];
        return (Read("prompt"), Read("output"));
    }

    /// <summary>(N, V)</summary>
    public float[] Logits(HostBatch batch)
    {
        using ArenaFrame frame = Device.Arena.Frame();
        Tensor logits = Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount, Model.Config.VocabSize));
        Model.Logits(logits, batch.Upload(Device));
        return logits.Download();
    }

    /// <summary>(V): the logits after the last of these tokens, which continue what the cache holds.</summary>
    public float[] LogitsAfter(int[] tokens, KeyValueCache cache)
    {
        using ArenaFrame frame = Device.Arena.Frame();
        int[] positions = [.. Enumerable.Range(cache.Length, tokens.Length)];
        PackedBatch batch = PackedBatch.Upload(Device, tokens, positions, new[] { 0, tokens.Length });
        Tensor logits = Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(tokens.Length, Model.Config.VocabSize));
        Model.Logits(logits, batch, cache: cache);
        return logits.Download()[^Model.Config.VocabSize..];
    }

    /// <summary>One forward and backward pass over a batch with targets; the gradients are of the mean loss.</summary>
    public ModelGradients Gradients(HostBatch batch, bool recompute)
    {
        using ArenaFrame frame = Device.Arena.Frame();
        Device.Zero(Model.Parameters.Gradients);
        Tensor losses = Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount));
        Tensor dEmbeddings = Device.Arena.Allocate(MemoryKind.Activations, Device.ActivationType, new Shape(batch.TokenCount, Model.Config.HiddenSize));
        Model.ForwardBackward(losses, batch.Upload(Device), DropoutState.Inactive, 1f / batch.ScoredCount, recompute, dEmbeddings);
        return new ModelGradients(
            losses.Download(), dEmbeddings.Download(), Model.Parameters.Parameters.ToDictionary(parameter => parameter.Name, parameter => parameter.Gradient.Download(), StringComparer.Ordinal));
    }

    public void Dispose() => Device.Dispose();
}

/// <summary>What one pass gave.</summary>
/// <param name="Losses">(N), 0 where nothing is predicted.</param>
/// <param name="Embeddings">(N, D): the gradient at the first block's input.</param>
/// <param name="Weights">By parameter name.</param>
public sealed record ModelGradients(float[] Losses, float[] Embeddings, IReadOnlyDictionary<string, float[]> Weights);
