using LoraTrainer.Engine.Devices;
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
