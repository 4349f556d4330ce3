using System.Text;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Adapters;

public class AdapterConfigTests
{
    public static TheoryData<string> PeftCases => [.. Fixtures.Cases("peft")];

    /// <summary>A config that PEFT wrote is read and written again as the same bytes; only keys that hold an empty value may be spelled otherwise.</summary>
    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(PeftCases))]
    public void ToJson_FileOfTheReferenceLibrary_IsEqual(string name)
    {
        string path = Path.Combine(Fixtures.Require($"peft/{name}"), "adapter_start", "adapter_config.json");
        AdapterConfig config = AdapterConfig.Parse(path);
        Assert.Empty(config.Notices);
        using var versions = System.Text.Json.JsonDocument.Parse(File.ReadAllBytes(Fixtures.Require("versions.json")));
        Assert.Equal(versions.RootElement.GetProperty("peft").GetString(), config.PeftVersion);

        // "target_parameters": [] means the same as null, which is what is written here.
        string expected = File.ReadAllText(path).Replace("\"target_parameters\": []", "\"target_parameters\": null", StringComparison.Ordinal);
        Assert.Equal(expected, config.ToJson());
    }

    [Fact]
    public void Parse_PublishedConfigs_AreRead()
    {
        string[] files = [.. Directory.GetFiles(Fixtures.RequireData("finlora/adapter_configs")).Order(StringComparer.Ordinal)];
        Assert.Equal(4, files.Length);
        AdapterConfig[] configs = [.. files.Select(file => AdapterConfig.Parse(file))];
        Assert.All(configs, config => Assert.Equal("meta-llama/Llama-3.1-8B-Instruct", config.BaseModelNameOrPath));
        Assert.All(configs, config => Assert.Equal(["k_proj", "q_proj", "v_proj"], config.TargetModules!.List!.Order(StringComparer.Ordinal)));
        Assert.All(configs, config => Assert.Empty(config.Notices));
        Assert.Equal([4, 8, 8, 8], configs.Select(config => config.R).Order());
        Assert.Single(configs, config => config.UseDora);
        Assert.Single(configs, config => config.UseRslora);
        Assert.Single(configs, config => config is { R: 4, LoraAlpha: 32, LoraDropout: 0.1 });
    }

    [Fact]
    public void Parse_NothingButType_TakesTheDefaults()
    {
        AdapterConfig config = Parse("{\"peft_type\": \"LORA\"}");
        Assert.Equal((8, 8.0, 0.0, AdapterBias.None, "true", null), (config.R, config.LoraAlpha, config.LoraDropout, config.Bias, config.InitLoraWeights, config.TargetModules));
        Assert.Equal((1.0, false, false), (config.Scaling(8, 8), config.UseDora, config.UseRslora));
        Assert.Equal(16 / Math.Sqrt(8), (config with { UseRslora = true }).Scaling(8, 16));
    }

    [Theory]
    [InlineData("\"r\": 8", "adapter_config.json: peft_type is missing; it says what kind of adapter this is. Check that the file is the adapter_config.json that PEFT wrote.")]
    [InlineData("\"peft_type\": \"LOHA\"", "adapter_config.json:2: peft_type must be \"LORA\", got \"LOHA\". Other kinds of adapter are not supported.")]
    [InlineData("\"peft_type\": \"LORA\", \"r\": 0", "adapter_config.json:2: r must be a whole number from 1 to 65536, got 0.")]
    [InlineData("\"peft_type\": \"LORA\", \"bias\": \"some\"", "adapter_config.json:2: bias must be none, all or lora_only, got \"some\".")]
    [InlineData("\"peft_type\": \"LORA\",\n\"use_qalora\": true", "adapter_config.json:3: use_qalora is set: it changes what the adapter computes, and is not supported. Use an adapter without it.")]
    [InlineData("\"peft_type\": \"LORA\", \"trainable_token_indices\": [1]", "adapter_config.json:2: trainable_token_indices is set: it changes what the adapter computes, and is not supported. Use an adapter without it.")]
    [InlineData("\"peft_type\": \"LORA\", \"use_newlora\": true", "adapter_config.json:2: use_newlora is set and not known here: it may change what the adapter computes. Use an adapter without it.")]
    [InlineData("\"peft_type\": \"LORA\", \"rank_pattern\": {\"q\": 0}", "adapter_config.json:2: rank_pattern.q must be a whole number from 1 to 65536, got 0.")]
    [InlineData("\"peft_type\": \"LORA\", \"target_modules\": [1]", "adapter_config.json:2: target_modules must be a list of strings, got [1].")]
    public void Parse_Unusable_SaysWhereAndWhy(string fields, string message)
        => Assert.Equal(message, Assert.Throws<ModelFormatException>(() => Parse("{\n" + fields + "}")).Message);

    [Fact]
    public void Parse_UnknownButHarmless_IsNotice()
        => Assert.Equal(
            ["adapter_config.json:1: eva_config only says how the adapter was started or written; it is not used.", "adapter_config.json:1: color is not known here; it is not used."],
            Parse("""{"peft_type": "LORA", "eva_config": {"rho": 2}, "color": "blue", "use_other": false, "other_config": null}""").Notices);

    [Fact]
    public void ToJson_Patterns_KeepTheirOrder()
    {
        AdapterConfig config = Parse("""{"peft_type": "LORA", "rank_pattern": {"z": 1, "a": 2}, "alpha_pattern": {"y": 1.5, "b": 2}}""");
        AdapterConfig again = Parse(config.ToJson());
        Assert.Equal(["z", "a"], again.RankPattern.Select(pair => pair.Key));
        Assert.Equal([KeyValuePair.Create("y", 1.5), KeyValuePair.Create("b", 2.0)], again.AlphaPattern);
    }

    private static AdapterConfig Parse(string json) => AdapterConfig.Parse("adapter_config.json", Encoding.UTF8.GetBytes(json));
}
