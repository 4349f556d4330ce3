using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Adapters;

/// <summary>Where adapters lie in the buffers, and which of them share their products with A.</summary>
public sealed class LoraInjectionTests
{
    private const string AllLinear = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj";

    /// <summary>Families, targets, the config beyond them, and the adapters of a block, joined where they share.</summary>
    public static TheoryData<string, string, string, string> Cases => new()
    {
        { "llama", AllLinear, "", "q_proj+k_proj+v_proj o_proj gate_proj+up_proj down_proj" },
        { "llama", AllLinear, "rslora", "q_proj+k_proj+v_proj o_proj gate_proj+up_proj down_proj" },
        { "llama", AllLinear, "dora", "q_proj+k_proj+v_proj o_proj gate_proj+up_proj down_proj" },
        { "llama", AllLinear, "dropout", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj" },
        { "llama", "q_proj v_proj down_proj", "", "q_proj+v_proj down_proj" },
        { "llama", "v_proj up_proj", "", "v_proj up_proj" },

        // Ranks may differ; 2 rows of 64 leave padding behind them, which only the last of a stack may do.
        { "llama", AllLinear, "k_proj 12", "q_proj+k_proj+v_proj o_proj gate_proj+up_proj down_proj" },
        { "llama", AllLinear, "k_proj 2", "q_proj+k_proj v_proj o_proj gate_proj+up_proj down_proj" },
        { "llama", AllLinear, "v_proj 2", "q_proj+k_proj+v_proj o_proj gate_proj+up_proj down_proj" },
        { "phi3", "qkv_proj o_proj gate_up_proj down_proj", "", "qkv_proj o_proj gate_up_proj down_proj" },
    };

    [Theory]
    [MemberData(nameof(Cases))]
    public void Inject_AdaptersOfOneInput_ShareWhereTheyMay(string family, string targets, string what, string expected)
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path, shape: TinyRun.Shape with { ModelType = family, Architecture = family == "phi3" ? "Phi3ForCausalLM" : "LlamaForCausalLM", FusedProjections = family == "phi3" });
        using var device = new CpuDevice(1, 1 << 26);
        using ModelFolder files = ModelFolder.Open(folder.Path);
        CausalLanguageModel model = ModelLoader.LoadFrozen(ModelConfig.Parse(folder.Path), files, device, BaseFormat.AsStored);
        string[] pattern = what.Split(' ');
        LoraInjection.Inject(
            model,
            new AdapterConfig
            {
                R = 4, LoraAlpha = 8, TargetModules = ModuleNames.Of(targets.Split(' ')), UseRslora = what == "rslora", UseDora = what == "dora", LoraDropout = what == "dropout" ? 0.1 : 0,
                RankPattern = pattern.Length == 2 ? [new(pattern[0], int.Parse(pattern[1], System.Globalization.CultureInfo.InvariantCulture))] : [],
            },
            seed: 3);

        foreach (DecoderLayer layer in model.Layers)
        {
            (AdaptedLinear Linear, LoraAdapter Adapter)[] adapted = [.. layer.Linears.Where(linear => linear.Adapter is not null).Select(linear => (linear, linear.Adapter!))];
            Assert.Equal(expected, string.Join(" ", adapted.GroupBy(item => item.Adapter.Joint).Select(joint => string.Join("+", joint.Select(item => item.Linear.Name.Split('.')[^1])))));
            foreach (IGrouping<Parameter, (AdaptedLinear Linear, LoraAdapter Adapter)> joint in adapted.GroupBy(item => item.Adapter.Joint))
            {
                Assert.Equal(joint.Key.Value.Download(), joint.SelectMany(item => item.Adapter.A.Value.Download()));
                Assert.Equal(joint.Select((_, i) => joint.Take(i).Sum(item => item.Adapter.Rank)), joint.Select(item => item.Adapter.JointRow));
                Assert.Equal(new Shape(joint.Sum(item => item.Adapter.Rank), joint.First().Linear.In), joint.Key.Shape);
            }

            // What is trained is each matrix by its own name; the stacks are views.
            Assert.All(adapted, item => Assert.Contains(item.Adapter.A, model.Parameters.Parameters));
            Assert.All(adapted.Where(item => item.Adapter.Joint != item.Adapter.A), item => Assert.DoesNotContain(item.Adapter.Joint, model.Parameters.Parameters));
        }
    }

    /// <summary>Start values and random streams belong to a place in the model, wherever it lies in the buffers and whatever it shares.</summary>
    [Fact]
    public void Inject_WithAndWithoutSharing_StartsTheSame()
    {
        Dictionary<string, float[]> alone = Start(0.1), together = Start(0);
        Assert.Equal(alone.Keys.Order(StringComparer.Ordinal), together.Keys.Order(StringComparer.Ordinal));
        Assert.All(alone, item => Assert.Equal(item.Value, together[item.Key]));

        static Dictionary<string, float[]> Start(double dropout)
        {
            using var folder = new TemporaryFolder();
            TinyRun.WriteBase(folder.Path);
            using var device = new CpuDevice(1, 1 << 26);
            using ModelFolder files = ModelFolder.Open(folder.Path);
            CausalLanguageModel model = ModelLoader.LoadFrozen(ModelConfig.Parse(folder.Path), files, device, BaseFormat.AsStored);
            LoraInjection.Inject(model, new AdapterConfig { R = 4, LoraAlpha = 8, TargetModules = ModuleNames.Of(AllLinear.Split(' ')), LoraDropout = dropout }, seed: 3);
            return model.Parameters.Parameters.ToDictionary(parameter => parameter.Name, parameter => parameter.Value.Download(), StringComparer.Ordinal);
        }
    }
}
