using System.Globalization;
using System.Text;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests;

/// <summary>Bases that are kept as they were quantized.</summary>
public sealed class QuantizedCacheTests
{
    private const string Read = "The base was read as it was quantized before";
    private const string Kept = "The quantized base is kept in";
    private const string Rejected = "The kept quantized base is not used, so the base is quantized again";
    private const string Fetched = "The quantized base was fetched from";

    private static readonly string Key = new('a', 64);

    [Theory]
    [InlineData("adapter: qlora")]
    [InlineData("load_in_4bit: true; bnb_config_kwargs: {bnb_4bit_quant_type: fp4, bnb_4bit_use_double_quant: false}")]
    [InlineData("load_in_8bit: true")]
    public async Task Run_BaseIsKept_SecondStartReadsItAndResultHasTheSameBytes(string settings)
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        (string, object?)[] changes = [.. settings.Split("; ").Select(line => (line[..line.IndexOf(':', StringComparison.Ordinal)], (object?)line[(line.IndexOf(':', StringComparison.Ordinal) + 2)..]))];
        (string[] said, byte[] expected) = await Train(folder, "without", cache: null, changes);
        Assert.DoesNotContain(said, sentence => sentence.Contains("quantized base", StringComparison.Ordinal));
        (said, byte[] first) = await Train(folder, "first", "{path: " + folder.File("cache") + "}", changes);
        Assert.Single(said, sentence => sentence.StartsWith(Kept, StringComparison.Ordinal));
        (said, byte[] second) = await Train(folder, "second", "{path: " + folder.File("cache") + "}", changes);
        Assert.Single(said, sentence => sentence.StartsWith(Read, StringComparison.Ordinal));
        Assert.DoesNotContain(said, sentence => sentence.StartsWith(Kept, StringComparison.Ordinal));
        Assert.True(expected.AsSpan().SequenceEqual(first) && expected.AsSpan().SequenceEqual(second));
        Assert.Single(Entries(folder.File("cache")));
    }

    [Fact]
    public async Task Run_DamagedOrForeignEntry_IsSaidAndQuantizedAgain()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        string cache = folder.File("cache"), settings = "{path: " + cache + "}";
        (_, byte[] expected) = await Train(folder, "0", settings);
        string entry = Entries(cache).Single();
        byte[] whole = File.ReadAllBytes(entry);

        // The entry of another base, which a hand has renamed.
        TinyRun.WriteBase(folder.File("other"), seed: 9);
        await Train(folder, "other", settings, ("base_model", folder.File("other")));
        byte[] foreign = File.ReadAllBytes(Entries(cache).Single(path => path != entry));
        (string What, byte[] Content)[] damages =
        [
            ("empty", []),
            ("cut in the header", whole[..100]),
            ("cut in the data", whole[..^1000]),
            ("a byte of the last tensor", Changed(whole, whole.Length - 3)),
            ("a byte in the middle", Changed(whole, whole.Length * 2 / 3)),
            ("another base", foreign),
            ("another program's", Replaced(whole, "lora-trainer quantized base", "lora-trainer quantized bass")),
            ("a hash that is missing", Replaced(whole, "sha256 model.layers.0.mlp.up_proj.weight\"", "sha257 model.layers.0.mlp.up_proj.weight\"")),
            ("a tensor of another name", Replaced(whole, "\"model.layers.1.mlp.up_proj.weight\":", "\"model.layers.1.mlp.up_prok.weight\":")),
            ("no safetensors at all", Encoding.UTF8.GetBytes("a text")),
        ];
        foreach ((string what, byte[] content) in damages)
        {
            File.WriteAllBytes(entry, content);
            (string[] said, byte[] actual) = await Train(folder, what.Replace(' ', '-').Replace('\'', '-'), settings);
            Assert.True(said.Count(sentence => sentence.StartsWith(Rejected, StringComparison.Ordinal)) == 1, $"{what}: {string.Join('\n', said)}");
            Assert.True(expected.AsSpan().SequenceEqual(actual), what);
            Assert.True(whole.AsSpan().SequenceEqual(File.ReadAllBytes(entry)), what);
        }
    }

    [Fact]
    public async Task Run_StoreBesideTheFolder_ServesAnEmptyDiskAndIsMended()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        string store = folder.File("store");
        string Settings(string path) => $"{{path: {folder.File(path)}, uri: {store}}}";
        (string[] said, byte[] expected) = await Train(folder, "a", Settings("disk1"));
        Assert.Single(said, sentence => sentence.StartsWith("The quantized base is in " + store, StringComparison.Ordinal));
        string entry = Entries(store).Single();
        byte[] whole = File.ReadAllBytes(entry);
        Assert.True(whole.AsSpan().SequenceEqual(File.ReadAllBytes(Entries(folder.File("disk1")).Single())));

        (said, byte[] actual) = await Train(folder, "b", Settings("disk2"));
        Assert.Single(said, sentence => sentence.StartsWith(Fetched, StringComparison.Ordinal));
        Assert.Single(said, sentence => sentence.StartsWith(Read, StringComparison.Ordinal));
        Assert.True(expected.AsSpan().SequenceEqual(actual));

        File.WriteAllBytes(entry, Changed(whole, whole.Length - 3));
        (said, actual) = await Train(folder, "c", Settings("disk3"));
        Assert.Single(said, sentence => sentence.StartsWith(Rejected, StringComparison.Ordinal));
        Assert.True(expected.AsSpan().SequenceEqual(actual));
        Assert.True(whole.AsSpan().SequenceEqual(File.ReadAllBytes(entry)));
    }

    [Fact]
    public async Task Run_CacheThatCannotBeWritten_IsWarnedOfAndTrains()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        File.WriteAllText(folder.File("file"), "");
        (string[] said, byte[] actual) = await Train(folder, "a", $"{{path: {folder.File("file")}/cache, uri: {folder.File("file")}/store}}");
        Assert.Contains(said, sentence => sentence.StartsWith("The quantized base could not be kept, so the next start quantizes again: ", StringComparison.Ordinal));
        Assert.NotEmpty(actual);
    }

    [Fact]
    public async Task Keep_FolderIsFull_RemovesOnlyEntriesThatWereNotUsedForLongest()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        using var device = new CpuDevice(1, 1 << 24);
        CausalLanguageModel model = Load(folder.File("base"), device);
        long size = QuantizedBaseFile.SizeOf(model);
        string cache = folder.File("cache");
        Directory.CreateDirectory(cache);
        string Entry(char letter) => Path.Combine(cache, new string(letter, 64) + ".safetensors");
        foreach ((char letter, int hours) in new[] { ('1', 3), ('2', 2), ('3', 1) })
        {
            File.WriteAllBytes(Entry(letter), new byte[size]);
            File.SetLastWriteTimeUtc(Entry(letter), TimeProvider.System.GetUtcNow().UtcDateTime.AddHours(-hours));
        }

        string foreign = Path.Combine(cache, "model.safetensors"), half = Path.Combine(cache, $".{new string('4', 64)}.safetensors.{new string('5', 32)}.tmp"), fresh = Path.Combine(cache, $".{new string('4', 64)}.safetensors.{new string('6', 32)}.tmp");
        File.WriteAllBytes(foreign, new byte[size * 4]);
        File.WriteAllText(half, "");
        File.WriteAllText(fresh, "");
        File.SetLastWriteTimeUtc(half, TimeProvider.System.GetUtcNow().UtcDateTime.AddDays(-2));
        var observer = new Listener();

        // Room for two, one of which is new.
        await using (QuantizedCache kept = Open(cache, observer, size * 2.5 / 1e9))
        {
            kept.Keep(Key, model);
        }

        Assert.Equal([foreign, Entry('3'), Entry('a')], Directory.GetFiles(cache).Where(path => path.EndsWith(".safetensors", StringComparison.Ordinal)).OrderBy(path => path.Length).ThenBy(path => path, StringComparer.Ordinal));
        Assert.Equal([fresh], Directory.GetFiles(cache).Where(path => path.EndsWith(".tmp", StringComparison.Ordinal)));
        await using (QuantizedCache small = Open(cache, observer, size * 0.5 / 1e9))
        {
            small.Keep(new string('b', 64), model);
        }

        Assert.False(File.Exists(Entry('b')));
        Assert.Contains(observer.Said, sentence => sentence.EndsWith("more than quantized_cache.max_gigabytes, and is not kept.", StringComparison.Ordinal));
    }

    [Fact]
    public async Task KeepAndFind_ManyAtOnce_FindAllOrNothing()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        string cache = folder.File("cache"), basePath = folder.File("base");
        byte[] expected;
        using (var device = new CpuDevice(1, 1 << 24))
        {
            expected = Codes(Load(basePath, device));
        }

        int found = 0;
        await Task.WhenAll(Enumerable.Range(0, 4).Select(worker => Task.Run(async () =>
        {
            var observer = new Listener();
            await using QuantizedCache shared = Open(cache, observer, 1);
            for (int round = 0; round < 10; round++)
            {
                using var device = new CpuDevice(1, 1 << 22);
                using QuantizedBaseFile? kept = await shared.FindAsync(Key);
                CausalLanguageModel model = Load(basePath, device, kept);
                Assert.True(expected.AsSpan().SequenceEqual(Codes(model)));
                if (kept is null || round % 3 == worker % 3)
                {
                    shared.Keep(Key, model);
                }

                Interlocked.Add(ref found, kept is null ? 0 : 1);
            }

            Assert.DoesNotContain(observer.Said, sentence => sentence.StartsWith(Rejected, StringComparison.Ordinal));
        })));
        Assert.InRange(found, 1, 40);
    }

    [Fact]
    public void KeyOf_AnythingThatDecidesTheContent_GivesAnother()
    {
        string[] keys =
        [
            QuantizedBaseFile.KeyOf("1", BaseFormat.Nf4, DevicePlatform.Cpu), QuantizedBaseFile.KeyOf("2", BaseFormat.Nf4, DevicePlatform.Cpu),
            QuantizedBaseFile.KeyOf("1", BaseFormat.Nf4DoubleQuantized, DevicePlatform.Cpu), QuantizedBaseFile.KeyOf("1", BaseFormat.Nf4, DevicePlatform.Cuda),
        ];
        Assert.Equal(4, keys.Distinct().Count());
        Assert.All(keys, key => Assert.Equal(64, key.Length));
    }

    private static QuantizedCache Open(string path, Listener observer, double gigabytes) =>
        QuantizedCache.Open(new QuantizedCacheOptions { Path = path, MaxGigabytes = gigabytes }, observer, TimeProvider.System, CancellationToken.None)!;

    private static CausalLanguageModel Load(string folder, CpuDevice device, QuantizedBaseFile? kept = null)
    {
        using ModelFolder files = ModelFolder.Open(folder);
        return ModelLoader.LoadFrozen(ModelConfig.Parse(folder), files, device, BaseFormat.Nf4DoubleQuantized, quantized: kept);
    }

    private static byte[] Codes(CausalLanguageModel model) => [.. model.Linears.SelectMany(linear => ((FourBitMatrix)linear.Weight).Packed.DownloadBytes())];

    private static string[] Entries(string folder) => [.. Directory.GetFiles(folder, "*.safetensors", SearchOption.AllDirectories)];

    private static byte[] Changed(byte[] content, int at)
    {
        byte[] changed = [.. content];
        changed[at] ^= 1;
        return changed;
    }

    private static byte[] Replaced(byte[] content, string old, string replacement)
    {
        int at = content.AsSpan().IndexOf(Encoding.UTF8.GetBytes(old));
        Assert.True(at > 0, old);
        byte[] changed = [.. content];
        Encoding.UTF8.GetBytes(replacement).CopyTo(changed, at);
        return changed;
    }

    /// <summary>One step, in a run folder of its own; what was said, and the adapter that came of it.</summary>
    private static async Task<(string[] Said, byte[] Adapter)> Train(TemporaryFolder folder, string name, string? cache, params (string Key, object? Value)[] changes)
    {
        var observer = new Listener();
        (string, object?)[] quantizes = changes.Any(change => change.Key is "adapter" or "load_in_4bit" or "load_in_8bit") ? [] : [("adapter", "qlora")];
        string text = TinyRun.Config(
            folder.Path, [("output_dir", folder.File("out-" + name)), ("max_steps", 1), ("warmup_steps", 0), ("val_set_size", 0), ("quantized_cache", cache), ("interruption", "{sources: none}"), .. quantizes, .. changes]);
        var run = new TrainingRun(ConfigurationLoader.LoadText(text, "tiny.yaml", []).Require(), observer, TimeProvider.System);
        Assert.Equal(RunEnding.Finished, await run.RunAsync(resume: false, force: false, evenIfStopped: false, TestContext.Current.CancellationToken));
        Assert.True(run.Summary!.PlannedArenaBytes == run.Summary.ArenaBytes, string.Create(CultureInfo.InvariantCulture, $"planned {run.Summary.PlannedArenaBytes}, used {run.Summary.ArenaBytes}"));
        return (observer.Said, File.ReadAllBytes(Path.Combine(folder.File("out-" + name), "adapter_model.safetensors")));
    }

    /// <summary>Keeps all sentences.</summary>
    private sealed class Listener : ITrainingObserver
    {
        private readonly List<string> said = [];

        public string[] Said
        {
            get
            {
                lock (said)
                {
                    return [.. said];
                }
            }
        }

        public void OnProgress(in TrainingProgress progress)
        {
        }

        public void OnEvaluation(LoraTrainer.Training.Evaluation.EvaluationPoint point, bool isBest)
        {
        }

        public void OnNotice(string sentence)
        {
            lock (said)
            {
                said.Add(sentence);
            }
        }

        public void OnWarning(string sentence) => OnNotice(sentence);

        public void OnSample(string prompt, string expected, string generated)
        {
        }
    }
}
