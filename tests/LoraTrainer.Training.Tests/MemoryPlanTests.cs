using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;
using Xunit;

namespace LoraTrainer.Training.Tests;

/// <summary>What the memory plan says of shapes people use. That runs keep to it byte for byte is proven by the runs themselves.</summary>
public sealed class MemoryPlanTests
{
    private static readonly ModelConfig TinyLlama = Shape(hidden: 2048, intermediate: 5632, layers: 22, heads: 32, keyValueHeads: 4, vocabulary: 32000);

    [Fact]
    public void OneLayer_TwiceTheLength_TakesAtMostTwiceTheMemory()
    {
        ModelConfig layer = Shape(hidden: 512, intermediate: 1536, layers: 1, heads: 8, keyValueHeads: 2, vocabulary: 1024);
        long at8k = Plan(layer, fourBit: true, recompute: false, tokens: 8192).ArenaBytes;
        long at16k = Plan(layer, fourBit: true, recompute: false, tokens: 16384).ArenaBytes;
        Assert.True(at16k <= 2.1 * at8k, $"8k tokens take {at8k:N0} bytes, 16k take {at16k:N0}");
    }

    [Fact]
    public void FourBitBase_AtTinyLlama_TakesLessThan45PercentOfBf16()
    {
        long bf16 = Plan(TinyLlama, fourBit: false, recompute: true, tokens: 512).ArenaBytes;
        long nf4 = Plan(TinyLlama, fourBit: true, recompute: true, tokens: 512).ArenaBytes;
        Assert.True(nf4 < 0.45 * bf16, $"NF4 takes {nf4:N0} bytes, bf16 {bf16:N0}");
    }

    [Fact]
    public void Kinds_AddUpToTheWhole()
    {
        MemoryPlan plan = Plan(TinyLlama, fourBit: true, recompute: false, tokens: 512);
        Assert.Equal(plan.ArenaBytes, plan.ByKind.Values.Sum());
        Assert.True(plan.ByKind[MemoryKind.Moments] == 2 * plan.ByKind[MemoryKind.Gradients]);
    }

    /// <summary>The CPU's memory is the host's.</summary>
    [Fact]
    public void SwitchesOfAGpusMemory_ChangeNothingOnTheCpu_AndSaySo()
    {
        TrainingConfig Config(DeviceOptions device) => new() { Adapter = new AdapterOptions { Kind = AdapterKind.Lora, Rank = 4 }, Device = device };
        ModelConfig shape = Shape(hidden: 64, intermediate: 128, layers: 3, heads: 2, keyValueHeads: 1, vocabulary: 64);
        TrainingConfig plain = Config(new DeviceOptions { GradientCheckpointing = GradientCheckpointing.On });
        TrainingConfig switched = Config(new DeviceOptions { GradientCheckpointing = GradientCheckpointing.Offload, Embeddings = EmbeddingPlacement.Host, CudaGraphs = CudaGraphs.Verify });
        var passes = new PlannedPasses(64, [], 64);
        DeviceSelection cpu = new(DevicePlatform.Cpu, 2, null), gpu = new(DevicePlatform.Cuda, 2, null);
        Assert.Equal(MemoryPlan.Measure(plain, shape, null, cpu, passes).Memory, MemoryPlan.Measure(switched, shape, null, cpu, passes).Memory);
        Assert.NotEqual(MemoryPlan.Measure(plain, shape, null, gpu, passes).Memory, MemoryPlan.Measure(switched, shape, null, gpu, passes).Memory);
        Assert.Equal(
            [
                "embeddings: host has no effect on the CPU, whose memory is the host's.", "gradient_checkpointing: offload is gradient_checkpointing: true on the CPU, whose memory is the host's.",
                "cuda_graphs has no effect on the CPU.",
            ],
            TrainedModel.WithoutEffect(switched, DevicePlatform.Cpu));
        Assert.Empty(TrainedModel.WithoutEffect(switched, DevicePlatform.Cuda));
    }

    [Fact]
    public void EmbeddingOnTheHost_ThatIsTheOutputLayer_IsRefusedInOneSentence()
    {
        var config = new TrainingConfig { Adapter = new AdapterOptions { Kind = AdapterKind.Lora }, Device = new DeviceOptions { Embeddings = EmbeddingPlacement.Host } };
        ModelConfig tied = Shape(hidden: 64, intermediate: 128, layers: 1, heads: 2, keyValueHeads: 1, vocabulary: 64) with { TieWordEmbeddings = true };
        ModelFormatException exception = Assert.Throws<ModelFormatException>(() => MemoryPlan.Measure(config, tied, null, new DeviceSelection(DevicePlatform.Cuda, 2, null), new PlannedPasses(64, [], 64)));
        Assert.Equal("The embedding of this model is its output layer too (tie_word_embeddings), with which the GPU multiplies: it cannot be on the host. Use embeddings: device.", exception.Message);
    }

    [Fact]
    public void Flops_OfFrozenBase_AreFourPerWeightAndThreePassesOfAttention()
    {
        const int tokens = 512;
        MemoryPlan plan = Plan(TinyLlama, fourBit: true, recompute: false, tokens);
        double linears = TinyLlama.ExpectedTensors().Where(tensor => tensor.Name.Contains("_proj", StringComparison.Ordinal) || tensor.Name == ModelConfig.HeadTensor).Sum(tensor => (double)tensor.Shape[0] * tensor.Shape[1]);
        double attention = 2.0 * tokens * TinyLlama.HiddenSize * TinyLlama.NumHiddenLayers;
        double expected = 4 * linears + 3 * attention + 6 * plan.TrainableParameters;

        // Norms, activations, softmax and the like come on top: a few per cent. The lowest block's input gradient is not formed: a little less.
        Assert.InRange(plan.FlopsPerToken, 0.99 * expected, 1.04 * expected);
    }

    private static MemoryPlan Plan(ModelConfig shape, bool fourBit, bool recompute, int tokens)
    {
        var config = new TrainingConfig
        {
            Adapter = new AdapterOptions { Kind = AdapterKind.Qlora, Rank = 8 },
            Quantization = new QuantizationOptions { LoadIn4Bit = fourBit },
            Device = new DeviceOptions { GradientCheckpointing = recompute ? GradientCheckpointing.On : GradientCheckpointing.Off },
        };
        return MemoryPlan.Measure(config, shape, folder: null, new DeviceSelection(DevicePlatform.Cpu, 2, null), new PlannedPasses(tokens, [], tokens));
    }

    private static ModelConfig Shape(int hidden, int intermediate, int layers, int heads, int keyValueHeads, int vocabulary) => ModelConfig.Parse("config.json", System.Text.Encoding.UTF8.GetBytes($$"""
        {
          "model_type": "llama", "hidden_size": {{hidden}}, "intermediate_size": {{intermediate}}, "num_hidden_layers": {{layers}},
          "num_attention_heads": {{heads}}, "num_key_value_heads": {{keyValueHeads}}, "vocab_size": {{vocabulary}}, "torch_dtype": "bfloat16"
        }
        """));
}
