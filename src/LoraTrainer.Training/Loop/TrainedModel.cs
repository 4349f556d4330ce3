using LoraTrainer.Engine.Devices;
using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Optimizers;

namespace LoraTrainer.Training.Loop;

/// <summary>
/// Everything that lives on the device for a whole run: base, adapters, moments, in this order. The plan builds the same on a
/// <see cref="MeasureDevice"/>, so the two cannot disagree.
/// </summary>
public sealed class TrainedModel
{
    private TrainedModel(CausalLanguageModel model, LoraInjection? adapters, OptimizerState optimizer)
    {
        Model = model;
        Adapters = adapters;
        Optimizer = optimizer;
    }

    public CausalLanguageModel Model { get; }

    /// <summary>Null where all parameters are trained.</summary>
    public LoraInjection? Adapters { get; }

    public OptimizerState Optimizer { get; }

    /// <summary>Loads the base, attaches fresh adapters and allocates the moments.</summary>
    /// <param name="config">Adapter, quantization, optimizer, seed.</param>
    /// <param name="shape">The base's config.json.</param>
    /// <param name="folder">Its weights; may be null on a device that only measures.</param>
    /// <param name="device">Where all of it goes.</param>
    /// <param name="progress">Is told the tensor that is being loaded and the fraction that is done.</param>
    /// <exception cref="TrainingSetupException">The device has no kernel for what the config asks, or a module that is to be adapted is unknown.</exception>
    public static TrainedModel Build(TrainingConfig config, ModelConfig shape, ModelFolder? folder, Device device, Action<string, double>? progress = null)
    {
        if (device.Platform == DevicePlatform.Cuda && WithoutGpuKernel(config) is var (key, what))
        {
            throw new TrainingSetupException($"{key}: {what} has no kernel for GPUs yet. Use device: cpu, or leave {key} out.");
        }

        string pageFile = Path.Combine(config.OutputDir, RunFolder.PagedMomentsName);
        if (config.Adapter.Kind == AdapterKind.None)
        {
            CausalLanguageModel full = ModelLoader.LoadTrainable(shape, folder, device, progress);
            return new TrainedModel(full, null, new OptimizerState(device, full.Parameters, config.Optimizer, pageFile));
        }

        IReadOnlyList<ModelModule> modules = LoraInjection.Modules(shape);
        RefuseUnknownNames("lora_target_modules", config.Adapter.TargetModules, modules, TargetModules.LeafNames(modules));
        RefuseUnknownNames("lora_modules_to_save", config.Adapter.ModulesToSave, modules, [.. modules.Select(module => module.Path.Split('.')[^1]).Distinct(StringComparer.Ordinal)]);
        AdapterConfig adapter = AdapterConfigOf(config);
        AdapterStart? start = AdapterStart.For(adapter, shape);
        CausalLanguageModel model = ModelLoader.LoadFrozen(shape, folder, device, FormatOf(config.Quantization), start, progress);
        LoraInjection adapters = LoraInjection.Inject(model, adapter, (ulong)config.Seed, RatesOf(config), start);
        return new TrainedModel(model, adapters, new OptimizerState(device, model.Parameters, config.Optimizer, pageFile));
    }

    /// <summary>How a config keeps the frozen base.</summary>
    public static BaseFormat FormatOf(QuantizationOptions options) => options switch
    {
        { LoadIn4Bit: true, FourBit: { Type: FourBitType.Fp4, DoubleQuantization: true } } => BaseFormat.Fp4DoubleQuantized,
        { LoadIn4Bit: true, FourBit.Type: FourBitType.Fp4 } => BaseFormat.Fp4,
        { LoadIn4Bit: true, FourBit.DoubleQuantization: true } => BaseFormat.Nf4DoubleQuantized,
        { LoadIn4Bit: true } => BaseFormat.Nf4,
        { LoadIn8Bit: true } => BaseFormat.EightBit,
        _ => BaseFormat.AsStored,
    };

    /// <summary>What of a config a GPU has no kernel for: the key, and what it asks for; null where all runs on it.</summary>
    public static (string Key, string What)? WithoutGpuKernel(TrainingConfig config)
    {
        if (config.Adapter.Kind != AdapterKind.None && FormatOf(config.Quantization).WithoutKernel(DevicePlatform.Cuda) is { } format)
        {
            return (config.Quantization.LoadIn4Bit ? "bnb_config_kwargs.bnb_4bit_quant_type" : "load_in_8bit", format);
        }

        if (config.Adapter is { Kind: not AdapterKind.None, UseDora: true })
        {
            return ("peft_use_dora", "DoRA");
        }

        return config.NeftuneNoiseAlpha is not null ? ("neftune_noise_alpha", "noise on the embeddings") : config.Optimizer.IsPaged ? ("optimizer", "a paged optimizer") : config.Optimizer.IsEightBit ? ("optimizer", "the 8-bit optimizer") : null;
    }

    /// <summary>A misspelt name beside right ones would leave its layers untrained.</summary>
    private static void RefuseUnknownNames(string key, IEnumerable<string> names, IReadOnlyList<ModelModule> modules, IReadOnlyList<string> known)
    {
        if (TargetModules.UnknownNames(names, modules) is not [var unknown, ..])
        {
            return;
        }

        string meant = Suggestions.Nearest(unknown, known) is { } near ? $" Did you mean {near}?" : "";
        throw new TrainingSetupException($"{key}: '{unknown}' matches no module of the model.{meant} Its modules are: {string.Join(", ", known)}.");
    }

    private static LoraPlusRates? RatesOf(TrainingConfig config) => config.Adapter.LoraPlusRatio is { } ratio
        ? new LoraPlusRates(ratio, config.Adapter.LoraPlusEmbeddingRate / config.Optimizer.LearningRate)
        : null;

    private static AdapterConfig AdapterConfigOf(TrainingConfig config)
    {
        AdapterOptions adapter = config.Adapter;
        ModuleNames targets = adapter.TargetsAllLinear ? ModuleNames.Matching("all-linear")
            : adapter.TargetPattern is { } pattern ? ModuleNames.Matching(pattern)
            : ModuleNames.Of([.. adapter.TargetModules]);
        return new AdapterConfig
        {
            BaseModelNameOrPath = config.BaseModel,
            R = adapter.Rank,
            LoraAlpha = adapter.Alpha,
            LoraDropout = adapter.Dropout,
            UseRslora = adapter.UseRsLora,
            UseDora = adapter.UseDora,
            InitLoraWeights = adapter.Initialization switch
            {
                AdapterInitialization.Gaussian => "gaussian",
                AdapterInitialization.Pissa => AdapterStart.Pissa,
                AdapterInitialization.Olora => AdapterStart.Olora,
                _ => "true",
            },
            ModulesToSave = adapter.ModulesToSave.Count > 0 ? [.. adapter.ModulesToSave] : null,
            TargetModules = targets,
            LayersToTransform = adapter.LayersToTransform.Count > 0 ? [.. adapter.LayersToTransform] : null,
            RankPattern = [.. adapter.RankPattern],
            AlphaPattern = [.. adapter.AlphaPattern],
        };
    }
}
