using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;

namespace LoraTrainer.Models.Adapters;

/// <summary>The adapters of one model: which layers carry one, how they start, and the PEFT folder they are written to and read from.</summary>
public sealed class LoraInjection
{
    // Places in the model are counted over all linear layers, whichever carry an adapter, so that a seed means the same for every choice of targets.
    private const uint FirstInitializationStream = 0x10000;
    private const uint FirstDropoutStream = 0x20000;

    private readonly CausalLanguageModel model;
    private readonly List<(AdaptedLinear Linear, LoraAdapter Adapter)> adapted = [];

    private LoraInjection(CausalLanguageModel model, AdapterConfig config)
    {
        this.model = model;
        Config = config;
    }

    public AdapterConfig Config { get; private set; }

    /// <summary>Entries of the config that matched nothing, a sentence each.</summary>
    public IReadOnlyList<string> Notices { get; private set; } = [];

    /// <summary>Paths of the layers that carry an adapter.</summary>
    public IEnumerable<string> AdaptedModules => adapted.Select(item => item.Linear.Name);

    /// <summary>
    /// Declares A and B for every layer that the config names, allocates all parameters of the model and attaches the adapters. A starts as
    /// U(-1/sqrt(In), 1/sqrt(In)) (Kaiming uniform with a = sqrt 5, PEFT's default) or N(0, 1/r) ("gaussian"), B as zero: the model starts as its base.
    /// </summary>
    /// <param name="model">With its base loaded, and nothing trained yet.</param>
    /// <param name="config">Target modules, ranks, scaling, dropout.</param>
    /// <param name="seed">Of the start values.</param>
    /// <param name="loraPlusRatio">LoRA+: the learning rate of B over that of A (Hayou et al. 2024).</param>
    /// <exception cref="ModelFormatException">A target matches nothing, or a rank does not fit its layer.</exception>
    public static LoraInjection Inject(CausalLanguageModel model, AdapterConfig config, ulong seed, double loraPlusRatio = 1)
    {
        var injection = new LoraInjection(model, config);
        injection.RefuseUnsupported();
        TargetModules targets = TargetModules.Select(config, model.Config.ModelType, Modules(model));
        injection.Notices = targets.Notices;
        if (config.TargetModules?.List is null)
        {
            // What is saved names modules: "all-linear" and patterns mean something only beside this very model.
            injection.Config = config with { TargetModules = TargetModules.Compact(targets.Targets, Modules(model)) };
        }

        Dictionary<string, TargetModule> byPath = targets.Targets.ToDictionary(target => target.Path, StringComparer.Ordinal);
        uint place = 0;
        foreach (AdaptedLinear linear in model.Linears)
        {
            if (byPath.TryGetValue(linear.Name, out TargetModule target))
            {
                injection.Declare(linear, target, FirstDropoutStream + place, loraPlusRatio);
            }

            place++;
        }

        model.Parameters.Allocate(model.Device);
        injection.InitializeAndAttach(seed);
        return injection;
    }

    /// <summary>Reads the adapter's values from a PEFT folder over the ones that are there; every tensor of the folder must have its place.</summary>
    /// <exception cref="ModelFormatException">The folder's adapter is of another shape, or for layers that carry none here.</exception>
    public void Load(PeftAdapterFolder folder)
    {
        var places = AdaptedModules.ToHashSet(StringComparer.Ordinal);
        string[] homeless = [.. folder.Tensors.Keys.Where(key => key.Kind is not (PeftTensorKind.LoraA or PeftTensorKind.LoraB) || !places.Contains(key.Module)).Select(key => key.ToString()).Order(StringComparer.Ordinal)];
        if (homeless.Length > 0)
        {
            throw new ModelFormatException(
                $"{folder.Path}: the adapter has {homeless.Length} {(homeless.Length == 1 ? "tensor" : "tensors")} for which this model has no place: {string.Join(", ", homeless.Take(3).Select(SafetensorsFile.Shorten))}{(homeless.Length > 3 ? ", ..." : "")}. It was made for another model or other target modules.");
        }

        foreach ((AdaptedLinear linear, LoraAdapter adapter) in adapted)
        {
            Load(folder, linear.Name, PeftTensorKind.LoraA, adapter.A);
            Load(folder, linear.Name, PeftTensorKind.LoraB, adapter.B);
        }
    }

    /// <summary>Writes the adapter as PEFT does: adapter_model.safetensors (f32) and adapter_config.json.</summary>
    /// <param name="folder">Is made where it is not there.</param>
    /// <param name="durable">As in <see cref="LoraTrainer.Storage.AtomicFile.Create"/>.</param>
    public void Save(string folder, bool durable = true)
    {
        var writer = new SafetensorsWriter();
        foreach ((AdaptedLinear linear, LoraAdapter adapter) in adapted)
        {
            Add(writer, linear.Name, PeftTensorKind.LoraA, adapter.A);
            Add(writer, linear.Name, PeftTensorKind.LoraB, adapter.B);
        }

        PeftAdapterFolder.Save(folder, Config, writer, durable);
    }

    /// <summary>Switches the adapters off and on again: without them the model computes its base.</summary>
    public void SetActive(bool active)
    {
        foreach ((AdaptedLinear linear, LoraAdapter adapter) in adapted)
        {
            if (active)
            {
                linear.Attach(adapter);
            }
            else
            {
                linear.Detach();
            }
        }
    }

    /// <summary>The modules of a model as selection rules see them.</summary>
    public static IReadOnlyList<ModelModule> Modules(CausalLanguageModel model) =>
    [
        new ModelModule("model.embed_tokens", ModuleKind.Embedding),
        .. model.Layers.SelectMany(layer => layer.Linears.Select(linear => new ModelModule(linear.Name, ModuleKind.Linear))
            .Concat(layer.Norms.Select(norm => new ModelModule(norm.Name, ModuleKind.Other)))),
        new ModelModule(model.FinalNorm.Name, ModuleKind.Other),
        new ModelModule("lm_head", ModuleKind.OutputHead),
    ];

    private void RefuseUnsupported()
    {
        string? unsupported = Config switch
        {
            { UseDora: true } => "use_dora (DoRA)",
            { LoraBias: true } => "lora_bias",
            { ModulesToSave.Count: > 0 } => "modules_to_save",
            { Bias: not AdapterBias.None } => "bias other than \"none\"",
            { InitLoraWeights: not ("true" or "gaussian") } => $"init_lora_weights {Config.InitLoraWeights}",
            _ => null,
        };
        if (unsupported is not null)
        {
            throw new ModelFormatException($"This adapter uses {unsupported}, which is not supported yet. Supported: LoRA and rsLoRA on linear layers.");
        }
    }

    private void Declare(AdaptedLinear linear, TargetModule target, uint dropoutStream, double loraPlusRatio)
    {
        int largest = Math.Min(linear.In, linear.Out);
        if (target.Rank < 1 || target.Rank > largest)
        {
            throw new ModelFormatException(
                $"The rank must be 1..{largest} for {linear.Name} ({linear.Out} x {linear.In}), got {target.Rank}. A larger rank than the layer's smaller side adds nothing; typical: 8, 16, 64.");
        }

        adapted.Add((linear, new LoraAdapter
        {
            A = model.Parameters.Declare(linear.Name + ".lora_A.weight", new Shape(target.Rank, linear.In)),
            B = model.Parameters.Declare(linear.Name + ".lora_B.weight", new Shape(linear.Out, target.Rank), loraPlusRatio),
            Scaling = (float)target.Scaling,
            Dropout = (float)Config.LoraDropout,
            Stream = dropoutStream,
        }));
    }

    private void InitializeAndAttach(ulong seed)
    {
        foreach ((AdaptedLinear linear, LoraAdapter adapter) in adapted)
        {
            if (model.Device is not MeasureDevice)
            {
                // The dropout stream names the place; its counterpart among the initialization streams draws the start values.
                var random = new CounterRandom(seed, adapter.Stream - FirstDropoutStream + FirstInitializationStream, 0);
                float[] values = new float[adapter.A.Shape.ElementCount];
                float bound = 1 / MathF.Sqrt(linear.In);
                for (int i = 0; i < values.Length; i++)
                {
                    values[i] = Config.InitLoraWeights == "gaussian" ? random.Normal((ulong)i) / adapter.Rank : (2 * random.Uniform((ulong)i) - 1) * bound;
                }

                model.Device.Upload(adapter.A.Value, MemoryMarshal.AsBytes(values.AsSpan()));
            }

            linear.Attach(adapter);
        }
    }

    private void Load(PeftAdapterFolder folder, string module, PeftTensorKind kind, Parameter parameter)
    {
        ModelTensor tensor = folder.Find(module, kind)
            ?? throw new ModelFormatException($"{folder.Path}: the adapter has no {new PeftAdapterFolderKey(module, kind)}. It was made for another model or other target modules.");
        ReadOnlySpan<long> shape = tensor.Entry.Shape;
        if (shape.Length != 2 || shape[0] != parameter.Shape[0] || shape[1] != parameter.Shape[1])
        {
            throw new ModelFormatException($"{folder.Path}: {tensor.Entry.Name} is {tensor.Entry}, expected the shape {parameter.Shape}. The adapter has another rank, or was made for another model.");
        }

        byte[] bytes = new byte[tensor.Entry.ByteLength];
        tensor.ReadInto(0, bytes);
        float[] values = new float[parameter.Shape.ElementCount];
        FloatConversion.ToSingle(tensor.Entry.DType, bytes, values);
        model.Device.Upload(parameter.Value, MemoryMarshal.AsBytes(values.AsSpan()));
    }

    private void Add(SafetensorsWriter writer, string module, PeftTensorKind kind, Parameter parameter) => writer.Add(
        new PeftAdapterFolderKey(module, kind).ToString(),
        SafetensorsDType.F32,
        [parameter.Shape[0], parameter.Shape[1]],
        (offset, destination) => model.Device.Download(parameter.Value, destination, offset / sizeof(float)));
}
