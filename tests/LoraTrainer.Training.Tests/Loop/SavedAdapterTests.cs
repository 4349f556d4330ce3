using System.Text.Json;
using System.Text.Json.Nodes;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests.Loop;

/// <summary>The folder that a run writes beside the one that PEFT writes for the same settings: the same files, fields, names, shapes and types.</summary>
[Trait("Category", "Fixtures")]
public sealed class SavedAdapterTests
{
    // Whose they are is no setting.
    private static readonly string[] Signatures = ["peft_version", "base_model_name_or_path"];

    private static readonly Dictionary<string, string> Keys = new(StringComparer.Ordinal)
    {
        ["r"] = "lora_r",
        ["lora_alpha"] = "lora_alpha",
        ["lora_dropout"] = "lora_dropout",
        ["use_dora"] = "peft_use_dora",
        ["use_rslora"] = "peft_use_rslora",
        ["init_lora_weights"] = "peft_init_lora_weights",
        ["target_modules"] = "lora_target_modules",
        ["modules_to_save"] = "lora_modules_to_save",
        ["layers_to_transform"] = "peft_layers_to_transform",
        ["rank_pattern"] = "lora_rank_pattern",
        ["alpha_pattern"] = "lora_alpha_pattern",
    };

    public static TheoryData<string> Cases => [.. Fixtures.Cases("peft").Where(name => PeftFixture.NotYetSupported(Path.Combine("peft", name)) is null)];

    [Theory]
    [MemberData(nameof(Cases))]
    public void Build_AndSave_IsPeftsFolder(string name)
    {
        string folder = Fixtures.Require(Path.Combine("peft", name));
        using JsonDocument description = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "case.json")));
        string baseFolder = Fixtures.Require(description.RootElement.GetProperty("base_model").GetString()!);
        string yaml = $"base_model: {baseFolder}\nadapter: lora\ndatasets: [{{path: none.jsonl, type: alpaca}}]\n"
            + string.Concat(description.RootElement.GetProperty("peft").EnumerateObject().Select(setting =>
                setting.Value.ValueKind == JsonValueKind.String && setting.Value.GetString() == "all-linear" ? "lora_target_linear: true\n" : $"{Keys[setting.Name]}: {setting.Value.GetRawText()}\n"));
        TrainingConfig config = ConfigurationLoader.LoadText(yaml, "case.yaml", []).Require();
        using var device = new CpuDevice(2, ModelFixture.ArenaBytes);
        using ModelFolder files = ModelFolder.Open(baseFolder);
        TrainedModel trained = TrainedModel.Build(config, ModelConfig.Parse(baseFolder), files, device);
        using var written = new TemporaryFolder();
        trained.Adapters!.Save(written.Path);

        string reference = Path.Combine(folder, "adapter_end");
        Assert.Equal(["adapter_config.json", "adapter_model.safetensors"], Directory.EnumerateFiles(written.Path).Select(path => Path.GetFileName(path)).Order(StringComparer.Ordinal));
        ModelConfig shape = trained.Model.Config;
        Assert.Equal(Fields(reference, shape), Fields(written.Path, shape));
        Assert.Equal(Tensors(reference), Tensors(written.Path));
    }

    /// <summary>The file as text, with the modules in place of their names: PEFT spells "all-linear" as whole paths in small models and as last names in large ones.</summary>
    private static string Fields(string folder, ModelConfig shape)
    {
        JsonObject fields = JsonNode.Parse(File.ReadAllBytes(Path.Combine(folder, AdapterConfig.FileName)))!.AsObject();
        foreach (string signature in Signatures)
        {
            fields.Remove(signature);
        }

        fields["target_modules"] = new JsonArray([.. TargetModules.Select(AdapterConfig.Parse(folder), shape.ModelType, LoraInjection.Modules(shape)).Targets.Select(target => JsonValue.Create(target.Path))]);
        return fields.ToJsonString(new JsonSerializerOptions { WriteIndented = true });
    }

    private static string[] Tensors(string folder)
    {
        using SafetensorsFile file = SafetensorsFile.Open(Path.Combine(folder, PeftAdapterFolder.WeightsFileName));
        return [.. file.Entries.Select(entry => $"{entry.Name} {entry}").Order(StringComparer.Ordinal)];
    }
}
