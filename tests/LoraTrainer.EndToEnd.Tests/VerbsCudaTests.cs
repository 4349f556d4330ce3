using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using LoraTrainer.Costs.Prices;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>What <c>plan</c>, <c>train</c> and <c>generate</c> say about the GPU that they take: the stand-in's.</summary>
[Trait("Category", "Emulator")]
public sealed class VerbsCudaTests
{
    // A tiny run needs more than this, and the stand-in's own use of its memory is nothing.
    private const int ShortBytes = 100_000;

    [Theory]
    [InlineData("auto", "device: auto took the GPU")]
    [InlineData("cuda", "as the configuration says")]
    public async Task Plan_ForAGpu_IsComparedWithItsFreeMemory(string device, string reason)
    {
        using var folder = new TinyFolder();
        Ending enough = await folder.RunAsync(["plan", "tiny.yaml", "--set", $"device={device}"], environment: Environment());
        Ending tooLittle = await folder.RunAsync(["plan", "tiny.yaml", "--set", $"device={device}"], environment: Environment(ShortBytes));
        Ending json = await folder.RunAsync(["plan", "tiny.yaml", "--json", "--set", $"device={device}"], environment: Environment(ShortBytes));

        Assert.True(enough.ExitCode == 0, enough.ToString());
        Assert.Matches($"device +cuda \\({reason}", enough.Output);
        Assert.Matches("this machine +fits: .+ of the GPU are free\n", enough.Output);
        Assert.Matches("this machine +too small: 97\\.7 KiB of the GPU are free\\. Try ", tooLittle.Output);
        using JsonDocument document = JsonDocument.Parse(json.Output);
        JsonElement element = document.RootElement.GetProperty("device");
        Assert.Equal("cuda", element.GetProperty("platform").GetString());
        Assert.Equal(device == "auto", element.GetProperty("reason").ValueKind == JsonValueKind.String);
        Assert.Equal(ShortBytes, element.GetProperty("available_bytes").GetInt64());
        Assert.False(element.GetProperty("fits").GetBoolean());

        // As much as a micro-batch of one sequence needs, and less than that.
        string[] plan = ["plan", "tiny.yaml", "--set", $"device={device}"], one = [.. plan, "--set", "micro_batch_size=1"];
        using JsonDocument least = JsonDocument.Parse((await folder.RunAsync([.. one, "--json"], environment: Environment())).Output);
        Assert.True(least.RootElement.GetProperty("device").GetProperty("fits").GetBoolean());
        int planned = least.RootElement.GetProperty("memory").GetProperty("device_bytes").GetInt32();
        Ending halved = await folder.RunAsync(plan, environment: Environment(planned)), nearly = await folder.RunAsync(one, environment: Environment(planned - 1));
        Assert.Matches("this machine +too small: .+ of the GPU are free\\. It fits with micro_batch_size 1; device: cpu computes on the processor\n", halved.Output);
        Assert.True(Regex.IsMatch(nearly.Output, "this machine +too small: .+ of the GPU are free\\. It fits with [a-z0-9_:, ]+: [a-z0-9_:, ]+ and micro_batch_size 1; without a change of the result with gradient_checkpointing: true and micro_batch_size 1; device: cpu computes on the processor\n"), nearly.ToString());
    }

    /// <summary>What a GPU of this machine is told is what a GPU of the price list with as much memory is told.</summary>
    [Fact]
    public async Task Plan_ForAGpuThatIsTooSmall_TellsBothWays()
    {
        using TinyFolder folder = TinyFolder.OfShape(RooflineTests.Llama8B, ("sequence_len", 4096), ("micro_batch_size", 8), ("gradient_accumulation_steps", 1), ("device", "cuda"));
        Dictionary<string, string> environment = Environment(GpuTable.Load(null).Named("RTX 4090")!.UsableBytes);
        string[] plan = ["plan", "tiny.yaml", "--gpu", "RTX 4090"];
        Ending words = await folder.RunAsync(plan, environment: environment), json = await folder.RunAsync([.. plan, "--json"], environment: environment);
        Assert.True(Regex.IsMatch(words.Output, "this machine +too small: 22\\.7 GiB of the GPU are free\\. It fits with load_in_4bit: true and micro_batch_size 1; without a change of the result with gradient_checkpointing: true and micro_batch_size 4; device: cpu computes on the processor\n"), words.ToString());

        Assert.Matches("driver +up to 819 MiB of the GPU beside that, for its context and libraries\n", words.Output);

        using JsonDocument document = JsonDocument.Parse(json.Output);
        Assert.Equal(Gpu.DriverBytes, document.RootElement.GetProperty("memory").GetProperty("driver_bytes").GetInt64());
        JsonElement device = document.RootElement.GetProperty("device"), offer = document.RootElement.GetProperty("offers")[0];
        Assert.All((string[])["fits", "fits_with", "fits_exactly_with", "micro_batch_size", "exact_micro_batch_size"], member => Assert.True(JsonElement.DeepEquals(offer.GetProperty(member), device.GetProperty(member)), json.Output));
        Assert.Equal(4, device.GetProperty("exact_micro_batch_size").GetInt32());
    }

    [Theory]
    [InlineData("auto", "device: auto took the GPU Emulated device (CPU), and does not turn to the CPU for want of memory; device: cpu computes there.")]
    [InlineData("cuda", "device: cpu computes on the processor.")]
    public async Task Train_WithTooLittleGpuMemory_SaysWhatNeedsLess(string device, string end)
    {
        using var folder = new TinyFolder();
        Ending train = await folder.RunAsync(["train", "tiny.yaml", "--set", $"device={device}"], environment: Environment(ShortBytes));

        Assert.True(train.ExitCode == 2, train.ToString());
        Assert.Contains("gradient_checkpointing: true", train.Error, StringComparison.Ordinal);
        Assert.EndsWith(end, train.Error.TrimEnd(), StringComparison.Ordinal);
        Assert.False(Directory.Exists(folder.Out));
    }

    [Fact]
    public async Task Generate_WithTooLittleGpuMemory_AdvisesWhatItHas()
    {
        using var folder = new TinyFolder();
        Ending generate = await folder.RunAsync(["generate", "base", "--prompt", "abc"], environment: Environment(ShortBytes));

        Assert.True(generate.ExitCode == 2, generate.ToString());
        Assert.Contains("--load-in-4bit, a lower --max-new-tokens", generate.Error, StringComparison.Ordinal);
        Assert.Contains("--device cpu", generate.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("micro_batch_size", generate.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Generate_OnAGpu_SaysSo()
    {
        using var folder = new TinyFolder();
        Ending generate = await folder.RunAsync(["generate", "base", "--prompt", "abc", "--max-new-tokens", "2"], environment: Environment());

        Assert.True(generate.ExitCode == 0, generate.ToString());
        Assert.Matches("note: Device: Emulated device .+ \\(--device auto took the GPU Emulated device \\(CPU\\)\\)\\.\n", generate.Error);
    }

    /// <summary>Uploads go through 16 MiB of page-locked memory, micro-batches through 4, and some bytes come back that way: hardly more than that.</summary>
    private const string PinnedForUploads = "20971800";

    /// <summary>The keys of a run that save memory of a GPU hold for what is done with its result, and those that are about training alone disturb nobody.</summary>
    [Fact]
    public async Task Verbs_OfARunThatSavesMemory_SaveItToo()
    {
        using var folder = new TinyFolder(TinyRun.Shape with { TieWordEmbeddings = false }, changes: [("embeddings", "host"), ("lm_head", "int8"), ("gradient_checkpointing", "offload"), ("optimizer", "paged_adamw_32bit")]);
        await folder.SucceedsAsync("train", "tiny.yaml", "--set", "max_steps=2", "--set", "evaluate_before=false", "--set", "evaluate_after=false");
        string[][] verbs = [["evaluate", "out", "--device", "cuda"], ["generate", "out", "--prompt", "abc=", "--max-new-tokens", "2", "--device", "cuda"]];
        foreach (string[] verb in verbs)
        {
            Ending end = await folder.RunAsync(verb, environment: Environment());
            Assert.True(end.ExitCode == 0, end.ToString());
            Assert.DoesNotContain("embeddings", end.Error, StringComparison.Ordinal);
            Assert.DoesNotContain("offload", end.Error, StringComparison.Ordinal);

            // The table asks for more.
            Ending refused = await folder.RunAsync(verb, environment: new Dictionary<string, string>(Environment()) { ["LT_EMULATOR_PINNED"] = PinnedForUploads });
            Assert.True(refused.ExitCode == 2, refused.ToString());
            Assert.Contains("bytes of the host's memory, page-locked for the GPU", refused.Error, StringComparison.Ordinal);
        }

        Ending device = await folder.RunAsync(["evaluate", "out", "--device", "cuda", "--set", "embeddings=device"], environment: new Dictionary<string, string>(Environment()) { ["LT_EMULATOR_PINNED"] = PinnedForUploads });
        Assert.True(device.ExitCode == 0, device.ToString());
        Ending chat = await folder.RunAsync(["chat", "out", "--max-new-tokens", "2", "--device", "cuda"], environment: new Dictionary<string, string>(Environment()) { ["LT_EMULATOR_PINNED"] = PinnedForUploads });
        Assert.True(chat.ExitCode == 2, chat.ToString());
        Assert.Contains("bytes of the host's memory, page-locked for the GPU", chat.Error, StringComparison.Ordinal);
    }

    private static Dictionary<string, string> Environment(long? memoryBytes = null)
    {
        var environment = new Dictionary<string, string> { ["LT_CUDA_DIR"] = CudaStandin.Folder };
        if (memoryBytes is { } bytes)
        {
            environment["LT_EMULATOR_MEMORY"] = bytes.ToString(CultureInfo.InvariantCulture);
        }

        return environment;
    }
}
