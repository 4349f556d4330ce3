using System.Text.Json;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Adapters;

public class PeftAdapterFolderTests
{
    public static TheoryData<string> PeftCases => [.. Fixtures.Cases("peft")];

    /// <summary>The modules that our selection names, on the base model's own modules, are those whose tensors PEFT saved, with PEFT's ranks.</summary>
    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(PeftCases))]
    public void Open_AdapterOfTheReferenceLibrary_HasTheSelectedModules(string name)
    {
        string folder = Fixtures.Require($"peft/{name}");
        using var description = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "case.json")));
        using ModelFolder model = ModelFolder.Open(Fixtures.Require(description.RootElement.GetProperty("base_model").GetString()!));
        using PeftAdapterFolder adapter = PeftAdapterFolder.Open(Path.Combine(folder, "adapter_start"));
        List<ModelModule> modules = ModulesOf(model);
        TargetModules selected = TargetModules.Select(adapter.Config, "llama", modules);
        Assert.Empty(selected.Notices);
        Assert.NotEmpty(selected.Targets);
        var expected = selected.Targets.SelectMany(target => new[] { Key(target.Path, PeftTensorKind.LoraA), Key(target.Path, PeftTensorKind.LoraB) })
            .Concat(adapter.Config.UseDora ? selected.Targets.Select(target => Key(target.Path, PeftTensorKind.Magnitude)) : [])
            .Concat(selected.Saved.Select(path => Key(path, PeftTensorKind.SavedWeight)));
        Assert.Equal(expected.Order(StringComparer.Ordinal), adapter.Tensors.Keys.Select(key => key.ToString()).Order(StringComparer.Ordinal));
        foreach (TargetModule target in selected.Targets)
        {
            Assert.Equal(target.Rank, adapter.Find(target.Path, PeftTensorKind.LoraA)!.Value.Entry.Shape[0]);
        }

        // What the case asked for (all-linear, say) selects the same modules as the saved list.
        JsonElement asked = description.RootElement.GetProperty("peft").GetProperty("target_modules");
        ModuleNames wanted = asked.ValueKind == JsonValueKind.String ? ModuleNames.Matching(asked.GetString()!) : ModuleNames.Of([.. asked.EnumerateArray().Select(item => item.GetString()!)]);
        Assert.Equal(selected.Targets, TargetModules.Select(adapter.Config with { TargetModules = wanted }, "llama", modules).Targets);
    }

    [Theory]
    [InlineData("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj", PeftTensorKind.LoraA)]
    [InlineData("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", "model.layers.0.self_attn.q_proj", PeftTensorKind.LoraB)]
    [InlineData("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "model.layers.0.self_attn.q_proj", PeftTensorKind.LoraBBias)]
    [InlineData("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "model.layers.0.self_attn.q_proj", PeftTensorKind.Magnitude)]
    [InlineData("base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias", "model.layers.0.self_attn.q_proj", PeftTensorKind.BaseBias)]
    [InlineData("base_model.model.model.embed_tokens.lora_embedding_A", "model.embed_tokens", PeftTensorKind.LoraEmbeddingA)]
    [InlineData("base_model.model.model.embed_tokens.lora_embedding_B", "model.embed_tokens", PeftTensorKind.LoraEmbeddingB)]
    [InlineData("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "model.embed_tokens", PeftTensorKind.TrainableTokens)]
    [InlineData("base_model.model.lm_head.weight", "lm_head", PeftTensorKind.SavedWeight)]
    [InlineData("base_model.model.lm_head.bias", "lm_head", PeftTensorKind.SavedBias)]
    public void Key_BothWays(string name, string module, PeftTensorKind kind)
    {
        Assert.Equal(new PeftAdapterFolderKey(module, kind), PeftAdapterFolderKey.Parse(name));
        Assert.Equal(name, new PeftAdapterFolderKey(module, kind).ToString());
    }

    [Theory]
    [InlineData("model.lm_head.weight")]
    [InlineData("base_model.model.x.lora_C")]
    [InlineData("base_model.model..weight")]
    [InlineData("base_model.model.weight")]
    public void Key_OtherNames_AreNone(string name) => Assert.Null(PeftAdapterFolderKey.Parse(name));

    [Fact]
    public void SaveAndOpen_RoundTrip()
    {
        using var folder = new TemporaryFolder();
        var config = new AdapterConfig { R = 2, LoraAlpha = 4, TargetModules = ModuleNames.Of("q_proj"), RankPattern = [KeyValuePair.Create("1.q_proj", 3)] };
        PeftAdapterFolder.Save(folder.File("new"), config, Weights(3));
        using PeftAdapterFolder adapter = PeftAdapterFolder.Open(folder.File("new"));
        Assert.Equal(config.ToJson(), adapter.Config.ToJson());
        Assert.Equal(4, adapter.Tensors.Count);
        Assert.Null(adapter.Find("l.1.q_proj", PeftTensorKind.Magnitude));
    }

    [Fact]
    public void Open_ConfigAndWeightsDiffer_ListsAllProblems()
    {
        using var folder = new TemporaryFolder();
        var weights = Weights(2);
        weights.Add("base_model.model.l.2.q_proj.lora_A.weight", SafetensorsDType.F32, [2, 4], new byte[32]);
        weights.Add("strange", SafetensorsDType.F32, [1], new byte[4]);
        PeftAdapterFolder.Save(folder.Path, new AdapterConfig { R = 2, RankPattern = [KeyValuePair.Create("1.q_proj", 3)] }, weights);
        Assert.Equal(
            $"{folder.File("adapter_model.safetensors")}: the weights do not fit adapter_config.json (4 problems). Check that both are of the same adapter.\n"
            + "  tensor 'strange' has a name that PEFT does not write.\n"
            + "  tensor 'base_model.model.l.1.q_proj.lora_A.weight' has the shape (2, 4); adapter_config.json makes it (3, in).\n"
            + "  tensor 'base_model.model.l.1.q_proj.lora_B.weight' has the shape (4, 2); adapter_config.json makes it (out, 3).\n"
            + "  tensor 'base_model.model.l.2.q_proj.lora_A.weight' has no partner 'base_model.model.l.2.q_proj.lora_B.weight'.",
            Assert.Throws<ModelFormatException>(() => PeftAdapterFolder.Open(folder.Path)).Message);
    }

    [Fact]
    public void Open_NoWeights_SaysWhatToDo()
    {
        using var folder = new TemporaryFolder();
        Assert.Equal(
            $"{folder.File("adapter_config.json")}: there is no such file. An adapter is a folder with adapter_config.json and adapter_model.safetensors; check the path.",
            Assert.Throws<ModelFormatException>(() => PeftAdapterFolder.Open(folder.Path)).Message);
        new AdapterConfig().Save(folder.Path);
        Assert.Equal(
            $"{folder.File("adapter_model.safetensors")}: there is no such file, nor adapter_model.bin. Fetch the adapter's weights into this folder.",
            Assert.Throws<ModelFormatException>(() => PeftAdapterFolder.Open(folder.Path)).Message);
    }

    [Fact]
    public void Open_TorchFile_IsReadWhereThereIsNoOther()
    {
        using var folder = new TemporaryFolder();
        new AdapterConfig { R = 2 }.Save(folder.Path);
        var writer = new TorchWriter();
        writer.AddTransposed(Key("l.0.q_proj", PeftTensorKind.LoraA), SafetensorsDType.F32, 2, 3, [.. Enumerable.Range(0, 24).Select(value => (byte)value)]);
        writer.Add(Key("l.0.q_proj", PeftTensorKind.LoraB), SafetensorsDType.F32, [4, 2], new byte[32]);
        writer.Save(folder.File("adapter_model.bin"));
        using PeftAdapterFolder adapter = PeftAdapterFolder.Open(folder.Path);
        byte[] bytes = new byte[24];
        adapter.Find("l.0.q_proj", PeftTensorKind.LoraA)!.Value.ReadInto(0, bytes);
        Assert.Equal(Enumerable.Range(0, 24).Select(value => (byte)value), bytes);
    }

    private static SafetensorsWriter Weights(int rankOfOne)
    {
        var writer = new SafetensorsWriter();
        foreach ((int layer, int rank) in new[] { (0, 2), (1, rankOfOne) })
        {
            writer.Add(Key($"l.{layer}.q_proj", PeftTensorKind.LoraA), SafetensorsDType.F32, [rank, 4], new byte[rank * 16]);
            writer.Add(Key($"l.{layer}.q_proj", PeftTensorKind.LoraB), SafetensorsDType.F32, [4, rank], new byte[rank * 16]);
        }

        return writer;
    }

    private static string Key(string module, PeftTensorKind kind) => new PeftAdapterFolderKey(module, kind).ToString();

    /// <summary>Modules from the names of the base model's weights; only matrices that are no table of tokens are linear.</summary>
    private static List<ModelModule> ModulesOf(ModelFolder model)
        => [.. model.Tensors.Where(pair => pair.Key.EndsWith(".weight", StringComparison.Ordinal)).Select(pair => new ModelModule(
            pair.Key[..^".weight".Length],
            pair.Key == "lm_head.weight" ? ModuleKind.OutputHead : pair.Key == "model.embed_tokens.weight" ? ModuleKind.Embedding : pair.Value.Entry.Shape.Length == 2 ? ModuleKind.Linear : ModuleKind.Other))];
}
