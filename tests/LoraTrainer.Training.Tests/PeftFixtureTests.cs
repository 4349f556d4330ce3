using System.Text.Json;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Optimizers;
using Xunit;

namespace LoraTrainer.Training.Tests;

/// <summary>Whole training runs of PEFT and transformers, step by step, within the tolerances of the fixtures' README.</summary>
[Trait("Category", "Fixtures")]
public sealed class PeftFixtureTests(ITestOutputHelper output)
{
    public static TheoryData<string> AdapterCases => [.. Fixtures.Cases("peft").Where(name => NotYetSupported(Path.Combine("peft", name)) is null)];

    public static TheoryData<string> FullCases => [.. Fixtures.Cases("full").Where(name => NotYetSupported(Path.Combine("full", name)) is null)];

    [Fact]
    public void Discovery_EveryCase_IsRunOrNamed()
    {
        Check("peft", AdapterCases);
        Check("full", FullCases);

        void Check(string kind, TheoryData<string> run)
        {
            string[] all = [.. Directory.GetDirectories(Fixtures.Require(kind)).Select(folder => Path.GetFileName(folder)).Order(StringComparer.Ordinal)];
            output.WriteLine($"{kind} run: {run.Count} of {all.Length}: {string.Join(", ", run.Select(row => row.Data))}");
            output.WriteLine($"{kind} not yet supported: {string.Join(", ", all.Select(name => (name, Lacks: NotYetSupported(Path.Combine(kind, name)))).Where(item => item.Lacks is not null).Select(item => $"{item.name} ({item.Lacks})"))}");
            Assert.NotEmpty(run);

            // Which cases can be run is asked of the program here, not of the rules that the cases were chosen by.
            Assert.Equal(all.Where(name => IsTaken(Fixtures.Require(Path.Combine(kind, name)))), run.Select(row => row.Data));
        }
    }

    /// <summary>What the case needs and the trainer does not have yet, or null. Enabling a kind is deleting its line.</summary>
    private static string? NotYetSupported(string relative)
    {
        string file = Path.Combine(Fixtures.Root ?? "", relative, "case.json");
        if (Fixtures.Root is null || !File.Exists(file))
        {
            return null;
        }

        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(file));
        JsonElement description = document.RootElement;
        string family = Fixtures.ModelTypeOf(description.GetProperty("base_model").GetString()!);
        JsonElement peft = description.TryGetProperty("peft", out JsonElement settings) ? settings : default;
        string? initialization = Setting("init_lora_weights") is { ValueKind: JsonValueKind.String } start ? start.GetString() : null;
        return Fixtures.FamiliesNotYetSupported.Contains(family) ? family
            : Setting("use_dora") is { ValueKind: JsonValueKind.True } ? "DoRA"
            : initialization is "pissa" or "olora" ? initialization
            : Setting("modules_to_save") is { ValueKind: JsonValueKind.Array } ? "modules_to_save"
            : description.TryGetProperty("quantization", out JsonElement quantization) && quantization.ValueKind == JsonValueKind.String && quantization.GetString() == "int8" ? "an 8-bit base"
            : null;

        JsonElement? Setting(string name) => peft.ValueKind == JsonValueKind.Object && peft.TryGetProperty(name, out JsonElement value) ? value : null;
    }

    /// <summary>Whether the program takes the case's base, its quantization and its adapter.</summary>
    private static bool IsTaken(string folder)
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "case.json")));
        string baseFolder = Fixtures.Require(document.RootElement.GetProperty("base_model").GetString()!);
        try
        {
            using var device = new MeasureDevice(threadCount: 2);
            CausalLanguageModel model = ModelLoader.LoadFrozen(ModelConfig.Parse(baseFolder), null, device, FixtureRun.FormatOf(document.RootElement));
            string adapter = Path.Combine(folder, "adapter_start");
            if (Directory.Exists(adapter))
            {
                using PeftAdapterFolder start = PeftAdapterFolder.Open(adapter);
                LoraInjection.Inject(model, start.Config, seed: 0);
            }

            return true;
        }
        catch (Exception exception) when (exception is ModelFormatException or NotSupportedException)
        {
            return false;
        }
    }

    [Theory]
    [MemberData(nameof(AdapterCases))]
    public void AdapterTraining_EqualsPeft(string name)
    {
        string folder = Fixtures.Require(Path.Combine("peft", name));
        using var run = new FixtureRun(folder);
        using PeftAdapterFolder start = PeftAdapterFolder.Open(Path.Combine(folder, "adapter_start"));
        LoraInjection adapters = LoraInjection.Inject(run.Model, start.Config, seed: 0, run.LoraPlusRatio);
        adapters.Load(start);
        run.Train(new FixtureTensors(Path.Combine(folder, "first_step_gradients.safetensors")));

        using var folderOut = new TemporaryFolder();
        adapters.Save(folderOut.Path);
        var expected = new FixtureTensors(Path.Combine(folder, "adapter_end", PeftAdapterFolder.WeightsFileName));
        var actual = new FixtureTensors(folderOut.File(PeftAdapterFolder.WeightsFileName));
        Assert.Equal(expected.Names.Order(StringComparer.Ordinal), actual.Names.Order(StringComparer.Ordinal));
        foreach (string tensor in expected.Names)
        {
            TensorAssert.Close(expected.Floats(tensor), actual.Floats(tensor), 5e-5, $"{name} {tensor}");
        }

        CheckLogitsAfter(folder, name, run);
        CheckMerged(folder, name, run);
    }

    [Theory]
    [MemberData(nameof(FullCases))]
    public void FullTraining_EqualsTransformers(string name)
    {
        string folder = Fixtures.Require(Path.Combine("full", name));
        using var run = new FixtureRun(folder, trainable: true);
        string[] noDecay = [.. run.Case.GetProperty("no_decay").EnumerateArray().Select(item => item.GetString()!)];
        Assert.Equal(noDecay.Order(StringComparer.Ordinal), run.Model.Parameters.Parameters.Where(parameter => !parameter.Decays).Select(parameter => parameter.Name).Order(StringComparer.Ordinal));
        run.Train(firstStepGradients: null);
        var expected = new FixtureTensors(Path.Combine(folder, "model_end.safetensors"));
        foreach (Parameter parameter in run.Model.Parameters.Parameters)
        {
            TensorAssert.Close(expected.Floats(parameter.Name), parameter.Value.Download(), 1e-4, $"{name} {parameter.Name}");
        }
    }

    private static void CheckLogitsAfter(string folder, string name, FixtureRun run)
    {
        var after = new FixtureTensors(Path.Combine(folder, "after.safetensors"));
        using ArenaFrame frame = run.Device.Arena.Frame();
        HostBatch batch = HostBatch.FromRows(after.Integers("input_ids"), null, (int)after.Shape("input_ids")[1]);
        Tensor logits = run.Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount, run.Model.Config.VocabSize));
        run.Model.Logits(logits, batch.Upload(run.Device));
        TensorAssert.Close(after.Floats("logits"), logits.Download(), 1e-4, $"{name} logits after training");
    }

    /// <summary>W + s * B A, formed with the engine's own products.</summary>
    private static void CheckMerged(string folder, string name, FixtureRun run)
    {
        string path = Path.Combine(folder, "merged.safetensors");
        if (!File.Exists(path))
        {
            // Quantized bases have none.
            Assert.True(run.Case.TryGetProperty("quantization", out JsonElement quantization) && quantization.ValueKind == JsonValueKind.String, $"{name} has no merged weights");
            return;
        }

        var merged = new FixtureTensors(path);
        foreach (string tensor in merged.Names)
        {
            AdaptedLinear linear = run.Model.Linears.Single(item => item.Name + ".weight" == tensor);
            using ArenaFrame frame = run.Device.Arena.Frame();
            Tensor weight = run.Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(linear.Out, linear.In));
            run.Device.Copy(weight, ((DenseMatrix)linear.Weight).Values);
            if (linear.Adapter is { } adapter)
            {
                Linear.BackwardInput(weight, adapter.B.Value, new DenseMatrix(adapter.A.Value), GradientMode.Accumulate, adapter.Scaling);
            }

            TensorAssert.Close(merged.Floats(tensor), weight.Download(), 1e-5, $"{name} merged {tensor}");
        }
    }

    private sealed class FixtureRun : IDisposable
    {
        private readonly JsonDocument document;
        private readonly string folder;

        public FixtureRun(string folder, bool trainable = false)
        {
            this.folder = folder;
            document = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "case.json")));
            string baseFolder = Fixtures.Require(Case.GetProperty("base_model").GetString()!);
            ModelConfig config = ModelConfig.Parse(baseFolder);
            using ModelFolder files = ModelFolder.Open(baseFolder);
            Device = new CpuDevice(threadCount: 2, capacityBytes: 256 << 20);
            Model = trainable ? ModelLoader.LoadTrainable(config, files, Device) : ModelLoader.LoadFrozen(config, files, Device, FormatOf(Case));
        }

        public static BaseFormat FormatOf(JsonElement description) => (description.TryGetProperty("quantization", out JsonElement value) ? value.GetString() : null) switch
        {
            null => BaseFormat.AsStored,
            "nf4" => BaseFormat.Nf4,
            "nf4-dq" => BaseFormat.Nf4DoubleQuantized,
            { } other => throw new NotSupportedException($"the quantization {other} is not known here"),
        };

        public JsonElement Case => document.RootElement;

        public double LoraPlusRatio => Case.GetProperty("optimizer").GetProperty("lora_plus_ratio") is { ValueKind: JsonValueKind.Number } ratio ? ratio.GetDouble() : 1;

        public CpuDevice Device { get; }

        public CausalLanguageModel Model { get; }

        public void Train(FixtureTensors? firstStepGradients)
        {
            JsonElement optimizer = Case.GetProperty("optimizer");
            var options = new OptimizerOptions
            {
                LearningRate = optimizer.GetProperty("lr").GetDouble(),
                Beta1 = optimizer.GetProperty("beta1").GetDouble(),
                Beta2 = optimizer.GetProperty("beta2").GetDouble(),
                Epsilon = optimizer.GetProperty("eps").GetDouble(),
                WeightDecay = optimizer.GetProperty("weight_decay").GetDouble(),
            };
            int steps = Case.GetProperty("steps").GetInt32();
            int accumulation = Case.GetProperty("gradient_accumulation").GetInt32();
            JsonElement scheduleCase = Case.GetProperty("schedule");
            LearningRateSchedule kind = Enum.Parse<LearningRateSchedule>(scheduleCase.GetProperty("name").GetString()!.Replace("_", "", StringComparison.Ordinal), ignoreCase: true);
            var schedule = new Schedule(kind, options.LearningRate, scheduleCase.GetProperty("warmup_steps").GetInt32(), steps);
            var state = new OptimizerState(Device, Model.Parameters, options);
            var batches = new FixtureTensors(Path.Combine(folder, "batches.safetensors"));
            JsonElement[] log = [.. Case.GetProperty("log").EnumerateArray()];
            for (int step = 0; step < steps; step++)
            {
                HostBatch[] micro = [.. Enumerable.Range(0, accumulation).Select(index => Batch(batches, step, index))];
                int scored = micro.Sum(batch => batch.ScoredCount);
                Device.Zero(Model.Parameters.Gradients);
                double loss = 0;
                foreach (HostBatch batch in micro)
                {
                    using ArenaFrame frame = Device.Arena.Frame();
                    Tensor losses = Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount));
                    Model.ForwardBackward(losses, batch.Upload(Device), DropoutState.Inactive, 1f / scored, recompute: step % 2 == 1);
                    loss += losses.Download().Sum(value => (double)value);
                }

                double norm = GradientNorm.Compute(Model.Parameters.Gradients);
                double rate = schedule.RateAt(step);
                Assert.Equal(log[step].GetProperty("loss").GetDouble(), loss / scored, 1e-5);
                double expectedNorm = log[step].GetProperty("grad_norm").GetDouble();
                Assert.True(Math.Abs(norm - expectedNorm) <= 1e-5 * expectedNorm, $"step {step}: gradient norm {norm}, expected {expectedNorm}");
                Assert.Equal(log[step].GetProperty("lr").GetDouble(), rate, 1e-12);
                if (step == 0 && firstStepGradients is not null)
                {
                    CheckGradients(firstStepGradients);
                }

                state.Step(step + 1, rate, GradientNorm.ClipCoefficient(norm, Case.GetProperty("max_grad_norm").GetDouble()));
            }
        }

        public void Dispose()
        {
            Device.Dispose();
            document.Dispose();
        }

        private static HostBatch Batch(FixtureTensors batches, int step, int micro)
        {
            string prefix = $"{step}.{micro}.";
            int[] ids = batches.Integers(prefix + "input_ids");
            int[] labels = batches.Has(prefix + "labels") ? batches.Integers(prefix + "labels") : ids;
            return HostBatch.FromRows(ids, labels, (int)batches.Shape(prefix + "input_ids")[1]);
        }

        private void CheckGradients(FixtureTensors expected)
        {
            int compared = 0;
            foreach (Parameter parameter in Model.Parameters.Parameters)
            {
                string name = "base_model.model." + parameter.Name.Replace(".weight", ".default.weight", StringComparison.Ordinal);
                TensorAssert.RelativeL2(expected.Floats(name), parameter.Gradient.Download(), 2e-5, name);
                compared++;
            }

            Assert.Equal(expected.Names.Count(), compared);
        }
    }
}
