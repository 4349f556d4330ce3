using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Models.Tests.Adapters;

/// <summary>Adapters that start from the base's own weights.</summary>
public sealed class AdapterStartTests
{
    [Theory]
    [Trait("Category", "Fixtures")]
    [InlineData("pissa_start")]
    [InlineData("olora_start")]
    public void Take_OfTheReferencesBase_GivesItsProduct(string name)
    {
        string folder = Fixtures.Require(Path.Combine("peft", name));
        string baseFolder = Fixtures.Require("models/llama2");
        using PeftAdapterFolder reference = PeftAdapterFolder.Open(Path.Combine(folder, "adapter_start"));
        ModelConfig config = ModelConfig.Parse(baseFolder);
        using ModelFolder files = ModelFolder.Open(baseFolder);
        using var device = new CpuDevice(2, ModelFixture.ArenaBytes);
        AdapterStart start = AdapterStart.For(reference.Config, config)!;
        ModelLoader.LoadFrozen(config, files, device, BaseFormat.AsStored, start);
        int compared = 0;
        foreach (PeftAdapterFolderKey key in reference.Tensors.Keys.Where(key => key.Kind == PeftTensorKind.LoraA))
        {
            float[] a = reference.Find(key.Module, PeftTensorKind.LoraA)!.Value.ReadSingles(), b = reference.Find(key.Module, PeftTensorKind.LoraB)!.Value.ReadSingles();

            // Singular vectors are unique up to their sign, which the product does not have.
            TensorAssert.RelativeL2(Product(b, a, start.A(key.Module).Length / 64), Product(start.B(key.Module), start.A(key.Module), start.A(key.Module).Length / 64), 1e-5, key.ToString());
            if (name == "olora_start")
            {
                TensorAssert.Close(a, start.A(key.Module), 1e-5, "A with LAPACK's signs");
                TensorAssert.Close(b, start.B(key.Module), 1e-5, "B with LAPACK's signs");
            }

            compared++;
        }

        Assert.True(compared > 0);
    }

    [Theory]
    [InlineData(AdapterStart.Pissa, BaseFormat.AsStored, false)]
    [InlineData(AdapterStart.Olora, BaseFormat.AsStored, true)]
    [InlineData(AdapterStart.Pissa, BaseFormat.AsStored, true)]
    public void SaveAsPlainLora_OnTheBaseAsPublished_ComputesTheSame(string method, BaseFormat format, bool rslora)
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path, shape: TinyRun.Shape with { DType = SafetensorsDType.F32 });
        ModelConfig config = ModelConfig.Parse(folder.Path);
        using ModelFolder files = ModelFolder.Open(folder.Path);
        using var device = new CpuDevice(2, 1 << 26);
        var settings = new AdapterConfig
        {
            R = 4, LoraAlpha = 6, InitLoraWeights = method, UseRslora = rslora, TargetModules = ModuleNames.Matching("all-linear"), RankPattern = [KeyValuePair.Create("down_proj", 6)],
        };
        AdapterStart start = AdapterStart.For(settings, config)!;
        CausalLanguageModel trained = ModelLoader.LoadFrozen(config, files, device, format, start);
        LoraInjection injection = LoraInjection.Inject(trained, settings, 1, start: start);
        CausalLanguageModel published = ModelLoader.LoadFrozen(config, files, device, format);
        TensorAssert.Close(Logits(published), Logits(trained), 2e-5, "at the start the model is its base");

        // As after some training.
        foreach (Parameter parameter in trained.Parameters.Parameters)
        {
            Elementwise.Add(Row(parameter.Value), Row(parameter.Value), device.Random(3, new Shape(1, parameter.Shape.ElementCount), 0.05f));
        }

        string plain = folder.File("plain");
        injection.SaveAsPlainLora(plain);
        using PeftAdapterFolder saved = PeftAdapterFolder.Open(plain);
        Assert.Equal((8, "true", 12), (saved.Config.R, saved.Config.InitLoraWeights, saved.Config.RankPattern[0].Value));
        LoraInjection.Inject(published, saved.Config, 1).Load(saved);
        float[] expected = Logits(trained);
        TensorAssert.Close(expected, Logits(published), 5e-5, "plain LoRA on the base as published");

        // As trained it is refused on the base as published, since it would mean something else there.
        injection.Save(folder.File("raw"));
        using PeftAdapterFolder raw = PeftAdapterFolder.Open(folder.File("raw"));
        CausalLanguageModel other = ModelLoader.LoadFrozen(config, files, device, format);
        Assert.Contains($"init_lora_weights: {method}", Assert.Throws<ModelFormatException>(() => LoraInjection.Inject(other, raw.Config, 1)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void LoadFrozen_InFourBits_QuantizesWhatIsLeft()
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path, shape: TinyRun.Shape with { DType = SafetensorsDType.F32 });
        ModelConfig config = ModelConfig.Parse(folder.Path);
        using ModelFolder files = ModelFolder.Open(folder.Path);
        using var device = new CpuDevice(2, 1 << 26);
        var settings = new AdapterConfig { R = 4, LoraAlpha = 4, InitLoraWeights = AdapterStart.Pissa, TargetModules = ModuleNames.Of("q_proj") };
        AdapterStart quantizedStart = AdapterStart.For(settings, config)!, denseStart = AdapterStart.For(settings, config)!;
        CausalLanguageModel quantized = ModelLoader.LoadFrozen(config, files, device, BaseFormat.Nf4, quantizedStart), dense = ModelLoader.LoadFrozen(config, files, device, BaseFormat.AsStored, denseStart);
        AdaptedLinear left = dense.Linears.First();
        var quantizer = new FourBitQuantizer(device, FourBitCode.Nf4, left.Out, left.In, doubleQuantized: false);
        quantizer.Add(((DenseMatrix)left.Weight).Values.Download());
        Assert.Equal(Bytes(quantizer.Finish().Packed), Bytes(((FourBitMatrix)quantized.Linears.First().Weight).Packed));
        Assert.Equal(denseStart.A(left.Name), quantizedStart.A(left.Name));
    }

    private static byte[] Bytes(Tensor tensor)
    {
        byte[] bytes = new byte[tensor.SizeBytes];
        tensor.Device.Download(tensor, bytes);
        return bytes;
    }

    private static Tensor Row(Tensor tensor) => tensor.Slice(0, new Shape(1, tensor.ElementCount));

    private static float[] Logits(CausalLanguageModel model)
    {
        using ArenaFrame frame = model.Device.Arena.Frame();
        HostBatch batch = HostBatch.FromRows([1, 5, 9, 200, 77, 3, 120, 64], null, 8);
        Tensor logits = model.Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount, model.Config.VocabSize));
        model.Logits(logits, batch.Upload(model.Device));
        return logits.Download();
    }

    private static float[] Product(float[] b, float[] a, int rank)
    {
        int rows = b.Length / rank, columns = a.Length / rank;
        float[] product = new float[rows * columns];
        for (int i = 0; i < product.Length; i++)
        {
            product[i] = (float)Enumerable.Range(0, rank).Sum(k => (double)b[i / columns * rank + k] * a[k * columns + i % columns]);
        }

        return product;
    }
}
