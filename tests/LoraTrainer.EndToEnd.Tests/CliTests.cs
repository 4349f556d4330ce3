using System.Text.Json;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

public sealed class CliTests : IDisposable
{
    private readonly TemporaryFolder folder = new();

    public CliTests()
    {
        TinyRun.WriteBase(folder.File("models/tiny"));
        File.WriteAllText(folder.File("train.jsonl"), "{}\n");
        File.WriteAllText(folder.File("good.yaml"), "base_model: models/tiny\nadapter: lora\nlora_rank: 8\ndatasets:\n  - {path: train.jsonl, type: alpaca}\n");
        File.WriteAllText(folder.File("bad.yaml"), "base_model: models/tiny\nadapter: lora\nlora_r: 0\nlerning_rate: 1\ndatasets:\n  - {path: train.jsonl, type: alpaca}\n");
    }

    public void Dispose() => folder.Dispose();

    private Task<Ending> RunAsync(params string[] arguments) => Ending.RunAsync(folder.Path, arguments);

    [Fact]
    public async Task Help_NamesOnlyVerbsThatWork()
    {
        Ending run = await RunAsync("--help");

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains("validate", run.Output, StringComparison.Ordinal);
        Assert.Contains("doctor", run.Output, StringComparison.Ordinal);
        Assert.Contains("--set", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task NoArguments_ShowsTheHelp() => Assert.Equal((await RunAsync("--help")).Output, (await RunAsync()).Output);

    [Fact]
    public async Task Version_IsOneLine()
    {
        Ending run = await RunAsync("--version");

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Matches(@"^[0-9]+\.[0-9]+\.[0-9]+[^\n]*\n$", run.Output);
    }

    [Theory]
    [InlineData("trian")]
    [InlineData("validate")]
    [InlineData("validate", "good.yaml", "--bogus")]
    [InlineData("validate", "good.yaml", "--set")]
    public async Task WrongCommandLine_Returns2AndSaysHowItIsWritten(params string[] arguments)
    {
        Ending run = await RunAsync(arguments);

        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.StartsWith("error: ", run.Error, StringComparison.Ordinal);
        Assert.EndsWith("--help shows how it is written.\n", run.Error, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("error: There is no verb validat. Did you mean validate?", "validat", "x.yaml")]
    [InlineData("error: There is no option --shwo. Did you mean --show?", "validate", "good.yaml", "--shwo")]
    [InlineData("error: There is no verb ledger ad. Did you mean add?", "ledger", "ad", "--run", "x")]
    [InlineData("error: There is no option --rat. Did you mean --rate?", "ledger", "set-rate", "--rat", "2")]
    [InlineData("error: There is no option --shwo. Did you mean --show?", "validate", "--shwo")]
    public async Task WrongCommandLine_Slip_IsRecognized(string message, params string[] arguments)
    {
        Ending run = await RunAsync(arguments);

        Assert.Equal(2, run.ExitCode);
        Assert.StartsWith(message + "\n", run.Error, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("error: --max-new-tokens must be a whole number, got 'abc'.", "generate", "out", "--max-new-tokens", "abc")]
    [InlineData("error: --limit must be a whole number, got '99999999999'. The largest is 2147483647.", "evaluate", "out", "--limit", "99999999999")]
    [InlineData("error: --seed must be a whole number of 0 or more, got 'x'.", "evaluate", "out", "--seed", "x")]
    [InlineData("error: --seed must be a whole number of 0 or more, got '-4'.", "random-model", "config.json", "new", "--seed", "-4")]
    [InlineData("error: --temperature must be a number, got 'warm'.", "chat", "out", "--temperature", "warm")]
    [InlineData("error: --timeout must be a number, got 'soon'.", "save", "out", "--timeout", "soon")]
    [InlineData("error: --row must be a whole number, got '1.5'.", "inspect", "good.yaml", "--row", "1.5")]
    [InlineData("error: --limit is given 2 times. Keep one.", "evaluate", "out", "--limit", "3", "--limit", "4")]
    [InlineData("error: --limit is given without a value. It takes a whole number.", "evaluate", "out", "--limit")]
    [InlineData("error: --set is given without a value. It is written --set key=value.", "validate", "good.yaml", "--set")]
    [InlineData("error: --sort must be one of cheapest, fastest, got 'foo'.", "plan", "good.yaml", "--sort", "foo")]
    [InlineData("error: --model must be one of xia, got 'foo'.", "plan", "--model", "foo")]
    [InlineData("error: --pricing must be one of on_demand, spot, reserved, owned, got 'spott'. Did you mean spot?", "prices", "--pricing", "spott")]
    [InlineData("error: --category must be one of gpu, storage, egress, labor, data, inference, other, got 'labr'. Did you mean labor?", "ledger", "add", "--project", "x", "--category", "labr")]
    [InlineData("error: --category must be given. It takes one of data, egress, gpu, inference, labor, other, storage.", "ledger", "add", "--project", "x")]
    [InlineData("error: train needs CONFIG: the configuration, a YAML file.", "train")]
    [InlineData("error: random-model needs OUT: the folder to make; must not exist, or be empty.", "random-model", "config.json")]
    [InlineData("error: merge needs [BASE] ADAPTER OUT, got out alone: the base (or none: the one that the adapter names), the adapter, and the folder to make, which must not exist or be empty.", "merge", "out")]
    public async Task WrongCommandLine_NamesTheOptionOrArgumentAndWhatItTakes(string message, params string[] arguments)
    {
        Ending run = await RunAsync(arguments);

        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.StartsWith(message + "\nlora-trainer ", run.Error, StringComparison.Ordinal);
    }

    /// <summary>A setting that would change nothing must not pass in silence.</summary>
    [Theory]
    [InlineData("generate", "models/tiny", "--prompt", "x")]
    [InlineData("doctor")]
    [InlineData("random-model", "config.json", "out")]
    [InlineData("status", "out")]
    [InlineData("save", "out")]
    [InlineData("stop", "out")]
    public async Task Set_OnAVerbThatReadsNoConfiguration_IsRefused(params string[] arguments)
    {
        Ending run = await RunAsync([.. arguments, "--set", "seed=7"]);

        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.StartsWith($"error: {arguments[0]} has no option --set: it reads no configuration. train, resume, verify-resume, plan, evaluate, inspect, validate, audit have it.\n", run.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("--set", (await RunAsync(arguments[0], "--help")).Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("train")]
    [InlineData("resume")]
    [InlineData("verify-resume")]
    [InlineData("plan")]
    [InlineData("evaluate")]
    [InlineData("inspect")]
    [InlineData("validate")]
    public async Task Set_OnAVerbThatReadsAConfiguration_IsInItsHelp(string verb) =>
        Assert.Contains("--set <key=value>", (await RunAsync(verb, "--help")).Output, StringComparison.Ordinal);

    [Fact]
    public async Task WrongCommandLine_WithJson_IsStillOneDocument()
    {
        Ending run = await RunAsync("validate", "good.yaml", "--bogus", "--json");

        Assert.Equal(2, run.ExitCode);
        using JsonDocument document = JsonDocument.Parse(run.Output);
        Assert.Equal(2, document.RootElement.GetProperty("exit_code").GetInt32());
    }

    [Fact]
    public async Task Validate_Good_SaysWhatItWouldDo()
    {
        Ending run = await RunAsync("validate", "good.yaml");

        Assert.Equal("good.yaml is right: LoRA of rank 8 on all linear layers, scaled by 4, 1 epoch, 1 sequence of up to 2048 tokens a step.\n", run.Output);
        Assert.Equal("note: lora_rank is read as lora_r (good.yaml:3).\n", run.Error);
        Assert.Equal(0, run.ExitCode);
    }

    [Fact]
    public async Task Validate_SwitchesOfAGpu_OnTheCpu_SaysThatTheyDoNothing()
    {
        Ending run = await RunAsync("validate", "good.yaml", "--set", "device=cpu", "--set", "cuda_graphs=true");

        Assert.Contains("note: cuda_graphs has no effect on the CPU.\n", run.Error, StringComparison.Ordinal);
        Assert.Equal(0, run.ExitCode);
    }

    [Fact]
    public async Task Validate_Quiet_SaysNothing()
    {
        Ending run = await RunAsync("validate", "good.yaml", "--quiet");

        Assert.Equal(new Ending(0, "", ""), run);
    }

    [Fact]
    public async Task Validate_Bad_TellsAllOnStandardError()
    {
        Ending run = await RunAsync("validate", "bad.yaml");

        Assert.Equal(
            new Ending(
                2,
                "",
                "error: lora_r must be 1..1024, got 0 (bad.yaml:3). Typical: 8, 16, 64.\nerror: Unknown key lerning_rate (bad.yaml:4). Did you mean learning_rate?\nbad.yaml: 2 problems.\n"),
            run);
    }

    [Fact]
    public async Task Validate_Set_IsChecked()
    {
        Ending run = await RunAsync("validate", "good.yaml", "--set", "lora_r=4", "--set", "max_steps=x");

        Assert.Equal(2, run.ExitCode);
        Assert.Contains("error: max_steps must be a whole number (0 or more), got x (--set max_steps).\n", run.Error, StringComparison.Ordinal);
    }

    /// <summary>What train would end at before its first step, in the sentences of train.</summary>
    [Theory]
    [InlineData("models/config.json: there is no such file", "", "base_model=models")]
    [InlineData("lora_target_modules: 'qproj' matches no module of the model. Did you mean q_proj?", "", "lora_target_modules=[qproj]")]
    [InlineData("lora_rank_pattern: 'down_prj' matches no module of the model. Did you mean down_proj?", "", "lora_rank_pattern.down_prj=4")]
    [InlineData("lora_alpha_pattern: 'down_prj' matches no module of the model. Did you mean down_proj?", "", "lora_alpha_pattern.down_prj=4")]
    [InlineData("The rank must be 1..", "got 200", "lora_r=200")]
    [InlineData("output_dir train.jsonl is a file. Choose another name for the folder.", "", "output_dir=train.jsonl")]
    [InlineData("output_dir train.jsonl/x cannot be made: train.jsonl is a file.", "", "output_dir=train.jsonl/x")]
    public async Task Validate_WhatARunWouldEndAt_IsAnError(string sentence, string more, string setting)
    {
        Ending run = await RunAsync("validate", "good.yaml", "--set", setting);

        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.Contains(sentence, run.Error, StringComparison.Ordinal);
        Assert.Contains(more, run.Error, StringComparison.Ordinal);
        Assert.EndsWith(" problems.\n", run.Error.Replace("1 problem.", "1 problems.", StringComparison.Ordinal), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("validate")]
    [InlineData("train")]
    public async Task NamesThatTheModelDoesNotHave_AreToldAtOnce(string verb)
    {
        TinyRun.WriteData(folder.File("train.jsonl"), 10, 20);
        Ending run = await RunAsync(verb, "good.yaml", "--set", "lora_target_modules=[qproj, v_proj, k_prj, foo]", "--set", "lora_rank_pattern={down_prj: 4}", "--set", "lora_modules_to_save=[lm_haed]", "--set", "peft_layers_to_transform=[0, 8, 9]");

        Assert.Equal(2, run.ExitCode);
        string[] errors = [.. run.Error.Split('\n').Where(line => line.StartsWith("error: ", StringComparison.Ordinal))];
        Assert.Equal(4, errors.Length);
        Assert.StartsWith("error: lora_target_modules: 'qproj', 'k_prj', 'foo' match no module of the model. Did you mean q_proj, k_proj? Its modules are: ", errors[0], StringComparison.Ordinal);
        Assert.StartsWith("error: lora_modules_to_save: 'lm_haed' matches no module of the model. Did you mean lm_head? ", errors[1], StringComparison.Ordinal);
        Assert.StartsWith("error: lora_rank_pattern: 'down_prj' matches no module of the model. Did you mean down_proj? ", errors[2], StringComparison.Ordinal);
        Assert.StartsWith("error: peft_layers_to_transform: there are no layers 8, 9: the model has ", errors[3], StringComparison.Ordinal);
    }

    [Fact]
    public async Task Validate_WithoutTheBase_SaysSo()
    {
        Ending run = await RunAsync("validate", "good.yaml", "--set", "base_model=no such model");

        Assert.Equal(0, run.ExitCode);
        Assert.StartsWith("good.yaml is right as far as can be seen without the base: LoRA of rank 8", run.Output, StringComparison.Ordinal);

        File.Delete(folder.File("models/tiny/model.safetensors"));
        Ending shape = await RunAsync("validate", "good.yaml");
        Assert.StartsWith("good.yaml is right as far as can be seen without the base's weights: ", shape.Output, StringComparison.Ordinal);
        Assert.Contains("warning: base_model: there are no weights in models/tiny yet.", shape.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Validate_MissingFile_Returns2()
    {
        Ending run = await RunAsync("validate", "none.yaml");

        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.StartsWith("error: There is no configuration file none.yaml.", run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Validate_MissingData_Warns()
    {
        Ending run = await RunAsync("validate", "good.yaml", "--set", "datasets.0.path=none.jsonl");

        Assert.Equal(0, run.ExitCode);
        Assert.Contains("warning: datasets[0].path names none.jsonl, which is not here.", run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Validate_Show_CanBeReadAgain()
    {
        Ending shown = await RunAsync("validate", "good.yaml", "--show");
        File.WriteAllText(folder.File("resolved.yaml"), shown.Output);

        Ending again = await RunAsync("validate", "resolved.yaml", "--show");

        Assert.Equal(new Ending(0, shown.Output, ""), again);
    }

    [Theory]
    [InlineData("good.yaml", 0, true)]
    [InlineData("bad.yaml", 2, false)]
    public async Task Validate_Json_IsOneDocument(string file, int exitCode, bool valid)
    {
        Ending run = await RunAsync("validate", file, "--json");

        Assert.Equal(exitCode, run.ExitCode);
        using JsonDocument document = JsonDocument.Parse(run.Output);
        Assert.Equal(valid, document.RootElement.GetProperty("valid").GetBoolean());
        Assert.Equal(valid ? 0 : 2, document.RootElement.GetProperty("errors").GetArrayLength());
        Assert.Equal(valid ? JsonValueKind.Object : JsonValueKind.Null, document.RootElement.GetProperty("config").ValueKind);
    }

    [Fact]
    public async Task Doctor_SaysWhatTheMachineHas()
    {
        Ending run = await RunAsync("doctor");

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains("processor", run.Output, StringComparison.Ordinal);
        Assert.Contains("libnvrtc", run.Output, StringComparison.Ordinal);
        Assert.Matches("device: auto +takes the (CPU|GPU)", run.Output);
    }

    [Fact]
    public async Task Doctor_Json_HasTheNumbers()
    {
        Ending run = await RunAsync("doctor", "--json");

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        using JsonDocument document = JsonDocument.Parse(run.Output);
        Assert.Equal(Environment.ProcessorCount, document.RootElement.GetProperty("cpu").GetProperty("cores").GetInt32());
        Assert.True(document.RootElement.GetProperty("memory").GetProperty("total_bytes").GetInt64() > 0);
        Assert.Equal(2, document.RootElement.GetProperty("disks").GetArrayLength());
        JsonElement cuda = document.RootElement.GetProperty("cuda");
        Assert.Equal(["libcuda", "libnvrtc", "libcublasLt"], cuda.GetProperty("libraries").EnumerateArray().Select(library => library.GetProperty("name").GetString()));
        Assert.Equal(cuda.GetProperty("available").GetBoolean() ? "cuda" : "cpu", document.RootElement.GetProperty("auto_device").GetString());
    }

    [Fact]
    public async Task Doctor_WhereNoDriverIs_NamesWhatWasTriedAndWhatToInstall()
    {
        Ending run = await RunAsync("doctor", "--json");

        using JsonDocument document = JsonDocument.Parse(run.Output);
        JsonElement cuda = document.RootElement.GetProperty("cuda");
        JsonElement driver = cuda.GetProperty("libraries")[0];
        Assert.SkipWhen(driver.GetProperty("path").ValueKind == JsonValueKind.String, "this machine has an NVIDIA driver");
        Assert.False(cuda.GetProperty("available").GetBoolean());
        Assert.Equal(JsonValueKind.Null, cuda.GetProperty("device").ValueKind);
        Assert.Contains("tried libcuda.so.1", cuda.GetProperty("reason").GetString(), StringComparison.Ordinal);
        Assert.Contains("Install the NVIDIA driver", cuda.GetProperty("reason").GetString(), StringComparison.Ordinal);
        Assert.Contains("libcuda.so.1", driver.GetProperty("attempts").EnumerateArray().Select(attempt => attempt.GetProperty("path").GetString()));
    }
}
