using System.Diagnostics;
using System.Text;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>
/// A run that cannot start leaves not a file more than before, whatever stopped it; one that a full disk stopped leaves what can be resumed.
/// The cases beside those of <see cref="BadInputTests"/>, found out earlier or later than they are.
/// </summary>
public sealed class NothingHalfWrittenTests : IDisposable
{
    private readonly TinyFolder folder = new(rows: 12);

    public void Dispose() => folder.Dispose();

    private static readonly Dictionary<string, Case> Cases = new(StringComparer.Ordinal)
    {
        ["weights: cut in the header"] = new(run => File.WriteAllBytes(run.PathOf("base/model.safetensors"), [1, 2, 3]), "model.safetensors"),
        ["weights: offsets beyond the end"] = new(run => ReplaceInHeader(run.PathOf("base/model.safetensors"), "\"data_offsets\":[0,", "\"data_offsets\":[8,"), "model.safetensors"),
        ["weights: missing shard"] = new(
            run =>
            {
                File.Delete(run.PathOf("base/model.safetensors"));
                File.WriteAllText(run.PathOf("base/model.safetensors.index.json"), """{"weight_map":{"model.norm.weight":"model-00001-of-00002.safetensors"}}""");
            },
            "model-00001-of-00002.safetensors"),
        ["weights: of another shape"] = new(run => ReplaceInFile(run.PathOf("base/config.json"), "\"intermediate_size\": 160", "\"intermediate_size\": 176"), "mlp."),
        ["weights: NaN"] = new(run => TinyRun.WriteBase(run.PathOf("base"), change: (name, values) => values[^1] = name.Contains("q_proj", StringComparison.Ordinal) ? float.NaN : values[^1]), "NaN"),
        ["weights: NaN, in 4 bits"] = new(
            run => TinyRun.WriteBase(run.PathOf("base"), change: (name, values) => values[^1] = name.Contains("q_proj", StringComparison.Ordinal) ? float.NaN : values[^1]), "NaN", "adapter=qlora"),
        ["model: config.json missing"] = new(run => File.Delete(run.PathOf("base/config.json")), "config.json"),
        ["tokenizer: missing"] = new(run => File.Delete(run.PathOf("base/tokenizer.json")), "tokenizer.json"),
        ["tokenizer: damaged"] = new(run => Cut(run.PathOf("base/tokenizer.json"), 100), "tokenizer.json"),
        ["tokenizer: larger than the embeddings"] = new(run => TinyRun.WriteBase(run.PathOf("base"), shape: TinyRun.Shape with { VocabSize = 200, BosTokenId = 1, EosTokenIds = [2] }), "the tokenizer has 258 tokens, the model only 200 embeddings"),
        ["config: target that matches nothing"] = new(_ => { }, "w_proj", "lora_target_linear=false", "lora_target_modules=[w_proj]"),
        ["data: row without the field"] = new(run => File.AppendAllText(run.PathOf("train.jsonl"), "{\"instruction\":\"a\"}\n"), "train.jsonl:13"),
        ["data: all rows too long"] = new(
            run => File.WriteAllText(run.PathOf("train.jsonl"), $"{{\"instruction\":\"{new string('a', 99)}\",\"output\":\"b\"}}\n"), "sequence_len is 64", "val_set_size=0"),
        ["output: holds a run"] = new(run => { Directory.CreateDirectory(run.Out); File.WriteAllText(run.PathOf("out/config.resolved.yaml"), "x"); }, "already holds a run"),
        ["output: holds an adapter"] = new(run => { Directory.CreateDirectory(run.Out); File.WriteAllText(run.PathOf("out/adapter_model.safetensors"), "x"); }, "already holds adapter_model.safetensors"),
        ["output: is a file"] = new(run => File.WriteAllText(run.Out, "x"), "out"),
    };

    public static TheoryData<string> Names => [.. Cases.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public async Task Train_WhatCannotWork_IsOneSentence(string name)
    {
        Case item = Cases[name];
        item.Break(folder);
        Dictionary<string, string> before = TinyFolder.Snapshot(folder.Path);

        CliProcess run = await CliProcess.RunAsync(folder.Path, ["train", "tiny.yaml", .. item.Settings.SelectMany(setting => new[] { "--set", setting })]);

        AssertOneSentence(run, 2, item.Says);
        Assert.Equal(before, TinyFolder.Snapshot(folder.Path));
        Assert.True(name.StartsWith("output:", StringComparison.Ordinal) || !Directory.Exists(folder.Out), "an output folder was left behind");
    }

    [Fact]
    public async Task Train_SomeRowsTooLong_CountsThemAndNamesThePolicy()
    {
        File.AppendAllText(folder.PathOf("train.jsonl"), $"{{\"instruction\":\"{new string('a', 99)}\",\"output\":\"b\"}}\n");

        CliProcess run = await CliProcess.RunAsync(folder.Path, "train", "tiny.yaml", "--set", "val_set_size=0", "--set", "max_steps=1");

        Assert.True(run.ExitCode == 0, run.Error);
        Assert.Contains("1 of 13 rows are longer than sequence_len 64 and left out (excess_length_strategy: drop)", run.Error, StringComparison.Ordinal);
    }

    /// <summary>Root may write everywhere, so it gives that power up first.</summary>
    [Fact]
    [System.Runtime.Versioning.UnsupportedOSPlatform("windows")]
    public async Task Train_FolderThatMayNotBeWritten_SaysSo()
    {
        Directory.CreateDirectory(folder.PathOf("locked"), UnixFileMode.UserRead | UnixFileMode.UserExecute);
        string[] asUser = Environment.IsPrivilegedProcess ? ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] : ["env"];

        CliProcess run = await RunAsync([.. asUser, "dotnet", "exec", Program, "train", "tiny.yaml", "--set", "output_dir=locked/out"]);

        Assert.SkipWhen(run.Error.StartsWith("setpriv: ", StringComparison.Ordinal) && !Fixtures.IsContinuousIntegration, $"setpriv cannot be used here: {run.Error}");
        AssertOneSentence(run, 2, "output_dir locked/out cannot be written by this user");
        Assert.Empty(Directory.EnumerateFileSystemEntries(folder.PathOf("locked")));
    }

    /// <summary>The disk is full, then it is not: nothing is half-written, and the run goes on.</summary>
    [Theory]
    [InlineData(4)]
    [InlineData(32)]
    [InlineData(128)]
    [InlineData(300)]
    public async Task Train_DiskFull_LeavesARunThatCanBeResumed(int kibibytes)
    {
        // In a mount namespace of its own: the small disk vanishes with the process.
        string script = $"""
            mkdir out && mount -t tmpfs -o size={kibibytes}k tmpfs out || exit 99
            dotnet exec "$0" train tiny.yaml > first.out 2> first.err
            echo $? > first.code
            find out -type f > first.files
            mount -o remount,size=64m out
            verb="train tiny.yaml"; [ ! -e out/config.resolved.yaml ] || verb="resume out"
            dotnet exec "$0" $verb
            """;
        string[] namespaces = Environment.IsPrivilegedProcess ? ["unshare", "-m"] : ["unshare", "-rm"];

        CliProcess second = await RunAsync([.. namespaces, "sh", "-c", script, Program]);

        Assert.SkipWhen(second.Error.StartsWith("unshare: ", StringComparison.Ordinal) || second.ExitCode == 99 && !Fixtures.IsContinuousIntegration, $"no disk can be mounted here: {second.Error}");
        var first = new CliProcess(int.Parse(File.ReadAllText(folder.PathOf("first.code")), System.Globalization.CultureInfo.InvariantCulture), File.ReadAllText(folder.PathOf("first.out")), File.ReadAllText(folder.PathOf("first.err")));
        AssertOneSentence(first, 1, "The disk is full");
        string[] left = File.ReadAllLines(folder.PathOf("first.files"));
        Assert.DoesNotContain(left, file => file.Contains(".staging", StringComparison.Ordinal) || file.Contains(".tmp", StringComparison.Ordinal) || file.EndsWith("summary.json", StringComparison.Ordinal));
        Assert.True(second.ExitCode == 0, $"the run could not go on: {second.Error}\nleft behind: {string.Join(", ", left)}");
    }

    private static void AssertOneSentence(CliProcess run, int exitCode, string says)
    {
        string all = $"exit code {run.ExitCode}\n{run.Output}\n{run.Error}";
        Assert.True(run.ExitCode == exitCode, all);
        string error = Assert.Single(run.Error.Split('\n'), line => line.StartsWith("error: ", StringComparison.Ordinal));
        Assert.True(error.Contains(says, StringComparison.Ordinal), $"expected words: {says}\n{all}");
        Assert.True(error.EndsWith('.') || error.EndsWith('?'), error);
        Assert.DoesNotContain("   at ", run.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("defect", run.Error, StringComparison.Ordinal);
    }

    private static string Program => Path.Combine(AppContext.BaseDirectory, "lora-trainer.dll");

    private async Task<CliProcess> RunAsync(string[] command)
    {
        var start = new ProcessStartInfo(command[0], command[1..]) { WorkingDirectory = folder.Path, RedirectStandardOutput = true, RedirectStandardError = true };
        using Process process = Process.Start(start)!;
        Task<string> output = process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        Task<string> error = process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        return new CliProcess(process.ExitCode, await output, await error);
    }

    private static void Cut(string path, int bytes)
    {
        using FileStream file = File.OpenWrite(path);
        file.SetLength(file.Length - bytes);
    }

    private static void ReplaceInHeader(string path, string what, string with)
    {
        byte[] bytes = File.ReadAllBytes(path);
        int at = bytes.AsSpan().IndexOf(Encoding.UTF8.GetBytes(what));
        Assert.True(at > 0 && what.Length == with.Length, $"{path} does not hold {what}");
        Encoding.UTF8.GetBytes(with).CopyTo(bytes, at);
        File.WriteAllBytes(path, bytes);
    }

    private static void ReplaceInFile(string path, string what, string with)
    {
        string text = File.ReadAllText(path);
        Assert.Contains(what, text, StringComparison.Ordinal);
        File.WriteAllText(path, text.Replace(what, with, StringComparison.Ordinal));
    }

    private sealed record Case(Action<TinyFolder> Break, string Says, params string[] Settings);
}
