using System.Globalization;
using System.Text.Json;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>The verb evaluate, as a process of its own.</summary>
public sealed class EvaluateTests
{
    /// <summary>A tokenizer of another model: refused before a weight is read, by all that make or measure text.</summary>
    [Theory]
    [InlineData("evaluate", "base", "--data", "train.jsonl", "--type", "alpaca")]
    [InlineData("generate", "base", "--prompt", "a")]
    public async Task TokenizerLargerThanTheModel_IsRefused(params string[] arguments)
    {
        using var folder = new TinyFolder(TinyRun.Shape with { VocabSize = 200, BosTokenId = 1, EosTokenIds = [2] });
        await folder.RefusesAsync("the tokenizer has 258 tokens, the model only 200 embeddings. They do not belong together", arguments);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task Evaluate_OfARun_IsWhatItsTrainingMeasured(bool savesMemory)
    {
        (string, object?)[] switches = savesMemory ? [("lm_head", "int8"), ("embeddings", "host"), ("gradient_checkpointing", "offload"), ("optimizer", "paged_adamw_8bit")] : [];
        using var folder = new TinyFolder(savesMemory ? TinyRun.Shape with { TieWordEmbeddings = false } : null, changes: [("adapter", "qlora"), .. switches]);
        await folder.SucceedsAsync("train", "tiny.yaml", "--set", "max_steps=6");
        JsonElement before, after;
        using (JsonDocument summary = JsonDocument.Parse(File.ReadAllText(folder.PathOf("out/summary.json"))))
        {
            before = summary.RootElement.GetProperty("evaluation").GetProperty("before").Clone();
            after = summary.RootElement.GetProperty("evaluation").GetProperty("after").Clone();
        }

        foreach (string what in new[] { "out", "tiny.yaml" })
        {
            using JsonDocument document = JsonDocument.Parse((await folder.SucceedsAsync("evaluate", what, "--json")).Output);
            JsonElement root = document.RootElement;
            Assert.Equal(3, root.GetProperty("rows").GetInt32());
            Equal(before, root.GetProperty("base"));
            Equal(after, root.GetProperty("adapter"));
            Assert.Equal(3, root.GetProperty("samples").GetArrayLength());
            Assert.Equal(Math.Exp(root.GetProperty("adapter").GetProperty("loss").GetDouble()), root.GetProperty("adapter").GetProperty("perplexity").GetDouble(), 1e-9);
        }

        Assert.NotEqual(before.GetProperty("loss").GetDouble(), after.GetProperty("loss").GetDouble());
        if (savesMemory)
        {
            using JsonDocument wide = JsonDocument.Parse((await folder.SucceedsAsync("evaluate", "out", "--set", "lm_head=bf16", "--json")).Output);
            double kept = after.GetProperty("loss").GetDouble(), rounded = wide.RootElement.GetProperty("adapter").GetProperty("loss").GetDouble();
            Assert.True(Math.Abs(kept - rounded) > 2e-5, $"the output layer in 8 bits is another than in 16: {kept}, {rounded}");
        }

        Ending table = await folder.SucceedsAsync("evaluate", "out");
        Assert.StartsWith("3 rows of train.jsonl\n\n", table.Output, StringComparison.Ordinal);
        Assert.Matches(@"\n +base +adapter\nloss +\d+\.\d{4} +\d+\.\d{4}\nperplexity ", table.Output);

        static void Equal(JsonElement expected, JsonElement measured)
        {
            // Other batches of rows: the same sums in another order of passes.
            Assert.Equal(expected.GetProperty("loss").GetDouble(), measured.GetProperty("loss").GetDouble(), 1e-5);
            Assert.Equal(expected.GetProperty("exact_match").GetDouble(), measured.GetProperty("exact_match").GetDouble());
        }
    }

    [Fact]
    public async Task Evaluate_OfABase_ChoosesAmongLabels()
    {
        using var folder = new TinyFolder();
        File.WriteAllLines(folder.PathOf("labels.jsonl"), Enumerable.Range(0, 9).Select(i => $"{{\"prompt\":\"p{i}\",\"completion\":\"{"xyz"[i % 3]}\"}}"));
        using JsonDocument found = JsonDocument.Parse((await folder.SucceedsAsync("evaluate", "base", "--data", "labels.jsonl", "--max-new-tokens", "2", "--json")).Output);
        JsonElement model = found.RootElement.GetProperty("model");
        Assert.Equal(["x", "y", "z"], found.RootElement.GetProperty("labels").EnumerateArray().Select(label => label.GetString()!));
        Assert.Equal(9, model.GetProperty("by_label").EnumerateArray().Sum(label => label.GetProperty("chosen").GetInt32()));
        using JsonDocument none = JsonDocument.Parse((await folder.SucceedsAsync("evaluate", "base", "--data", "labels.jsonl", "--max-new-tokens", "0", "--labels", "none", "--limit", "4", "--json")).Output);
        Assert.Equal(["loss", "perplexity"], none.RootElement.GetProperty("model").EnumerateObject().Select(property => property.Name));
        Assert.Equal(4, none.RootElement.GetProperty("rows").GetInt32());
    }

    /// <summary>The base alone is not what a run is asked for; one of its checkpoints is, and its step is name enough.</summary>
    [Fact]
    public async Task RunWithoutAResult_IsRefusedByAllVerbsAlike_AndItsCheckpointTaken()
    {
        using var folder = new TinyFolder(changes: [("max_steps", 20000), ("checkpoint", "{every_steps: 0}"), ("logging_steps", 1)]);
        Ending stopped = await folder.RunAsync(["train", "tiny.yaml"], new Moment("step ", 3, 0), [TinyFolder.SignalTerminate]);
        Assert.True(stopped.ExitCode == 75, stopped.ToString());
        string step = $"out/checkpoints/tiny/step-{int.Parse(Path.GetFileName(Assert.Single(folder.CheckpointFolders())).Split('-')[1], CultureInfo.InvariantCulture)}";
        Func<string, string[]>[] verbs =
        [
            what => ["evaluate", what, "--limit", "1", "--max-new-tokens", "1"],
            what => ["generate", what, "--prompt", "a", "--max-new-tokens", "1"],
            what => ["chat", what, "--max-new-tokens", "1"],
            what => ["merge", what, "merged"],
        ];
        foreach (Func<string, string[]> verb in verbs)
        {
            foreach (string run in new[] { "out", "out/checkpoints/tiny" })
            {
                await folder.RefusesAsync($"error: {run} is a run, and there is no result in it. Finish it with lora-trainer resume {run}, or give one of its checkpoints: lora-trainer inspect {run} lists them.\n", verb(run));
            }

            Ending taken = await Ending.RunWithInputAsync(folder.Path, "", verb(step));
            Assert.True(taken.ExitCode == 0, taken.ToString());
        }

        Assert.Matches(@"\n +base +adapter\n", (await folder.SucceedsAsync("evaluate", "out", "--adapter", step, "--limit", "1", "--max-new-tokens", "0")).Output);
        Assert.Contains("out holds no adapter yet: only the base is evaluated.", (await folder.SucceedsAsync("evaluate", "tiny.yaml", "--limit", "1", "--max-new-tokens", "0")).Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task CheckpointOfAllParameters_IsNoModelByItself()
    {
        using var folder = new TinyFolder(changes: TinyRun.AllParameters);
        await folder.SucceedsAsync("train", "tiny.yaml", "--set", "max_steps=2", "--set", "evaluate_before=false");
        foreach (string verb in new[] { "evaluate", "chat" })
        {
            await folder.RefusesAsync("error: out/checkpoints/tiny/step-00000002-", verb, "out/checkpoints/tiny/step-2");
            await folder.RefusesAsync(" is a checkpoint without an adapter, as runs have that train all parameters, and cannot be loaded by itself. The run's result can: it lies in its output_dir once the run has ended; lora-trainer resume ", verb, "out/checkpoints/tiny/step-2");
        }

        Assert.Contains("The model is out, which was trained as a whole.", (await folder.SucceedsAsync("evaluate", "out", "--limit", "1", "--max-new-tokens", "0")).Error, StringComparison.Ordinal);
        await folder.RefusesAsync("out/best: there is no such folder in the run out.", "generate", "out/best", "--prompt", "a");
        await folder.RefusesAsync(": there is no such folder", "evaluate", "", "--data", "train.jsonl");
    }

    [Theory]
    [InlineData("which is none of the labels a, b", "evaluate", "base", "--data", "train.jsonl", "--type", "alpaca", "--labels", "a,b")]
    [InlineData("at least two different labels", "evaluate", "base", "--data", "train.jsonl", "--labels", "a")]
    [InlineData("there is no such folder", "evaluate", "nowhere", "--data", "train.jsonl")]
    [InlineData("Give a file with --data", "evaluate", "base")]
    [InlineData("no such file", "evaluate", "base", "--data", "nowhere.jsonl")]
    [InlineData("Give --type alpaca, completion, input_output or chat_template, or a config with the format: lora-trainer evaluate CONFIG --data FILE.", "evaluate", "base", "--data", "odd.jsonl")]
    [InlineData("--type must be alpaca, completion, input_output or chat_template", "evaluate", "base", "--data", "train.jsonl", "--type", "sharegpt")]
    [InlineData("--set would set nothing", "evaluate", "base", "--data", "train.jsonl", "--set", "lora_r=3")]
    [InlineData("Did you mean sequence_len?", "evaluate", "tiny.yaml", "--set", "sequence_length=3")]
    public async Task WrongInput_IsASentence(string sentence, params string[] arguments)
    {
        using var folder = new TinyFolder();
        File.WriteAllText(folder.PathOf("odd.jsonl"), "{\"message\": \"a\", \"record\": \"b\"}\n");
        await folder.RefusesAsync(sentence, arguments);
    }
}
