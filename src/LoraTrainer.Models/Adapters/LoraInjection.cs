using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;

namespace LoraTrainer.Models.Adapters;

/// <summary>LoRA+ (Hayou et al. 2024): how many times the learning rate each kind of parameter learns with, in PEFT's groups; A always learns with the rate itself.</summary>
/// <param name="B">Of B, of DoRA's magnitudes and of other vectors.</param>
/// <param name="Embedding">Of an embedding that is trained whole.</param>
public readonly record struct LoraPlusRates(double B, double Embedding)
{
    /// <summary>Plain LoRA: one rate for all.</summary>
    public static LoraPlusRates None { get; } = new(1, 1);
}

/// <summary>The adapters of one model: which layers carry one, how they start, and the PEFT folder they are written to and read from.</summary>
public sealed class LoraInjection
{
    // Places in the model are counted over all linear layers, whichever carry an adapter, so that a seed means the same for every choice of targets.
    private const uint FirstInitializationStream = 0x10000;
    private const uint FirstDropoutStream = 0x20000;

    internal const string EmbeddingModule = "model.embed_tokens";
    internal const string HeadModule = "lm_head";

    private readonly CausalLanguageModel model;
    private readonly AdapterStart? start;
    private readonly List<(AdaptedLinear Linear, LoraAdapter Adapter)> adapted = [];
    private readonly List<TrainedModule> saved = [];

    private LoraInjection(CausalLanguageModel model, AdapterConfig config, AdapterStart? start)
    {
        this.model = model;
        this.start = start;
        Config = config;
    }

    public AdapterConfig Config { get; private set; }

    /// <summary>Entries of the config that matched nothing, a sentence each.</summary>
    public IReadOnlyList<string> Notices { get; private set; } = [];

    /// <summary>Paths of the layers that carry an adapter.</summary>
    public IEnumerable<string> AdaptedModules => adapted.Select(item => item.Linear.Name);

    /// <summary>
    /// Declares A and B for every layer that the config names, with DoRA its magnitude, and a trained copy of every module of modules_to_save;
    /// allocates all parameters of the model and attaches them. A starts as U(-1/sqrt(In), 1/sqrt(In)) (Kaiming uniform with a = sqrt 5, PEFT's default) or
    /// N(0, 1/r) ("gaussian"), B as zero, the magnitude as the length of each row: the model starts as its base. PiSSA and OLoRA start from the weights.
    /// </summary>
    /// <param name="model">With its base loaded, and nothing trained yet.</param>
    /// <param name="config">Target modules, ranks, scaling, dropout.</param>
    /// <param name="seed">Of the start values.</param>
    /// <param name="rates">LoRA+; null: one rate for all.</param>
    /// <param name="start">What the base was loaded with, for "pissa" and "olora"; null for the other starts.</param>
    /// <exception cref="ModelFormatException">A target matches nothing, or a rank does not fit its layer.</exception>
    public static LoraInjection Inject(CausalLanguageModel model, AdapterConfig config, ulong seed, LoraPlusRates? rates = null, AdapterStart? start = null)
    {
        var injection = new LoraInjection(model, config, start);
        injection.RefuseUnsupported();
        IReadOnlyList<ModelModule> modules = Modules(model.Config);
        TargetModules targets = TargetModules.Select(config, model.Config.ModelType, modules);
        injection.Notices = targets.Notices;
        if (config.TargetModules?.List is null)
        {
            // What is saved names modules: "all-linear" and patterns mean something only beside this very model.
            injection.Config = config with { TargetModules = TargetModules.Compact(targets.Targets, modules) };
        }

        Dictionary<string, TargetModule> byPath = targets.Targets.ToDictionary(target => target.Path, StringComparer.Ordinal);
        uint place = 0;
        foreach (IReadOnlyList<AdaptedLinear> readers in model.Layers.SelectMany(layer => layer.LinearsByInput))
        {
            var targeted = new List<AdapterPlace>();
            foreach (AdaptedLinear linear in readers)
            {
                if (byPath.Remove(linear.Name, out TargetModule target))
                {
                    CheckRank(linear.Name, linear.Out, linear.In, target.Rank);
                    targeted.Add(new AdapterPlace(linear, target, FirstDropoutStream + place));
                }

                place++;
            }

            foreach (List<AdapterPlace> joint in injection.Joint(targeted))
            {
                injection.Declare(joint, rates ?? LoraPlusRates.None);
            }
        }

        if (byPath.Count > 0)
        {
            throw new ModelFormatException($"target_modules names {byPath.Keys.Order(StringComparer.Ordinal).First()}, and adapters are for the linear layers of the blocks only. Name it in modules_to_save instead: it is then trained in full.");
        }

        foreach (string path in targets.Saved)
        {
            injection.saved.Add(TrainedModule.Declare(model, path, rates ?? LoraPlusRates.None));
        }

        model.Parameters.Allocate(model.Device);
        injection.Initialize(seed);
        injection.SetActive(true);
        return injection;
    }

    /// <summary>Reads the adapter's values from a PEFT folder over the ones that are there; every tensor of the folder must have its place.</summary>
    /// <exception cref="ModelFormatException">The folder's adapter is of another shape, or for layers that carry none here.</exception>
    public void Load(PeftAdapterFolder folder)
    {
        Dictionary<PeftAdapterFolderKey, Parameter> places = Tensors().ToDictionary(item => item.Key, item => item.Parameter);
        string[] homeless = [.. folder.Tensors.Keys.Where(key => !places.ContainsKey(key)).Select(key => key.ToString()).Order(StringComparer.Ordinal)];
        if (homeless.Length > 0)
        {
            throw new ModelFormatException(
                $"{folder.Path}: the adapter has {homeless.Length} {(homeless.Length == 1 ? "tensor" : "tensors")} for which this model has no place: {string.Join(", ", homeless.Take(3).Select(SafetensorsFile.Shorten))}{(homeless.Length > 3 ? ", ..." : "")}. It was made for another model or other target modules.");
        }

        foreach ((PeftAdapterFolderKey key, Parameter parameter) in places)
        {
            Load(folder, key, parameter);
        }
    }

    /// <summary>Writes the adapter as PEFT does: adapter_model.safetensors (f32) and adapter_config.json.</summary>
    /// <param name="folder">Is made where it is not there.</param>
    /// <param name="durable">As in <see cref="LoraTrainer.Storage.AtomicFile.Create"/>.</param>
    public void Save(string folder, bool durable = true)
    {
        var writer = new SafetensorsWriter();
        foreach ((PeftAdapterFolderKey key, Parameter parameter) in Tensors())
        {
            writer.Add(key.ToString(), SafetensorsDType.F32, Extents(parameter.Shape), (offset, destination) => model.Device.Download(parameter.Value, destination, offset / sizeof(float)));
        }

        PeftAdapterFolder.Save(folder, Config, writer, durable);
    }

    /// <summary>
    /// Writes the adapter for use on the base as published. What started from the base's weights (PiSSA, OLoRA) is turned into plain LoRA of twice
    /// the rank, A' = [A; A0] and B' = [B, -B0]: the base that was trained on is W - s B0 A0. Everything else is written as by <see cref="Save"/>.
    /// </summary>
    /// <param name="folder">Is made where it is not there.</param>
    /// <param name="durable">As in <see cref="LoraTrainer.Storage.AtomicFile.Create"/>.</param>
    public void SaveAsPlainLora(string folder, bool durable = true)
    {
        if (start is null)
        {
            Save(folder, durable);
            return;
        }

        var writer = new SafetensorsWriter();
        foreach ((PeftAdapterFolderKey key, Parameter parameter) in Tensors())
        {
            long[] extents = Extents(parameter.Shape);
            bool isA = key.Kind == PeftTensorKind.LoraA;
            if (!isA && key.Kind != PeftTensorKind.LoraB)
            {
                writer.Add(key.ToString(), SafetensorsDType.F32, extents, (offset, destination) => model.Device.Download(parameter.Value, destination, offset / sizeof(float)));
                continue;
            }

            // Small beside the model: a pair of matrices of the adapter at a time.
            float[] own = new float[parameter.Shape.ElementCount];
            model.Device.Download(parameter.Value, MemoryMarshal.AsBytes(own.AsSpan()));
            byte[] joined = MemoryMarshal.AsBytes((isA ? start.StackedA(key.Module, own) : start.StackedB(key.Module, own)).AsSpan()).ToArray();
            extents[isA ? 0 : 1] *= 2;
            writer.Add(key.ToString(), SafetensorsDType.F32, extents, (offset, destination) => joined.AsSpan((int)offset, destination.Length).CopyTo(destination));
        }

        PeftAdapterFolder.Save(folder, Config.WithDoubledRank(), writer, durable);
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

        foreach (TrainedModule module in saved)
        {
            if (active)
            {
                module.Attach();
            }
            else
            {
                module.Detach();
            }
        }
    }

    /// <summary>The modules of a model as selection rules see them.</summary>
    public static IReadOnlyList<ModelModule> Modules(ModelConfig config)
    {
        // Only names and widths: nothing is allocated.
        using var device = new MeasureDevice(threadCount: 1);
        var model = new CausalLanguageModel(config, device);
        return
        [
            new ModelModule(EmbeddingModule, ModuleKind.Embedding),
            .. model.Layers.SelectMany(layer => layer.Linears.Select(linear => new ModelModule(linear.Name, ModuleKind.Linear))
                .Concat(layer.Norms.Select(norm => new ModelModule(norm.Name, ModuleKind.Other)))),
            new ModelModule(model.FinalNorm.Name, ModuleKind.Other),
            new ModelModule(HeadModule, ModuleKind.OutputHead),
        ];
    }

    /// <summary>Everything that is trained, by its name in the file, layer by layer.</summary>
    private IEnumerable<(PeftAdapterFolderKey Key, Parameter Parameter)> Tensors()
    {
        foreach ((AdaptedLinear linear, LoraAdapter adapter) in adapted)
        {
            yield return (new PeftAdapterFolderKey(linear.Name, PeftTensorKind.LoraA), adapter.A);
            yield return (new PeftAdapterFolderKey(linear.Name, PeftTensorKind.LoraB), adapter.B);
            if (adapter.Magnitude is { } magnitude)
            {
                yield return (new PeftAdapterFolderKey(linear.Name, PeftTensorKind.Magnitude), magnitude);
            }
        }

        foreach (TrainedModule module in saved)
        {
            yield return (new PeftAdapterFolderKey(module.Path, PeftTensorKind.SavedWeight), module.Weight);
            if (module.Bias is { } bias)
            {
                yield return (new PeftAdapterFolderKey(module.Path, PeftTensorKind.SavedBias), bias);
            }
        }
    }

    private void RefuseUnsupported()
    {
        string? unsupported = Config switch
        {
            { LoraBias: true } => "lora_bias",
            { EnsureWeightTying: true, ModulesToSave.Count: > 0 } when model.Config.TieWordEmbeddings => "ensure_weight_tying",
            { Bias: not AdapterBias.None } => "bias other than \"none\"",
            { InitLoraWeights: not ("true" or "gaussian" or AdapterStart.Pissa or AdapterStart.Olora) } => $"init_lora_weights {Config.InitLoraWeights}",
            _ => null,
        };
        if (unsupported is not null)
        {
            throw new ModelFormatException($"This adapter uses {unsupported}, which is not supported yet. Supported: LoRA, rsLoRA and DoRA on linear layers, and modules trained whole.");
        }

        if (start is null && AdapterStart.Changes(Config))
        {
            throw new ModelFormatException(
                $"This adapter started from the base's own weights (init_lora_weights: {Config.InitLoraWeights}): it belongs to a base from which they were taken, and means nothing on the base as published. Use the adapter in the run's output_dir, which is plain LoRA.");
        }
    }

    /// <summary>
    /// Which of the adapters that read one input share their products with A (<see cref="LoraAdapter.Joint"/>): all of them, whatever their ranks, scalings and magnitudes,
    /// which are B's business. Not with dropout, where each multiplies A with an input of its own, and not across an A that would leave padding behind it in the flat buffers.
    /// The rule depends on the config alone, so a device, an evaluation or a resume changes no order of additions.
    /// </summary>
    private List<List<AdapterPlace>> Joint(List<AdapterPlace> readers)
    {
        var joints = new List<List<AdapterPlace>>();
        bool continues = false;
        foreach (AdapterPlace reader in readers)
        {
            if (continues)
            {
                joints[^1].Add(reader);
            }
            else
            {
                joints.Add([reader]);
            }

            continues = Config.LoraDropout == 0 && ParameterStore.FillsItsPlace(reader.ShapeOfA);
        }

        return joints;
    }

    private void Declare(List<AdapterPlace> joint, LoraPlusRates rates)
    {
        Device device = model.Device;
        ParameterStore parameters = model.Parameters;
        Parameter[] matrices = [.. joint.Select(place => parameters.Declare(place.Linear.Name + ".lora_A.weight", place.ShapeOfA))];
        Parameter stack = parameters.Stack(matrices);
        int row = 0;
        foreach ((Parameter a, (AdaptedLinear linear, TargetModule target, uint dropoutStream)) in matrices.Zip(joint))
        {
            adapted.Add((linear, new LoraAdapter
            {
                A = a,
                Joint = stack,
                JointRow = row,
                B = parameters.Declare(linear.Name + ".lora_B.weight", new Shape(linear.Out, target.Rank), rates.B),
                Magnitude = Config.UseDora ? parameters.Declare(linear.Name + ".lora_magnitude_vector.weight", new Shape(linear.Out), rates.B) : null,
                Norms = Config.UseDora ? device.Arena.Allocate(MemoryKind.Parameters, DType.F32, new Shape(linear.Out)) : Tensor.None,
                Scaling = (float)target.Scaling,
                Dropout = (float)Config.LoraDropout,
                Stream = dropoutStream,
            }));
            row += target.Rank;
        }
    }

    /// <summary>A layer that is to carry an adapter.</summary>
    private readonly record struct AdapterPlace(AdaptedLinear Linear, TargetModule Target, uint DropoutStream)
    {
        public Shape ShapeOfA => new(Target.Rank, Linear.In);
    }

    /// <exception cref="ModelFormatException">The rank is more than the layer's smaller side.</exception>
    internal static void CheckRank(string module, int outFeatures, int inFeatures, int rank)
    {
        int largest = Math.Min(inFeatures, outFeatures);
        if (rank < 1 || rank > largest)
        {
            throw new ModelFormatException(
                $"The rank must be 1..{largest} for {module} ({outFeatures} x {inFeatures}), got {rank}. A larger rank than the layer's smaller side adds nothing; typical: 8, 16, 64.");
        }
    }

    private void Initialize(ulong seed)
    {
        foreach ((AdaptedLinear linear, LoraAdapter adapter) in adapted)
        {
            if (adapter.Magnitude is { } magnitude)
            {
                Dora.Norms(magnitude.Value, linear.Weight, Tensor.None, Tensor.None, 0);
            }

            if (model.Device is MeasureDevice)
            {
                continue;
            }

            if (start is not null)
            {
                model.Device.Upload(adapter.A.Value, MemoryMarshal.AsBytes(start.A(linear.Name).AsSpan()));
                model.Device.Upload(adapter.B.Value, MemoryMarshal.AsBytes(start.B(linear.Name).AsSpan()));
                continue;
            }

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

        foreach (TrainedModule module in saved)
        {
            module.Initialize();
        }
    }

    private void Load(PeftAdapterFolder folder, PeftAdapterFolderKey key, Parameter parameter)
    {
        ModelTensor tensor = folder.Find(key.Module, key.Kind)
            ?? throw new ModelFormatException($"{folder.Path}: the adapter has no {key}. It was made for another model or other target modules.");
        if (!tensor.Entry.Shape.SequenceEqual(Extents(parameter.Shape)))
        {
            throw new ModelFormatException($"{folder.Path}: {tensor.Entry.Name} is {tensor.Entry}, expected the shape {parameter.Shape}. The adapter has another rank, or was made for another model.");
        }

        model.Device.Upload(parameter.Value, MemoryMarshal.AsBytes(tensor.ReadSingles().AsSpan()));
    }

    private static long[] Extents(Shape shape) => shape.Rank == 1 ? [shape[0]] : [shape[0], shape[1]];
}
