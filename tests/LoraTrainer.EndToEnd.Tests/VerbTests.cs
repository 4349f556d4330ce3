using System.Text.Json;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>The verbs plan, generate and random-model, as processes of their own.</summary>
public sealed class VerbTests
{
    [Fact]
    public async Task Plan_IsWhatTheRunTakes()
    {
        using var folder = new TinyFolder();
        Ending plan = await folder.RunAsync("plan", "tiny.yaml", "--json");
        Assert.True(plan.ExitCode == 0, plan.ToString());
        Ending train = await folder.RunAsync("train", "tiny.yaml", "--json");
        Assert.True(train.ExitCode == 0, train.ToString());

        using JsonDocument planned = JsonDocument.Parse(plan.Output);
        using JsonDocument summary = JsonDocument.Parse(train.Output);
        JsonElement memory = summary.RootElement.GetProperty("memory");
        Assert.Equal(memory.GetProperty("arena_bytes").GetInt64(), planned.RootElement.GetProperty("memory").GetProperty("device_bytes").GetInt64());
        Assert.Equal(memory.GetProperty("arena_bytes").GetInt64(), memory.GetProperty("planned_arena_bytes").GetInt64());
        Assert.Equal(summary.RootElement.GetProperty("steps").GetInt32(), planned.RootElement.GetProperty("steps").GetInt32());
        Assert.Equal(summary.RootElement.GetProperty("tokens").GetProperty("total").GetInt64(), planned.RootElement.GetProperty("tokens").GetInt64());
        Assert.Equal(summary.RootElement.GetProperty("adapter").GetProperty("trainable_parameters").GetInt64(), planned.RootElement.GetProperty("trainable_parameters").GetInt64());
    }

    /// <summary>
    /// The plan against the resident memory of a real process, at the shape of SmolLM2-135M with a base in 4 bits. What comes on top of the arena
    /// does not grow with it: about 20 MB, most of it the code that is compiled while the run goes on.
    /// </summary>
    [Fact]
    public async Task Plan_OfARealShape_IsTheMemoryOfTheProcess()
    {
        using var folder = new TinyFolder(rows: 48);
        Ending written = await folder.RunAsync("random-model", Fixtures.Golden("plan/smollm2-135m/config.json"), "large", "--tokenizer", "base");
        Assert.True(written.ExitCode == 0, written.ToString());
        Ending train = await folder.RunAsync(
            "train", "tiny.yaml", "--json", "--set", "base_model=large", "--set", "adapter=qlora", "--set", "max_steps=2", "--set", "micro_batch_size=24", "--set", "gradient_accumulation_steps=1",
            "--set", "warmup_steps=0", "--set", "val_set_size=0", "--set", "threads=0");
        Assert.True(train.ExitCode == 0, train.ToString());

        using JsonDocument summary = JsonDocument.Parse(train.Output);
        JsonElement memory = summary.RootElement.GetProperty("memory");
        double planned = memory.GetProperty("planned_arena_bytes").GetDouble(), taken = memory.GetProperty("peak_bytes").GetDouble() - memory.GetProperty("baseline_bytes").GetDouble();
        TestContext.Current.TestOutputHelper?.WriteLine($"planned {planned / 1e6:0.0} MB, taken {taken / 1e6:0.0} MB, {taken / planned - 1:P1} more");
        Assert.InRange(taken, 0.95 * planned, 1.05 * planned);
    }

    /// <summary>Whose machine has no GPU reads it at each start: what is missing, not where it was looked for and how to install it.</summary>
    [Fact]
    public async Task DeviceAuto_SaysInAClauseWhyItTookTheCpu()
    {
        using var folder = new TinyFolder();
        Ending generate = await folder.RunAsync(["generate", "base", "--prompt", "a", "--max-new-tokens", "1"], environment: new Dictionary<string, string> { ["CUDA_VISIBLE_DEVICES"] = "-1" });
        Assert.True(generate.ExitCode == 0, generate.ToString());
        Assert.Matches(@"^note: Device: CPU, [^()]+ \(--device auto took the CPU: t[^:.()]+\)\.\n$", generate.Error);
    }

    [Fact]
    public async Task Plan_OfAConfigJsonAlone_KnowsMemoryButNotSteps()
    {
        using var folder = new TinyFolder();
        Directory.CreateDirectory(folder.PathOf("shape"));
        File.Copy(folder.PathOf("base/config.json"), folder.PathOf("shape/config.json"));
        Ending plan = await folder.RunAsync("plan", "tiny.yaml", "--json", "--set", "base_model=shape", "--set", "device=cuda");
        Assert.True(plan.ExitCode == 0, plan.ToString());
        using JsonDocument planned = JsonDocument.Parse(plan.Output);
        Assert.True(planned.RootElement.GetProperty("memory").GetProperty("device_bytes").GetInt64() > 0);
        Assert.True(planned.RootElement.GetProperty("flops_per_token").GetDouble() > 0);
        Assert.Equal(JsonValueKind.Null, planned.RootElement.GetProperty("tokens").ValueKind);
        Assert.Contains("shape has no tokenizer.json or tokenizer.model", plan.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Generate_FromARun_UsesItsBaseQuantizationAndAdapter()
    {
        using var folder = new TinyFolder();
        Ending train = await folder.RunAsync("train", "tiny.yaml");
        Assert.True(train.ExitCode == 0, train.ToString());
        string[] sampling = ["--prompt", "abc", "--max-new-tokens", "12", "--json"];

        Ending run = await folder.RunAsync(["generate", "out", .. sampling]);
        Assert.True(run.ExitCode == 0, run.ToString());
        Ending apart = await folder.RunAsync(["generate", "base", "--adapter", "out", .. sampling, .. Quantized(folder)]);
        Assert.True(apart.ExitCode == 0, apart.ToString());
        Ending alone = await folder.RunAsync(["generate", "base", .. sampling, .. Quantized(folder)]);
        Assert.True(alone.ExitCode == 0, alone.ToString());
        Assert.Equal(Text(run), Text(apart));
        Assert.NotEqual(Text(run), Text(alone));
    }

    [Fact]
    public async Task Generate_Sampled_DependsOnTheSeedAlone()
    {
        using var folder = new TinyFolder();
        string[] arguments = ["generate", "base", "--prompt", "abc", "--max-new-tokens", "16", "--temperature", "1.5", "--top-k", "50", "--json"];
        Ending first = await folder.RunAsync([.. arguments, "--seed", "1"]);
        Assert.True(first.ExitCode == 0, first.ToString());
        Assert.Equal(Text(first), Text(await folder.RunAsync([.. arguments, "--seed", "1", "--threads", "1"])));
        Assert.NotEqual(Text(first), Text(await folder.RunAsync([.. arguments, "--seed", "2"])));
    }

    [Fact]
    public async Task Generate_WithAnAdapterThatDoesNotFit_SaysWhatDoesNot()
    {
        using var folder = new TinyFolder();
        Ending train = await folder.RunAsync("train", "tiny.yaml", "--set", "max_steps=1");
        Assert.True(train.ExitCode == 0, train.ToString());
        ModelConfig shape = TinyRun.Shape;
        TinyRun.WriteBase(folder.PathOf("wider"), shape: shape with { HiddenSize = 96 });
        TinyRun.WriteBase(folder.PathOf("deeper"), shape: shape with { NumHiddenLayers = 3 });
        TinyRun.WriteBase(folder.PathOf("shallower"), shape: shape with { NumHiddenLayers = 1 });
        await Refused("wider", "out", "expected the shape");
        await Refused("deeper", "out", "the adapter has no base_model.model.model.layers.2.");
        await Refused("shallower", "out", "the adapter has 14 tensors for which this model has no place: base_model.model.model.layers.1.");

        string config = folder.PathOf("out/adapter_config.json");
        File.WriteAllText(config, File.ReadAllText(config).Replace("\"r\": 4", "\"r\": 8", StringComparison.Ordinal));
        await Refused("base", "out", "adapter_config.json makes it (8, in)");
        await Refused("base", "gone", "there is no such folder");

        async Task Refused(string model, string adapter, string sentence)
        {
            Ending run = await folder.RunAsync("generate", model, "--adapter", adapter, "--prompt", "abc");
            Assert.True(run.ExitCode == 2, run.ToString());
            Assert.Contains(sentence, run.Error, StringComparison.Ordinal);
            Assert.Empty(run.Output);
        }
    }

    [Fact]
    public async Task Generate_FromARunWithoutResult_SaysHowToFinishIt()
    {
        using var folder = new TinyFolder();
        Ending train = await folder.RunAsync("train", "tiny.yaml", "--set", "max_steps=1");
        Assert.True(train.ExitCode == 0, train.ToString());
        Directory.Move(folder.PathOf("base"), folder.PathOf("moved"));
        Ending moved = await folder.RunAsync("generate", "out", "--prompt", "abc");
        Assert.True(moved.ExitCode == 2, moved.ToString());
        Assert.Contains("was trained on base, which is not a folder here", moved.Error, StringComparison.Ordinal);

        File.Delete(folder.PathOf("out/adapter_config.json"));
        Ending unfinished = await folder.RunAsync("generate", "out", "--prompt", "abc");
        Assert.True(unfinished.ExitCode == 2, unfinished.ToString());
        Assert.Contains("Finish it with lora-trainer resume out, or", unfinished.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Generate_BeyondThePositionsOfTheModel_WarnsAndKeepsTheSameText()
    {
        using var folder = new TinyFolder();
        string[] arguments = ["generate", "base", "--prompt-file", "prompt.txt", "--json"];
        File.WriteAllText(folder.PathOf("prompt.txt"), "abc");
        Ending within = await folder.RunAsync([.. arguments, "--max-new-tokens", "253"]);
        Ending beyond = await folder.RunAsync([.. arguments, "--max-new-tokens", "254"]);
        Assert.True(within.ExitCode == 0, within.ToString());
        Assert.True(beyond.ExitCode == 0, beyond.ToString());
        Assert.DoesNotContain("max_position_embeddings", within.Error, StringComparison.Ordinal);
        Assert.Contains("max_position_embeddings", beyond.Error, StringComparison.Ordinal);
        Assert.StartsWith(Text(within), Text(beyond), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Generate_Interrupted_KeepsWhatCameAndEndsInGoodOrder()
    {
        // Long enough that the signal finds it at work; the token that ends a text is taken away.
        using var folder = new TinyFolder(TinyRun.Shape with { EosTokenIds = [], MaxPositionEmbeddings = 1 << 16 });
        File.WriteAllText(folder.PathOf("base/tokenizer_config.json"), "{}");
        using System.Diagnostics.Process process = folder.Start(["generate", "base", "--prompt", "abc", "--max-new-tokens", "60000", "--temperature", "2"], null);
        using var hang = CancellationTokenSource.CreateLinkedTokenSource(TestContext.Current.CancellationToken);
        hang.CancelAfter(TimeSpan.FromMinutes(1));
        try
        {
            Task<string> error = process.StandardError.ReadToEndAsync(hang.Token);
            char[] first = new char[1];
            Assert.Equal(1, await process.StandardOutput.ReadAsync(first, hang.Token));
            _ = TinyFolder.SendSignal(process.Id, TinyFolder.SignalInterrupt);
            string rest = await process.StandardOutput.ReadToEndAsync(hang.Token);
            await process.WaitForExitAsync(hang.Token);
            Assert.True(process.ExitCode == 75, $"exit code {process.ExitCode}\n{await error}");
            Assert.Contains("Stop requested.", await error, StringComparison.Ordinal);
            Assert.EndsWith("\n", rest, StringComparison.Ordinal);
        }
        finally
        {
            if (!process.HasExited)
            {
                process.Kill();
            }
        }
    }

    [Theory]
    [InlineData("there is no such folder", "generate", "nowhere", "--prompt", "a")]
    [InlineData("--top-p must be above 0", "generate", "base", "--prompt", "a", "--top-p", "0")]
    [InlineData("--temperature must be 0 or more", "generate", "base", "--prompt", "a", "--temperature", "nan")]
    [InlineData("--device must be one of auto, cpu, cuda, got '7'.", "generate", "base", "--prompt", "a", "--device", "7")]
    [InlineData("got 'gpu'. Did you mean cuda?", "generate", "base", "--prompt", "a", "--device", "gpu")]
    [InlineData("Keep one.", "generate", "base", "--prompt", "a", "--prompt-file", "b")]
    [InlineData("there is no such file", "random-model", "nowhere.json", "made")]
    [InlineData("nothing is overwritten", "random-model", "base/config.json", "base")]
    public async Task WrongInput_IsASentence(string sentence, params string[] arguments)
    {
        using var folder = new TinyFolder();
        Ending run = await folder.RunAsync(arguments);
        Assert.True(run.ExitCode == 2, run.ToString());
        Assert.Contains(sentence, run.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task RandomModel_SameSeed_SameBytes()
    {
        using var folder = new TinyFolder();
        foreach ((string name, string seed) in new[] { ("a", "7"), ("b", "7"), ("c", "8") })
        {
            Ending run = await folder.RunAsync("random-model", "base/config.json", name, "--seed", seed, "--tokenizer", "base");
            Assert.True(run.ExitCode == 0, run.ToString());
        }

        Assert.Equal(TinyFolder.Hash(folder.PathOf("a/model.safetensors")), TinyFolder.Hash(folder.PathOf("b/model.safetensors")));
        Assert.NotEqual(TinyFolder.Hash(folder.PathOf("a/model.safetensors")), TinyFolder.Hash(folder.PathOf("c/model.safetensors")));
        Ending text = await folder.RunAsync("generate", "a", "--prompt", "abc", "--max-new-tokens", "4");
        Assert.True(text.ExitCode == 0, text.ToString());
    }

    private static string[] Quantized(TinyFolder folder) =>
        File.ReadAllText(folder.PathOf("out/config.resolved.yaml")).Contains("load_in_4bit: true", StringComparison.Ordinal) ? ["--load-in-4bit"] : [];

    private static string Text(Ending ending)
    {
        using JsonDocument document = JsonDocument.Parse(ending.Output);
        return document.RootElement.GetProperty("text").GetString()!;
    }
}
