using System.IO.Compression;
using System.Text;
using System.Text.Json;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>Models and data that are not on the machine: named, at an address, packed; from a server on loopback.</summary>
public sealed class SourceTests : IAsyncDisposable
{
    private readonly TinyFolder folder = new();
    private readonly HubServer hub = new();

    private Dictionary<string, string> Environment => new()
    {
        ["HF_ENDPOINT"] = hub.Address,
        ["HF_HUB_CACHE"] = folder.PathOf("hub"),
        ["HF_TOKEN"] = hub.Token,
        ["LT_CACHE"] = folder.PathOf("cache"),
        ["NO_PROXY"] = "*",
    };

    public async ValueTask DisposeAsync()
    {
        await hub.DisposeAsync();
        folder.Dispose();
    }

    [Fact]
    public async Task NamedBaseAndData_TrainAsLocalOnesDo()
    {
        hub.Add("models/org/tiny", Directory.GetFiles(folder.PathOf("base")).ToDictionary(file => Path.GetFileName(file), File.ReadAllBytes), access: "gated");
        byte[] rows = await File.ReadAllBytesAsync(folder.PathOf("train.jsonl"), TestContext.Current.CancellationToken);
        hub.Add("datasets/org/rows", new Dictionary<string, byte[]>
        {
            ["README.md"] = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: \"data/part-*\"\n  - split: test\n    path: other.jsonl\n---\n# Rows\n"u8.ToArray(),
            ["data/part-0.jsonl.gz"] = Packed(rows),
            ["other.jsonl"] = "{}"u8.ToArray(),
            ["script.py"] = "import os"u8.ToArray(),
        });
        string[] names = ["--set", "base_model=org/tiny", "--set", "datasets.0.path=org/rows", "--set", "max_steps=3"];

        // A plan takes the description and no weight and no row.
        Ending plan = await SucceedsAsync(["plan", "tiny.yaml", "--json", .. names]);
        using (JsonDocument json = JsonDocument.Parse(plan.Output))
        {
            Assert.Equal(JsonValueKind.Number, json.RootElement.GetProperty("memory").GetProperty("device_bytes").ValueKind);
        }

        Assert.DoesNotContain(hub.Requests, request => request.Target.Contains("safetensors", StringComparison.Ordinal) || request.Target.Contains("datasets", StringComparison.Ordinal));

        Ending train = await SucceedsAsync(["train", "tiny.yaml", .. names]);
        Assert.DoesNotContain(hub.Requests, request => request.Target.EndsWith(".py", StringComparison.Ordinal) || request.Target.EndsWith("other.jsonl", StringComparison.Ordinal));
        Assert.DoesNotContain(hub.Token, train.Output + train.Error + string.Concat(Directory.EnumerateFiles(folder.Out, "*", SearchOption.AllDirectories).Select(file => Encoding.Latin1.GetString(File.ReadAllBytes(file)))), StringComparison.Ordinal);
        Assert.Contains("base_model: org/tiny", await File.ReadAllTextAsync(folder.PathOf("out/config.resolved.yaml"), TestContext.Current.CancellationToken), StringComparison.Ordinal);
        Assert.Contains("\"base_model_name_or_path\": \"org/tiny\"", await File.ReadAllTextAsync(folder.PathOf("out/adapter_config.json"), TestContext.Current.CancellationToken), StringComparison.Ordinal);
        Assert.True(File.Exists(folder.PathOf("out/tokenizer.json")));

        await folder.SucceedsAsync("train", "tiny.yaml", "--set", "max_steps=3", "--set", "output_dir=local");
        Assert.Equal(TinyFolder.Hash(folder.PathOf("local/adapter_model.safetensors")), TinyFolder.Hash(folder.PathOf("out/adapter_model.safetensors")));

        // The run goes on, and text is generated, from the cache alone.
        int before = hub.Requests.Count;
        var offline = new Dictionary<string, string>(Environment) { ["HF_HUB_OFFLINE"] = "1" };
        Ending generated = await folder.RunAsync(["generate", "out", "--prompt", "a", "--max-new-tokens", "2"], environment: offline);
        Assert.True(generated.ExitCode == 0, generated.ToString());
        Assert.Equal(before, hub.Requests.Count);
    }

    /// <summary>A run records which commits its names were, and goes on from them although the branches have moved.</summary>
    [Theory]
    [InlineData("resume", "out")]
    [InlineData("train", "tiny.yaml", "--set", "resume=auto", "--set", "base_model=org/tiny", "--set", "datasets.0.path=org/rows", "--set", "max_steps=3")]
    public async Task RunOfNames_GoesOnFromTheCommitsThatItBeganWith(params string[] again)
    {
        Dictionary<string, byte[]> model = Directory.GetFiles(folder.PathOf("base")).ToDictionary(file => Path.GetFileName(file), File.ReadAllBytes);
        byte[] rows = await File.ReadAllBytesAsync(folder.PathOf("train.jsonl"), TestContext.Current.CancellationToken);
        string modelCommit = hub.Add("models/org/tiny", model), dataCommit = hub.Add("datasets/org/rows", new Dictionary<string, byte[]> { ["rows.jsonl"] = rows });
        await SucceedsAsync(["train", "tiny.yaml", "--set", "base_model=org/tiny", "--set", "datasets.0.path=org/rows", "--set", "max_steps=3"]);
        string recorded = await File.ReadAllTextAsync(folder.PathOf("out/config.resolved.yaml"), TestContext.Current.CancellationToken);
        Assert.Contains($"revision_of_model: {modelCommit}", recorded, StringComparison.Ordinal);
        Assert.Contains($"revision: {dataCommit}", recorded, StringComparison.Ordinal);
        string adapter = folder.PathOf("out/adapter_model.safetensors"), hash = TinyFolder.Hash(adapter);

        // Elsewhere: another cache, and a result that has to be made again.
        File.Delete(adapter);
        TinyRun.WriteBase(folder.PathOf("moved"), seed: 9);
        hub.Add("models/org/tiny", Directory.GetFiles(folder.PathOf("moved")).ToDictionary(file => Path.GetFileName(file), File.ReadAllBytes));
        hub.Add("datasets/org/rows", new Dictionary<string, byte[]> { ["rows.jsonl"] = rows[..(rows.Length / 2)] });
        Ending end = await folder.RunAsync(again, environment: new Dictionary<string, string>(Environment) { ["HF_HUB_CACHE"] = folder.PathOf("other-cache") });
        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Equal(hash, TinyFolder.Hash(adapter));
        string kept = await File.ReadAllTextAsync(folder.PathOf("out/config.resolved.yaml"), TestContext.Current.CancellationToken);
        Assert.True(kept.Contains($"revision_of_model: {modelCommit}", StringComparison.Ordinal) && kept.Contains($"revision: {dataCommit}", StringComparison.Ordinal), kept);
    }

    [Fact]
    public async Task GatedBaseWithoutAToken_SaysWhatToDo()
    {
        hub.Add("models/org/tiny", Directory.GetFiles(folder.PathOf("base")).ToDictionary(file => Path.GetFileName(file), File.ReadAllBytes), access: "gated");
        Ending run = await folder.RunAsync(["train", "tiny.yaml", "--set", "base_model=org/tiny"], environment: new Dictionary<string, string>(Environment) { ["HF_TOKEN"] = "", ["HF_HOME"] = folder.PathOf("home") });
        Assert.True(run.ExitCode == 2, run.ToString());
        Assert.Contains("org/tiny is gated: its owner gives it to those who accept the terms", run.Error, StringComparison.Ordinal);
        Assert.False(Directory.Exists(folder.Out), "an output folder was left behind");
    }

    [Fact]
    public async Task DataFromAddressFolderAndTable_AreAudited()
    {
        hub.Plain["/rows.csv.gz"] = Packed("instruction,output\nq1,a1\n\"q,2\",a2\nbad\nq3,a3\n"u8.ToArray());
        Directory.CreateDirectory(folder.PathOf("parts"));
        await File.WriteAllTextAsync(folder.PathOf("parts/train.jsonl"), "{\"instruction\":\"x\",\"output\":\"y\"}\n{oops\n", TestContext.Current.CancellationToken);
        await File.WriteAllTextAsync(folder.PathOf("parts/test.jsonl"), "{\"instruction\":\"held\",\"output\":\"out\"}\n", TestContext.Current.CancellationToken);

        Ending audit = await SucceedsAsync(["audit", "tiny.yaml", "--json", "--set", $"datasets=[{{path: {hub.Address}/rows.csv.gz, type: alpaca}}, {{path: parts, type: alpaca}}]", "--set", "val_set_size=0", "--set", "sequence_len=256"]);
        using JsonDocument json = JsonDocument.Parse(audit.Output);
        Assert.Equal((6, 4), (json.RootElement.GetProperty("rows").GetInt32(), json.RootElement.GetProperty("kept").GetInt32()));
        string[] faulty = [.. json.RootElement.GetProperty("findings").EnumerateArray().Where(finding => finding.GetProperty("code").GetString() == "faulty_row").Select(finding => finding.GetProperty("message").GetString()!)];
        Assert.Contains(faulty, message => message.Contains("rows.csv.gz:4 (row 3), 1 field, but the header has 2", StringComparison.Ordinal));
        Assert.Contains(faulty, message => message.Contains("train.jsonl:2 (row 2), not a JSON object on one line", StringComparison.Ordinal));
    }

    private async Task<Ending> SucceedsAsync(string[] arguments)
    {
        Ending run = await folder.RunAsync(arguments, environment: Environment);
        Assert.True(run.ExitCode == 0, run.ToString());
        return run;
    }

    private static byte[] Packed(byte[] content)
    {
        using var packed = new MemoryStream();
        using (var zip = new GZipStream(packed, CompressionLevel.Fastest, leaveOpen: true))
        {
            zip.Write(content);
        }

        return packed.ToArray();
    }
}
