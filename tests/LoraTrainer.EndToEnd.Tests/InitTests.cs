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
    [InlineData("{\"instruction\":\"a\",\"context\":\"c\",\"response\":\"b\"}", "# without type: alpaca's prompt of instruction, context and response")]
    [InlineData("{\"segments\":[{\"label\":false,\"text\":\"a\"},{\"label\":true,\"text\":\"b</s>\"}]}", "type: input_output")]
    [InlineData("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}", "chat_template: chatml ")]
    [InlineData("{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}]}", "type: chat_template")]
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
    public async Task Init_OfMessages_GoesThroughTheTemplateOfTheBase()
    {
        using var folder = new TinyFolder();
        File.WriteAllText(folder.PathOf("base/chat_template.jinja"), "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}");
        File.WriteAllLines(folder.PathOf("rows.jsonl"), Enumerable.Repeat("""{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}""", 20));
        await folder.SucceedsAsync("init", "made.yaml", "--base-model", "base", "--data", "rows.jsonl", "--adapter", "lora");
        string[] lines = File.ReadAllLines(folder.PathOf("made.yaml"));
        Assert.Contains(lines, line => line.StartsWith("chat_template: tokenizer_default ", StringComparison.Ordinal));
        Assert.Contains(lines, line => line.EndsWith("# the longest of the first 20 rows has 8 tokens", StringComparison.Ordinal));
    }

    [Theory]
    [InlineData("rows")]
    [InlineData("rows/*.jsonl")]
    public async Task Init_OfAFolderOrAPattern_LooksAtItsRows(string path)
    {
        using var folder = new TinyFolder();
        Directory.CreateDirectory(folder.PathOf("rows"));
        File.WriteAllLines(folder.PathOf("rows/some.jsonl"), Enumerable.Repeat("""{"prompt":"a","response":"b"}""", 20));
        Ending init = await folder.SucceedsAsync("init", "made.yaml", "--base-model", "base", "--data", path, "--adapter", "lora");
        Assert.Equal("", init.Error);
        Assert.Contains("field_instruction: prompt", File.ReadAllText(folder.PathOf("made.yaml")), StringComparison.Ordinal);
        await folder.SucceedsAsync("audit", "made.yaml", "--set", "val_set_size=0");
    }

    [Theory]
    [InlineData("{\"mesage\":\"a\",\"record\":\"b\"}", "note: rows.jsonl:1 (row 1): the fields mesage, record do not tell what a row is.", "Next: set type in made.yaml, which train needs: it says alpaca, and the rows have the fields mesage, record (docs/data.md). lora-trainer audit made.yaml then says")]
    [InlineData("{oops", "note: rows.jsonl:1 (row 1): not a JSON object on one line", "Next: put rows.jsonl right: none of its first rows can be read.")]
    public async Task Init_OfRowsThatAreNotUnderstood_SaysWhatIsToBeDone_AndStaysWithinThePositions(string row, string note, string next)
    {
        using var folder = new TinyFolder();
        File.WriteAllLines(folder.PathOf("rows.jsonl"), Enumerable.Repeat(row, 20));
        Ending init = await folder.SucceedsAsync("init", "made.yaml", "--base-model", "base", "--data", "rows.jsonl", "--adapter", "lora");
        Assert.Contains(note, init.Error, StringComparison.Ordinal);
        Assert.Contains(next, init.Output, StringComparison.Ordinal);
        Assert.DoesNotContain("lora-trainer train", init.Output, StringComparison.Ordinal);
        using JsonDocument json = JsonDocument.Parse((await folder.SucceedsAsync("init", "made.yaml", "--force", "--base-model", "base", "--data", "rows.jsonl", "--adapter", "lora", "--json")).Output);
        Assert.EndsWith($"Next: {json.RootElement.GetProperty("next").GetString()}\n", init.Output, StringComparison.Ordinal);
        Assert.Contains($"sequence_len: {TinyRun.Shape.MaxPositionEmbeddings} ", File.ReadAllText(folder.PathOf("made.yaml")), StringComparison.Ordinal);
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
