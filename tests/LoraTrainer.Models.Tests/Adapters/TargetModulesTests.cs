using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Formats;
using Xunit;

namespace LoraTrainer.Models.Tests.Adapters;

public class TargetModulesTests
{
    private static readonly ModelModule[] Model =
    [
        new("model.embed_tokens", ModuleKind.Embedding),
        .. Enumerable.Range(0, 12).SelectMany(layer => new ModelModule[]
        {
            new($"model.layers.{layer}.input_layernorm", ModuleKind.Other),
            new($"model.layers.{layer}.self_attn.q_proj", ModuleKind.Linear),
            new($"model.layers.{layer}.self_attn.k_proj", ModuleKind.Linear),
            new($"model.layers.{layer}.mlp.up_proj", ModuleKind.Linear),
        }),
        new("model.norm", ModuleKind.Other),
        new("lm_head", ModuleKind.OutputHead),
    ];

    [Fact]
    public void Select_List_MatchesWholeComponentsAtTheEnd()
    {
        Assert.Equal(24, Select(new AdapterConfig { TargetModules = ModuleNames.Of("q_proj", "self_attn.k_proj") }).Length);
        Assert.Equal(["model.layers.1.self_attn.q_proj"], Select(new AdapterConfig { TargetModules = ModuleNames.Of("1.self_attn.q_proj") }));
        Assert.Equal(["lm_head"], Select(new AdapterConfig { TargetModules = ModuleNames.Of("lm_head") }));
        Assert.Equal(12, Select(new AdapterConfig()).Length);
    }

    [Fact]
    public void Select_Pattern_MatchesTheWholePath()
    {
        Assert.Equal(["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"], Select(new AdapterConfig { TargetModules = ModuleNames.Matching(@"model\.layers\.1\.self_attn\.(?P<which>q|k)_proj") }));
        Assert.Throws<ModelFormatException>(() => Select(new AdapterConfig { TargetModules = ModuleNames.Matching("q_proj") }));
        Assert.Throws<ModelFormatException>(() => Select(new AdapterConfig { TargetModules = ModuleNames.Matching("model|lm") }));
    }

    [Fact]
    public void Select_AllLinear_LeavesTheHead() => Assert.Equal(36, Select(new AdapterConfig { TargetModules = ModuleNames.Matching("All-Linear") }).Length);

    [Fact]
    public void Select_Exclude_ByListAndByPattern()
    {
        ModuleNames all = ModuleNames.Matching("all-linear");
        Assert.Equal(24, Select(new AdapterConfig { TargetModules = all, ExcludeModules = ModuleNames.Of("up_proj") }).Length);
        Assert.Equal(36, Select(new AdapterConfig { TargetModules = all, ExcludeModules = ModuleNames.Of("proj") }).Length);
        Assert.Equal(33, Select(new AdapterConfig { TargetModules = all, ExcludeModules = ModuleNames.Matching(@".*\.3\..*") }).Length);
    }

    [Fact]
    public void Select_ModulesToSave_AreSavedAndCarryNoAdapter()
    {
        var config = new AdapterConfig { TargetModules = ModuleNames.Of("q_proj", "lm_head"), ModulesToSave = ["lm_head", "1.mlp.up_proj"] };
        TargetModules selected = TargetModules.Select(config, "llama", Model);
        Assert.Equal(12, selected.Targets.Count);
        // The reference compares the raw end of the path, so that 11.mlp.up_proj is saved too.
        Assert.Equal(["model.layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj", "lm_head"], selected.Saved);
    }

    [Fact]
    public void Select_Layers_OnlyForEndings()
    {
        var config = new AdapterConfig { TargetModules = ModuleNames.Of("q_proj", "model.layers.5.mlp.up_proj"), LayersToTransform = [1, 11] };
        string[] expected = ["model.layers.1.self_attn.q_proj", "model.layers.5.mlp.up_proj", "model.layers.11.self_attn.q_proj"];
        Assert.Equal(expected, Select(config));
        Assert.Equal(expected, Select(config with { LayersPattern = ["layers"] }));
        Assert.Equal(["model.layers.5.mlp.up_proj"], Select(config with { LayersPattern = ["blocks"] }));
        Assert.Equal(13, Select(config with { LayersToTransform = [] }).Length);
    }

    [Fact]
    public void Select_Patterns_FirstMatchCounts()
    {
        var config = new AdapterConfig
        {
            R = 8,
            LoraAlpha = 16,
            TargetModules = ModuleNames.Of("q_proj", "k_proj"),
            RankPattern = [KeyValuePair.Create(@"layers\.1\.self_attn\.q_proj", 2), KeyValuePair.Create("q_proj", 4), KeyValuePair.Create("proj", 99)],
            AlphaPattern = [KeyValuePair.Create("k_proj", 32.0)],
        };
        TargetModules selected = TargetModules.Select(config, "llama", Model);
        Assert.Equal(new TargetModule("model.layers.0.self_attn.q_proj", 4, 16, 4), selected.Targets[0]);
        Assert.Equal(new TargetModule("model.layers.0.self_attn.k_proj", 8, 32, 4), selected.Targets[1]);
        Assert.Equal(new TargetModule("model.layers.1.self_attn.q_proj", 2, 16, 8), selected.Targets[2]);
    }

    [Fact]
    public void Select_Unusable_SaysWhatThereIs()
    {
        Assert.Equal(
            "target_modules [query_key_value] matches no module of the model. Its modules are: embed_tokens, q_proj, k_proj, up_proj, lm_head.",
            Refused(new AdapterConfig { TargetModules = ModuleNames.Of("query_key_value") }));
        Assert.Equal(
            "target_modules matches 'model.norm', which is neither linear nor an embedding and can carry no adapter. To train it in full, name it in modules_to_save.",
            Refused(new AdapterConfig { TargetModules = ModuleNames.Of("norm") }));
        Assert.Equal(
            "layers_to_transform needs a list of target_modules, got the pattern 'all-linear'. Write the names as a list, or put the layers into the pattern.",
            Refused(new AdapterConfig { TargetModules = ModuleNames.Matching("all-linear"), LayersToTransform = [1] }));
        Assert.StartsWith("target_modules: '(' is not a valid regular expression: ", Refused(new AdapterConfig { TargetModules = ModuleNames.Matching("(") }), StringComparison.Ordinal);
        Assert.Equal(
            "layers_pattern has no meaning without layers_to_transform. Give both, or neither.",
            Refused(new AdapterConfig { LayersPattern = ["layers"] }));
    }

    [Fact]
    public void Select_EndlessPattern_IsStopped()
        => Assert.Equal(
            $"target_modules: the regular expression '([a-z_.0-9]+)+!' took more than 1 second on '{Model[1].Path}'. Write a simpler one, without nested repetition.",
            Refused(new AdapterConfig { TargetModules = ModuleNames.Matching("([a-z_.0-9]+)+!"), ExcludeModules = ModuleNames.Of("embed_tokens") }));

    [Fact]
    public void Select_EntryWithoutMatch_IsNotice()
        => Assert.Equal(
            ["target_modules: 'k_porj' matches no module of the model. Its modules are: embed_tokens, q_proj, k_proj, up_proj, lm_head."],
            TargetModules.Select(new AdapterConfig { TargetModules = ModuleNames.Of("q_proj", "k_porj") }, "llama", Model).Notices);

    [Fact]
    public void Compact_UsesLastNamesWhereTheyMeanTheSame()
    {
        TargetModules all = TargetModules.Select(new AdapterConfig { TargetModules = ModuleNames.Matching("all-linear") }, "llama", Model);
        Assert.Equal(["k_proj", "q_proj", "up_proj"], TargetModules.Compact(all.Targets, Model).List);
        TargetModules some = TargetModules.Select(new AdapterConfig { TargetModules = ModuleNames.Of("q_proj"), LayersToTransform = [3] }, "llama", Model);
        Assert.Equal(["model.layers.3.self_attn.q_proj"], TargetModules.Compact(some.Targets, Model).List);
    }

    private static string[] Select(AdapterConfig config) => [.. TargetModules.Select(config, "llama", Model).Targets.Select(target => target.Path)];

    private static string Refused(AdapterConfig config) => Assert.Throws<ModelFormatException>(() => Select(config)).Message;
}
