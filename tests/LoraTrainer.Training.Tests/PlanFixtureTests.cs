using System.Text.Json;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Training.Tests;

/// <summary>The shapes of real models: what the plan counts is what transformers and PEFT count.</summary>
[Trait("Category", "Fixtures")]
public sealed class PlanFixtureTests(ITestOutputHelper output)
{
    public static TheoryData<string> Shapes => [.. Fixtures.Cases("plan").Where(name => !Fixtures.FamiliesNotYetSupported.Contains(Fixtures.ModelTypeOf(Path.Combine("plan", name))))];

    [Fact]
    public void Discovery_EveryShape_IsRunOrNamed()
    {
        string[] all = [.. Directory.GetDirectories(Fixtures.Require("plan")).Order(StringComparer.Ordinal)];

        // Which shapes can be run is asked of the program here, not of the list that the cases were chosen by.
        string[] known = [.. all.Where(folder => Record.Exception(() => ModelConfig.Parse(folder)) is null).Select(folder => Path.GetFileName(folder))];
        output.WriteLine($"shapes run: {known.Length} of {all.Length}: {string.Join(", ", known)}");
        output.WriteLine($"shapes not yet supported: {string.Join(", ", all.Select(folder => Path.GetFileName(folder)).Except(known))}");
        Assert.NotEmpty(known);
        Assert.Equal(known, Shapes.Select(row => row.Data));
    }

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Counts_AreThoseOfTheReference(string name)
    {
        string folder = Fixtures.Require(Path.Combine("plan", name));
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "expected.json")));
        JsonElement expected = document.RootElement;
        ModelConfig config = ModelConfig.Parse(folder);
        using var device = new MeasureDevice(threadCount: 2);
        CausalLanguageModel model = ModelLoader.LoadFrozen(config, null, device, BaseFormat.Nf4DoubleQuantized);

        Assert.Equal(expected.GetProperty("parameters").GetInt64(), config.ExpectedTensors().Sum(tensor => tensor.Shape.Aggregate(1L, (product, extent) => product * extent)));
        Assert.Equal(expected.GetProperty("decoder_linear_parameters").GetInt64(), model.Linears.Sum(linear => (long)linear.In * linear.Out));
        Assert.Equal(expected.GetProperty("decoder_linear_nf4_double_quant_bytes").GetInt64(), model.Linears.Sum(linear => linear.Weight.SizeBytes));
        int settings = 0;
        foreach (JsonProperty setting in expected.GetProperty("trainable_parameters").EnumerateObject())
        {
            if (setting.Value.ValueKind == JsonValueKind.Null)
            {
                // The model has none of the modules that the setting names.
                Assert.Throws<ModelFormatException>(() => Trainable(config, setting.Name));
            }
            else
            {
                Assert.Equal(setting.Value.GetInt64(), Trainable(config, setting.Name));
            }

            settings++;
        }

        Assert.True(settings > 0, $"{name} names no adapter settings");
    }

    /// <summary>Settings are named <c>lora_rRANK_MODULES</c> or <c>dora_rRANK_MODULES</c>.</summary>
    private static long Trainable(ModelConfig config, string setting)
    {
        string[] parts = setting.Split('_', 3);
        ModuleNames targets = parts[2] switch
        {
            "qkv" => ModuleNames.Of("q_proj", "k_proj", "v_proj"),
            "all" => ModuleNames.Of("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            "all_linear" => ModuleNames.Matching("all-linear"),
            _ => throw new NotSupportedException($"the adapter setting {setting} is not known here"),
        };
        using var device = new MeasureDevice(threadCount: 2);
        CausalLanguageModel model = ModelLoader.LoadFrozen(config, null, device, BaseFormat.Nf4);
        LoraInjection.Inject(model, new AdapterConfig { R = int.Parse(parts[1][1..], System.Globalization.CultureInfo.InvariantCulture), TargetModules = targets, UseDora = parts[0] == "dora" }, seed: 0);
        return model.Parameters.TrainableCount;
    }
}
