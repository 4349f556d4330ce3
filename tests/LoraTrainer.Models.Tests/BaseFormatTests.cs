using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests;

/// <summary>How a base is kept once it is loaded.</summary>
public sealed class BaseFormatTests
{
    private const string Changed = "model.layers.1.mlp.down_proj.weight";

    [Theory]
    [InlineData(BaseFormat.AsStored, null)]
    [InlineData(BaseFormat.Nf4, "nf4")]
    [InlineData(BaseFormat.Nf4DoubleQuantized, "nf4")]
    [InlineData(BaseFormat.Fp4, "fp4")]
    [InlineData(BaseFormat.Fp4DoubleQuantized, "fp4")]
    [InlineData(BaseFormat.EightBit, null)]
    public void LoadFrozen_KeepsEveryLinearLayerOfTheBlocksSo(BaseFormat format, string? code)
    {
        using TemporaryFolder folder = Base(1);
        using var device = new CpuDevice(1, 1 << 24);
        ModelConfig config = ModelConfig.Parse(folder.Path);
        using ModelFolder files = ModelFolder.Open(folder.Path);
        CausalLanguageModel model = ModelLoader.LoadFrozen(config, files, device, format);
        Assert.All(model.Linears, linear =>
        {
            switch (format)
            {
                case BaseFormat.AsStored:
                    Assert.IsType<DenseMatrix>(linear.Weight);
                    break;
                case BaseFormat.EightBit:
                    Int8Matrix matrix = Assert.IsType<Int8Matrix>(linear.Weight);
                    Assert.Equal(linear.Out * (linear.In + sizeof(float)), matrix.SizeBytes);
                    break;
                default:
                    FourBitMatrix packed = Assert.IsType<FourBitMatrix>(linear.Weight);
                    Assert.Equal(code, packed.Code.Name);
                    Assert.Equal(format is BaseFormat.Nf4DoubleQuantized or BaseFormat.Fp4DoubleQuantized, packed.IsDoubleQuantized);
                    break;
            }
        });
        Assert.IsType<DenseMatrix>(model.Head);
    }

    [Fact]
    public void LoadFrozen_WeightBeyondF16_EightBitNamesTensorAndElement()
    {
        using TemporaryFolder folder = Base(-70000);
        using var device = new CpuDevice(1, 1 << 24);
        ModelConfig config = ModelConfig.Parse(folder.Path);
        using ModelFolder files = ModelFolder.Open(folder.Path);
        ModelFormatException exception = Assert.Throws<ModelFormatException>(() => ModelLoader.LoadFrozen(config, files, device, BaseFormat.EightBit));
        Assert.Equal(
            $"{folder.Path}: tensor '{Changed}' holds -70000 at element 300; a base in 8 bits is made from f16, which ends at 65504. Use load_in_4bit: true, or neither.", exception.Message);
    }

    [Fact]
    public void LoadFrozen_HeadInEightBits_KeepsTheRestAsItWas()
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path, shape: TinyRun.Shape with { TieWordEmbeddings = false });
        using var device = new CpuDevice(1, 1 << 24);
        ModelConfig config = ModelConfig.Parse(folder.Path);
        using ModelFolder files = ModelFolder.Open(folder.Path);
        CausalLanguageModel plain = ModelLoader.LoadFrozen(config, files, device, BaseFormat.AsStored), eight = ModelLoader.LoadFrozen(config, files, device, BaseFormat.AsStored, headInEightBits: true);
        Int8Matrix head = Assert.IsType<Int8Matrix>(eight.Head);
        Assert.Equal((config.VocabSize, config.HiddenSize), (head.Out, head.In));
        Assert.All(eight.Linears, linear => Assert.IsType<DenseMatrix>(linear.Weight));

        // Each weight within half a step of its row, and half a unit of f16.
        float[] values = new float[head.Out * head.In], stored = new float[values.Length], scales = head.Scales.Download();
        Linear.ReadRows(values, head, 0);
        Linear.ReadRows(stored, plain.Head, 0);
        for (int i = 0; i < values.Length; i++)
        {
            Assert.True(Math.Abs(values[i] - stored[i]) <= 0.51f * scales[i / head.In], $"element {i}: {values[i]}, stored {stored[i]}");
        }
    }

    [Fact]
    public void LoadFrozen_HeadInEightBitsThatIsTheEmbedding_IsRefused()
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path);
        using var device = new CpuDevice(1, 1 << 24);
        ModelConfig config = ModelConfig.Parse(folder.Path);
        using ModelFolder files = ModelFolder.Open(folder.Path);
        Assert.Equal(
            "The output layer of this model is its embedding (tie_word_embeddings), so in 8 bits it would be kept twice. Use lm_head: bf16.",
            Assert.Throws<ModelFormatException>(() => ModelLoader.LoadFrozen(config, files, device, BaseFormat.AsStored, headInEightBits: true)).Message);
    }

    private static TemporaryFolder Base(float value)
    {
        var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path, shape: TinyRun.Shape with { DType = SafetensorsDType.F32 }, change: (name, values) =>
        {
            if (name == Changed)
            {
                values[300] = value;
            }
        });
        return folder;
    }
}
