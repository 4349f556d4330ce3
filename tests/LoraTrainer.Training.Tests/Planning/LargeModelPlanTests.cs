using System.Globalization;
using System.Text;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Planning;
using Xunit;

namespace LoraTrainer.Training.Tests.Planning;

/// <summary>
/// What large models may take of a GPU at most, without the context that the driver makes: rank 8 on q, k and v, blocks recomputed, 2048 tokens. For comparison, published peaks
/// of the 8B model at batch 4 are 8.26, 11.41 and 30.91 GB in 4, 8 and 16 bits.
/// </summary>
public sealed class LargeModelPlanTests
{
    private const double GB = 1e9;

    private static readonly ModelConfig Llama8B = Shape(hidden: 4096, intermediate: 14336, layers: 32, heads: 32, keyValueHeads: 8, vocabulary: 128_256);
    private static readonly ModelConfig Llama70B = Shape(hidden: 8192, intermediate: 28672, layers: 80, heads: 64, keyValueHeads: 8, vocabulary: 128_256);
    private static readonly ModelConfig Llama2With7B = Shape(hidden: 4096, intermediate: 11008, layers: 32, heads: 32, keyValueHeads: 32, vocabulary: 32_000);

    public static TheoryData<string, string, double> Goals => new()
    {
        { "8B", "nf4", 7.2 },
        { "8B", "nf4, embeddings: host", 6.2 },
        { "8B", "nf4, embeddings: host, lm_head: int8", 5.7 },
        { "8B", "nf4, embeddings: host, lm_head: int8, offload", 5.2 },
        { "8B", "int8", 10.6 },
        { "8B", "bf16", 17.5 },
        { "7B", "nf4", 9 },

        // A card of 48 GB, with a GB for the context.
        { "70B", "nf4", 47 },
    };

    [Theory]
    [MemberData(nameof(Goals))]
    public void Plan_IsWithinItsGoal(string model, string format, double goal)
    {
        foreach (int documentTokens in (int[])[512, 2048])
        {
            MemoryPlan plan = Plan(model switch { "8B" => Llama8B, "70B" => Llama70B, _ => Llama2With7B }, format, documentTokens);
            TestContext.Current.TestOutputHelper!.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"{model} {format}, documents of {documentTokens}: {plan.ArenaBytes / GB:0.000} GB, {plan.HostBytes / GB:0.000} on the host; {string.Join(", ", plan.ByKind.Where(item => item.Value > 0).Select(item => string.Create(CultureInfo.InvariantCulture, $"{item.Key} {item.Value / GB:0.000}")))}"));
            Assert.Equal(plan.ArenaBytes, plan.ByKind.Values.Sum());
            Assert.InRange(plan.ArenaBytes / GB, plan.ByKind[MemoryKind.Weights] / GB, goal);
        }
    }

    private static MemoryPlan Plan(ModelConfig shape, string format, int documentTokens)
    {
        var config = new TrainingConfig
        {
            Adapter = new AdapterOptions { Kind = AdapterKind.Lora, Rank = 8, TargetModules = ["q_proj", "k_proj", "v_proj"] },
            Quantization = new QuantizationOptions { LoadIn4Bit = format.StartsWith("nf4", StringComparison.Ordinal), LoadIn8Bit = format == "int8" },
            Device = new DeviceOptions
            {
                Choice = DeviceChoice.Cuda,
                GradientCheckpointing = format.Contains("offload", StringComparison.Ordinal) ? GradientCheckpointing.Offload : GradientCheckpointing.On,
                Embeddings = format.Contains("embeddings: host", StringComparison.Ordinal) ? EmbeddingPlacement.Host : EmbeddingPlacement.Device,
                LmHead = format.Contains("lm_head: int8", StringComparison.Ordinal) ? LmHeadFormat.EightBit : LmHeadFormat.Bf16,
            },
        };
        return MemoryPlan.Measure(config, shape, folder: null, DeviceSelection.ForPlan(DeviceChoice.Cuda, threads: 2), new PlannedPasses(2048, [], documentTokens));
    }

    private static ModelConfig Shape(int hidden, int intermediate, int layers, int heads, int keyValueHeads, int vocabulary) => ModelConfig.Parse("config.json", Encoding.UTF8.GetBytes($$"""
        {
          "model_type": "llama", "hidden_size": {{hidden}}, "intermediate_size": {{intermediate}}, "num_hidden_layers": {{layers}}, "num_attention_heads": {{heads}},
          "num_key_value_heads": {{keyValueHeads}}, "vocab_size": {{vocabulary}}, "max_position_embeddings": 8192, "torch_dtype": "bfloat16"
        }
        """));
}
