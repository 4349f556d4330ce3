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
using Xunit;

namespace LoraTrainer.Training.Tests;

/// <summary>Whole training runs of PEFT and transformers, step by step, within the tolerances of the fixtures' README.</summary>
[Trait("Category", "Fixtures")]
public sealed class PeftFixtureTests(ITestOutputHelper output)
{
    public static TheoryData<string> AdapterCases => [.. Fixtures.Cases("peft").Where(name => PeftFixture.NotYetSupported(Path.Combine("peft", name)) is null)];

    public static TheoryData<string> FullCases => [.. Fixtures.Cases("full").Where(name => PeftFixture.NotYetSupported(Path.Combine("full", name)) is null)];

    [Fact]
    public void Discovery_EveryCase_IsRunOrNamed()
    {
        Check("peft", AdapterCases);
        Check("full", FullCases);

        void Check(string kind, TheoryData<string> run)
        {
            string[] all = [.. Directory.GetDirectories(Fixtures.Require(kind)).Select(folder => Path.GetFileName(folder)).Order(StringComparer.Ordinal)];
            output.WriteLine($"{kind} run: {run.Count} of {all.Length}: {string.Join(", ", run.Select(row => row.Data))}");
            output.WriteLine($"{kind} not yet supported: {string.Join(", ", all.Select(name => (name, Lacks: PeftFixture.NotYetSupported(Path.Combine(kind, name)))).Where(item => item.Lacks is not null).Select(item => $"{item.name} ({item.Lacks})"))}");
            Assert.NotEmpty(run);

            // Which cases can be run is asked of the program here, not of the rules that the cases were chosen by.
            Assert.Equal(all.Where(name => IsTaken(Fixtures.Require(Path.Combine(kind, name)))), run.Select(row => row.Data));
        }
    }

    /// <summary>Whether the program takes the case's base, its quantization and its adapter.</summary>
    private static bool IsTaken(string folder)
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "case.json")));
        string baseFolder = Fixtures.Require(document.RootElement.GetProperty("base_model").GetString()!);
        try
        {
            using var device = new MeasureDevice(threadCount: 2);
            ModelConfig config = ModelConfig.Parse(baseFolder);
            CausalLanguageModel model = ModelLoader.LoadFrozen(config, null, device, PeftFixture.FormatOf(document.RootElement));
            string adapter = Path.Combine(folder, "adapter_start");
            if (Directory.Exists(adapter))
            {
                using PeftAdapterFolder start = PeftAdapterFolder.Open(adapter);
                LoraInjection.Inject(model, start.Config, seed: 0, start: AdapterStart.For(start.Config, config));
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
        using var run = new PeftFixture(folder, Cpu());
        PeftFixtureResult result = run.Train();
        CheckSteps(run, result);
        CheckGradients(folder, result);

        using var folderOut = new TemporaryFolder();
        run.Adapters!.Save(folderOut.Path);
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
        using var run = new PeftFixture(folder, Cpu(), trainable: true);
        string[] noDecay = [.. run.Case.GetProperty("no_decay").EnumerateArray().Select(item => item.GetString()!)];
        Assert.Equal(noDecay.Order(StringComparer.Ordinal), run.Model.Parameters.Parameters.Where(parameter => !parameter.Decays).Select(parameter => parameter.Name).Order(StringComparer.Ordinal));
        PeftFixtureResult result = run.Train();
        CheckSteps(run, result);
        var expected = new FixtureTensors(Path.Combine(folder, "model_end.safetensors"));
        foreach ((string parameter, float[] values) in result.End)
        {
            TensorAssert.Close(expected.Floats(parameter), values, 1e-4, $"{name} {parameter}");
        }
    }

    private static void CheckLogitsAfter(string folder, string name, PeftFixture run)
    {
        var after = new FixtureTensors(Path.Combine(folder, "after.safetensors"));
        TensorAssert.Close(after.Floats("logits"), run.LogitsAfter(after), 1e-4, $"{name} logits after training");
    }

    /// <summary>W + s * B A, formed with the engine's own products, and the biases.</summary>
    private static void CheckMerged(string folder, string name, PeftFixture run)
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
            AdaptedLinear linear = run.Model.Linears.Single(item => tensor == item.Name + ".weight" || tensor == item.Name + ".bias");
            if (tensor.EndsWith(".bias", StringComparison.Ordinal))
            {
                // Merging leaves it as it is: an adapter has none.
                TensorAssert.Close(merged.Floats(tensor), linear.Bias.Download(), 1e-5, $"{name} merged {tensor}");
                continue;
            }

            using ArenaFrame frame = run.Device.Arena.Frame();
            Tensor weight = run.Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(linear.Out, linear.In));
            run.Device.Copy(weight, ((DenseMatrix)linear.Weight).Values);
            if (linear.Adapter is { } adapter)
            {
                Linear.BackwardInput(weight, adapter.B.Value, new DenseMatrix(adapter.A.Value), GradientMode.Accumulate, adapter.Scaling);
                if (adapter.Magnitude is { } magnitude)
                {
                    ScaleRows(weight, magnitude.Value.Download());
                }
            }

            TensorAssert.Close(merged.Floats(tensor), weight.Download(), 1e-5, $"{name} merged {tensor}");
        }
    }

    /// <summary>Gives every row the length that DoRA learned for it.</summary>
    private static void ScaleRows(Tensor weight, float[] magnitude)
    {
        float[] values = weight.Download();
        int width = (int)weight.Shape[1];
        for (int row = 0; row < magnitude.Length; row++)
        {
            Span<float> w = values.AsSpan(row * width, width);
            double length = Math.Sqrt(w.ToArray().Sum(v => (double)v * v));
            foreach (ref float v in w)
            {
                v = (float)(v * magnitude[row] / length);
            }
        }

        weight.Device.Upload(weight, System.Runtime.InteropServices.MemoryMarshal.AsBytes(values.AsSpan()));
    }

    /// <summary>Each step's loss, gradient norm and learning rate.</summary>
    private static void CheckSteps(PeftFixture run, PeftFixtureResult result)
    {
        JsonElement[] log = [.. run.Case.GetProperty("log").EnumerateArray()];
        Assert.Equal(log.Length, result.Steps.Count);
        for (int step = 0; step < log.Length; step++)
        {
            (double loss, double norm, double rate) = result.Steps[step];
            Assert.Equal(log[step].GetProperty("loss").GetDouble(), loss, 1e-5);
            double expectedNorm = log[step].GetProperty("grad_norm").GetDouble();
            Assert.True(Math.Abs(norm - expectedNorm) <= 1e-5 * expectedNorm, $"step {step}: gradient norm {norm}, expected {expectedNorm}");
            Assert.Equal(log[step].GetProperty("lr").GetDouble(), rate, 1e-12);
        }
    }

    private static void CheckGradients(string folder, PeftFixtureResult result)
    {
        var expected = new FixtureTensors(Path.Combine(folder, "first_step_gradients.safetensors"));
        Assert.Equal(expected.Names.Count(), result.FirstStepGradients.Count);
        foreach ((string parameter, float[] gradient) in result.FirstStepGradients)
        {
            string name = PeftFixture.GradientName(parameter);
            TensorAssert.RelativeL2(expected.Floats(name), gradient, 2e-5, name);
        }
    }

    private static CpuDevice Cpu() => new(threadCount: 2, ModelFixture.ArenaBytes);
}
