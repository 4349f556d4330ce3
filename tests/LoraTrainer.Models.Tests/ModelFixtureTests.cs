using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests;

/// <summary>Every model of the reference fixtures: what transformers computes, within the tolerances of the fixtures' README.</summary>
[Trait("Category", "Fixtures")]
public sealed class ModelFixtureTests(ITestOutputHelper output)
{
    private const double LogitTolerance = 5e-5;

    /// <summary>f32 sums of some hundred terms in another order, through two or three blocks.</summary>
    private const double CachedTolerance = 1e-5;
    private const double LossTolerance = 1e-5;
    private const double GradientTolerance = 2e-5;

    public static TheoryData<string, string> Models => Cases("expected.safetensors", "config.json", "config.old-style.json");

    public static TheoryData<string, string> PackedModels => Cases("expected_packed.safetensors", "config.json");

    public static TheoryData<string, string> GradientModels => Cases("expected_weight_gradients.safetensors", "config.json");

    public static TheoryData<string, string> GreedyModels => Cases("expected_greedy.json", "config.json");

    [Fact]
    public void Discovery_EveryModelFolder_IsRunOrNamed()
    {
        DirectoryInfo[] all = [.. new DirectoryInfo(Fixtures.Require("models")).GetDirectories().OrderBy(folder => folder.Name, StringComparer.Ordinal)];

        // Which folders can be run is asked of the program here, not of the list that the cases were chosen by.
        DirectoryInfo[] known = [.. all.Where(folder => Record.Exception(() => ModelConfig.Parse(folder.FullName)) is null)];
        output.WriteLine($"models run: {known.Length} of {all.Length}: {string.Join(", ", known.Select(folder => folder.Name))}");
        output.WriteLine($"models not yet supported: {string.Join(", ", all.Except(known).Select(folder => $"{folder.Name} ({Fixtures.ModelTypeOf(Path.Combine("models", folder.Name))})"))}");
        Assert.NotEmpty(known);
        Check(Models, "expected.safetensors", spellings: "config*.json");
        Check(PackedModels, "expected_packed.safetensors", spellings: "config.json");
        Check(GradientModels, "expected_weight_gradients.safetensors", spellings: "config.json");
        Check(GreedyModels, "expected_greedy.json", spellings: "config.json");

        void Check(TheoryData<string, string> cases, string expectation, string spellings)
        {
            string[] expected = [.. known.Where(folder => folder.GetFiles(expectation).Length == 1).SelectMany(folder => folder.GetFiles(spellings).Select(file => $"{folder.Name}/{file.Name}"))];
            output.WriteLine($"{expectation}: {expected.Length} cases");
            Assert.NotEmpty(expected);
            Assert.Equal(expected.Order(StringComparer.Ordinal), cases.Select(row => $"{row.Data.Item1}/{row.Data.Item2}").Order(StringComparer.Ordinal));
        }
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void Logits_AreThoseOfTransformers(string model, string configFile)
    {
        using ModelFixture fixture = Load(model, configFile);
        FixtureTensors expected = fixture.Expected("expected.safetensors");
        int[] ids = expected.Integers("input_ids");
        int rowLength = (int)expected.Shape("input_ids")[1];
        string name = expected.Has("logits") ? "logits" : "logits_weights_bf16_math_f32";
        TensorAssert.Close(expected.Floats(name), fixture.Logits(HostBatch.FromRows(ids, null, rowLength)), LogitTolerance, $"{model} logits");
        if (expected.Has("padded_logits_row1"))
        {
            int real = (int)expected.Shape("padded_logits_row1")[0];
            var alone = new HostBatch();
            alone.Add(ids.AsSpan(rowLength, real), default);
            TensorAssert.Close(expected.Floats("padded_logits_row1"), fixture.Logits(alone), LogitTolerance, $"{model} logits of a right-padded row");
        }
    }

    [Theory]
    [MemberData(nameof(PackedModels))]
    public void PackedLogits_AreThoseOfEachDocumentAlone(string model, string configFile)
    {
        using ModelFixture fixture = Load(model, configFile);
        FixtureTensors expected = fixture.Expected("expected_packed.safetensors");
        var batch = HostBatch.FromDocuments(expected.Integers("input_ids"), expected.Integers("lengths"));
        TensorAssert.Close(expected.Floats("logits"), fixture.Logits(batch), LogitTolerance, $"{model} packed logits");
    }

    [Theory]
    [MemberData(nameof(PackedModels))]
    public void CachedLogits_AreThoseOfTheWholeText(string model, string configFile)
    {
        using ModelFixture fixture = Load(model, configFile);
        FixtureTensors expected = fixture.Expected("expected.safetensors");
        int[] ids = [.. expected.Integers("input_ids").Take((int)expected.Shape("input_ids")[1])];
        var text = new HostBatch();
        text.Add(ids, default);
        float[] whole = fixture.Logits(text);
        var cache = new KeyValueCache(fixture.Device, fixture.Model, ids.Length);
        int vocabulary = fixture.Model.Config.VocabSize;
        foreach (int end in new[] { 5, 6, 7, ids.Length - 2, ids.Length - 1, ids.Length })
        {
            // Products of one row have an order of their own, so the last bits are not those of the whole text.
            TensorAssert.Close(whole.AsSpan((end - 1) * vocabulary, vocabulary), fixture.LogitsAfter(ids[cache.Length..end], cache), CachedTolerance, $"{model} after {end} tokens");
        }
    }

    [Theory]
    [MemberData(nameof(GradientModels))]
    public void LossAndGradients_AreThoseOfTransformers(string model, string configFile)
    {
        using ModelFixture fixture = Load(model, configFile, trainable: true);
        foreach (bool recompute in new[] { false, true })
        {
            FixtureTensors expected = fixture.Expected("expected.safetensors");
            FixtureTensors gradients = fixture.Expected("expected_weight_gradients.safetensors");
            var batch = HostBatch.FromRows(expected.Integers("input_ids"), expected.Integers("labels"), (int)expected.Shape("input_ids")[1]);
            ModelGradients actual = fixture.Gradients(batch, recompute);
            Assert.Equal(expected.Floats("loss")[0], actual.Losses.Sum(value => (double)value) / batch.ScoredCount, LossTolerance);
            TensorAssert.RelativeL2(expected.Floats("d_embeddings_out"), actual.Embeddings, GradientTolerance, $"{model} d_embeddings_out");
            Assert.Equal(gradients.Names.Order(StringComparer.Ordinal), actual.Weights.Keys.Order(StringComparer.Ordinal));
            foreach ((string name, float[] gradient) in actual.Weights)
            {
                TensorAssert.RelativeL2(gradients.Floats(name), gradient, GradientTolerance, $"{model} gradient of {name}, recompute {recompute}");
            }
        }
    }

    [Theory]
    [MemberData(nameof(GradientModels))]
    public void Plan_OfAPassAndOfACachedText_IsExact(string model, string configFile)
    {
        using ModelFixture real = Load(model, configFile, trainable: true), planned = new(model, configFile, new MeasureDevice(threadCount: 2), trainable: true);
        FixtureTensors expected = real.Expected("expected.safetensors");
        var batch = HostBatch.FromRows(expected.Integers("input_ids"), expected.Integers("labels"), (int)expected.Shape("input_ids")[1]);
        foreach (ModelFixture fixture in new[] { real, planned })
        {
            fixture.Gradients(batch, recompute: true);
            fixture.LogitsAfter([1, 2, 3], new KeyValueCache(fixture.Device, fixture.Model, 3));
        }

        SameMemory(real, planned, $"{model}, recomputed");
        foreach (ModelFixture fixture in new[] { real, planned })
        {
            fixture.Gradients(batch, recompute: false);
        }

        SameMemory(real, planned, model);

        static void SameMemory(ModelFixture real, ModelFixture planned, string what)
        {
            foreach (MemoryKind kind in Enum.GetValues<MemoryKind>())
            {
                Assert.True(real.Device.Arena.HighWaterOf(kind) == planned.Device.Arena.HighWaterOf(kind), $"{what}, {kind}: {real.Device.Arena.HighWaterOf(kind)} bytes, planned {planned.Device.Arena.HighWaterOf(kind)}");
            }
        }
    }

    [Theory]
    [MemberData(nameof(GreedyModels))]
    public void GreedyTokens_AreThoseOfTransformers(string model, string configFile)
    {
        using ModelFixture fixture = Load(model, configFile);
        (int[] prompt, int[] expected) = fixture.ExpectedGreedy();
        var cache = new KeyValueCache(fixture.Device, fixture.Model, expected.Length);
        var actual = new List<int>(prompt);
        // Without an attention mask transformers' generate() hides every token that equals the padding id and does not count its position:
        // the text continues as if it were not there.
        int[] next = [.. prompt.Where(token => token != fixture.Model.Config.PadTokenId)];
        while (actual.Count < expected.Length)
        {
            float[] logits = fixture.LogitsAfter(next, cache);
            next = [Array.IndexOf(logits, logits.Max())];
            actual.AddRange(next);
        }

        Assert.Equal(expected, actual);
    }

    private static bool IsSupported(string model) => !Fixtures.FamiliesNotYetSupported.Contains(Fixtures.ModelTypeOf(Path.Combine("models", model)));

    /// <summary>The supported models that have an expectation of this kind, in each spelling of the config that they have.</summary>
    private static TheoryData<string, string> Cases(string expectation, params string[] configFiles)
    {
        var data = new TheoryData<string, string>();
        foreach (string model in Fixtures.Cases("models").Where(IsSupported))
        {
            bool Has(string file) => Fixtures.Root is null || File.Exists(Path.Combine(Fixtures.Root, "models", model, file));
            foreach (string file in configFiles.Where(file => Has(file) && Has(expectation)))
            {
                data.Add(model, file);
            }
        }

        return data;
    }

    private static ModelFixture Load(string model, string configFile, bool trainable = false) =>
        new(model, configFile, new CpuDevice(threadCount: 2, ModelFixture.ArenaBytes), trainable);
}
