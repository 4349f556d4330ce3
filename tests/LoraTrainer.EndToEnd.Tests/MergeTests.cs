using System.Text.Json;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>The verb merge, as a process of its own.</summary>
public sealed class MergeTests
{
    [Fact]
    public async Task Merge_OfAQuantizedRun_SaysWhatTheRunSays()
    {
        using var folder = new TinyFolder(changes: ("adapter", "qlora"));
        await folder.SucceedsAsync("train", "tiny.yaml", "--set", "max_steps=4");
        Ending merge = await folder.SucceedsAsync("merge", "out", "merged", "--verify", "--dtype", "float32", "--shard-size", "100KB", "--json");
        using JsonDocument document = JsonDocument.Parse(merge.Output);
        JsonElement root = document.RootElement;
        Assert.Equal(("base", "nf4-dq", "float32", 14), (root.GetProperty("base").GetString(), root.GetProperty("quantization").GetString(), root.GetProperty("dtype").GetString(), root.GetProperty("updated_modules").GetInt32()));
        Assert.True(root.GetProperty("files").GetArrayLength() > 1);
        JsonElement check = root.GetProperty("verification");
        Assert.Equal(1, check.GetProperty("same_token").GetDouble());
        Assert.True(check.GetProperty("relative_error").GetDouble() < 1e-5, merge.Output);
        Assert.True(check.GetProperty("largest_difference").GetDouble() < check.GetProperty("adapter_effect").GetDouble() / 100, merge.Output);

        string[] prompt = ["--prompt", "abc", "--max-new-tokens", "12", "--json"];
        Assert.Equal(Text(await folder.SucceedsAsync(["generate", "out", .. prompt])), Text(await folder.SucceedsAsync(["generate", "merged", .. prompt])));
    }

    /// <summary>best/ and last/ hold a model of the run above them: how its base was kept, how its messages were written and what was held out is said there.</summary>
    [Fact]
    public async Task BestAndLast_OfARun_AreReadAsTheRunItselfIs()
    {
        using var folder = new TinyFolder(changes: ("adapter", "qlora"));
        await folder.SucceedsAsync("train", "tiny.yaml", "--set", "max_steps=4", "--set", "val_set_size=4", "--set", "eval_steps=2", "--set", "load_best_model_at_end=true");
        string other = Directory.Exists(folder.PathOf("out/last")) ? "out/last" : "out/best";
        Directory.CreateDirectory(folder.PathOf(other));
        foreach (string name in new[] { "adapter_config.json", "adapter_model.safetensors" })
        {
            File.Copy(folder.PathOf("out/" + name), folder.PathOf(other + "/" + name), overwrite: true);
        }

        await folder.SucceedsAsync("merge", "out", "a");
        Ending merge = await folder.SucceedsAsync("merge", other, "b");
        Assert.Contains("its linear layers rounded to nf4-dq as in training", merge.Error, StringComparison.Ordinal);
        Assert.Equal(TinyFolder.Hash(folder.PathOf("a/model.safetensors")), TinyFolder.Hash(folder.PathOf("b/model.safetensors")));

        string[] rest = ["--prompt", "abc", "--max-new-tokens", "12", "--json"];
        Assert.Equal(Text(await folder.SucceedsAsync(["generate", "out", .. rest])), Text(await folder.SucceedsAsync(["generate", other, .. rest])));
        Ending whole = await folder.SucceedsAsync("evaluate", "out", "--json"), part = await folder.SucceedsAsync("evaluate", other, "--json");
        Assert.Equal(whole.Output.Replace("\"out\"", "\"\"", StringComparison.Ordinal), part.Output.Replace($"\"{other}\"", "\"\"", StringComparison.Ordinal));
    }

    [Fact]
    public async Task Merge_OfACheckpointAndOfAnAdapterFolder()
    {
        using var folder = new TinyFolder();
        await folder.SucceedsAsync("train", "tiny.yaml", "--set", "max_steps=4");
        string checkpoint = folder.CheckpointFolders()[^1];
        await folder.SucceedsAsync("merge", checkpoint, "a");
        string[] generate = ["--prompt", "abc", "--max-new-tokens", "8", "--json"];
        Assert.Equal(Text(await folder.SucceedsAsync(["generate", "out", .. generate])), Text(await folder.SucceedsAsync(["generate", checkpoint, .. generate])));
        await folder.SucceedsAsync("inspect", checkpoint);
        File.Delete(folder.PathOf("out/config.resolved.yaml"));
        Ending adapter = await folder.SucceedsAsync("merge", "base", "out", "b");
        Assert.Contains("out does not say how its base was kept in training: taken as not quantized", adapter.Error, StringComparison.Ordinal);
        Assert.Equal(TinyFolder.Hash(folder.PathOf("a/model.safetensors")), TinyFolder.Hash(folder.PathOf("b/model.safetensors")));
        Assert.NotEqual(TinyFolder.Hash(folder.PathOf("base/model.safetensors")), TinyFolder.Hash(folder.PathOf("b/model.safetensors")));

        Dictionary<string, string> before = TinyFolder.Snapshot(folder.PathOf("b"));
        await folder.RefusesAsync("b is not empty", "merge", "base", "out", "b");
        Assert.Equal(before, TinyFolder.Snapshot(folder.PathOf("b")));
        CopyOfBase(folder, "another");
        Assert.Contains("The adapter was trained on base and goes onto another here. If that is another model", (await folder.SucceedsAsync("merge", "another", "out", "onto")).Error, StringComparison.Ordinal);
        Assert.Contains("goes onto another here", (await folder.SucceedsAsync("generate", "another", "--adapter", "out", "--prompt", "abc", "--max-new-tokens", "1")).Error, StringComparison.Ordinal);
        Assert.DoesNotContain("goes onto", adapter.Error, StringComparison.Ordinal);
        TinyRun.WriteBase(folder.PathOf("wider"), shape: TinyRun.Shape with { HiddenSize = 96 });
        await folder.RefusesAsync("was made for another model", "merge", "wider", "out", "c");
        await folder.RefusesAsync("OUT tiny.yaml/x cannot be made: tiny.yaml is a file. Choose another folder.", "merge", "base", "out", "tiny.yaml/x");
        await folder.RefusesAsync("Did you mean float16?", "merge", "base", "out", "c", "--dtype", "flaot16");
        await folder.RefusesAsync("--quantization must be one of none, nf4", "merge", "base", "out", "c", "--quantization", "4bit");
        await folder.RefusesAsync("Typical: 5GB.", "merge", "base", "out", "c", "--shard-size", "5");
        await folder.RefusesAsync("there is no such folder", "merge", "base", "gone", "c");
        await folder.RefusesAsync("Give the base before the adapter", "merge", WithoutBase(folder), "c");
        Assert.False(Directory.Exists(folder.PathOf("c")));
    }

    private static void CopyOfBase(TinyFolder folder, string name)
    {
        Directory.CreateDirectory(folder.PathOf(name));
        foreach (string file in Directory.EnumerateFiles(folder.PathOf("base")))
        {
            File.Copy(file, folder.PathOf($"{name}/{Path.GetFileName(file)}"));
        }
    }

    [Fact]
    public async Task Merge_Killed_LeavesNothingThatLooksWhole()
    {
        // Large enough that the kill finds it at work.
        ModelConfig shape = TinyRun.Shape with { HiddenSize = 256, IntermediateSize = 2048, NumHiddenLayers = 8 };
        using var folder = new TinyFolder(shape);
        await folder.SucceedsAsync("train", "tiny.yaml", "--set", "max_steps=1", "--set", "val_set_size=0");
        string staging = folder.PathOf("merged");
        await folder.KillWhenAsync(() => Directory.Exists(staging) && Directory.EnumerateDirectories(staging).Any(), ["merge", "out", "merged", "--dtype", "float32", "--shard-size", "1MB"]);
        if (!File.Exists(folder.PathOf("merged/config.json")))
        {
            Ending load = await folder.RunAsync("generate", "merged", "--prompt", "a");
            Assert.True(load.ExitCode == 2, load.ToString());
            await folder.RefusesAsync("another merge writes there, or one was killed", "merge", "out", "merged");
        }
    }

    private static string WithoutBase(TinyFolder folder)
    {
        File.WriteAllText(folder.PathOf("out/adapter_config.json"), File.ReadAllText(folder.PathOf("out/adapter_config.json")).Replace("\"base\"", "\"hub/name\"", StringComparison.Ordinal));
        return "out";
    }

    private static string Text(Ending ending)
    {
        using JsonDocument document = JsonDocument.Parse(ending.Output);
        return document.RootElement.GetProperty("text").GetString()!;
    }
}
