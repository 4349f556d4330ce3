using System.Buffers.Binary;
using System.Diagnostics;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>
/// What people get wrong: each is told in a sentence, with exit code 2 (a full disk: 1), and nothing half-written is left. The program runs as a
/// process of its own.
/// </summary>
public sealed class BadInputTests
{
    private static readonly Dictionary<string, Case> Cases = new(StringComparer.Ordinal)
    {
        ["truncated weights"] = new(folder => Rewrite(folder.PathOf("base/model.safetensors"), bytes => bytes[..^100]), "model.safetensors"),
        ["lying header"] = new(folder => Rewrite(folder.PathOf("base/model.safetensors"), Lie), "model.safetensors"),
        ["header length beyond the file"] = new(
            folder => Rewrite(folder.PathOf("base/model.safetensors"), bytes =>
            {
                BinaryPrimitives.WriteUInt64LittleEndian(bytes, 1UL << 40);
                return bytes;
            }),
            "model.safetensors"),
        ["no weights"] = new(folder => File.Delete(folder.PathOf("base/model.safetensors")), "model.safetensors"),
        ["missing shard"] = new(
            folder =>
            {
                File.Delete(folder.PathOf("base/model.safetensors"));
                File.WriteAllText(folder.PathOf("base/model.safetensors.index.json"), """{"metadata": {"total_size": 1}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}""");
            },
            "model-00001-of-00002.safetensors"),
        ["wrong shapes"] = new(folder => Edit(folder.PathOf("base/config.json"), "\"intermediate_size\": 160", "\"intermediate_size\": 176"), "the weights do not fit config.json"),
        ["NaN weights"] = new(folder => TinyRun.WriteBase(folder.PathOf("base"), change: (_, values) => values[3] = float.NaN), "weights must be finite"),
        ["unknown architecture"] = new(folder => Edit(folder.PathOf("base/config.json"), "\"model_type\": \"llama\"", "\"model_type\": \"mamba\""), "a family that is not supported. Supported: llama"),
        ["no tokenizer"] = new(folder => File.Delete(folder.PathOf("base/tokenizer.json")), "tokenizer.json"),
        ["no base"] = new(_ => { }, "there is no such file", "--set", "base_model=nowhere"),
        ["unknown key"] = new(folder => File.AppendAllText(folder.PathOf("tiny.yaml"), "lerning_rate_x: 1\n"), "lerning_rate_x"),
        ["misspelt key"] = new(folder => File.AppendAllText(folder.PathOf("tiny.yaml"), "lora_alhpa: 1\n"), "lora_alpha"),
        ["contradictory keys"] = new(_ => { }, "warmup", "--set", "warmup_ratio=0.1"),
        ["rank below 1"] = new(_ => { }, "lora_r must be 1..", "--set", "lora_r=0"),
        ["rank above a dimension"] = new(_ => { }, "The rank must be 1..", "--set", "lora_r=200"),
        ["no such target"] = new(_ => { }, "no_such_proj", "--set", "lora_target_linear=false", "--set", "lora_target_modules=[no_such_proj]"),
        ["no data file"] = new(folder => File.Delete(folder.PathOf("train.jsonl")), "train.jsonl"),
        ["empty data set"] = new(folder => File.WriteAllText(folder.PathOf("train.jsonl"), ""), "no row", "--set", "val_set_size=0"),
        ["row without the field"] = new(folder => File.AppendAllText(folder.PathOf("train.jsonl"), "{\"instruction\": \"a\", \"answer\": \"b\"}\n"), "no field 'output'"),
        ["row that is no JSON"] = new(folder => File.AppendAllText(folder.PathOf("train.jsonl"), "{\"instruction\": \n"), "train.jsonl:"),
        ["only rows that are too long"] = new(_ => { }, "sequence", "--set", "sequence_len=3", "--set", "val_set_size=0"),
    };

    public static TheoryData<string> Names => [.. Cases.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public async Task Train_IsRefusedInASentence(string name)
    {
        Case bad = Cases[name];
        using var folder = new TinyFolder();
        bad.Spoil(folder);

        Ending run = await folder.RunAsync(["train", "tiny.yaml", .. bad.Arguments]);

        Assert.True(run.ExitCode == 2, $"{name}: {run}");
        Assert.Contains("error: ", run.Error, StringComparison.Ordinal);
        Assert.Contains(bad.Sentence, run.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", run.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("defect", run.Error, StringComparison.Ordinal);
        Assert.False(File.Exists(folder.PathOf("out/adapter_model.safetensors")), $"{name}: an adapter was written");
        Assert.False(File.Exists(folder.PathOf("out/config.resolved.yaml")), $"{name}: the folder was marked as a run's");
    }

    [Fact]
    public async Task RowsThatAreTooLong_AreCountedAndThePolicyIsNamed()
    {
        using var folder = new TinyFolder();
        File.AppendAllText(folder.PathOf("train.jsonl"), "{\"instruction\": \"a\", \"output\": \"" + new string('b', 100) + "\"}\n");
        Ending run = await folder.RunAsync("train", "tiny.yaml", "--set", "max_steps=1", "--set", "val_set_size=0");
        Assert.True(run.ExitCode == 0, run.ToString());
        Assert.Contains("1 of 44 rows are longer than sequence_len 64 and left out (excess_length_strategy: drop): train.jsonl:44 (row 44).", run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task FolderThatHoldsARun_IsRefusedAndUntouched()
    {
        using var folder = new TinyFolder();
        Ending first = await folder.RunAsync("train", "tiny.yaml", "--set", "max_steps=2");
        Assert.True(first.ExitCode == 0, first.ToString());
        Dictionary<string, string> before = TinyFolder.Snapshot(folder.Out);

        Ending second = await folder.RunAsync("train", "tiny.yaml", "--set", "max_steps=2");

        Assert.True(second.ExitCode == 2, second.ToString());
        Assert.Contains("already holds a run. Go on with it: lora-trainer resume out", second.Error, StringComparison.Ordinal);
        Assert.Equal(before, TinyFolder.Snapshot(folder.Out));
    }

    [Fact]
    public async Task FolderOfAnotherUser_IsRefused()
    {
        RequireRoot();
        using var folder = new TinyFolder();
        Directory.CreateDirectory(folder.PathOf("locked"));
        Assert.Equal(0, Run(folder.Path, "chmod", "755", ".", "locked").ExitCode);

        // The program is copied to where any user may read it: a repository may lie in a home folder that others may not enter.
        CopyProgram(folder.PathOf("program"));
        (int exitCode, string error) = Run(
            folder.Path, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", "dotnet", "exec", folder.PathOf("program/lora-trainer.dll"), "train", "tiny.yaml", "--set", "output_dir=locked/out");
        Assert.True(exitCode == 2, $"exit code {exitCode}: {error}");
        Assert.Contains("output_dir locked/out cannot be written by this user", error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task FullDisk_FailsWithASentence()
    {
        RequireRoot();
        using var folder = new TinyFolder();
        Directory.CreateDirectory(folder.PathOf("small"));
        Assert.Equal(0, Run(folder.Path, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder.PathOf("small")).ExitCode);
        try
        {
            Ending run = await folder.RunAsync("train", "tiny.yaml", "--set", "output_dir=small/out");
            Assert.True(run.ExitCode == 1, run.ToString());
            Assert.Contains("error: ", run.Error, StringComparison.Ordinal);
            Assert.Contains("disk", run.Error, StringComparison.Ordinal);
            Assert.DoesNotContain("   at ", run.Error, StringComparison.Ordinal);
            Assert.False(File.Exists(folder.PathOf("small/out/adapter_model.safetensors")));
        }
        finally
        {
            Run(folder.Path, "umount", folder.PathOf("small"));
        }
    }

    /// <summary>Claims that the last tensor is twice as long as its bytes.</summary>
    private static byte[] Lie(byte[] bytes)
    {
        int header = (int)BinaryPrimitives.ReadUInt64LittleEndian(bytes);
        string json = System.Text.Encoding.UTF8.GetString(bytes, 8, header);
        int shape = json.IndexOf("\"shape\":[", StringComparison.Ordinal) + "\"shape\":[".Length;
        bytes[8 + shape] = (byte)(bytes[8 + shape] == (byte)'9' ? '8' : bytes[8 + shape] + 1);
        return bytes;
    }

    private static void Rewrite(string path, Func<byte[], byte[]> change) => File.WriteAllBytes(path, change(File.ReadAllBytes(path)));

    private static void Edit(string path, string old, string @new)
    {
        string text = File.ReadAllText(path);
        Assert.Contains(old, text, StringComparison.Ordinal);
        File.WriteAllText(path, text.Replace(old, @new, StringComparison.Ordinal));
    }

    private static void CopyProgram(string target)
    {
        Directory.CreateDirectory(target);
        foreach (string file in Directory.EnumerateFiles(AppContext.BaseDirectory))
        {
            File.Copy(file, Path.Combine(target, Path.GetFileName(file)));
        }
    }

    private static (int ExitCode, string Error) Run(string folder, string program, params string[] arguments)
    {
        using Process process = Process.Start(new ProcessStartInfo(program, arguments) { WorkingDirectory = folder, RedirectStandardError = true, RedirectStandardOutput = true })!;
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        string error = process.StandardError.ReadToEnd();
        process.WaitForExit();
        return (process.ExitCode, error + output.Result);
    }

    private static void RequireRoot()
    {
        if (Environment.UserName == "root")
        {
            return;
        }

        const string reason = "another user and a small file system can only be had as root";
        if (Fixtures.IsContinuousIntegration)
        {
            Assert.Fail(reason);
        }

        Assert.Skip(reason);
    }

    private sealed record Case(Action<TinyFolder> Spoil, string Sentence, params string[] Arguments);
}
