using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Sources;

namespace LoraTrainer.Training.Evaluation;

/// <summary>What text is generated with: a base, perhaps an adapter, and how the base is kept.</summary>
/// <param name="BaseFolder">The model folder.</param>
/// <param name="AdapterFolder">A PEFT folder, or null.</param>
/// <param name="Format">How the base's linear layers are kept.</param>
public sealed record TextModelSource(string BaseFolder, string? AdapterFolder, BaseFormat Format)
{
    /// <summary>Where a GPU finds the embedding; no number depends on it.</summary>
    public EmbeddingPlacement Embeddings { get; init; } = EmbeddingPlacement.Device;

    /// <summary>How the output layer is kept.</summary>
    public LmHeadFormat LmHead { get; init; } = LmHeadFormat.Bf16;

    /// <summary>The base of a run, kept as the run kept it. What of the run's keys is about gradients and moments has no use here.</summary>
    /// <param name="run">Its base is a folder here.</param>
    /// <param name="adapter">A PEFT folder, or null.</param>
    /// <param name="fourBit">Keep the blocks in NF4 with double quantization, whatever the run did.</param>
    public static TextModelSource Of(TrainingConfig run, string? adapter, bool fourBit)
    {
        BaseFormat format = fourBit ? BaseFormat.Nf4DoubleQuantized : TrainedModel.FormatOf(TrainedModel.WithBase(run, ModelConfig.Parse(run.BaseFolder)).Quantization);
        return new TextModelSource(run.BaseFolder, adapter, format) { Embeddings = run.Device.Embeddings, LmHead = run.Device.LmHead };
    }

    /// <summary>
    /// Understands what a user points at: a model folder; a run folder or one of its checkpoints, whose base, quantization and adapter are taken; or an
    /// adapter folder whose config names its base.
    /// </summary>
    /// <param name="path">The folder that was named.</param>
    /// <param name="adapter">An adapter that was named beside it, or null.</param>
    /// <param name="fourBit">Keep the base in NF4 with double quantization, whatever the folder says.</param>
    /// <param name="notice">Is told how the download comes on of a model that is named and not here.</param>
    /// <param name="cancellation">Ends it.</param>
    /// <exception cref="TrainingSetupException">The folder is none of these.</exception>
    public static TextModelSource From(string path, string? adapter, bool fourBit, Action<string> notice, CancellationToken cancellation)
    {
        path = FetchedSources.FolderOf(RunFolder.ModelOf(path), HubRepository.DefaultRevision, notice, cancellation);
        BaseFormat asked = fourBit ? BaseFormat.Nf4DoubleQuantized : BaseFormat.AsStored;
        if (!Directory.Exists(path))
        {
            throw new TrainingSetupException($"{path}: there is no such folder. Give a model folder, a run's output_dir or an adapter folder.");
        }

        adapter = adapter is null ? null : RunFolder.ModelOf(adapter);
        if (adapter is not null && !Directory.Exists(adapter))
        {
            throw new TrainingSetupException($"{adapter}: there is no such folder. --adapter names a folder with {AdapterConfig.FileName} and {PeftAdapterFolder.WeightsFileName}.");
        }

        bool isAdapter = File.Exists(Path.Combine(path, AdapterConfig.FileName));
        if (!isAdapter || adapter is not null)
        {
            return new TextModelSource(path, adapter, asked);
        }

        if (RunFolder.ConfigFileOf(path) is { } runConfig)
        {
            // Of a run, or of one of its checkpoints.
            TrainingConfig config = ConfigurationLoader.LoadFile(runConfig, []).Require();
            config = FetchedSources.Fetch(config, SourceNeeds.Weights, notice, cancellation);
            if (!Directory.Exists(config.BaseFolder))
            {
                throw new TrainingSetupException($"{path} was trained on {config.BaseModel}, which is not a folder here. Name its base and give this folder with --adapter.");
            }

            return Of(config, path, fourBit);
        }

        return new TextModelSource(
            FetchedSources.FolderOfBase(path, AdapterConfig.Parse(path).BaseModelNameOrPath, HubRepository.DefaultRevision, "Name the base and give this folder with --adapter.", notice, cancellation), path, asked);
    }
}

/// <summary>A base with or without an adapter on its device, in exactly the memory that its use needs. Nothing of it is trained.</summary>
public sealed class LoadedModel : IDisposable
{
    private readonly Device device;

    private LoadedModel(Device device, string deviceSentence, CausalLanguageModel model, LoraInjection? adapters)
    {
        this.device = device;
        DeviceSentence = deviceSentence;
        Model = model;
        Adapters = adapters;
    }

    /// <summary>What computes, and why.</summary>
    public string DeviceSentence { get; }

    public CausalLanguageModel Model { get; }

    /// <summary>Null for a base alone.</summary>
    public LoraInjection? Adapters { get; }

    /// <summary>Loads base and adapter.</summary>
    /// <param name="source">What to load.</param>
    /// <param name="selection">Where it computes.</param>
    /// <param name="measure">Takes, on a device that only measures, the memory that the use of the model takes at most.</param>
    /// <param name="lessMemory">What would need less memory, a sentence for the error.</param>
    /// <param name="notice">Receives what the user should see but need not act on.</param>
    /// <param name="progress">Is told the tensor that is being loaded and the fraction that is done.</param>
    /// <exception cref="FormatException">A file is damaged, or the adapter is for another base.</exception>
    /// <exception cref="TrainingSetupException">The device does not have the memory.</exception>
    public static LoadedModel Load(
        TextModelSource source, DeviceSelection selection, Action<CausalLanguageModel> measure, string lessMemory, Action<string> notice, Action<string, double>? progress = null)
    {
        ModelConfig shape = ModelConfig.Parse(source.BaseFolder);
        if (shape.Quantization is { } stored)
        {
            source = source.Format == BaseFormat.AsStored || source.Format == stored.Format
                ? source with { Format = stored.Format }
                : throw new TrainingSetupException($"{source.BaseFolder} is quantized already, {stored.Description}, and is taken as it is. Leave --load-in-4bit out.");
        }

        using ModelFolder weights = ModelFolder.Open(source.BaseFolder);
        using PeftAdapterFolder? adapter = source.AdapterFolder is null ? null : PeftAdapterFolder.Open(source.AdapterFolder);
        if (adapter?.Config.DoubtAbout(source.BaseFolder) is { } doubt)
        {
            notice(doubt);
        }

        ModelConfig config = shape.WithVocabulary(adapter?.VocabularyRows ?? 0);
        using MeasureDevice measured = selection.Measure();
        measure(Build(config, weights, adapter, source, measured, null).Model);
        Device device = selection.Open(measured.Memory, lessMemory, notice);
        try
        {
            (CausalLanguageModel model, LoraInjection? adapters) = Build(config, weights, adapter, source, device, progress);
            return new LoadedModel(device, selection.Describe(device), model, adapters);
        }
        catch
        {
            device.Dispose();
            throw;
        }
    }

    public void Dispose() => device.Dispose();

    private static (CausalLanguageModel Model, LoraInjection? Adapters) Build(
        ModelConfig config, ModelFolder weights, PeftAdapterFolder? adapter, TextModelSource source, Device device, Action<string, double>? progress)
    {
        CausalLanguageModel model = ModelLoader.LoadFrozen(
            config, weights, device, source.Format, progress: progress, headInEightBits: source.LmHead == LmHeadFormat.EightBit, embeddingOnHost: source.Embeddings == EmbeddingPlacement.Host);
        if (adapter is null)
        {
            return (model, null);
        }

        LoraInjection adapters = LoraInjection.Inject(model, adapter.Config, seed: 0);
        adapters.Load(adapter);
        return (model, adapters);
    }
}

/// <summary>A loaded model with its tokenizer: it reads and writes text.</summary>
public sealed class TextModel : IDisposable
{
    private readonly LoadedModel loaded;

    private TextModel(LoadedModel loaded, Tokenizer tokenizer)
    {
        this.loaded = loaded;
        Tokenizer = tokenizer;
    }

    /// <summary>What computes, and why.</summary>
    public string DeviceSentence => loaded.DeviceSentence;

    public CausalLanguageModel Model => loaded.Model;

    /// <summary>Null for a base alone.</summary>
    public LoraInjection? Adapters => loaded.Adapters;

    public Tokenizer Tokenizer { get; }

    /// <summary>Tokens that end a text: the model's own, and the tokenizer's.</summary>
    public IEnumerable<int> StopTokens => Tokenizer.EosId is { } eos ? Model.Config.EosTokenIds.Append(eos) : Model.Config.EosTokenIds;

    /// <summary>Loads base and adapter to generate one text.</summary>
    /// <param name="source">What to load.</param>
    /// <param name="selection">Where it computes.</param>
    /// <param name="tokenizer">Of the base: <see cref="LoadTokenizer"/>.</param>
    /// <param name="promptTokens">The longest prompt.</param>
    /// <param name="maxNewTokens">The longest continuation.</param>
    /// <param name="notice">Receives what the user should see but need not act on.</param>
    /// <exception cref="FormatException">A file is damaged, or the adapter is for another base.</exception>
    /// <exception cref="TrainingSetupException">The device does not have the memory.</exception>
    public static TextModel Load(TextModelSource source, DeviceSelection selection, Tokenizer tokenizer, int promptTokens, int maxNewTokens, Action<string> notice)
    {
        string fourBit = source.Format == BaseFormat.AsStored ? "--load-in-4bit, " : "";
        return Load(source, selection, tokenizer, model => TextGenerator.Measure(model, promptTokens, maxNewTokens), $"Less is needed with {fourBit}a lower --max-new-tokens or a shorter prompt.", notice);
    }

    /// <summary>Loads base and adapter for another use; see <see cref="LoadedModel.Load"/>.</summary>
    /// <exception cref="TrainingSetupException">The tokenizer has more tokens than the model, or the device does not have the memory.</exception>
    public static TextModel Load(
        TextModelSource source, DeviceSelection selection, Tokenizer tokenizer, Action<CausalLanguageModel> measure, string lessMemory, Action<string> notice, Action<string, double>? progress = null)
    {
        return new TextModel(LoadedModel.Load(source, selection, Measure, lessMemory, notice, progress), tokenizer);

        // Here the shape is known, an adapter's rows included, and no weight is read yet.
        void Measure(CausalLanguageModel model)
        {
            _ = Vocabulary.Fitting(tokenizer, model.Config.VocabSize);
            measure(model);
        }
    }

    /// <summary>The base's tokenizer; a run's own copy where it has one.</summary>
    public static Tokenizer LoadTokenizer(TextModelSource source) =>
        Tokenizer.Load(source.AdapterFolder is { } adapter && Tokenizer.IsIn(adapter) ? adapter : source.BaseFolder);

    public void Dispose() => loaded.Dispose();
}
