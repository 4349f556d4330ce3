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
    /// <param name="quantized">The base as it was quantized before, or null.</param>
    /// <param name="damage">Is told why <paramref name="quantized"/> was of no use, or not of all.</param>
    /// <exception cref="TrainingSetupException">The device has no kernel for what the config asks, or a module that is to be adapted is unknown.</exception>
    public static TrainedModel Build(
        TrainingConfig config, ModelConfig shape, ModelFolder? folder, Device device, Action<string, double>? progress = null, QuantizedBaseFile? quantized = null, Action<string>? damage = null)
    {
        config = WithBase(config, shape);
        string pageFile = Path.Combine(config.OutputDir, RunFolder.PagedMomentsName);
        if (config.Adapter.Kind == AdapterKind.None)
        {
            CausalLanguageModel full = ModelLoader.LoadTrainable(shape, folder, device, progress);
            return new TrainedModel(full, null, new OptimizerState(device, full.Parameters, config.Optimizer, pageFile));
        }

        IReadOnlyList<ModelModule> modules = LoraInjection.Modules(shape);
        if (Unmatched(config.Adapter, modules, shape.NumHiddenLayers).ToArray() is { Length: > 0 } unmatched)
        {
            throw new TrainingSetupException(unmatched);
        }

        AdapterConfig adapter = AdapterConfigOf(config, modules);
        AdapterStart? start = AdapterStart.For(adapter, shape);
        CausalLanguageModel model = ModelLoader.LoadFrozen(shape, folder, device, FormatOf(config.Quantization), start, progress, quantized, damage, config.Device.LmHead == LmHeadFormat.EightBit, config.Device.Embeddings == EmbeddingPlacement.Host);
        LoraInjection adapters = LoraInjection.Inject(model, adapter, (ulong)config.Seed, RatesOf(config), start);
        return new TrainedModel(model, adapters, new OptimizerState(device, model.Parameters, config.Optimizer, pageFile));
    }

    /// <summary>The config with the quantization that the base has already, where it has one: what the config leaves open, the files decide.</summary>
    /// <param name="config">The run.</param>
    /// <param name="shape">The base's config.json.</param>
    /// <exception cref="TrainingSetupException">The config asks for something else.</exception>
    public static TrainingConfig WithBase(TrainingConfig config, ModelConfig shape)
    {
        if (shape.Quantization is not { } stored)
        {
            return config;
        }

        QuantizationOptions asked = config.Quantization;
        bool isEightBit = stored.Format == BaseFormat.EightBit;
        FourBitType type = stored.Format is BaseFormat.Fp4 or BaseFormat.Fp4DoubleQuantized ? FourBitType.Fp4 : FourBitType.Nf4;
        bool isDoubleQuantized = stored.Format is BaseFormat.Nf4DoubleQuantized or BaseFormat.Fp4DoubleQuantized;
        string? other = config.Adapter.Kind == AdapterKind.None ? "all parameters would be trained, because adapter is empty"
            : ChangesBase(config) ? $"peft_init_lora_weights: {(config.Adapter.Initialization == AdapterInitialization.Pissa ? "pissa" : "olora")} takes its start out of the base's weights"
            : asked.LoadIn4Bit && isEightBit ? config.Adapter.Kind == AdapterKind.Qlora ? "adapter: qlora asks for a base in 4 bits" : "load_in_4bit is true"
            : asked.LoadIn8Bit && !isEightBit ? "load_in_8bit is true"
            : !isEightBit && asked.FourBit.Type is { } askedType && askedType != type ? $"bnb_config_kwargs.bnb_4bit_quant_type is {(askedType == FourBitType.Fp4 ? "fp4" : "nf4")}"
            : !isEightBit && asked.FourBit.DoubleQuantization is { } askedDouble && askedDouble != isDoubleQuantized ? $"bnb_config_kwargs.bnb_4bit_use_double_quant is {(askedDouble ? "true" : "false")}"
            : null;
        return other is null
            ? config with { Quantization = new QuantizationOptions { LoadIn4Bit = !isEightBit, LoadIn8Bit = isEightBit, FourBit = isEightBit ? new() : new() { Type = type, DoubleQuantization = isDoubleQuantized } } }
            : throw new TrainingSetupException(
                $"{config.BaseModel} is quantized already, {stored.Description}, but {other}. "
                + (config.Adapter.Kind == AdapterKind.None ? "A quantized base cannot be trained itself: use adapter: lora, or the model's original weights." : "Remove that and the base is taken as it is, or use the model's original weights."));
    }

    /// <summary>Whether the adapter takes its start out of the base's weights, so that what is loaded is not the base as its files have it.</summary>
    public static bool ChangesBase(TrainingConfig config) => config.Adapter is { Kind: not AdapterKind.None, Initialization: AdapterInitialization.Pissa or AdapterInitialization.Olora };

    /// <summary>How a config keeps the frozen base, one that is not quantized already.</summary>
    public static BaseFormat FormatOf(QuantizationOptions options)
    {
        bool isDoubleQuantized = options.FourBit.DoubleQuantization ?? true;
        return options switch
        {
            { LoadIn4Bit: true, FourBit.Type: FourBitType.Fp4 } => isDoubleQuantized ? BaseFormat.Fp4DoubleQuantized : BaseFormat.Fp4,
            { LoadIn4Bit: true } => isDoubleQuantized ? BaseFormat.Nf4DoubleQuantized : BaseFormat.Nf4,
            { LoadIn8Bit: true } => BaseFormat.EightBit,
            _ => BaseFormat.AsStored,
        };
    }

    /// <summary>What a config asks for and the device does anyway, a sentence each: the CPU's memory is the host's.</summary>
    /// <param name="config">The run.</param>
    /// <param name="platform">Of the device.</param>
    public static IEnumerable<string> WithoutEffect(TrainingConfig config, DevicePlatform platform)
    {
        if (platform == DevicePlatform.Cpu && config.Device.Embeddings == EmbeddingPlacement.Host)
        {
            yield return "embeddings: host has no effect on the CPU, whose memory is the host's.";
        }

        if (platform == DevicePlatform.Cpu && config.Device.GradientCheckpointing == GradientCheckpointing.Offload)
        {
            yield return "gradient_checkpointing: offload is gradient_checkpointing: true on the CPU, whose memory is the host's.";
        }

        if (platform == DevicePlatform.Cpu && config.Device.CudaGraphs != CudaGraphs.Off)
        {
            yield return "cuda_graphs has no effect on the CPU.";
        }
    }

    private static LoraPlusRates? RatesOf(TrainingConfig config) => config.Adapter.LoraPlusRatio is { } ratio
        ? new LoraPlusRates(ratio, config.Adapter.LoraPlusEmbeddingRate / config.Optimizer.LearningRate)
        : null;

    /// <summary>
    /// What the config names and the model does not have, a sentence for each key. A misspelt name beside right ones would leave its layers untrained, a misspelt
    /// pattern its modules with the rank and alpha of all others.
    /// </summary>
    private static IEnumerable<string> Unmatched(AdapterOptions adapter, IReadOnlyList<ModelModule> modules, int layerCount)
    {
        IReadOnlyList<string> leaves = TargetModules.LeafNames(modules);
        IReadOnlyList<string> all = [.. modules.Select(module => module.Path.Split('.')[^1]).Distinct(StringComparer.Ordinal)];
        (string Key, IEnumerable<string> Names, IReadOnlyList<string> Known)[] wanted =
        [
            ("lora_target_modules", TargetModules.UnknownNames(adapter.TargetModules, modules), leaves),
            ("lora_modules_to_save", TargetModules.UnknownNames(adapter.ModulesToSave, modules), all),
            ("lora_rank_pattern", WithoutMatch("lora_rank_pattern", adapter.RankPattern.Select(pair => pair.Key)), leaves),
            ("lora_alpha_pattern", WithoutMatch("lora_alpha_pattern", adapter.AlphaPattern.Select(pair => pair.Key)), leaves),
        ];
        foreach ((string key, IEnumerable<string> names, IReadOnlyList<string> known) in wanted)
        {
            if (names.ToArray() is { Length: > 0 } unknown)
            {
                string[] near = [.. unknown.Select(name => Suggestions.Nearest(name, known)).OfType<string>().Distinct()];
                string meant = near.Length > 0 ? $" Did you mean {string.Join(", ", near)}?" : "";
                yield return $"{key}: {string.Join(", ", unknown.Select(name => $"'{name}'"))} {(unknown.Length == 1 ? "matches" : "match")} no module of the model.{meant} Its modules are: {string.Join(", ", known)}.";
            }
        }

        if (adapter.LayersToTransform.Where(layer => layer >= layerCount).ToArray() is { Length: > 0 } beyond)
        {
            yield return $"peft_layers_to_transform: there {(beyond.Length == 1 ? "is no layer" : "are no layers")} {string.Join(", ", beyond)}: the model has {layerCount}, counted from 0 to {layerCount - 1}.";
        }

        IEnumerable<string> WithoutMatch(string key, IEnumerable<string> patterns) => patterns.Where(pattern => !TargetModules.MatchesAny(pattern, key, modules));
    }

    private static AdapterConfig AdapterConfigOf(TrainingConfig config, IReadOnlyList<ModelModule> modules)
    {
        AdapterOptions adapter = config.Adapter;

        // PEFT keeps layers apart only where modules are named.
        ModuleNames targets = adapter is { TargetsAllLinear: true, LayersToTransform.Count: > 0 } ? ModuleNames.Of([.. modules.Where(module => module.Kind == ModuleKind.Linear).Select(module => module.Path.Split('.')[^1]).Distinct(StringComparer.Ordinal)])
            : adapter.TargetsAllLinear ? ModuleNames.Matching("all-linear")
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
