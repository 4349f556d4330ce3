using System.Text.Json;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Optimizers;

namespace LoraTrainer.TestSupport;

/// <summary>A training run of PEFT or transformers from the reference fixtures, made again on a device. Disposing it disposes the device.</summary>
public sealed class PeftFixture : IDisposable
{
    private readonly JsonDocument document;

    /// <param name="folder">A case's folder.</param>
    /// <param name="device">With an arena of <see cref="ModelFixture.ArenaBytes"/>.</param>
    /// <param name="trainable">All weights are trained; otherwise the adapter in adapter_start.</param>
    public PeftFixture(string folder, Device device, bool trainable = false)
    {
        Folder = folder;
        Device = device;
        document = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "case.json")));
        string baseFolder = Fixtures.Require(Case.GetProperty("base_model").GetString()!);
        ModelConfig config = ModelConfig.Parse(baseFolder);
        using ModelFolder files = ModelFolder.Open(baseFolder);
        if (trainable)
        {
            Model = ModelLoader.LoadTrainable(config, files, device);
            return;
        }

        using PeftAdapterFolder start = PeftAdapterFolder.Open(Path.Combine(folder, "adapter_start"));

        // Decompositions are unique only in their product: the reference's own start is taken.
        AdapterStart? taken = AdapterStart.Changes(start.Config) ? AdapterStart.From(start, config) : null;
        Model = ModelLoader.LoadFrozen(config, files, device, FormatOf(Case), taken);
        double ratio = Case.GetProperty("optimizer").GetProperty("lora_plus_ratio") is { ValueKind: JsonValueKind.Number } number ? number.GetDouble() : 1;
        Adapters = LoraInjection.Inject(Model, start.Config, seed: 0, LoraPlusRates.None with { B = ratio }, taken);
        Adapters.Load(start);
    }

    public string Folder { get; }

    public Device Device { get; }

    public CausalLanguageModel Model { get; }

    /// <summary>Null where all weights are trained.</summary>
    public LoraInjection? Adapters { get; }

    public JsonElement Case => document.RootElement;

    /// <summary>How the case keeps its base.</summary>
    /// <param name="description">Its case.json.</param>
    public static BaseFormat FormatOf(JsonElement description) => (description.TryGetProperty("quantization", out JsonElement value) ? value.GetString() : null) switch
    {
        null => BaseFormat.AsStored,
        "nf4" => BaseFormat.Nf4,
        "nf4-dq" => BaseFormat.Nf4DoubleQuantized,
        "int8" => BaseFormat.EightBit,
        { } other => throw new NotSupportedException($"the quantization {other} is not known here"),
    };

    /// <summary>What the case needs and the trainer does not have yet, or null. Enabling a kind is deleting its line.</summary>
    public static string? NotYetSupported(string relative)
    {
        if (Read(relative) is not { } description)
        {
            return null;
        }

        string family = Fixtures.ModelTypeOf(description.GetProperty("base_model").GetString()!);
        return Fixtures.FamiliesNotYetSupported.Contains(family) ? family : null;
    }

    /// <summary>The folder of the model fixtures that the case trains; empty where there is no such case.</summary>
    public static string BaseModelOf(string relative) => Read(relative) is { } description ? Path.GetFileName(description.GetProperty("base_model").GetString()!) : string.Empty;

    /// <summary>The case's description; null where there is no such case.</summary>
    private static JsonElement? Read(string relative)
    {
        string file = Path.Combine(Fixtures.Root ?? "", relative, "case.json");
        if (Fixtures.Root is null || !File.Exists(file))
        {
            return null;
        }

        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(file));
        return document.RootElement.Clone();
    }

    /// <summary>All steps of the case, every second one with recomputation.</summary>
    public PeftFixtureResult Train()
    {
        JsonElement optimizer = Case.GetProperty("optimizer");
        var options = new OptimizerOptions
        {
            LearningRate = optimizer.GetProperty("lr").GetDouble(),
            Beta1 = optimizer.GetProperty("beta1").GetDouble(),
            Beta2 = optimizer.GetProperty("beta2").GetDouble(),
            Epsilon = optimizer.GetProperty("eps").GetDouble(),
            WeightDecay = optimizer.GetProperty("weight_decay").GetDouble(),
            MaxGradNorm = Case.GetProperty("max_grad_norm").GetDouble(),
        };
        int steps = Case.GetProperty("steps").GetInt32();
        JsonElement scheduleCase = Case.GetProperty("schedule");
        LearningRateSchedule kind = Enum.Parse<LearningRateSchedule>(scheduleCase.GetProperty("name").GetString()!.Replace("_", "", StringComparison.Ordinal), ignoreCase: true);
        var schedule = new Schedule(kind, options.LearningRate, scheduleCase.GetProperty("warmup_steps").GetInt32(), steps);
        var state = new OptimizerState(Device, Model.Parameters, options);
        var batches = new FixtureTensors(Path.Combine(Folder, "batches.safetensors"));
        var result = new PeftFixtureResult();
        for (int step = 0; step < steps; step++)
        {
            using ArenaFrame frame = Device.Arena.Frame();
            StepReport report = StepReport.Allocate(Device);
            int scored = Accumulate(batches, step, report, result.TokenLosses);
            GradientNorm.Compute(report.GradientNorm, Model.Parameters.Gradients);
            if (step == 0)
            {
                result.FirstStepGradients = Download(parameter => parameter.Gradient);
            }

            double rate = schedule.RateAt(step);
            state.Step(step + 1, rate, report.Values);
            (double lossSum, double norm) = report.Read();
            result.Steps.Add((lossSum / scored, norm, rate));
        }

        result.End = Download(parameter => parameter.Value);
        return result;
    }

    /// <summary>(N, V): of the trained model on the rows of after.safetensors.</summary>
    public float[] LogitsAfter(FixtureTensors after)
    {
        using ArenaFrame frame = Device.Arena.Frame();
        HostBatch batch = HostBatch.FromRows(after.Integers("input_ids"), null, (int)after.Shape("input_ids")[1]);
        Tensor logits = Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount, Model.Config.VocabSize));
        Model.Logits(logits, batch.Upload(Device));
        return logits.Download();
    }

    /// <summary>A parameter's name in the files of PEFT that keep gradients.</summary>
    public static string GradientName(string parameter) => "base_model.model."
        + parameter.Replace(".weight", parameter.Contains(".lora_", StringComparison.Ordinal) ? ".default.weight" : ".modules_to_save.default.weight", StringComparison.Ordinal);

    public void Dispose()
    {
        Device.Dispose();
        document.Dispose();
    }

    private int Accumulate(FixtureTensors batches, int step, StepReport report, List<float> tokenLosses)
    {
        HostBatch[] micro = [.. Enumerable.Range(0, Case.GetProperty("gradient_accumulation").GetInt32()).Select(index => Batch(batches, step, index))];
        int scored = micro.Sum(batch => batch.ScoredCount);
        Device.Zero(Model.Parameters.Gradients);
        foreach (HostBatch batch in micro)
        {
            using ArenaFrame frame = Device.Arena.Frame();
            Tensor losses = Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount));
            Model.ForwardBackward(losses, batch.Upload(Device), DropoutState.Inactive, 1f / scored, recompute: step % 2 == 1);
            LossSum.Accumulate(report.LossSum, losses);
            tokenLosses.AddRange(losses.Download());
        }

        return scored;
    }

    private static HostBatch Batch(FixtureTensors batches, int step, int micro)
    {
        string prefix = $"{step}.{micro}.";
        int[] ids = batches.Integers(prefix + "input_ids");
        int[] labels = batches.Has(prefix + "labels") ? batches.Integers(prefix + "labels") : ids;
        return HostBatch.FromRows(ids, labels, (int)batches.Shape(prefix + "input_ids")[1]);
    }

    private Dictionary<string, float[]> Download(Func<Parameter, Tensor> part) =>
        Model.Parameters.Parameters.ToDictionary(parameter => parameter.Name, parameter => part(parameter).Download(), StringComparer.Ordinal);
}

/// <summary>What a run came to.</summary>
public sealed class PeftFixtureResult
{
    /// <summary>Mean loss, gradient norm before clipping and learning rate of each step.</summary>
    public List<(double Loss, double GradientNorm, double LearningRate)> Steps { get; } = [];

    /// <summary>The loss of every token of every step; 0 where nothing is predicted.</summary>
    public List<float> TokenLosses { get; } = [];

    /// <summary>By parameter name, summed over the micro-batches, before clipping.</summary>
    public IReadOnlyDictionary<string, float[]> FirstStepGradients { get; internal set; } = new Dictionary<string, float[]>();

    /// <summary>All that was trained, by parameter name.</summary>
    public IReadOnlyDictionary<string, float[]> End { get; internal set; } = new Dictionary<string, float[]>();
}
