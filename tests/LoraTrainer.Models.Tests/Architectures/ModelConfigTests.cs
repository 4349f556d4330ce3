using System.Text;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Architectures;

public class ModelConfigTests
{
    private const string Supported = "llama, mistral, qwen2, qwen3, phi3, gemma2";

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

    [Theory]
    [InlineData("mistral", "", 4096, "11")]
    [InlineData("mistral", ", \"sliding_window\": null", 0, "00")]
    [InlineData("mistral", ", \"sliding_window\": 7, \"layer_types\": [\"sliding_attention\", \"sliding_attention\"]", 7, "11")]
    [InlineData("phi3", "", 0, "00")]
    [InlineData("phi3", ", \"sliding_window\": 2047", 2047, "11")]
    [InlineData("qwen2", ", \"sliding_window\": 7", 0, "00")]
    [InlineData("qwen2", ", \"use_sliding_window\": true", 0, "00")]
    [InlineData("qwen2", ", \"use_sliding_window\": true, \"max_window_layers\": 1", 4096, "01")]
    [InlineData("qwen3", ", \"use_sliding_window\": true, \"sliding_window\": 9, \"layer_types\": [\"sliding_attention\", \"full_attention\"]", 9, "10")]
    [InlineData("gemma2", "", 4096, "10")]
    [InlineData("gemma2", ", \"sliding_window\": 5, \"layer_types\": [\"full_attention\", \"sliding_attention\"]", 5, "01")]
    [InlineData("llama", ", \"sliding_window\": 5", 0, "00")]
    public void Parse_SlidingWindows_AreThoseOfTheFamily(string family, string fields, int window, string slides)
    {
        ModelConfig config = Parse($"{{\"model_type\": \"{family}\", \"num_hidden_layers\": 2{fields}}}");
        Assert.Equal(slides.Select(layer => layer == '1' ? window : 0), Enumerable.Range(0, 2).Select(config.WindowOf));
        ModelConfig again = Parse(config.ToJson());
        Assert.Equal(slides.Select(layer => layer == '1' ? window : 0), Enumerable.Range(0, 2).Select(again.WindowOf));
    }

    [Fact]
    public void Parse_FamilyDefaults_AreThoseOfTheClass()
    {
        ModelConfig gemma = Parse("{\"model_type\": \"gemma2\"}");
        Assert.Equal((50.0, 30.0, 256.0, 256, 0, true, 4), (gemma.AttentionSoftcap, gemma.LogitSoftcap, gemma.QueryPreAttnScalar, gemma.HeadDim, gemma.PadTokenId, gemma.TieWordEmbeddings, gemma.NumKeyValueHeads));
        ModelConfig uncapped = Parse("{\"model_type\": \"gemma2\", \"attn_logit_softcapping\": null, \"final_logit_softcapping\": null, \"pad_token_id\": null}");
        Assert.Equal((null, null, null), (uncapped.AttentionSoftcap, uncapped.LogitSoftcap, uncapped.PadTokenId));
        ModelConfig phi = Parse("{\"model_type\": \"phi3\"}");
        Assert.Equal((1e-5, 32_000, 32, 96), (phi.RmsNormEps, phi.PadTokenId, phi.NumKeyValueHeads, phi.HeadDim));
        Assert.Null(Parse("{\"model_type\": \"phi3\", \"vocab_size\": 320}").PadTokenId);
        ModelConfig qwen2 = Parse("{\"model_type\": \"qwen2\"}"), qwen3 = Parse("{\"model_type\": \"qwen3\", \"attention_bias\": true}");
        Assert.Equal((true, false, false), (qwen2.AttentionBias, qwen2.OutputBias, qwen2.QueryKeyNorm));
        Assert.Equal((true, true, true, 128), (qwen3.AttentionBias, qwen3.OutputBias, qwen3.QueryKeyNorm, qwen3.HeadDim));
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
    [InlineData("\"model_type\": \"mistral\", \"num_hidden_layers\": 2,\n\"layer_types\": [\"full_attention\", \"sliding_attention\"]", "config.json:3: layer_types does not fit sliding_window, which in the family mistral holds for every layer. Remove layer_types, or set sliding_window to null if no layer slides.")]
    [InlineData("\"model_type\": \"qwen2\", \"layer_types\": [\"full_attention\"]", "config.json:2: layer_types names 1 layers, but num_hidden_layers is 32. One of the two is wrong.")]
    [InlineData("\"model_type\": \"qwen2\", \"num_hidden_layers\": 1, \"layer_types\": [\"sliding_attention\"]", "config.json:2: layer_types gives layers a sliding window, but there is no size: sliding_window is null, or use_sliding_window is false. One of them is wrong.")]
    [InlineData("\"model_type\": \"qwen3\", \"num_hidden_layers\": 1, \"layer_types\": [\"linear_attention\"]", "config.json:2: layer_types must be a list of full_attention and sliding_attention, got [\"linear_attention\"]. Another kind of layer is not supported.")]
    [InlineData("\"model_type\": \"gemma2\",\n\"sliding_window\": null", "config.json:3: sliding_window gives layers a sliding window, but there is no size: sliding_window is null, or use_sliding_window is false. One of them is wrong.")]
    [InlineData("\"model_type\": \"gemma2\", \"hidden_activation\": \"gelu\"", "config.json:2: hidden_activation must be gelu_pytorch_tanh, got \"gelu\". Another activation is not supported for this family.")]
    [InlineData("\"model_type\": \"gemma2\", \"use_bidirectional_attention\": true", "config.json:2: use_bidirectional_attention must be false, got true. Only causal attention is supported.")]
    [InlineData("\"model_type\": \"phi3\", \"resid_pdrop\": 0.1", "config.json:2: resid_pdrop must be 0, got 0.1. Dropout in the base model is not supported; set it to 0 to train without.")]
    [InlineData("\"model_type\": \"phi3\", \"rope_scaling\": {\"type\": \"longrope\"}", "config.json:2: rope_scaling.type must be default in the family phi3, got \"longrope\". Its long contexts (longrope) are not supported; choose a model of this family without rope_scaling.")]
    [InlineData("\"model_type\": \"phi3\", \"rope_scaling\": {\"type\": \"su\"}", "config.json:2: rope_scaling.type must be default in the family phi3, got \"su\". Its long contexts (longrope) are not supported; choose a model of this family without rope_scaling.")]
    [InlineData("\"model_type\": \"phi3\", \"partial_rotary_factor\": 0.75", "config.json:2: partial_rotary_factor must be 1 for this family, got 0.75. Heads that rotate only in part are not supported here.")]
    [InlineData("\"model_type\": \"llama\",\n\"quantization_config\": {}", "config.json:3: quantization_config says neither load_in_4bit nor load_in_8bit, so it is not known what the files hold. Fetch config.json again, or use the model's original weights.")]
    [InlineData("\"model_type\": \"llama\",\n\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}", "config.json:3: quantization_config.quant_method must be bitsandbytes, got \"gptq\". Weights that something else has quantized are not read. Use the model's original weights; they are quantized here while they are loaded.")]
    [InlineData("\"model_type\": \"llama\",\n\"quantization_config\": {\"load_in_4bit\": true, \"_load_in_8bit\": true}", "config.json:3: quantization_config has both load_in_4bit and load_in_8bit. The files hold one of them; fetch config.json again.")]
    [InlineData("\"model_type\": \"llama\",\n\"quantization_config\": {\"load_in_4bit\": true, \"bnb_4bit_quant_type\": \"int4\"}", "config.json:3: quantization_config.bnb_4bit_quant_type must be nf4 or fp4, got \"int4\".")]
    [InlineData("\"model_type\": \"llama\",\n\"quantization_config\": {\"load_in_8bit\": true, \"llm_int8_has_fp16_weight\": true}", "config.json:3: quantization_config.llm_int8_has_fp16_weight must be false, got true. Such files keep f16 weights beside the signed bytes. Use the model's original weights with load_in_8bit: true.")]
    public void Parse_Unusable_SaysWhereAndWhy(string fields, string message)
        => Assert.Equal(message, Assert.Throws<ModelFormatException>(() => Parse("{\n" + fields + "}")).Message);

    [Theory]
    [InlineData("""{"load_in_4bit": true}""", BaseFormat.Fp4, "")]
    [InlineData("""{"_load_in_4bit": true, "quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true, "llm_int8_skip_modules": null}""", BaseFormat.Nf4DoubleQuantized, "")]
    [InlineData("""{"load_in_8bit": true, "load_in_4bit": false, "bnb_4bit_quant_type": "fp4", "llm_int8_skip_modules": ["lm_head", "mlp.gate"]}""", BaseFormat.EightBit, "lm_head, model.layers.0.mlp.gate, model.mlp.gate.1.x")]
    public void Parse_QuantizationOfBitsandbytes_IsRead(string quantization, BaseFormat format, string skipped)
    {
        StoredQuantization stored = Parse($$"""{"model_type": "llama", "quantization_config": {{quantization}}}""").Quantization!;
        Assert.Equal(format, stored.Format);
        Assert.Equal(skipped, string.Join(", ", new[] { "lm_head", "model.layers.0.mlp.gate", "model.layers.0.mlp.gate_proj", "model.mlp.gate.1.x" }.Where(stored.Skips)));
    }

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
