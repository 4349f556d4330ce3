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

/// <summary>Modules that are trained whole beside an adapter.</summary>
public sealed class TrainedModuleTests
{
    private static readonly AdapterConfig Settings = new() { R = 4, LoraAlpha = 8, TargetModules = ModuleNames.Of("q_proj") };

    [Fact]
    public void Inject_EveryKindOfModule_StartsAsTheBaseAndIsTrained()
    {
        using Model model = new(SafetensorsDType.BF16);
        float[] before = model.Logits();
        LoraInjection injection = LoraInjection.Inject(model.Value, Settings with { ModulesToSave = ["embed_tokens", "lm_head", "model.norm", "0.mlp.up_proj", "1.input_layernorm"] }, 1);
        Assert.Equal(before, model.Logits());
        Assert.Equal(
            ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight", "model.norm.weight"],
            model.Value.Parameters.Parameters.Select(parameter => parameter.Name).Where(name => !name.Contains("lora_", StringComparison.Ordinal)).Order(StringComparer.Ordinal));

        // In the base, embedding and output layer are one matrix; trained copies are two.
        Assert.NotSame(model.Value.TrainedEmbedding, model.Value.TrainedHead);
        model.Backward();
        Assert.All(model.Value.Parameters.Parameters.Where(parameter => !parameter.Name.Contains("lora_A", StringComparison.Ordinal)), parameter => Assert.Contains(parameter.Gradient.Download(), v => v != 0));
        Assert.Equal([false, false], model.Value.Parameters.Parameters.Where(parameter => parameter.Name.EndsWith("norm.weight", StringComparison.Ordinal)).Select(parameter => parameter.Decays));

        foreach (Parameter parameter in model.Value.Parameters.Parameters)
        {
            Tensor row = parameter.Value.Slice(0, new Shape(1, parameter.Shape.ElementCount));
            Elementwise.Add(row, row, model.Value.Device.Random(3, row.Shape, 0.1f));
        }

        float[] after = model.Logits();
        Assert.NotEqual(before, after);
        using var folder = new TemporaryFolder();
        injection.Save(folder.Path);
        injection.SetActive(false);
        Assert.Equal(before, model.Logits());
        injection.SetActive(true);
        Assert.Equal(after, model.Logits());

        // The saved folder on a new model.
        using Model again = new(SafetensorsDType.BF16);
        using PeftAdapterFolder saved = PeftAdapterFolder.Open(folder.Path);
        Assert.Contains(new PeftAdapterFolderKey("lm_head", PeftTensorKind.SavedWeight), saved.Tensors.Keys);
        LoraInjection.Inject(again.Value, saved.Config, 2).Load(saved);
        Assert.Equal(after, again.Logits());
    }

    [Fact]
    public void Inject_LinearLayerWithABias_TrainsTheBiasToo()
    {
        using Model model = new(SafetensorsDType.F32, TinyRun.Shape with { ModelType = "qwen2", Architecture = "Qwen2ForCausalLM", DType = SafetensorsDType.F32, AttentionBias = true });
        LoraInjection.Inject(model.Value, Settings with { ModulesToSave = ["0.self_attn.k_proj"] }, 1);
        Assert.Contains("model.layers.0.self_attn.k_proj.bias", model.Value.Parameters.Parameters.Select(parameter => parameter.Name));
        model.Backward();
        Assert.All(model.Value.Parameters.Parameters.Where(parameter => parameter.Name.Contains("k_proj", StringComparison.Ordinal)), parameter => Assert.Contains(parameter.Gradient.Download(), v => v != 0));
    }

    [Theory]
    [InlineData(SafetensorsDType.F32, true)]
    [InlineData(SafetensorsDType.BF16, false)]
    public void LoadFrozen_WithAddedRows_StartsThemAsTheMean(SafetensorsDType type, bool tied)
    {
        using Model model = new(type, TinyRun.Shape with { DType = type, TieWordEmbeddings = tied }, rows: TinyRun.VocabularySize + 3);
        using Model plain = new(type, TinyRun.Shape with { DType = type, TieWordEmbeddings = tied });
        int width = model.Value.Config.HiddenSize, stored = TinyRun.VocabularySize;
        foreach ((Tensor extended, Tensor own) in new[] { (model.Value.EmbeddingTable, plain.Value.EmbeddingTable), (((DenseMatrix)model.Value.Head).Values, ((DenseMatrix)plain.Value.Head).Values) })
        {
            float[] all = Floats(extended), before = Floats(own);
            TensorAssert.BitEqual(before, all.AsSpan(0, before.Length), "the rows of the file");
            float[] mean = [.. Enumerable.Range(0, width).Select(i => (float)Enumerable.Range(0, stored).Average(row => (double)before[row * width + i]))];
            for (int row = stored; row < stored + 3; row++)
            {
                TensorAssert.Close(mean, all.AsSpan(row * width, width), type == SafetensorsDType.F32 ? 1e-7 : 1e-3, "an added row");
            }
        }

        static float[] Floats(Tensor tensor)
        {
            byte[] bytes = new byte[tensor.SizeBytes];
            tensor.Device.Download(tensor, bytes);
            float[] values = new float[tensor.ElementCount];
            FloatConversion.ToSingle(tensor.DType == DType.BF16 ? SafetensorsDType.BF16 : SafetensorsDType.F32, bytes, values);
            return values;
        }
    }

    [Fact]
    public void Inject_LoraPlus_HasPeftsGroups()
    {
        using Model model = new(SafetensorsDType.F32);
        LoraInjection.Inject(model.Value, Settings with { UseDora = true, ModulesToSave = ["embed_tokens", "lm_head", "model.norm"] }, 1, new LoraPlusRates(16, 0.01));
        Dictionary<string, double> rates = model.Value.Parameters.Parameters.Where(parameter => !parameter.Name.Contains("layers.1", StringComparison.Ordinal)).ToDictionary(parameter => parameter.Name.Split('.')[^2], parameter => parameter.LearningRateScale);
        Assert.Equal(new Dictionary<string, double> { ["lora_A"] = 1, ["lora_B"] = 16, ["lora_magnitude_vector"] = 16, ["embed_tokens"] = 0.01, ["lm_head"] = 1, ["norm"] = 16 }, rates);
    }

    [Fact]
    public void Inject_WhatCannotBeDone_SaysSo()
    {
        using Model quantized = new(SafetensorsDType.F32, format: BaseFormat.Nf4);
        Assert.Equal(
            "modules_to_save: model.layers.0.mlp.up_proj is quantized in this run, and a quantized weight cannot be trained. Leave it out of lora_modules_to_save, or load the base unquantized.",
            Assert.Throws<ModelFormatException>(() => LoraInjection.Inject(quantized.Value, Settings with { ModulesToSave = ["up_proj"] }, 1)).Message);
        using Model model = new(SafetensorsDType.F32);
        Assert.Equal(
            "target_modules names lm_head, and adapters are for the linear layers of the blocks only. Name it in modules_to_save instead: it is then trained in full.",
            Assert.Throws<ModelFormatException>(() => LoraInjection.Inject(model.Value, Settings with { TargetModules = ModuleNames.Of("q_proj", "lm_head") }, 1)).Message);
    }

    private sealed class Model : IDisposable
    {
        private readonly TemporaryFolder folder = new();

        public Model(SafetensorsDType type, ModelConfig? shape = null, BaseFormat format = BaseFormat.AsStored, int rows = 0)
        {
            TinyRun.WriteBase(folder.Path, shape: shape ?? TinyRun.Shape with { DType = type });
            using ModelFolder files = ModelFolder.Open(folder.Path);
            Value = ModelLoader.LoadFrozen(ModelConfig.Parse(folder.Path).WithVocabulary(rows), files, new CpuDevice(2, 1 << 26), format);
        }

        public CausalLanguageModel Value { get; }

        public float[] Logits()
        {
            using ArenaFrame frame = Value.Device.Arena.Frame();
            HostBatch batch = Batch();
            Tensor logits = Value.Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount, Value.Config.VocabSize));
            Value.Logits(logits, batch.Upload(Value.Device));
            return logits.Download();
        }

        public void Backward()
        {
            using ArenaFrame frame = Value.Device.Arena.Frame();
            HostBatch batch = Batch();
            Tensor losses = Value.Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount));
            Value.ForwardBackward(losses, batch.Upload(Value.Device), DropoutState.Inactive, 0.1f, recompute: false);
        }

        public void Dispose()
        {
            Value.Device.Dispose();
            folder.Dispose();
        }

        private static HostBatch Batch()
        {
            int[] ids = [1, 5, 9, 200, 77, 3, 120, 64];
            return HostBatch.FromRows(ids, ids, 8);
        }
    }
}
