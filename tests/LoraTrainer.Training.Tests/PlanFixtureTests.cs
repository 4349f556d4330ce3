using System.Text.Json;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Training.Tests;

/// <summary>The shapes of real models: what the plan counts is what transformers and PEFT count.</summary>
[Trait("Category", "Fixtures")]
public sealed class PlanFixtureTests(ITestOutputHelper output)
{
    /// <summary>Shapes whose family the model code does not know yet.</summary>
    private static readonly string[] NotYetSupported = ["mistral", "qwen", "phi", "gemma", "mixtral"];

    public static TheoryData<string> Shapes => [.. Fixtures.Cases("plan").Where(name => !NotYetSupported.Any(family => name.StartsWith(family, StringComparison.Ordinal)))];

    [Fact]
    public void Discovery_EveryShape_IsRunOrNamed()
    {
        Fixtures.Require("plan");
        output.WriteLine($"shapes run: {string.Join(", ", Shapes.Select(row => row.Data))}");
        output.WriteLine($"shapes not yet supported: {string.Join(", ", Fixtures.Cases("plan").Except(Shapes.Select(row => row.Data)))}");
        output.WriteLine("settings not yet supported: dora_*");
        Assert.NotEmpty(Shapes);
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
            if (setting.Name.StartsWith("dora_", StringComparison.Ordinal))
            {
                continue;
            }

            Assert.Equal(setting.Value.GetInt64(), Trainable(config, setting.Name));
            settings++;
        }

        Assert.True(settings > 0, $"{name} names no adapter settings");
    }

    /// <summary>Settings are named <c>lora_rRANK_MODULES</c>.</summary>
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
        LoraInjection.Inject(model, new AdapterConfig { R = int.Parse(parts[1][1..], System.Globalization.CultureInfo.InvariantCulture), TargetModules = targets }, seed: 0);
        return model.Parameters.TrainableCount;
    }
}
