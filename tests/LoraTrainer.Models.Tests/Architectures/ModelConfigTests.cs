using System.Text;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Architectures;

public class ModelConfigTests
{
    private const string Supported = "llama, mistral";

    public static TheoryData<string> ModelCases => [.. Fixtures.Cases("models")];

    public static TheoryData<string> PlanCases => [.. Fixtures.Cases("plan")];

    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(ModelCases))]
    public void Parse_FixtureModels_ParsesSupportedFamiliesAndNamesOthers(string name)
    {
        string folder = Fixtures.Require($"models/{name}");
        string[] configs = [.. Directory.GetFiles(folder, "config*.json").Order(StringComparer.Ordinal)];
        Assert.NotEmpty(configs);
        foreach (string path in configs)
        {
            using var json = System.Text.Json.JsonDocument.Parse(File.ReadAllBytes(path));
            string family = json.RootElement.GetProperty("model_type").GetString()!;
            if (Fixtures.FamiliesNotYetSupported.Contains(family))
            {
                var refused = Assert.Throws<ModelFormatException>(() => ModelConfig.Parse(path));
                Assert.Contains($"model_type is '{family}', a family that is not supported. Supported: {Supported}.", refused.Message, StringComparison.Ordinal);
                continue;
            }

            ModelConfig config = ModelConfig.Parse(path);
            Assert.Equal(
                (Given("hidden_size"), Given("intermediate_size"), Given("vocab_size"), Given("max_position_embeddings")),
                (config.HiddenSize, config.IntermediateSize, config.VocabSize, config.MaxPositionEmbeddings));
            int Given(string key) => json.RootElement.TryGetProperty(key, out System.Text.Json.JsonElement value) ? value.GetInt32() : key == "max_position_embeddings" ? 2048 : -1;
            Assert.Equal(ModelConfig.Parse(configs[0]).ToJson(), config.ToJson());
            Assert.Equal(config.ToJson(), ModelConfig.Parse("written", Encoding.UTF8.GetBytes(config.ToJson())).ToJson());
            using ModelFolder weights = ModelFolder.Open(folder);
            ModelTensorLayout layout = config.CheckTensors(weights);
            Assert.Equal(config.TieWordEmbeddings ? null : "lm_head.weight", layout.HeadName);
            Assert.Empty(layout.Notices);
            Assert.Equal(weights.Tensors.Count, config.ExpectedTensors().Count());
        }
    }

    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(PlanCases))]
    public void ExpectedTensors_RealModels_HaveTheParametersOfTheReference(string name)
    {
        string folder = Fixtures.Require($"plan/{name}");
        if (!Fixtures.FamiliesNotYetSupported.Contains(Fixtures.ModelTypeOf($"plan/{name}")))
        {
            using var expected = System.Text.Json.JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "expected.json")));
            long parameters = ModelConfig.Parse(folder).ExpectedTensors().Sum(tensor => tensor.Shape.Aggregate(1L, (product, axis) => product * axis));
            Assert.Equal(expected.RootElement.GetProperty("parameters").GetInt64(), parameters);
        }
        else
        {
            Assert.Throws<ModelFormatException>(() => ModelConfig.Parse(folder));
        }
    }

    [Fact]
    public void Parse_NothingButFamily_TakesTheClassDefaults()
    {
        ModelConfig config = Parse("{\"model_type\": \"llama\"}");
        Assert.Equal((32000, 4096, 11008, 32, 32, 32, 128, 2048), (config.VocabSize, config.HiddenSize, config.IntermediateSize, config.NumHiddenLayers, config.NumAttentionHeads, config.NumKeyValueHeads, config.HeadDim, config.MaxPositionEmbeddings));
        Assert.Equal((1e-6, 1e4, false, false, false), (config.RmsNormEps, config.Rope.Theta, config.AttentionBias, config.MlpBias, config.TieWordEmbeddings));
        Assert.Equal((1, 2, null, null), (config.BosTokenId, config.EosTokenIds[0], config.PadTokenId, config.DType));
    }

    [Fact]
    public void Parse_NullIsNotMissing()
    {
        ModelConfig config = Parse("""{"model_type": "llama", "num_key_value_heads": null, "head_dim": null, "eos_token_id": null, "bos_token_id": null, "rope_scaling": null, "torch_dtype": null}""");
        Assert.Equal((32, 128, 0, null), (config.NumKeyValueHeads, config.HeadDim, config.EosTokenIds.Count, config.BosTokenId));
    }

    [Fact]
    public void Parse_EosList_KeepsAll()
        => Assert.Equal([128001, 128008, 128009], Parse("""{"model_type": "llama", "eos_token_id": [128001, 128008, 128009]}""").EosTokenIds);

    [Fact]
    public void Parse_BothRopeSpellings_OldDictionaryWinsAndInnerThetaWins()
    {
        ModelConfig config = Parse("""{"model_type":"llama","rope_theta":20000,"rope_scaling":{"type":"linear","factor":2,"rope_theta":30000},"rope_parameters":{"rope_type":"dynamic","factor":4,"rope_theta":40000}}""");
        Assert.Equal((RopeType.Linear, 2.0, 30000.0), (config.Rope.Type, config.Rope.Factor!.Value, config.Rope.Theta));
        ModelConfig outer = Parse("""{"model_type":"llama","rope_theta":20000,"rope_scaling":{"type":"linear","factor":2}}""");
        Assert.Equal(20000.0, outer.Rope.Theta);
    }

    [Theory]
    [InlineData("\"model_type\": \"mamba\"", "config.json:2: model_type is 'mamba', a family that is not supported. Supported: " + Supported + ". Choose a base model of one of these.")]
    [InlineData("\"vocab_size\": 5", "config.json: model_type is missing, so the model's family is not known. Supported: " + Supported + ". Check that this is the config.json of a language model.")]
    [InlineData("\"model_type\": \"llama\", \"architectures\": [\"LlamaForSequenceClassification\"]", "config.json:2: architectures says 'LlamaForSequenceClassification'; of the family llama only LlamaForCausalLM, the language model, is supported. Choose a base model of that class.")]
    [InlineData("\"model_type\": \"llama\",\n\"hidden_act\": \"gelu\"", "config.json:3: hidden_act must be silu, got \"gelu\". Another activation is not supported for this family.")]
    [InlineData("\"model_type\": \"llama\", \"hidden_size\": 4096.5", "config.json:2: hidden_size must be a whole number from 1 to 1048576, got 4096.5.")]
    [InlineData("\"model_type\": \"llama\", \"hidden_size\": 99999999999", "config.json:2: hidden_size must be a whole number from 1 to 1048576, got 99999999999.")]
    [InlineData("\"model_type\": \"llama\", \"hidden_size\": 100, \"num_attention_heads\": 3", "config.json:2: hidden_size is 100, which the 3 num_attention_heads do not divide, and head_dim is not given. One of the three is wrong.")]
    [InlineData("\"model_type\": \"llama\", \"head_dim\": 17", "config.json:2: head_dim gives heads of 17 dimensions; rotary embedding turns pairs, so the number must be even.")]
    [InlineData("\"model_type\": \"llama\", \"num_key_value_heads\": 5", "config.json:2: num_key_value_heads is 5, which does not divide the 32 num_attention_heads; each key head serves the same number of query heads.")]
    [InlineData("\"model_type\": \"llama\", \"pad_token_id\": 32000", "config.json:2: pad_token_id must be below vocab_size, 32000, got 32000.")]
    [InlineData("\"model_type\": \"llama\", \"torch_dtype\": \"float64\"", "config.json:2: torch_dtype must be float32, float16 or bfloat16, got \"float64\".")]
    [InlineData("\"model_type\": \"llama\", \"attention_dropout\": 0.1", "config.json:2: attention_dropout must be 0, got 0.1. Dropout on attention weights is not supported; set it to 0 to train without.")]
    [InlineData("\"model_type\": \"llama\", \"tie_word_embeddings\": \"no\"", "config.json:2: tie_word_embeddings must be true or false, got \"no\".")]
    [InlineData("\"model_type\": \"llama\", \"rope_scaling\": {\n\"rope_type\": \"longrope\"}", "config.json:3: rope_scaling.rope_type must be one of default, linear, dynamic, llama3, yarn, got \"longrope\". Training with other angles than the model's own would ruin it.")]
    [InlineData("\"model_type\": \"llama\", \"rope_scaling\": {\"rope_type\": \"linear\"}", "config.json: rope_scaling.factor is missing; this rope_type needs it. Add it as in the model's original config.json.")]
    [InlineData("\"model_type\": \"llama\", \"rope_scaling\": {\"factor\": 2}", "config.json:2: rope_scaling.factor is given, but no rope_type that says what to do with it. Add rope_type: linear, dynamic, llama3 or yarn.")]
    [InlineData("\"model_type\": \"llama\", \"quantization_config\": {}", "config.json:2: quantization_config is present: these weights are quantized already, which is not read. Use the model's original weights; they are quantized here while they are loaded.")]
    public void Parse_Unusable_SaysWhereAndWhy(string fields, string message)
        => Assert.Equal(message, Assert.Throws<ModelFormatException>(() => Parse("{\n" + fields + "}")).Message);

    [Theory]
    [InlineData("{\"model_type\": \"llama\", \"model_type\": \"qwen2\"}")]
    [InlineData("{\"model_type\": \"llama\"")]
    [InlineData("[]")]
    [InlineData("{\"model_type\": \"\\ud800\"}")]
    [InlineData("{\"\\ud800\": 1}")]
    public void Parse_DamagedJson_IsRefused(string json)
        => Assert.StartsWith("config.json", Assert.Throws<ModelFormatException>(() => Parse(json)).Message, StringComparison.Ordinal);

    [Fact]
    public void Parse_HarmlessOddities_AreNotices()
    {
        ModelConfig config = Parse("""{"model_type":"llama","pretraining_tp":2,"pad_token_id":-1,"rope_scaling":{"rope_type":"yarn","factor":4,"original_max_position_embeddings":1024}}""");
        Assert.Equal(
            ["config.json:1: pretraining_tp has no effect here: it only splits the same products into parts.",
             "config.json:1: rope_scaling.factor is not max_position_embeddings / original_max_position_embeddings = 2048/1024. The given factor is used; some releases of transformers took the quotient.",
             "config.json:1: pad_token_id is -1, which is no token; taken as none."],
            config.Notices);
    }

    [Fact]
    public void Parse_NoFile_SaysWhatItIs()
    {
        using var folder = new TemporaryFolder();
        Assert.Equal(
            $"{folder.File("config.json")}: there is no such file. It says what the model looks like and must lie beside the weights; fetch it from where the model came.",
            Assert.Throws<ModelFormatException>(() => ModelConfig.Parse(folder.Path)).Message);
    }

    [Fact]
    public void CheckTensors_SeveralProblems_ListsAll()
    {
        using var folder = new TemporaryFolder();
        ModelConfig config = Tiny(tied: false);
        WriteModel(folder, config, tensor => tensor.Name switch
        {
            "model.norm.weight" => null,
            "model.layers.0.mlp.up_proj.weight" => tensor with { Shape = [8, 4, 1] },
            _ => tensor,
        });
        using ModelFolder weights = ModelFolder.Open(folder.Path);
        Assert.Equal(
            $"{folder.Path}: the weights do not fit config.json (2 problems). Check that both are of the same model.\n"
            + "  tensor 'model.layers.0.mlp.up_proj.weight' has the shape (8, 4, 1); config.json makes it (8, 4).\n"
            + "  tensor 'model.norm.weight' (4) is missing.",
            Assert.Throws<ModelFormatException>(() => config.CheckTensors(weights)).Message);
    }

    [Theory]
    [InlineData("embedding", "model.embed_tokens.weight", null, 0)]
    [InlineData("both equal", "model.embed_tokens.weight", null, 0)]
    [InlineData("both different", "model.embed_tokens.weight", "lm_head.weight", 1)]
    [InlineData("head", "lm_head.weight", null, 1)]
    public void CheckTensors_TiedEmbeddings_FollowsWhatTheFileHas(string present, string embedding, string? head, int notices)
    {
        using var folder = new TemporaryFolder();
        ModelConfig config = Tiny(tied: true);
        var writer = new SafetensorsWriter();
        foreach (ExpectedTensor tensor in (config with { TieWordEmbeddings = false }).ExpectedTensors())
        {
            bool isHead = tensor.Name == "lm_head.weight", isEmbedding = tensor.Name == "model.embed_tokens.weight";
            if ((isHead && present == "embedding") || (isEmbedding && present == "head"))
            {
                continue;
            }

            byte fill = (byte)(isHead && present == "both different" ? 1 : 0);
            writer.Add(tensor.Name, SafetensorsDType.F32, tensor.Shape, (_, destination) => destination.Fill(fill));
        }

        writer.Add("model.layers.0.self_attn.rotary_emb.inv_freq", SafetensorsDType.F32, [1], new byte[4]);
        writer.Save(folder.File("model.safetensors"));
        using ModelFolder weights = ModelFolder.Open(folder.Path);
        ModelTensorLayout layout = config.CheckTensors(weights);
        Assert.Equal((embedding, head, notices), (layout.EmbeddingName, layout.HeadName, layout.Notices.Count));
    }

    private static ModelConfig Tiny(bool tied) => Parse(
        "{\"model_type\":\"llama\",\"hidden_size\":4,\"intermediate_size\":8,\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":6,\"tie_word_embeddings\":" + (tied ? "true}" : "false}"));

    private static void WriteModel(TemporaryFolder folder, ModelConfig config, Func<ExpectedTensor, ExpectedTensor?> change)
    {
        var writer = new SafetensorsWriter();
        foreach (ExpectedTensor tensor in config.ExpectedTensors())
        {
            if (change(tensor) is { } kept)
            {
                writer.Add(kept.Name, SafetensorsDType.F32, kept.Shape, (_, destination) => destination.Clear());
            }
        }

        writer.Save(folder.File("model.safetensors"));
    }

    private static ModelConfig Parse(string json) => ModelConfig.Parse("config.json", Encoding.UTF8.GetBytes(json));
}
