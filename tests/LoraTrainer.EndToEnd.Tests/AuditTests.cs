using System.Text.Json;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>The verb audit, as a process of its own, and what a training does with what it finds.</summary>
public sealed class AuditTests
{
    [Fact]
    public async Task Audit_OfGoodAndDubiousRows()
    {
        using var folder = new TinyFolder();
        using (JsonDocument good = JsonDocument.Parse((await folder.SucceedsAsync("audit", "tiny.yaml", "--set", "val_set_size=0", "--json")).Output))
        {
            JsonElement root = good.RootElement;
            Assert.Equal((43, 43, 0, 0), (Number(root, "rows"), Number(root, "kept"), Number(root, "dropped"), Number(root, "truncated")));
            Assert.True(Number(root, "tokens") > Number(root, "supervised_tokens") && Number(root, "supervised_tokens") > 0);
        }

        File.WriteAllLines(folder.PathOf("train.jsonl"),
        [
            """{"instruction":"ab","output":"cd"}""",
            "{\"instruction\":\"ab\",\"output\":\"\"}",
            """{"instruction":"ab"}""",
            """{"instruction":"ab","output":"cd"}""",
            """{"instruction":"ab","output":"a very long answer"}""",
            "{not json",
        ]);
        string[] arguments = ["audit", "tiny.yaml", "--set", "val_set_size=0", "--set", "sequence_len=12"];
        Ending words = await folder.SucceedsAsync([.. arguments, "--list", "findings.jsonl"]);
        Assert.Contains("rows:          6: 2 kept, 4 left out", words.Output, StringComparison.Ordinal);
        Assert.Contains("warning: 1 of 6 rows is the same as an earlier one: train.jsonl:4 (row 4).", words.Error, StringComparison.Ordinal);
        Assert.Contains("no field 'output'; the row has: instruction", words.Error, StringComparison.Ordinal);
        string[] codes = [.. File.ReadLines(folder.PathOf("findings.jsonl")).Select(line => JsonElement.Parse(line).GetProperty("code").GetString()!)];
        Assert.Equal(["duplicate", "faulty_row", "faulty_row", "nothing_to_learn", "too_long"], codes.Order());
        await folder.RefusesAsync("findings.jsonl is there already", "audit", "tiny.yaml", "--list", "findings.jsonl");

        Ending none = await folder.RunAsync([.. arguments, "--set", "sequence_len=8", "--set", "datasets.0.type=completion", "--json"]);
        Assert.Equal(2, none.ExitCode);
        using JsonDocument report = JsonDocument.Parse(none.Output);
        Assert.Equal((6, 0, "no_row_left", "error"),
            (Number(report.RootElement, "rows"), Number(report.RootElement, "kept"), report.RootElement.GetProperty("findings")[0].GetProperty("code").GetString(), report.RootElement.GetProperty("findings")[0].GetProperty("severity").GetString()));
    }

    /// <summary>What an epoch has is what the weights of the data sets leave of the rows, and what a training then counts.</summary>
    [Fact]
    public async Task Audit_OfWeightedData_TellsWhatAnEpochHas()
    {
        using var folder = new TinyFolder();
        string[] weighted = ["tiny.yaml", "--set", "datasets=[{path: train.jsonl, type: alpaca, weight: 2}, {path: train.jsonl, type: alpaca, weight: 0.5}]", "--set", "val_set_size=0", "--set", "sequence_len=256"];
        Ending words = await folder.SucceedsAsync(["audit", .. weighted]);
        using JsonDocument report = JsonDocument.Parse((await folder.SucceedsAsync(["audit", .. weighted, "--json"])).Output);
        JsonElement epoch = report.RootElement.GetProperty("epoch");
        Assert.Equal(86, Number(report.RootElement, "kept"));
        Assert.InRange(Number(epoch, "rows"), 86 + 21, 86 + 22);
        Assert.Matches($"an epoch: +{Number(epoch, "rows")} rows, as the weights of the data sets have it: ", words.Output);

        await folder.SucceedsAsync(["train", .. weighted, "--set", "num_epochs=1", "--set", "max_steps=null"]);
        using JsonDocument summary = JsonDocument.Parse(File.ReadAllText(folder.PathOf("out/summary.json")));
        JsonElement tokens = summary.RootElement.GetProperty("tokens");
        Assert.Equal((Number(tokens, "total"), Number(tokens, "supervised")), (Number(epoch, "tokens"), Number(epoch, "supervised_tokens")));
        Assert.DoesNotContain("an epoch:", (await folder.SucceedsAsync("audit", "tiny.yaml", "--set", "val_set_size=0")).Output, StringComparison.Ordinal);
    }

    /// <summary>What the audit calls an error ends a training before it begins, and leaves nothing behind.</summary>
    [Fact]
    public async Task Train_OnRowsThatTeachNoEnd_IsRefused()
    {
        using var folder = new TinyFolder();
        File.WriteAllLines(folder.PathOf("train.jsonl"), ["""{"segments":[{"label":false,"text":"ab"},{"label":true,"text":"cd"}]}"""]);
        Ending ending = await folder.RunAsync(["train", "tiny.yaml", "--set", "datasets.0.type=input_output", "--set", "val_set_size=0"]);
        Assert.Equal(2, ending.ExitCode);
        Assert.Contains("1 of 1 row is not ending in a learned end token: train.jsonl:1 (row 1).", ending.Error, StringComparison.Ordinal);
        Assert.False(File.Exists(folder.PathOf("out/adapter_model.safetensors")));
    }

    /// <summary>A small conversation through a template of the model, trained and evaluated.</summary>
    [Fact]
    public async Task Train_OnConversations_GoesThroughTheTemplate()
    {
        using var folder = new TinyFolder();
        File.WriteAllText(folder.PathOf("base/chat_template.jinja"), "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}a:{% endif %}");
        File.WriteAllLines(folder.PathOf("train.jsonl"), Enumerable.Range(0, 12).Select(i => $$"""{"conversations":[{"from":"human","value":"q{{i}}"},{"from":"gpt","value":"no","train":false},{"from":"human","value":"r"},{"from":"gpt","value":"yes"}]}"""));
        Ending row = await folder.SucceedsAsync("inspect", "tiny.yaml", "--row", "1", "--set", "datasets.0.type=chat_template");
        Assert.Equal("train.jsonl:1 (row 1): 18 tokens, 4 of them supervised\n\nignored     │u│:│q│0│a│:│n│o│</s>│u│:│r│a│:│\nsupervised  │y│e│s│</s>│\n", row.Output);
        Ending trained = await folder.SucceedsAsync("train", "tiny.yaml", "--set", "datasets=[{path: train.jsonl}]", "--set", "val_set_size=2", "--set", "max_steps=2");
        Assert.Contains("its rows look like messages of a chat", trained.Output + trained.Error, StringComparison.Ordinal);
        using JsonDocument summary = JsonDocument.Parse(File.ReadAllText(folder.PathOf("out/summary.json")));
        Assert.True(summary.RootElement.GetProperty("evaluation").GetProperty("after").GetProperty("loss").GetDouble() > 0);
    }

    /// <summary>Everything that the real data holds, as it is; nothing but the path differs.</summary>
    [Theory]
    [InlineData("finlora/xbrl_term_train.jsonl", 5856)]
    [InlineData("finlora/ner_test.jsonl", 3502)]
    [InlineData("finlora/fpb_test.jsonl", 1212)]
    [InlineData("finlora/fiqa_test.jsonl", 235)]
    [InlineData("finlora/formula_train.jsonl", 800)]
    [InlineData("finlora/financebench_train.jsonl", 86)]
    [InlineData("llama-factory-demo/alpaca_en_demo.json", 999)]
    [InlineData("llama-factory-demo/alpaca_zh_demo.json", 1000)]
    [InlineData("llama-factory-demo/identity.json", 91)]
    [InlineData("llama-factory-demo/c4_demo.jsonl", 300)]
    [InlineData("llama-factory-demo/v1_sft_demo.jsonl", 500)]
    [InlineData("llama-factory-demo/glaive_toolcall_en_demo.json", 300)]
    public async Task Audit_OfRealData_KeepsEveryRow(string name, int rows)
    {
        string path = Fixtures.RequireData(name), config = Fixtures.RequireData("finlora/axolotl_example_config.yml");
        string[] settings = ["--set", "base_model=" + Path.Combine(Fixtures.RepositoryRoot, "quickstart", "base"), "--set", $"datasets=[{{path: {path}}}]", "--set", "val_set_size=0", "--set", "sequence_len=65536", "--json"];
        Ending ending = await Ending.RunAsync(Path.GetTempPath(), ["audit", config, .. settings]);
        Assert.True(ending.ExitCode == 0, ending.ToString());
        using JsonDocument report = JsonDocument.Parse(ending.Output);
        Assert.Equal((rows, rows), (Number(report.RootElement, "rows"), Number(report.RootElement, "kept")));
        Assert.Equal(0, (await Ending.RunAsync(Path.GetTempPath(), ["inspect", config, "--row", "1", .. settings])).ExitCode);
    }

    [Fact]
    public async Task Audit_OfPreferencePairs_IsRefusedByName()
    {
        string path = Fixtures.RequireData("llama-factory-demo/dpo_en_demo.json");
        using var folder = new TinyFolder();
        await folder.RefusesAsync("preference pairs (chosen, rejected)", "audit", "tiny.yaml", "--set", $"datasets=[{{path: {path}}}]");
    }

    private static int Number(JsonElement element, string name) => element.GetProperty(name).GetInt32();
}
