using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.Training.Export;

/// <summary>What an adapter does to each tensor of its base. Every tensor of the adapter must have its place, and every target its tensors.</summary>
internal sealed class AdapterPlan
{
    public const string EmbeddingModule = "model.embed_tokens";
    public const string HeadModule = "lm_head";

    private const string BaseLayer = ".base_layer";
    private const int ProblemsShown = 3;

    // With these PEFT takes A and B out of the base, or the base's rounding into them.
    private static readonly string[] StartsThatChangeTheBase = ["pissa", "olora", "corda", "loftq", "lora_ga"];

    private readonly ModelConfig shape;
    private readonly PeftAdapterFolder adapter;
    private readonly PeftAdapterFolder? start;
    private readonly Dictionary<string, TargetModule> updates = new(StringComparer.Ordinal);
    private readonly HashSet<string> replaced = new(StringComparer.Ordinal);

    private AdapterPlan(ModelConfig shape, PeftAdapterFolder adapter, PeftAdapterFolder? start)
    {
        this.shape = shape;
        this.adapter = adapter;
        this.start = start;
    }

    /// <summary>The modules that A and B are written into.</summary>
    public IReadOnlyCollection<string> Updates => updates.Keys;

    /// <summary>The modules whose weights are the adapter's.</summary>
    public IReadOnlyCollection<string> Replaced => replaced;

    public IReadOnlyList<string> Notices { get; private set; } = [];

    /// <exception cref="ModelFormatException">The adapter is another model's, or asks for something that has no place in a weight.</exception>
    public static AdapterPlan Make(ModelConfig shape, PeftAdapterFolder adapter, PeftAdapterFolder? start, BaseFormat format)
    {
        IReadOnlyList<ModelModule> modules = LoraInjection.Modules(shape);
        TargetModules targets = TargetModules.Select(adapter.Config, shape.ModelType, modules);
        var plan = new AdapterPlan(shape, adapter, start) { Notices = targets.Notices };
        foreach (TargetModule target in targets.Targets)
        {
            plan.updates.Add(target.Path, target);
        }

        plan.replaced.UnionWith(targets.Saved);
        plan.RequireStart(format);
        plan.RequirePlaces(modules);
        plan.RequireTensors();
        return plan;
    }

    /// <summary>Whether the weight of the module differs from the base's.</summary>
    public bool Changes(string module) => updates.ContainsKey(module) || replaced.Contains(module);

    /// <summary>The tensor as it will be in the merged model.</summary>
    /// <param name="tensor">As the base's config describes it.</param>
    /// <param name="source">Its name in the base's files.</param>
    public MergedTensor Apply(ExpectedTensor tensor, string source)
    {
        bool isBias = tensor.Name.EndsWith(".bias", StringComparison.Ordinal);
        string module = tensor.Name[..tensor.Name.LastIndexOf('.')];
        ModelTensor? replacement = isBias
            ? adapter.Find(module, PeftTensorKind.SavedBias) ?? adapter.Find(module, PeftTensorKind.BaseBias)
            : adapter.Find(module, PeftTensorKind.SavedWeight) ?? adapter.Find(module + BaseLayer, PeftTensorKind.SavedWeight);
        long[] extents = tensor.Shape;
        if (replacement is { } stored)
        {
            // Tokens that were added give an embedding and its output layer more rows.
            bool mayGrow = module is EmbeddingModule or HeadModule && stored.Entry.Shape.Length == 2;
            extents = mayGrow ? [stored.Entry.Shape[0], tensor.Shape[1]] : tensor.Shape;
            RequireShape(stored, extents);
        }

        var changes = new List<Func<LowRankUpdate>>();
        if (updates.TryGetValue(module, out TargetModule target))
        {
            if (isBias && adapter.Find(module, PeftTensorKind.LoraBBias) is { } added)
            {
                RequireShape(added, extents);
                changes.Add(() => new LowRankUpdate([1], added.ReadSingles(), 1, (float)target.Scaling));
            }
            else if (!isBias)
            {
                changes.AddRange(start is null ? [] : [Update(start, target, extents, -1)]);
                changes.Add(Update(adapter, target, extents, 1));
            }
        }

        return new MergedTensor(tensor.Name, extents, source, replacement, changes);
    }

    private static Func<LowRankUpdate> Update(PeftAdapterFolder folder, TargetModule target, long[] extents, int sign)
    {
        float scaling = sign * (float)target.Scaling;
        if (target.Path == EmbeddingModule)
        {
            // Stored the other way round: (R, V) and (D, R).
            ModelTensor byToken = Require(folder, target.Path, PeftTensorKind.LoraEmbeddingA, target.Rank, extents[0]), byFeature = Require(folder, target.Path, PeftTensorKind.LoraEmbeddingB, extents[1], target.Rank);
            return () => new LowRankUpdate(Transposed(byFeature.ReadSingles(), target.Rank), Transposed(byToken.ReadSingles(), (int)extents[0]), target.Rank, scaling);
        }

        ModelTensor a = Require(folder, target.Path, PeftTensorKind.LoraA, target.Rank, extents[1]), b = Require(folder, target.Path, PeftTensorKind.LoraB, extents[0], target.Rank);
        ModelTensor? magnitude = folder.Config.UseDora ? Require(folder, target.Path, PeftTensorKind.Magnitude, extents[0]) : null;
        return () => new LowRankUpdate(a.ReadSingles(), b.ReadSingles(), target.Rank, scaling, magnitude is { } vector ? vector.ReadSingles() : null);
    }

    /// <summary>PiSSA and OLoRA take their start values out of the base: beside the base as it is, their adapter means something only together with its start.</summary>
    private void RequireStart(BaseFormat format)
    {
        string initialization = adapter.Config.InitLoraWeights;
        bool isTakenOut = StartsThatChangeTheBase.Any(name => initialization.StartsWith(name, StringComparison.OrdinalIgnoreCase));
        if (isTakenOut && start is null)
        {
            throw new ModelFormatException(
                $"{adapter.Path}: init_lora_weights is {initialization}: the base was changed by the start of the training, so the adapter alone does not say what is to be added to it. "
                + "Use the one in the output_dir of its run, which is plain LoRA; or give the adapter as it was at the start with --start-adapter.");
        }

        if (!isTakenOut && start is not null)
        {
            throw new ModelFormatException($"{start.Path} is given as the start of {adapter.Path}, whose init_lora_weights is {initialization}: that start left the base as it was. Leave --start-adapter out.");
        }

        if (start is not null && format != BaseFormat.AsStored)
        {
            throw new ModelFormatException($"{adapter.Path}: what its start left of the base was rounded after that, and cannot be made again from the base as it is. Give --quantization none: the result differs from what was trained by that rounding.");
        }

        if (start is not null && adapter.Config.UseDora)
        {
            throw new ModelFormatException($"{adapter.Path}: use_dora together with init_lora_weights {initialization} cannot be merged: the magnitudes are those of the changed base. Merge it with PEFT.");
        }
    }

    private void RequirePlaces(IReadOnlyList<ModelModule> modules)
    {
        HashSet<string> names = [.. shape.ExpectedTensors().Select(tensor => tensor.Name), ModelConfig.HeadTensor];
        HashSet<string> known = [.. modules.Select(module => module.Path)];
        string[] homeless = [.. adapter.Tensors.Keys.Where(key => !HasPlace(key)).Select(key => key.ToString()).Order(StringComparer.Ordinal)];
        if (homeless.Length > 0)
        {
            throw new ModelFormatException(
                $"{adapter.Path}: the adapter has {homeless.Length} {(homeless.Length == 1 ? "tensor" : "tensors")} for which this base has no place: "
                + $"{string.Join(", ", homeless.Take(ProblemsShown))}{(homeless.Length > ProblemsShown ? ", ..." : "")}. It was made for another model, or its adapter_config.json names other modules.");
        }

        bool HasPlace(PeftAdapterFolderKey key)
        {
            string module = key.Module.EndsWith(BaseLayer, StringComparison.Ordinal) ? key.Module[..^BaseLayer.Length] : key.Module;
            return key.Kind switch
            {
                PeftTensorKind.LoraA or PeftTensorKind.LoraB => updates.ContainsKey(module) && module != EmbeddingModule,
                PeftTensorKind.LoraEmbeddingA or PeftTensorKind.LoraEmbeddingB => updates.ContainsKey(module) && module == EmbeddingModule,
                PeftTensorKind.Magnitude => updates.ContainsKey(module) && module != EmbeddingModule && adapter.Config.UseDora,
                PeftTensorKind.LoraBBias => updates.ContainsKey(module) && names.Contains(module + ".bias"),
                PeftTensorKind.BaseBias or PeftTensorKind.SavedBias => names.Contains(module + ".bias"),
                PeftTensorKind.SavedWeight => known.Contains(module) && Replace(module),
                _ => false,
            };
        }

        // PEFT also saves the whole embedding where the vocabulary grew, without naming it among the modules.
        bool Replace(string module) => replaced.Contains(module) || (module is EmbeddingModule or HeadModule && replaced.Add(module));
    }

    private void RequireTensors()
    {
        foreach (string module in updates.Keys)
        {
            PeftTensorKind kind = module == EmbeddingModule ? PeftTensorKind.LoraEmbeddingA : PeftTensorKind.LoraA;
            if (adapter.Find(module, kind) is null)
            {
                throw Missing(adapter, module, kind);
            }
        }

        foreach (string module in replaced)
        {
            if (adapter.Find(module, PeftTensorKind.SavedWeight) is null && adapter.Find(module + BaseLayer, PeftTensorKind.SavedWeight) is null)
            {
                throw Missing(adapter, module, PeftTensorKind.SavedWeight);
            }
        }
    }

    private static ModelTensor Require(PeftAdapterFolder folder, string module, PeftTensorKind kind, params long[] extents)
    {
        ModelTensor tensor = folder.Find(module, kind) ?? throw Missing(folder, module, kind);
        RequireShape(tensor, extents);
        return tensor;
    }

    private static void RequireShape(ModelTensor tensor, long[] extents)
    {
        if (!tensor.Entry.Shape.SequenceEqual(extents))
        {
            throw new ModelFormatException(
                $"{tensor.File.Path}: {tensor.Entry.Name} is {tensor.Entry}, and the base needs the shape ({string.Join(", ", extents)}). The adapter has another rank, or was made for another model.");
        }
    }

    private static ModelFormatException Missing(PeftAdapterFolder folder, string module, PeftTensorKind kind) =>
        new($"{folder.Path}: the adapter has no {new PeftAdapterFolderKey(module, kind)}. It was made for another model or other target modules.");

    /// <summary>(rows, columns) to (columns, rows).</summary>
    private static float[] Transposed(float[] values, int columns)
    {
        int rows = values.Length / columns;
        float[] result = new float[values.Length];
        for (int row = 0; row < rows; row++)
        {
            for (int column = 0; column < columns; column++)
            {
                result[column * rows + row] = values[row * columns + column];
            }
        }

        return result;
    }
}
