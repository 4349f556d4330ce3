using System.Text.Json;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>Adapters beyond plain LoRA, from the config to the text that they generate.</summary>
public sealed class AdapterMethodTests : IDisposable
{
    private readonly TinyFolder run = new();

    public void Dispose() => run.Dispose();

    [Fact]
    public async Task ModelDir_GoesOnFromTheAdapter_AndNeedsItsFolderOnlyAtTheStart()
    {
        await EndsAsync(0, "train", "tiny.yaml", "--set", "peft_use_dora=true", "--set", "output_dir=first", "--set", "run_name=first");
        double last = JsonDocument.Parse(await File.ReadAllTextAsync(run.PathOf("first/summary.json"), TestContext.Current.CancellationToken)).RootElement.GetProperty("evaluation").GetProperty("after").GetProperty("loss").GetDouble();

        // The rank and DoRA come with the folder; what the config says otherwise is refused.
        string config = await File.ReadAllTextAsync(run.PathOf("tiny.yaml"), TestContext.Current.CancellationToken);
        await File.WriteAllTextAsync(
            run.PathOf("on.yaml"),
            string.Join('\n', config.Split('\n').Where(line => !line.StartsWith("lora_", StringComparison.Ordinal) && !line.StartsWith("run_name", StringComparison.Ordinal))) + "\nlora_model_dir: first\n", TestContext.Current.CancellationToken);
        Ending refused = await EndsAsync(2, "train", "on.yaml", "--set", "lora_r=8");
        Assert.Contains("lora_r is 8 (--set lora_r), but the adapter in first has 4. Remove lora_r: it comes with the adapter.", refused.Error, StringComparison.Ordinal);

        // Another base with the same shapes would take the adapter without a word.
        TinyRun.WriteBase(run.PathOf("another"));
        Ending doubtful = await EndsAsync(0, "validate", "on.yaml", "--set", "base_model=another"), sure = await EndsAsync(0, "validate", "on.yaml");
        Assert.Contains("The adapter was trained on base and goes onto another here. If that is another model, the result means nothing, although the shapes fit.", doubtful.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("goes onto", sure.Error, StringComparison.Ordinal);

        await EndsAsync(75, run.RunAsync(["train", "on.yaml"], new Moment("step 4/", 1, 0), [TinyFolder.SignalTerminate]));
        using (JsonDocument evaluated = Evaluations())
        {
            Assert.Equal(last, evaluated.RootElement.GetDouble(), 1e-6);
        }

        Directory.Delete(run.PathOf("first"), recursive: true);
        await EndsAsync(0, "resume", "out");
        using JsonDocument adapter = JsonDocument.Parse(await File.ReadAllTextAsync(run.PathOf("out/adapter_config.json"), TestContext.Current.CancellationToken));
        Assert.Equal((4, true), (adapter.RootElement.GetProperty("r").GetInt32(), adapter.RootElement.GetProperty("use_dora").GetBoolean()));

        // What the untrained model of the second run said: what the trained model of the first said.
        JsonDocument Evaluations()
        {
            using JsonDocument state = JsonDocument.Parse(File.ReadAllText(Path.Combine(run.CheckpointFolders(run.PathOf("out/checkpoints/on"))[^1], "trainer_state.json")));
            return JsonDocument.Parse(state.RootElement.GetProperty("evaluation_before").GetProperty("loss").GetRawText());
        }
    }

    [Fact]
    public async Task Layers_WithAllLinearLayers_AreTheOnlyOnesAdapted()
    {
        await EndsAsync(0, "train", "tiny.yaml", "--set", "peft_layers_to_transform=[1]");
        using SafetensorsFile adapter = SafetensorsFile.Open(run.PathOf("out/adapter_model.safetensors"));
        Assert.All(adapter.Entries, entry => Assert.Contains(".layers.1.", entry.Name, StringComparison.Ordinal));
    }

    [Fact]
    public async Task Pissa_IsWrittenAsPlainLora_AndGeneratesWhatWasTrained()
    {
        Ending end = await EndsAsync(0, "train", "tiny.yaml", "--set", "peft_init_lora_weights=pissa");
        using JsonDocument adapter = JsonDocument.Parse(await File.ReadAllTextAsync(run.PathOf("out/adapter_config.json"), TestContext.Current.CancellationToken));
        Assert.Equal((8, JsonValueKind.True), (adapter.RootElement.GetProperty("r").GetInt32(), adapter.RootElement.GetProperty("init_lora_weights").ValueKind));
        await EndsAsync(0, "generate", "out", "--prompt", "abc=", "--max-new-tokens", "4");

        // A checkpoint holds what is trained: it means something only to resume.
        string checkpoint = run.CheckpointFolders()[^1];
        Ending raw = await EndsAsync(2, "generate", "base", "--adapter", checkpoint, "--prompt", "abc=");
        Assert.Contains("init_lora_weights: pissa", raw.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Tokens_GetRowsThatAreTrained_AndGenerateKnowsThem()
    {
        string[] tokens = ["--set", "tokens=['ab', 'q=']", "--set", "lora_modules_to_save=[embed_tokens, lm_head]"];
        Ending end = await EndsAsync(0, ["train", "tiny.yaml", .. tokens]);
        using SafetensorsFile adapter = SafetensorsFile.Open(run.PathOf("out/adapter_model.safetensors"));
        Assert.Equal([TinyRun.VocabularySize + 2, 64], adapter.Entries.Single(entry => entry.Name == "base_model.model.model.embed_tokens.weight").Shape.ToArray());
        using JsonDocument tokenizer = JsonDocument.Parse(await File.ReadAllTextAsync(run.PathOf("out/tokenizer.json"), TestContext.Current.CancellationToken));
        Assert.Equal(["ab", "q="], tokenizer.RootElement.GetProperty("added_tokens").EnumerateArray().Select(token => token.GetProperty("content").GetString()).TakeLast(2));
        await EndsAsync(0, "generate", "out", "--prompt", "abq=", "--max-new-tokens", "4");

        // As full training writes it, the model has the rows itself.
        string[] full = ["--set", "output_dir=whole", "--set", "run_name=whole", "--set", "adapter=null", "--set", "lora_r=null", "--set", "lora_alpha=null", "--set", "lora_dropout=null", "--set", "lora_target_linear=null", "--set", "tokens=['ab']", "--set", "resize_token_embeddings_to_32x=true"];
        await EndsAsync(0, ["train", "tiny.yaml", .. full]);
        using JsonDocument config = JsonDocument.Parse(await File.ReadAllTextAsync(run.PathOf("whole/config.json"), TestContext.Current.CancellationToken));
        Assert.Equal(288, config.RootElement.GetProperty("vocab_size").GetInt32());
        await EndsAsync(0, "generate", "whole", "--prompt", "abc", "--max-new-tokens", "4");

        // An adapter's rows belong to its tokens.
        string[] other = ["--set", "output_dir=other", "--set", "run_name=other", "--set", "lora_model_dir=out", "--set", "lora_modules_to_save=[embed_tokens, lm_head]"];
        Assert.Contains("was trained with the added tokens 'ab', 'q=', and this run has 'q=', 'ab'. Write tokens: ['ab', 'q='].", (await EndsAsync(2, ["train", "tiny.yaml", .. other, "--set", "tokens=['q=', 'ab']"])).Error, StringComparison.Ordinal);

        Ending refused = await EndsAsync(2, "train", "tiny.yaml", "--set", "tokens=['ab']", "--set", "output_dir=other");
        Assert.Contains("embed_tokens and lm_head would not be trained. Write lora_modules_to_save: [embed_tokens, lm_head].", refused.Error, StringComparison.Ordinal);
    }

    /// <summary>A base as SentencePiece's models are published: no tokenizer.json.</summary>
    [Fact]
    public async Task TokenizerModel_IsTrainedWith_AndKeptWithItsNewTokens()
    {
        File.Delete(run.PathOf("base/tokenizer.json"));
        await File.WriteAllBytesAsync(run.PathOf("base/tokenizer.model"), TinyRun.SentencePieceModel(), TestContext.Current.CancellationToken);
        await EndsAsync(0, "train", "tiny.yaml", "--set", "tokens=['q=']", "--set", "lora_modules_to_save=[embed_tokens, lm_head]");
        Assert.Equal("{\"q=\":31}", (await File.ReadAllTextAsync(run.PathOf("out/added_tokens.json"), TestContext.Current.CancellationToken)).ReplaceLineEndings("").Replace(" ", "", StringComparison.Ordinal));
        Assert.True(File.Exists(run.PathOf("out/tokenizer.model")));
        await EndsAsync(0, "generate", "out", "--prompt", "abq=", "--max-new-tokens", "4");
    }

    [Theory]
    [InlineData("peft_init_lora_weights=olora", "peft_use_dora=true", "Keep one of the two.")]
    [InlineData("lora_modules_to_save=[lm_haed]", "seed=1", "lora_modules_to_save: 'lm_haed' matches no module of the model. Did you mean lm_head?")]
    [InlineData("lora_modules_to_save=[up_proj]", "load_in_4bit=true", "up_proj is quantized in this run, and a quantized weight cannot be trained.")]
    [InlineData("lora_target_modules=[q_proj, lm_head]", "lora_target_linear=false", "Name it in modules_to_save instead: it is then trained in full.")]
    [InlineData("lora_model_dir=nowhere", "peft_init_lora_weights=pissa", "nowhere/adapter_config.json: there is no such file.")]
    [InlineData("lora_model_dir=base", "seed=1", "base is a whole model, not an adapter. Give it as base_model.")]
    [InlineData("peft_layers_to_transform=[1, 7]", "seed=1", "peft_layers_to_transform: there is no layer 7: the model has 2, counted from 0 to 1.")]
    [InlineData("lora_rank_pattern={qq_proj: 2}", "seed=1", "lora_rank_pattern: 'qq_proj' matches no module of the model.")]
    [InlineData("tokens=['ab', '']", "lora_modules_to_save=[embed_tokens, lm_head]", "tokens[1] must be a text of one character or more")]
    [InlineData("lora_model_dir=nowhere", "seed=1", "nowhere/adapter_config.json: there is no such file.")]
    public async Task Train_WhatCannotBeDone_SaysSoBeforeAnythingIsWritten(string one, string other, string sentence)
    {
        Ending end = await EndsAsync(2, "train", "tiny.yaml", "--set", one, "--set", other);
        Assert.Contains(sentence, end.Error, StringComparison.Ordinal);
        Assert.False(Directory.Exists(run.Out) && Directory.EnumerateFiles(run.Out, "*", SearchOption.AllDirectories).Any(), "something was written");
    }

    private Task<Ending> EndsAsync(int code, params string[] arguments) => EndsAsync(code, run.RunAsync(arguments));

    private static async Task<Ending> EndsAsync(int code, Task<Ending> ending)
    {
        Ending end = await ending;
        Assert.True(end.ExitCode == code, end.ToString());
        return end;
    }
}
