using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>Bases that need no quantizing, on a GPU: it gets the bytes that the files have.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class QuantizedBaseTests
{
    [Theory]
    [InlineData(BaseFormat.Nf4)]
    [InlineData(BaseFormat.Nf4DoubleQuantized)]
    [InlineData(BaseFormat.Fp4DoubleQuantized)]
    [InlineData(BaseFormat.EightBit)]
    public void LoadFrozen_QuantizedAlready_HasTheBytesOfTheFiles(BaseFormat format)
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path);
        QuantizedBase.Quantize(folder.Path, format);
        using var cpu = new CpuDevice(1, 1 << 24);
        using Device cuda = CudaTestDevice.Open(CudaTestDevice.Modes[0], 1 << 24);
        Compare(Load(folder.Path, cpu, format), Load(folder.Path, cuda, format));
    }

    [Theory]
    [InlineData(BaseFormat.Nf4)]
    [InlineData(BaseFormat.Nf4DoubleQuantized)]
    [InlineData(BaseFormat.Fp4DoubleQuantized)]
    [InlineData(BaseFormat.EightBit)]
    public void LoadFrozen_QuantizedBefore_HasTheBytesOfQuantizing(BaseFormat format)
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.File("base"));
        string key = QuantizedBaseFile.KeyOf("", format, DevicePlatform.Cuda);
        using Device first = CudaTestDevice.Open(CudaTestDevice.Modes[0], 1 << 24), second = CudaTestDevice.Open(CudaTestDevice.Modes[0], 1 << 24);
        CausalLanguageModel quantized = Load(folder.File("base"), first, format);
        QuantizedBaseFile.Write(folder.File("kept"), quantized, key);
        using QuantizedBaseFile kept = QuantizedBaseFile.Open(folder.File("kept"), key);
        Compare(quantized, Load(folder.File("base"), second, format, kept));
    }

    private static CausalLanguageModel Load(string folder, Device device, BaseFormat format, QuantizedBaseFile? kept = null)
    {
        using ModelFolder files = ModelFolder.Open(folder);
        return ModelLoader.LoadFrozen(ModelConfig.Parse(folder), files, device, format, quantized: kept, damage: why => Assert.Fail(why));
    }

    private static void Compare(CausalLanguageModel expected, CausalLanguageModel actual)
    {
        Assert.NotEmpty(expected.Linears);
        Assert.All(expected.Linears.Zip(actual.Linears), pair =>
        {
            if (pair.First.Weight is Int8Matrix bytes)
            {
                var others = (Int8Matrix)pair.Second.Weight;
                Assert.Equal(bytes.Codes.DownloadBytes(), others.Codes.DownloadBytes());
                Assert.Equal(bytes.Scales.DownloadBytes(), others.Scales.DownloadBytes());
                return;
            }

            var one = (FourBitMatrix)pair.First.Weight;
            var other = (FourBitMatrix)pair.Second.Weight;
            Assert.Equal(one.Packed.DownloadBytes(), other.Packed.DownloadBytes());
            Assert.Equal(one.Offset, other.Offset);
            Assert.Equal(one.IsDoubleQuantized, other.IsDoubleQuantized);
            if (one.IsDoubleQuantized)
            {
                Assert.Equal(one.AbsmaxCodes.DownloadBytes(), other.AbsmaxCodes.DownloadBytes());
                Assert.Equal(one.NestedAbsmax.DownloadBytes(), other.NestedAbsmax.DownloadBytes());
                Assert.Equal(one.NestedMap.DownloadBytes(), other.NestedMap.DownloadBytes());
            }
            else
            {
                Assert.Equal(one.Absmax.DownloadBytes(), other.Absmax.DownloadBytes());
            }
        });
    }
}
