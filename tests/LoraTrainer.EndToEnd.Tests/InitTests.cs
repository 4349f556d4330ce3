using System.Text.Json;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>The verb init, as a process of its own.</summary>
public sealed class InitTests
{
    [Theory]
    [InlineData("lora", "lora", false)]
    [InlineData("qlora", "qlora", false)]
    [InlineData("dora", "lora", true)]
    [InlineData("full", null, false)]
    public async Task Init_WritesWhatValidateFindsRight(string method, string? adapter, bool isDora)
    {
        using var folder = new TinyFolder();
        Ending init = await folder.SucceedsAsync("init", "made.yaml", "--base-model", "base", "--data", "train.jsonl", "--adapter", method, "--device", "cpu");
        Assert.StartsWith("made.yaml is written: ", init.Output, StringComparison.Ordinal);
        Assert.Equal("", init.Error);
        Ending validate = await folder.SucceedsAsync("validate", "made.yaml", "--json");
        using JsonDocument document = JsonDocument.Parse(validate.Output);
        JsonElement root = document.RootElement, config = root.GetProperty("config");
        Assert.All(["errors", "warnings", "notices"], kind => Assert.Equal(0, root.GetProperty(kind).GetArrayLength()));
        Assert.Equal(("base", adapter, "outputs/made", "cpu"), (config.GetProperty("base_model").GetString(), config.TryGetProperty("adapter", out JsonElement kind) && kind.GetString() is { Length: > 0 } word ? word : null, config.GetProperty("output_dir").GetString(), config.GetProperty("device").GetString()));
        Assert.Equal(isDora, config.TryGetProperty("peft_use_dora", out JsonElement dora) && dora.GetBoolean());
        Assert.Equal(TinyRun.Shape.MaxPositionEmbeddings, config.GetProperty("sequence_len").GetInt32());
        Assert.All(File.ReadAllLines(folder.PathOf("made.yaml")), line => Assert.True(line.Length <= 100, line));
    }

    [Theory]
    [InlineData("{\"prompt\":\"a\",\"response\":\"b\"}", "field_instruction: prompt")]
    [InlineData("{\"text\":\"a\"}", "type: completion")]
    [InlineData("{\"instruction\":\"a\",\"output\":\"b\"}", "type: alpaca")]
    public async Task Init_TakesTheFormatFromTheRows_AndItTrains(string row, string line)
    {
        using var folder = new TinyFolder();
        File.WriteAllLines(folder.PathOf("rows.jsonl"), Enumerable.Repeat(row, 20));
        await folder.SucceedsAsync("init", "made.yaml", "--base-model", "base", "--data", "rows.jsonl", "--adapter", "lora");
        Assert.Contains(line, File.ReadAllText(folder.PathOf("made.yaml")), StringComparison.Ordinal);
        await folder.SucceedsAsync("train", "made.yaml", "--set", "max_steps=1", "--set", "device=cpu", "--set", "evaluate_before=false", "--set", "evaluate_after=false");
        Assert.True(File.Exists(folder.PathOf("outputs/made/adapter_model.safetensors")));
    }

    [Fact]
    public async Task Init_OverwritesOnlyWhenTold_AndNeedsAnswers()
    {
        using var folder = new TinyFolder();
        string before = File.ReadAllText(folder.PathOf("tiny.yaml"));
        await folder.RefusesAsync("tiny.yaml is there already. Choose another name, or --force", "init", "tiny.yaml", "--base-model", "base", "--data", "train.jsonl");
        Assert.Equal(before, File.ReadAllText(folder.PathOf("tiny.yaml")));
        await folder.RefusesAsync("--base-model and --data must be given", "init", "made.yaml");
        await folder.RefusesAsync("Did you mean qlora?", "init", "made.yaml", "--base-model", "base", "--data", "train.jsonl", "--adapter", "qlra");
        await folder.RefusesAsync("there is no folder", "init", "gone/made.yaml", "--base-model", "base", "--data", "train.jsonl");
        Assert.False(File.Exists(folder.PathOf("made.yaml")));
        Ending odd = await folder.SucceedsAsync("init", "tiny.yaml", "--force", "--base-model", "my: model #1", "--data", "not here.jsonl", "--json");
        Assert.Contains("not here.jsonl is not here: its rows are taken for alpaca's", odd.Error, StringComparison.Ordinal);
        using JsonDocument document = JsonDocument.Parse(odd.Output);
        Assert.Equal("my: model #1", document.RootElement.GetProperty("config").GetProperty("base_model").GetString());
    }
}
