using System.Buffers.Binary;
using System.Globalization;
using System.Text;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>
/// What people get wrong: each is told in one sentence, with exit code 2 (a full disk: 1), and leaves not a file more than before, whether it is
/// found out early or late. The program runs as a process of its own.
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
        ["unknown architecture"] = new(folder => Edit(folder.PathOf("base/config.json"), "\"model_type\": \"llama\"", "\"model_type\": \"mamba\""), "a family that is not supported. Supported: llama, mistral, qwen2, qwen3, phi3, gemma2"),
        ["no tokenizer"] = new(folder => File.Delete(folder.PathOf("base/tokenizer.json")), "tokenizer.json"),
        ["offsets beyond the end"] = new(folder => ReplaceInHeader(folder.PathOf("base/model.safetensors"), "\"data_offsets\":[0,", "\"data_offsets\":[8,"), "model.safetensors"),
        ["cut in the header"] = new(folder => File.WriteAllBytes(folder.PathOf("base/model.safetensors"), [1, 2, 3]), "model.safetensors"),
        ["NaN weights in 4 bits"] = new(
            folder => TinyRun.WriteBase(folder.PathOf("base"), change: (name, values) => values[^1] = name.Contains("q_proj", StringComparison.Ordinal) ? float.NaN : values[^1]), "NaN", "--set", "adapter=qlora"),
        ["no base"] = new(_ => { }, "nowhere: there is no such folder. A model is a folder with config.json, tokenizer.json and model.safetensors, or the name of one on the hub", "--set", "base_model=nowhere"),
        ["name of a hub"] = new(_ => { }, "HuggingFaceTB/SmolLM2-135M is not in the cache ", "--set", "base_model=HuggingFaceTB/SmolLM2-135M"),
        ["base that is a file"] = new(_ => { }, "base/model.safetensors: this is a file. A model is a folder", "--set", "base_model=base/model.safetensors"),
        ["no config.json"] = new(folder => File.Delete(folder.PathOf("base/config.json")), "base/config.json: there is no such file"),
        ["config.json that is cut off"] = new(folder => File.WriteAllText(folder.PathOf("base/config.json"), "{"), "base/config.json:1: this is not the JSON it should be: it ends before its last object or list is closed"),
        ["damaged config.json"] = new(folder => Cut(folder.PathOf("base/config.json"), 3), "config.json:"),
        ["damaged tokenizer"] = new(folder => Cut(folder.PathOf("base/tokenizer.json"), 100), "tokenizer.json"),
        ["tokenizer larger than the embeddings"] = new(
            folder => TinyRun.WriteBase(folder.PathOf("base"), shape: TinyRun.Shape with { VocabSize = 200, BosTokenId = 1, EosTokenIds = [2] }), "the tokenizer has 258 tokens, the model only 200 embeddings"),
        ["unknown key"] = new(folder => File.AppendAllText(folder.PathOf("tiny.yaml"), "lerning_rate_x: 1\n"), "lerning_rate_x"),
        ["misspelt key"] = new(folder => File.AppendAllText(folder.PathOf("tiny.yaml"), "lora_alhpa: 1\n"), "lora_alpha"),
        ["contradictory keys"] = new(_ => { }, "warmup", "--set", "warmup_ratio=0.1"),
        ["rank below 1"] = new(_ => { }, "lora_r must be 1..", "--set", "lora_r=0"),
        ["rank above a dimension"] = new(_ => { }, "The rank must be 1..", "--set", "lora_r=200"),
        ["no such target"] = new(_ => { }, "no_such_proj", "--set", "lora_target_linear=false", "--set", "lora_target_modules=[no_such_proj]"),
        ["misspelt target beside right ones"] = new(
            _ => { }, "lora_target_modules: 'v_porj' matches no module of the model. Did you mean v_proj? Its modules are: embed_tokens, q_proj,", "--set", "lora_target_linear=false", "--set", "lora_target_modules=[q_proj, v_porj]"),
        ["no data file"] = new(folder => File.Delete(folder.PathOf("train.jsonl")), "train.jsonl"),
        ["empty data set"] = new(folder => File.WriteAllText(folder.PathOf("train.jsonl"), ""), "no row", "--set", "val_set_size=0"),
        ["no row that can be read"] = new(
            folder => File.WriteAllText(folder.PathOf("train.jsonl"), "{\"instruction\": \n"), "No row is left of 1: 1 not usable and left out; the first is train.jsonl:1 (row 1), not a JSON object on one line", "--set", "val_set_size=0"),
        ["rows without an answer"] = new(
            folder => File.WriteAllText(folder.PathOf("train.jsonl"), "{\"instruction\": \"a\", \"output\": \"\"}\n"), "No row is left of 1: 1 without an answer to learn and left out; the first is train.jsonl:1 (row 1).", "--set", "val_set_size=0"),
        ["data path that is a folder"] = new(_ => { }, "base is a folder with a model; give the file or the folder with the rows.", "--set", "datasets.0.path=base"),
        ["only rows that are too long"] = new(_ => { }, "sequence", "--set", "sequence_len=3", "--set", "val_set_size=0"),
        ["output that holds an adapter"] = new(folder => Occupy(folder, "adapter_model.safetensors"), "already holds adapter_model.safetensors"),
        ["output that is a file"] = new(folder => File.WriteAllText(folder.Out, "x"), "output_dir out is a file. Choose another name for the folder."),
        ["output where no folder can be"] = new(_ => { }, "output_dir /proc/x cannot be made: the file system takes no folder there. Choose another folder.", "--set", "output_dir=/proc/x"),
        ["checkpoints where no folder can be"] = new(_ => { }, "checkpoint.uri /proc/x cannot be made: the file system takes no folder there. Choose another folder.", "--set", "checkpoint.uri=/proc/x"),
        ["checkpoints below a file"] = new(_ => { }, "checkpoint.uri tiny.yaml/x cannot be made: tiny.yaml is a file. Choose another folder.", "--set", "checkpoint.uri=tiny.yaml/x"),
        ["prepared data where no folder can be"] = new(_ => { }, "dataset_prepared_path /proc/x cannot be made: the file system takes no folder there. Choose another folder.", "--set", "dataset_prepared_path=/proc/x"),
        ["prepared data in a file"] = new(_ => { }, "dataset_prepared_path tiny.yaml is a file. Choose another name for the folder.", "--set", "dataset_prepared_path=tiny.yaml"),
        ["output below a file"] = new(_ => { }, "output_dir tiny.yaml/x cannot be made: tiny.yaml is a file. Choose another folder.", "--set", "output_dir=tiny.yaml/x"),
    };

    // A name of the hub must not be asked for over the network.
    private static readonly Dictionary<string, string> Offline = new() { ["HF_HUB_OFFLINE"] = "1", ["HF_HUB_CACHE"] = "/nonexistent/hub" };

    public static TheoryData<string> Names => [.. Cases.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public async Task Train_IsRefusedInASentenceAndLeavesNothing(string name)
    {
        Case bad = Cases[name];
        using var folder = new TinyFolder();
        bad.Spoil(folder);
        Dictionary<string, string> before = TinyFolder.Snapshot(folder.Path);
        bool hadOutput = Path.Exists(folder.Out);

        Ending run = await folder.RunAsync(["train", "tiny.yaml", .. bad.Arguments], environment: Offline);

        AssertOneSentence(run, 2, bad.Sentence);
        Assert.Equal(before, TinyFolder.Snapshot(folder.Path));
        Assert.True(hadOutput || !Directory.Exists(folder.Out), $"{name}: an output folder was left behind");
    }

    /// <summary>Files and folders are called as they were written, with the option that names them; never by a temporary name.</summary>
    [Theory]
    [InlineData(2, "--prompt-file nosuch cannot be read: there is no such file. A relative path starts at the current directory.", "generate", "base", "--prompt-file", "nosuch")]
    [InlineData(2, "--prompt-file base cannot be read: it is a folder. Give a file.", "generate", "base", "--prompt-file", "base")]
    [InlineData(2, "--html /nosuch/x.html cannot be written: there is no folder /nosuch. Choose another place.", "report", "--html", "/nosuch/x.html")]
    [InlineData(2, "--html tiny.yaml/x cannot be written: tiny.yaml is a file. Choose another place.", "report", "--html", "tiny.yaml/x")]
    [InlineData(2, "--list /nosuch/x cannot be written: there is no folder /nosuch. Choose another place.", "audit", "tiny.yaml", "--list", "/nosuch/x")]
    [InlineData(2, "--list base cannot be written: it is a folder. Choose another place.", "audit", "tiny.yaml", "--list", "base")]
    [InlineData(2, "OUT /proc/x.yaml cannot be written: the file system takes no file there. Choose another place.", "init", "/proc/x.yaml", "--base-model", "base", "--data", "train.jsonl")]
    [InlineData(2, "OUT /proc/x cannot be made: the file system takes no folder there. Choose another folder.", "random-model", "base/config.json", "/proc/x")]
    [InlineData(2, "--keep /proc/x cannot be made: the file system takes no folder there. Choose another folder.", "verify-resume", "tiny.yaml", "--keep", "/proc/x")]
    [InlineData(2, "base is a folder; a ledger is expected. Without --ledger the usual one is read.", "report", "--ledger", "base")]
    [InlineData(2, "base is a folder; a file of prices is expected.", "prices", "--file", "base")]
    [InlineData(1, "tiny.yaml is not a ledger: it is no SQLite file. Move it away or name another ledger.", "report", "--ledger", "tiny.yaml")]
    [InlineData(1, "tiny.yaml is not a ledger: it is no SQLite file. Move it away or name another ledger.", "ledger", "add", "--project", "x", "--category", "labor", "--amount", "3 USD", "--ledger", "tiny.yaml")]
    public async Task PlaceThatCannotBeUsed_IsNamedAsItWasWritten(int exitCode, string sentence, params string[] arguments)
    {
        using var folder = new TinyFolder();
        Dictionary<string, string> before = TinyFolder.Snapshot(folder.Path);

        Ending run = await folder.RunAsync(arguments, environment: new Dictionary<string, string> { ["LT_LEDGER"] = folder.PathOf("usual/ledger.db") });

        AssertOneSentence(run, exitCode, sentence);
        Assert.DoesNotContain("The run goes on", run.Error, StringComparison.Ordinal);
        Assert.Equal(before, TinyFolder.Snapshot(folder.Path).Where(file => !file.Key.StartsWith("usual", StringComparison.Ordinal)).ToDictionary());
    }

    /// <summary>What concerns the base is said in the same words by all that read a config.</summary>
    [Theory]
    [InlineData("train", 2)]
    [InlineData("plan", 2)]
    [InlineData("validate", 0)]
    public async Task BaseThatIsNotThere_SoundsTheSameEverywhere(string verb, int exitCode)
    {
        using var folder = new TinyFolder();
        Ending run = await folder.RunAsync([verb, "tiny.yaml", "--set", "base_model=no such model"]);
        Assert.Equal(exitCode, run.ExitCode);
        Assert.Contains(
            "no such model: there is no such folder. A model is a folder with config.json, tokenizer.json and model.safetensors, or the name of one on the hub, such as HuggingFaceTB/SmolLM2-135M; a relative path starts at the current directory.",
            run.Error,
            StringComparison.Ordinal);
    }

    [Fact]
    public async Task PlanOfTooManyTokens_IsASentence()
    {
        using var folder = new TinyFolder();
        File.Delete(folder.PathOf("train.jsonl"));
        Ending run = await folder.RunAsync("plan", "tiny.yaml", "--set", "sequence_len=1048576", "--set", "micro_batch_size=4096");
        AssertOneSentence(run, 2, "micro_batch_size 4096 times sequence_len 1048576 makes micro-batches of up to 4,294,967,296 tokens; at most 67,108,864 can be planned for.");

        Ending largest = await folder.RunAsync("plan", "tiny.yaml", "--json", "--set", "sequence_len=1048576", "--set", "micro_batch_size=64");
        Assert.True(largest.ExitCode == 0, largest.ToString());
    }

    [Fact]
    public async Task RowsThatAreTooLong_AreCountedAndThePolicyIsNamed()
    {
        using var folder = new TinyFolder();
        File.AppendAllText(folder.PathOf("train.jsonl"), "{\"instruction\": \"a\", \"output\": \"" + new string('b', 100) + "\"}\n");
        Ending run = await folder.RunAsync("train", "tiny.yaml", "--set", "max_steps=1", "--set", "val_set_size=0");
        Assert.True(run.ExitCode == 0, run.ToString());
        Assert.Contains("1 of 44 rows is longer than sequence_len 64 and left out (excess_length_strategy: drop): train.jsonl:44 (row 44) with ", run.Error, StringComparison.Ordinal);
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

    /// <summary>Root may write everywhere, so it gives that power up first.</summary>
    [Fact]
    [System.Runtime.Versioning.UnsupportedOSPlatform("windows")]
    public async Task Train_FolderThatMayNotBeWritten_SaysSo()
    {
        using var folder = new TinyFolder();
        Directory.CreateDirectory(folder.PathOf("locked"), UnixFileMode.UserRead | UnixFileMode.UserExecute);
        string[] asUser = Environment.IsPrivilegedProcess ? ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] : ["env"];

        Ending run = await Ending.OfAsync(folder.Path, [.. asUser, "dotnet", "exec", Ending.Program, "train", "tiny.yaml", "--set", "output_dir=locked/out"]);

        if (run.Error.StartsWith("setpriv: ", StringComparison.Ordinal))
        {
            Fixtures.LeaveOut($"setpriv cannot be used here: {run.Error.Trim()}");
        }

        AssertOneSentence(run, 2, "output_dir locked/out cannot be written by this user");
        Assert.Empty(Directory.EnumerateFileSystemEntries(folder.PathOf("locked")));
    }

    /// <summary>The disk is full, then it is not: nothing is half-written, and the run goes on.</summary>
    [Theory]
    [InlineData(4, "continue")]
    [InlineData(32, "continue")]
    [InlineData(128, "continue")]
    [InlineData(300, "continue")]
    [InlineData(300, "stop")]
    public async Task Train_DiskFull_LeavesARunThatCanBeResumed(int kibibytes, string onError)
    {
        // To stop, a run needs steps that come after the checkpoint that failed behind it.
        using var folder = new TinyFolder(rows: 12, changes: [("checkpoint", $"{{every_steps: 2, keep: 2, on_error: {onError}}}"), ("num_epochs", onError == "stop" ? 60 : 2.4)]);

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

        Ending second = await Ending.OfAsync(folder.Path, [.. namespaces, "sh", "-c", script, Ending.Program]);

        if (second.Error.StartsWith("unshare: ", StringComparison.Ordinal) || second.ExitCode == 99)
        {
            Fixtures.LeaveOut($"no disk can be mounted here: {second.Error.Trim()}");
        }

        var first = new Ending(int.Parse(File.ReadAllText(folder.PathOf("first.code")), CultureInfo.InvariantCulture), File.ReadAllText(folder.PathOf("first.out")), File.ReadAllText(folder.PathOf("first.err")));
        if (onError == "continue" && first.ExitCode == 0)
        {
            // Some checkpoints did not fit, the last one did.
            Assert.Contains("warning: The checkpoint of step ", first.Error, StringComparison.Ordinal);
            return;
        }

        AssertOneSentence(first, 1, "The disk is full");
        string[] left = File.ReadAllLines(folder.PathOf("first.files"));
        Assert.DoesNotContain(left, file => file.Contains(".staging", StringComparison.Ordinal) || file.Contains(".tmp", StringComparison.Ordinal) || file.EndsWith("summary.json", StringComparison.Ordinal));
        Assert.True(second.ExitCode == 0, $"the run could not go on: {second.Error}\nleft behind: {string.Join(", ", left)}");
    }

    private static void AssertOneSentence(Ending run, int exitCode, string says)
    {
        string all = $"exit code {run.ExitCode}\n{run.Output}\n{run.Error}";
        Assert.True(run.ExitCode == exitCode, all);
        string error = Assert.Single(run.Error.Split('\n'), line => line.StartsWith("error: ", StringComparison.Ordinal));
        Assert.True(error.Contains(says, StringComparison.Ordinal), $"expected words: {says}\n{all}");
        Assert.DoesNotContain("LineNumber", error, StringComparison.Ordinal);
        Assert.True(error.EndsWith('.') || error.EndsWith('?'), error);
        Assert.DoesNotContain("   at ", run.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("defect", run.Error, StringComparison.Ordinal);
    }

    private static void Occupy(TinyFolder folder, string file)
    {
        Directory.CreateDirectory(folder.Out);
        File.WriteAllText(Path.Combine(folder.Out, file), "x");
    }

    /// <summary>Claims that the last tensor is twice as long as its bytes.</summary>
    private static byte[] Lie(byte[] bytes)
    {
        int header = (int)BinaryPrimitives.ReadUInt64LittleEndian(bytes);
        string json = Encoding.UTF8.GetString(bytes, 8, header);
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

    private sealed record Case(Action<TinyFolder> Spoil, string Sentence, params string[] Arguments);
}
