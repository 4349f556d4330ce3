using System.Text.Json;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>The verb inspect, as a process of its own.</summary>
public sealed class InspectTests
{
    [Fact]
    public async Task Inspect_OfARunAndItsParts()
    {
        using var folder = new TinyFolder();
        await folder.SucceedsAsync("train", "tiny.yaml", "--set", "max_steps=4");
        using JsonDocument summary = JsonDocument.Parse(File.ReadAllText(folder.PathOf("out/summary.json")));
        string hash = summary.RootElement.GetProperty("adapter").GetProperty("sha256").GetString()!;
        using JsonDocument run = JsonDocument.Parse((await folder.SucceedsAsync("inspect", "out", "--json")).Output);
        JsonElement root = run.RootElement, adapter = root.GetProperty("adapter");
        Assert.Equal(("run", "tiny", 4, "finished"), (root.GetProperty("kind").GetString(), root.GetProperty("run_name").GetString(), root.GetProperty("step").GetInt32(), root.GetProperty("state").GetString()));
        Assert.All(root.GetProperty("checkpoints").EnumerateArray(), checkpoint => Assert.True(checkpoint.GetProperty("intact").GetBoolean()));
        Assert.Equal((hash, 4), (adapter.GetProperty("sha256").GetString(), adapter.GetProperty("r").GetInt32()));
        Assert.Equal(summary.RootElement.GetProperty("adapter").GetProperty("trainable_parameters").GetInt64(), adapter.GetProperty("trainable_parameters").GetInt64());
        Assert.Equal(14, adapter.GetProperty("modules").GetArrayLength());
        Assert.All(adapter.GetProperty("modules").EnumerateArray(), module => Assert.True(module.GetProperty("norm_update").GetDouble() > 0));

        using JsonDocument model = JsonDocument.Parse((await folder.SucceedsAsync("inspect", "base", "--json")).Output);
        Assert.Equal(("llama", 258), (model.RootElement.GetProperty("model_type").GetString(), model.RootElement.GetProperty("vocab_size").GetInt32()));
        Assert.Equal(20, model.RootElement.GetProperty("tensors").GetArrayLength());
        using JsonDocument file = JsonDocument.Parse((await folder.SucceedsAsync("inspect", "out/adapter_model.safetensors", "--json")).Output);
        Assert.Equal(28, file.RootElement.GetProperty("tensors_count").GetInt32());
    }

    [Fact]
    public async Task Inspect_OfACheckpoint_SaysWhetherItIsIntact()
    {
        using var folder = new TinyFolder();
        await folder.SucceedsAsync("train", "tiny.yaml", "--set", "max_steps=4");
        string step = System.IO.Path.Combine("out/checkpoints/tiny", "step-4");
        using (JsonDocument intact = JsonDocument.Parse((await folder.SucceedsAsync("inspect", step, "--json")).Output))
        {
            Assert.True(intact.RootElement.GetProperty("intact").GetBoolean());
            Assert.Equal((4, 4), (intact.RootElement.GetProperty("step").GetInt32(), intact.RootElement.GetProperty("total_steps").GetInt32()));
        }

        string optimizer = System.IO.Path.Combine(folder.CheckpointFolders()[^1], "optimizer.safetensors");
        byte[] bytes = File.ReadAllBytes(optimizer);
        bytes[^1] ^= 1;
        File.WriteAllBytes(optimizer, bytes);
        using (JsonDocument damaged = JsonDocument.Parse((await folder.SucceedsAsync("inspect", step, "--json")).Output))
        {
            Assert.False(damaged.RootElement.GetProperty("intact").GetBoolean());
            Assert.Equal("optimizer.safetensors has another SHA-256 than its manifest says", damaged.RootElement.GetProperty("damage").GetString());
        }

        Assert.Contains("DAMAGED", (await folder.SucceedsAsync("inspect", "out")).Output, StringComparison.Ordinal);
        File.Delete(System.IO.Path.Combine(folder.CheckpointFolders()[^1], "manifest.json"));
        Assert.Contains("there is no intact manifest", (await folder.SucceedsAsync("inspect", step)).Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Row_ShowsTokensAndTheirMask()
    {
        using var folder = new TinyFolder();
        File.WriteAllText(folder.PathOf("train.jsonl"), "{\"instruction\":\"ab\",\"output\":\"cd\"}\n{\"instruction\":\"ab\",\"output\":\"a long answer that is cut\"}\n");
        Ending words = await folder.SucceedsAsync("inspect", "tiny.yaml", "--row", "1");
        Assert.Equal(
            "train.jsonl:1 (row 1): 6 tokens, 3 of them supervised\n\nignored     │a│b│=│\nsupervised  │c│d│</s>│\n", words.Output);
        using JsonDocument row = JsonDocument.Parse((await folder.SucceedsAsync("inspect", "tiny.yaml", "--row", "1", "--json")).Output);
        Assert.Equal([97, 98, 61, 99, 100, 257], row.RootElement.GetProperty("tokens").EnumerateArray().Select(token => token.GetProperty("id").GetInt32()));
        Assert.Equal([false, false, false, true, true, true], row.RootElement.GetProperty("tokens").EnumerateArray().Select(token => token.GetProperty("supervised").GetBoolean()));
        Ending cut = await folder.SucceedsAsync("inspect", "tiny.yaml", "--row", "2", "--set", "sequence_len=8", "--set", "excess_length_strategy=truncate");
        Assert.Contains("the first 8 (sequence_len) are kept", cut.Output, StringComparison.Ordinal);
    }

    /// <summary>The rows that an evaluation measures, whether a file of their own has them or the seed chose them.</summary>
    [Theory]
    [InlineData("test.jsonl", 1, "test_datasets=[{path: test.jsonl, type: alpaca}]", "val_set_size=0")]
    [InlineData("train.jsonl", 2, "val_set_size=2")]
    public async Task HeldOutRow_IsOneThatIsEvaluated(string file, int rows, params string[] settings)
    {
        using var folder = new TinyFolder();
        File.WriteAllText(folder.PathOf("test.jsonl"), "{\"instruction\":\"own\",\"output\":\"file\"}\n");
        string[] set = [.. settings.Append("sequence_len=256").SelectMany(setting => new[] { "--set", setting })];
        using JsonDocument evaluated = JsonDocument.Parse((await folder.SucceedsAsync(["evaluate", "tiny.yaml", "--json", .. set])).Output);
        Assert.Equal(rows, evaluated.RootElement.GetProperty("rows").GetInt32());
        for (int row = 1; row <= rows; row++)
        {
            using JsonDocument shown = JsonDocument.Parse((await folder.SucceedsAsync(["inspect", "tiny.yaml", "--held-out", "--row", $"{row}", "--json", .. set])).Output);
            JsonElement sample = evaluated.RootElement.GetProperty("samples")[row - 1];
            Assert.Equal(
                (sample.GetProperty("prompt").GetString(), sample.GetProperty("expected").GetString(), file),
                (shown.RootElement.GetProperty("prompt").GetString(), shown.RootElement.GetProperty("completion").GetString(), Path.GetFileName(shown.RootElement.GetProperty("file").GetString())));
        }

        await folder.RefusesAsync($"--row must be 1..{rows}, the rows that are held out; got {rows + 1}.", ["inspect", "tiny.yaml", "--held-out", "--row", $"{rows + 1}", .. set]);
    }

    [Theory]
    [InlineData("--held-out shows rows that training holds out, and this configuration holds none out.", "inspect", "tiny.yaml", "--row", "1", "--held-out", "--set", "val_set_size=0")]
    [InlineData("--row must be 1..43", "inspect", "tiny.yaml", "--row", "44")]
    [InlineData("--row must be 1..43", "inspect", "tiny.yaml", "--row", "0")]
    [InlineData("there is no such file or folder", "inspect", "nowhere")]
    [InlineData("validate says what is in it", "inspect", "tiny.yaml")]
    [InlineData("is neither a run", "inspect", ".")]
    [InlineData("--set and --held-out are for --row", "inspect", "base", "--set", "lora_r=3")]
    public async Task WrongInput_IsASentence(string sentence, params string[] arguments)
    {
        using var folder = new TinyFolder();
        await folder.RefusesAsync(sentence, arguments);
    }
}
