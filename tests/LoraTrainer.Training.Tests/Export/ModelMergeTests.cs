using System.Text.Json;
using System.Text.Json.Nodes;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Export;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests.Export;

/// <summary>Merged models: those of PEFT, and everything that a merge must refuse or keep.</summary>
public sealed class ModelMergeTests : IDisposable
{
    private const string Attention = "model.layers.0.self_attn.q_proj";

    private readonly TemporaryFolder folder = new();

    public static TheoryData<string> Cases => [.. Fixtures.Cases("peft").Where(name => !Fixtures.FamiliesNotYetSupported.Contains(FamilyOf(name)))];

    public void Dispose() => folder.Dispose();

    /// <summary>Every case, also those whose training this program does not have: the weights that PEFT merged, and the logits of the trained model.</summary>
    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(Cases))]
    public void Merge_EqualsPeft(string name)
    {
        string place = Fixtures.Require(Path.Combine("peft", name));
        using JsonDocument description = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(place, "case.json")));
        string baseFolder = Fixtures.Require(description.RootElement.GetProperty("base_model").GetString()!);
        string start = description.RootElement.GetProperty("peft").TryGetProperty("init_lora_weights", out JsonElement way) && way.ValueKind == JsonValueKind.String ? way.GetString()! : "";
        var options = new MergeOptions
        {
            Format = PeftFixture.FormatOf(description.RootElement),
            DType = SafetensorsDType.F32,
            LargestFileBytes = 100_000,
            StartAdapter = start is "pissa" or "olora" ? Path.Combine(place, "adapter_start") : null,
            Threads = 2,
        };
        string output = folder.File("merged");
        using (ModelMerge merge = ModelMerge.Open(baseFolder, Path.Combine(place, "adapter_end"), options))
        {
            merge.Write(output, (_, _) => { }, cancellation: TestContext.Current.CancellationToken);
        }

        using ModelFolder merged = ModelFolder.Open(output);
        string expected = Path.Combine(place, "merged.safetensors");
        Assert.Equal(options.Format == BaseFormat.AsStored, File.Exists(expected));
        if (File.Exists(expected))
        {
            var tensors = new FixtureTensors(expected);
            Assert.NotEmpty(tensors.Names);
            foreach (string tensor in tensors.Names)
            {
                TensorAssert.Close(tensors.Floats(tensor), Values(merged, tensor), 1e-5, $"{name} {tensor}");
            }
        }

        var after = new FixtureTensors(Path.Combine(place, "after.safetensors"));
        TensorAssert.Close(after.Floats("logits"), Logits(output, after), 1e-4, $"{name} logits");
    }

    [Fact]
    public void Write_Shards_AndConfig()
    {
        string baseFolder = TinyBase(TinyRun.Shape with { TieWordEmbeddings = false });
        File.WriteAllText(Path.Combine(baseFolder, "generation_config.json"), "{\"temperature\": 0.5}");
        File.WriteAllText(Path.Combine(baseFolder, "chat_template.jinja"), "{{ messages }}");
        JsonObject config = Config(baseFolder);
        config["quantization_config"] = null;
        config["something_new"] = 1e-05;
        File.WriteAllText(Path.Combine(baseFolder, "config.json"), config.ToJsonString());
        string adapter = TinyAdapter(baseFolder);
        string output = folder.File("merged");
        var fractions = new List<double>();
        using (ModelMerge merge = ModelMerge.Open(baseFolder, adapter, new MergeOptions { DType = SafetensorsDType.F16, LargestFileBytes = 40_000 }))
        {
            IReadOnlyList<string> files = merge.Write(output, (_, fraction) => fractions.Add(fraction), cancellation: TestContext.Current.CancellationToken);
            Assert.True(files.Count > 1);
            Assert.Equal(Enumerable.Range(1, files.Count).Select(number => $"model-{number:00000}-of-{files.Count:00000}.safetensors"), files);
        }

        Assert.Equal(1, fractions[^1]);
        Assert.Equal(fractions.Order(), fractions);
        JsonObject written = Config(output);
        Assert.Equal("float16", (string?)written["torch_dtype"]);
        Assert.False(written.ContainsKey("quantization_config"));
        Assert.Contains("1e-05", File.ReadAllText(Path.Combine(output, "config.json")), StringComparison.Ordinal);
        Assert.All(["generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"], file => Assert.True(File.Exists(Path.Combine(output, file)), file));
        using ModelFolder merged = ModelFolder.Open(output);
        Assert.All(merged.Tensors.Values, tensor => Assert.Equal(SafetensorsDType.F16, tensor.Entry.DType));
        Assert.Equal(TinyRun.Shape.ExpectedTensors().Count() + 1, merged.Tensors.Count);
        Assert.DoesNotContain(Directory.EnumerateFileSystemEntries(output), entry => Path.GetFileName(entry).StartsWith('.'));
    }

    /// <summary>The tied matrix stays one unless the adapter changed one side of it.</summary>
    [Fact]
    public void TiedHead_TrainedWhole_IsWrittenApart()
    {
        string baseFolder = TinyBase(TinyRun.Shape);
        float[] head = [.. Enumerable.Range(0, TinyRun.VocabularySize * TinyRun.Shape.HiddenSize).Select(i => i % 100 / 100f)];
        string plain = TinyAdapter(baseFolder), whole = TinyAdapter(baseFolder, "whole", config => config with { ModulesToSave = ["lm_head"] }, ("base_model.model.lm_head.weight", [TinyRun.VocabularySize, TinyRun.Shape.HiddenSize], head));
        Merge(baseFolder, plain, folder.File("a"));
        using (ModelFolder merged = ModelFolder.Open(folder.File("a")))
        {
            Assert.Null(merged.Find(ModelConfig.HeadTensor));
            Assert.True((bool)Config(folder.File("a"))["tie_word_embeddings"]!);
        }

        Merge(baseFolder, whole, folder.File("b"));
        using (ModelFolder merged = ModelFolder.Open(folder.File("b")), original = ModelFolder.Open(baseFolder))
        {
            TensorAssert.BitEqual(head, Values(merged, ModelConfig.HeadTensor), "lm_head");
            TensorAssert.BitEqual(Values(original, ModelConfig.EmbeddingTensor), Values(merged, ModelConfig.EmbeddingTensor), "embedding");
            Assert.False((bool)Config(folder.File("b"))["tie_word_embeddings"]!);
        }
    }

    /// <summary>Both sides of a tied matrix trained, each by itself, with rows for a new token.</summary>
    [Fact]
    public void TiedHead_BothSidesTrained_AreWrittenApart()
    {
        string baseFolder = TinyBase(TinyRun.Shape);
        int rows = TinyRun.VocabularySize + 1, hidden = TinyRun.Shape.HiddenSize;
        float[] embedding = [.. Enumerable.Range(0, rows * hidden).Select(i => i % 7 / 7f)], head = [.. Enumerable.Range(0, rows * hidden).Select(i => i % 11 / 11f)];
        Merge(baseFolder, TinyAdapter(
            baseFolder, "both", config => config with { ModulesToSave = ["embed_tokens", "lm_head"] },
            ("base_model.model.model.embed_tokens.weight", [rows, hidden], embedding), ("base_model.model.lm_head.weight", [rows, hidden], head)), folder.File("both-merged"));
        using ModelFolder merged = ModelFolder.Open(folder.File("both-merged"));
        TensorAssert.BitEqual(embedding, Values(merged, ModelConfig.EmbeddingTensor), "embedding");
        TensorAssert.BitEqual(head, Values(merged, ModelConfig.HeadTensor), "lm_head");
        Assert.Equal((false, rows), ((bool)Config(folder.File("both-merged"))["tie_word_embeddings"]!, (int)Config(folder.File("both-merged"))["vocab_size"]!));
    }

    [Fact]
    public void Embedding_WithLowRankUpdateAndGrownVocabulary()
    {
        ModelConfig shape = TinyRun.Shape with { TieWordEmbeddings = false };
        string baseFolder = TinyBase(shape);
        int vocabulary = TinyRun.VocabularySize, hidden = shape.HiddenSize;
        float[] byToken = [.. Enumerable.Range(0, 4 * vocabulary).Select(i => i % 7 / 7f)], byFeature = [.. Enumerable.Range(0, hidden * 4).Select(i => i % 5 / 5f)];
        string adapter = TinyAdapter(
            baseFolder, "embedding", config => config with { TargetModules = ModuleNames.Of("embed_tokens", "q_proj") },
            ("base_model.model.model.embed_tokens.lora_embedding_A", [4, vocabulary], byToken), ("base_model.model.model.embed_tokens.lora_embedding_B", [hidden, 4], byFeature));
        Merge(baseFolder, adapter, folder.File("a"));
        using (ModelFolder merged = ModelFolder.Open(folder.File("a")), original = ModelFolder.Open(baseFolder))
        {
            float[] expected = Values(original, ModelConfig.EmbeddingTensor);
            for (int i = 0; i < expected.Length; i++)
            {
                // alpha / r = 2.
                expected[i] += 2 * Enumerable.Range(0, 4).Sum(k => byToken[k * vocabulary + i / hidden] * byFeature[i % hidden * 4 + k]);
            }

            TensorAssert.Close(expected, Values(merged, ModelConfig.EmbeddingTensor), 1e-5, "embedding");
        }

        float[] grown = [.. Enumerable.Range(0, (vocabulary + 2) * hidden).Select(i => i % 3 / 3f)];
        (string, long[], float[]) Grown(string module) => ($"base_model.model.{module}.weight", [vocabulary + 2, hidden], grown);
        Merge(baseFolder, TinyAdapter(baseFolder, "grown", config => config with { ModulesToSave = ["embed_tokens", "lm_head"] }, Grown("model.embed_tokens"), Grown("lm_head")), folder.File("b"));
        Assert.Equal(vocabulary + 2, (int)Config(folder.File("b"))["vocab_size"]!);
        using (ModelFolder merged = ModelFolder.Open(folder.File("b")))
        {
            TensorAssert.BitEqual(grown, Values(merged, ModelConfig.HeadTensor), "grown head");
        }

        ModelFormatException one = Assert.Throws<ModelFormatException>(() => Merge(baseFolder, TinyAdapter(baseFolder, "one", config => config with { ModulesToSave = ["embed_tokens"] }, Grown("model.embed_tokens")), folder.File("c")));
        Assert.Contains("the embedding would have 260 rows and the output layer 258", one.Message, StringComparison.Ordinal);
    }

    /// <summary>A base that bitsandbytes has quantized already is what quantizing it here gives.</summary>
    [Theory]
    [InlineData(BaseFormat.Nf4DoubleQuantized)]
    [InlineData(BaseFormat.EightBit)]
    public void QuantizedBase_IsMergedAsItIs(BaseFormat format)
    {
        string plain = TinyBase(TinyRun.Shape), stored = TinyBase(TinyRun.Shape, "stored"), adapter = TinyAdapter(plain);
        QuantizedBase.Quantize(stored, format);
        using (ModelMerge expected = ModelMerge.Open(plain, adapter, new MergeOptions { DType = SafetensorsDType.F32, Format = format }), merge = ModelMerge.Open(stored, adapter, new MergeOptions { DType = SafetensorsDType.F32 }))
        {
            expected.Write(folder.File("a"), (_, _) => { }, cancellation: TestContext.Current.CancellationToken);
            merge.Write(folder.File("b"), (_, _) => { }, cancellation: TestContext.Current.CancellationToken);
        }

        Assert.Equal(File.ReadAllBytes(folder.File("a/model.safetensors")), File.ReadAllBytes(folder.File("b/model.safetensors")));
        Assert.False(Config(folder.File("b")).ContainsKey("quantization_config"));
        Assert.Contains("is quantized already", Assert.Throws<ModelFormatException>(() => ModelMerge.Open(stored, adapter, new MergeOptions { Format = BaseFormat.Fp4 })).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void AnotherModelsAdapter_IsRefused_AndNothingIsWritten()
    {
        string baseFolder = TinyBase(TinyRun.Shape), adapter = TinyAdapter(baseFolder);
        Refused(TinyBase(TinyRun.Shape with { HiddenSize = 96 }, "wider"), adapter, "and the base needs the shape");
        Refused(TinyBase(TinyRun.Shape with { NumHiddenLayers = 3 }, "deeper"), adapter, "the adapter has no base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight");
        Refused(TinyBase(TinyRun.Shape with { NumHiddenLayers = 1 }, "shallower"), adapter, "has 2 tensors for which this base has no place: base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight");
        Refused(baseFolder, TinyAdapter(baseFolder, "rank", config => config with { R = 3 }), "adapter_config.json makes it (3, in)");
        Refused(baseFolder, TinyAdapter(baseFolder, "dora", config => config with { UseDora = true }), "the adapter has no base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector");
        Refused(baseFolder, TinyAdapter(baseFolder, "pissa", config => config with { InitLoraWeights = "pissa_niter_4" }), "--start-adapter");
        Refused(baseFolder, TinyAdapter(baseFolder, "bias", null, ($"base_model.model.{Attention}.lora_B.bias", [64], new float[64])), "for which this base has no place");

        void Refused(string model, string peft, string sentence)
        {
            ModelFormatException refusal = Assert.Throws<ModelFormatException>(() => Merge(model, peft, folder.File("refused")));
            Assert.Contains(sentence, refusal.Message, StringComparison.Ordinal);
            Assert.False(Directory.Exists(folder.File("refused")));
        }
    }

    [Fact]
    public void Write_ThatFails_LeavesNothingBehind()
    {
        string baseFolder = TinyBase(TinyRun.Shape), adapter = TinyAdapter(baseFolder, "huge", null, scale: 1e5f);
        ModelFormatException tooLarge = Assert.Throws<ModelFormatException>(() => Merge(baseFolder, adapter, folder.File("out"), SafetensorsDType.F16));
        Assert.Contains("of model.layers.0.self_attn.q_proj.weight becomes", tooLarge.Message, StringComparison.Ordinal);
        Assert.False(Directory.Exists(folder.File("out")));
        using ModelMerge merge = ModelMerge.Open(baseFolder, adapter, new MergeOptions());
        using var stop = new CancellationTokenSource();
        Assert.Throws<OperationCanceledException>(() => merge.Write(folder.File("out"), (_, _) => stop.Cancel(), null, stop.Token));
        Assert.Throws<InvalidDataException>(() => merge.Write(folder.File("out"), (_, _) => { }, _ => throw new InvalidDataException("not the same"), TestContext.Current.CancellationToken));
        Assert.False(Directory.Exists(folder.File("out")));
    }

    [Fact]
    public void Output_OccupiedOrTooSmall_IsRefused()
    {
        Directory.CreateDirectory(folder.File("full"));
        File.WriteAllText(folder.File("full/mine.txt"), "");
        Assert.Contains("it holds mine.txt", Assert.Throws<TrainingSetupException>(() => ModelMerge.RefuseOccupied(folder.File("full"))).Message, StringComparison.Ordinal);
        Assert.Contains("is a file", Assert.Throws<TrainingSetupException>(() => ModelMerge.RefuseOccupied(folder.File("full/mine.txt"))).Message, StringComparison.Ordinal);
        Directory.CreateDirectory(folder.File("killed/.merging-7"));
        Assert.Contains("another merge writes there, or one was killed", Assert.Throws<TrainingSetupException>(() => ModelMerge.RefuseOccupied(folder.File("killed"))).Message, StringComparison.Ordinal);
        ModelMerge.RequireSpace("out", 10, 10);
        Assert.Equal(
            "The merged model needs 16.1 GB, and the disk of out has 2.5 GB left. Free some space, choose a folder on another disk, or a smaller --dtype.",
            Assert.Throws<TrainingSetupException>(() => ModelMerge.RequireSpace("out", 16_060_000_000, 2_500_000_000)).Message);
    }

    [Fact]
    public void Check_FindsAForgottenUpdate()
    {
        float[] adapted = [1, 2, 4, 0, 3, 1], alone = [1, 1, 1, 0, 1, 1];
        Assert.True(MergeCheck.Compare(adapted, alone, [1, 2, 4.001f, 0, 3, 1], 3, 1e-2).Passes);
        Assert.False(MergeCheck.Compare(adapted, alone, alone, 3, 5e-2).Passes);
        Assert.False(MergeCheck.Compare(adapted, alone, [1, 2, float.NaN, 0, 3, 1], 3, 5e-2).Passes);
        Assert.Equal(3, MergeCheck.Compare(adapted, alone, adapted, 3, 0).AdapterEffect);
        Assert.Throws<TrainingSetupException>(() => MergeCheck.Compare(adapted, alone, [1, 2, 3], 3, 1));
    }

    private static string FamilyOf(string name)
    {
        string file = Path.Combine(Fixtures.Root ?? "", "peft", name, "case.json");
        if (!File.Exists(file))
        {
            return "";
        }

        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(file));
        return Fixtures.ModelTypeOf(document.RootElement.GetProperty("base_model").GetString()!);
    }

    private static void Merge(string baseFolder, string adapter, string output, SafetensorsDType dtype = SafetensorsDType.F32)
    {
        using ModelMerge merge = ModelMerge.Open(baseFolder, adapter, new MergeOptions { DType = dtype });
        merge.Write(output, (_, _) => { }, cancellation: TestContext.Current.CancellationToken);
    }

    private static float[] Logits(string model, FixtureTensors after)
    {
        using var device = new CpuDevice(threadCount: 2, ModelFixture.ArenaBytes);
        using ModelFolder weights = ModelFolder.Open(model);
        CausalLanguageModel loaded = ModelLoader.LoadFrozen(ModelConfig.Parse(model), weights, device, BaseFormat.AsStored);
        HostBatch batch = HostBatch.FromRows(after.Integers("input_ids"), null, (int)after.Shape("input_ids")[1]);
        Tensor logits = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount, loaded.Config.VocabSize));
        loaded.Logits(logits, batch.Upload(device));
        return logits.Download();
    }

    private static float[] Values(ModelFolder model, string name) => model.Find(name)!.Value.ReadSingles();

    private static JsonObject Config(string model) => JsonNode.Parse(File.ReadAllText(Path.Combine(model, "config.json")))!.AsObject();

    private string TinyBase(ModelConfig shape, string name = "base")
    {
        TinyRun.WriteBase(folder.File(name), shape: shape);
        return folder.File(name);
    }

    /// <summary>An adapter of rank 4 and alpha 8 on the q_proj of every layer, and further tensors.</summary>
    private string TinyAdapter(string baseFolder, string name = "adapter", Func<AdapterConfig, AdapterConfig>? change = null, params (string Name, long[] Shape, float[] Values)[] more) =>
        TinyAdapter(baseFolder, name, change, 0.1f, more);

    private string TinyAdapter(string baseFolder, string name, Func<AdapterConfig, AdapterConfig>? change, float scale, params (string Name, long[] Shape, float[] Values)[] more)
    {
        ModelConfig shape = ModelConfig.Parse(baseFolder);
        var config = new AdapterConfig { R = 4, LoraAlpha = 8, TargetModules = ModuleNames.Of("q_proj"), BaseModelNameOrPath = baseFolder };
        var random = new Random(3);
        var writer = new SafetensorsWriter();
        for (int layer = 0; layer < shape.NumHiddenLayers; layer++)
        {
            string prefix = $"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_";
            Add(prefix + "A.weight", [4, shape.HiddenSize], Draw(4 * shape.HiddenSize));
            Add(prefix + "B.weight", [shape.NumAttentionHeads * shape.HeadDim, 4], Draw(shape.NumAttentionHeads * shape.HeadDim * 4));
        }

        foreach ((string tensor, long[] extents, float[] values) in more)
        {
            Add(tensor, extents, values);
        }

        PeftAdapterFolder.Save(folder.File(name), change?.Invoke(config) ?? config, writer);
        return folder.File(name);

        float[] Draw(int count) => [.. Enumerable.Range(0, count).Select(_ => (float)(random.NextDouble() - 0.5) * scale)];

        void Add(string tensor, long[] extents, float[] values) => writer.Add(tensor, SafetensorsDType.F32, extents, System.Runtime.InteropServices.MemoryMarshal.AsBytes<float>(values).ToArray());
    }
}
