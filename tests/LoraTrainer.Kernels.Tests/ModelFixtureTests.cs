using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>Every model of the reference fixtures on the CUDA device, within the bf16 budget of what transformers computes in f32.</summary>
[Trait("Category", "Emulator")]
[Trait("Category", "Fixtures")]
[Collection(CudaStandin.Collection)]
public sealed class ModelFixtureTests(ITestOutputHelper output)
{
    private const string ConfigFile = "config.json";

    /// <summary>Where the best and the second best token are nearer than this, rounding may decide between them.</summary>
    private const float GreedyGap = 0.2f;

    public static TheoryData<string, string> F32Models => Cases("expected.safetensors", model => !model.EndsWith("_bf16", StringComparison.Ordinal));

    public static TheoryData<string, string> Bf16Models => Cases("expected.safetensors", model => model.EndsWith("_bf16", StringComparison.Ordinal));

    public static TheoryData<string, string> PackedModels => Cases("expected_packed.safetensors", _ => true);

    public static TheoryData<string, string> GradientModels => Cases("expected_weight_gradients.safetensors", _ => true);

    public static TheoryData<string, string> GreedyModels => Cases("expected_greedy.json", _ => true);

    [Fact]
    public void Discovery_EveryModelFolder_IsRunOrNamed()
    {
        Fixtures.Require("models");
        IReadOnlyList<string> all = Fixtures.Cases("models");
        string[] run = [.. F32Models.Concat(Bf16Models).Select(row => row.Data.Item1).Distinct()];
        output.WriteLine($"models run on the CUDA device: {string.Join(", ", run)}");
        output.WriteLine($"models of families that are not supported yet: {string.Join(", ", all.Except(run))}");
        Assert.NotEmpty(run);
        Assert.All(all.Except(run), model => Assert.False(IsSupported(model)));
    }

    [Theory]
    [MemberData(nameof(F32Models))]
    public void Logits_AreWithinTheBudget(string model, string mode)
    {
        using ModelFixture rounded = Rounded(model), cuda = Cuda(model, mode);
        FixtureTensors expected = cuda.Expected("expected.safetensors");
        int[] ids = expected.Integers("input_ids");
        int rowLength = (int)expected.Shape("input_ids")[1];
        HostBatch rows = HostBatch.FromRows(ids, null, rowLength);
        Bf16Budget.Within(expected.Floats("logits"), rounded.Logits(rows), cuda.Logits(rows), Bf16Budget.Forward, $"{model} logits");

        var alone = new HostBatch();
        alone.Add(ids.AsSpan(rowLength, (int)expected.Shape("padded_logits_row1")[0]), default);
        Bf16Budget.Within(expected.Floats("padded_logits_row1"), rounded.Logits(alone), cuda.Logits(alone), Bf16Budget.Forward, $"{model} logits of a right-padded row");
    }

    /// <summary>The same weights in transformers with everything in bf16 are the yardstick here.</summary>
    [Theory]
    [MemberData(nameof(Bf16Models))]
    public void Bf16Logits_AreAsGoodAsThoseOfTransformers(string model, string mode)
    {
        using ModelFixture cuda = Cuda(model, mode);
        FixtureTensors expected = cuda.Expected("expected.safetensors");
        float[] exact = expected.Floats("logits_weights_bf16_math_f32"), reference = expected.Floats("logits_all_bf16");
        float[] actual = cuda.Logits(HostBatch.FromRows(expected.Integers("input_ids"), null, (int)expected.Shape("input_ids")[1]));
        double allowed = 1.1 * MeanError(exact, reference), error = MeanError(exact, actual);
        Assert.True(error <= allowed, $"{model}: mean error {error:G4}, allowed {allowed:G4}, 1.1 times that of transformers in bf16");
    }

    [Theory]
    [MemberData(nameof(PackedModels))]
    public void PackedLogits_AreWithinTheBudget(string model, string mode)
    {
        using ModelFixture rounded = Rounded(model), cuda = Cuda(model, mode);
        FixtureTensors expected = cuda.Expected("expected_packed.safetensors");
        HostBatch batch = HostBatch.FromDocuments(expected.Integers("input_ids"), expected.Integers("lengths"));
        Bf16Budget.Within(expected.Floats("logits"), rounded.Logits(batch), cuda.Logits(batch), Bf16Budget.Forward, $"{model} packed logits");
    }

    [Theory]
    [MemberData(nameof(GradientModels))]
    public void LossesAndGradients_AreWithinTheBudget(string model, string mode)
    {
        using ModelFixture exact = Exact(model), rounded = Rounded(model, trainable: true), cuda = Cuda(model, mode, trainable: true);
        FixtureTensors expected = cuda.Expected("expected.safetensors");
        FixtureTensors gradients = cuda.Expected("expected_weight_gradients.safetensors");
        HostBatch batch = HostBatch.FromRows(expected.Integers("input_ids"), expected.Integers("labels"), (int)expected.Shape("input_ids")[1]);
        float[] exactLosses = exact.Gradients(batch, recompute: false).Losses;
        ModelGradients yardstick = rounded.Gradients(batch, recompute: false);
        foreach (bool recompute in new[] { false, true })
        {
            ModelGradients actual = cuda.Gradients(batch, recompute);
            Bf16Budget.Within(exactLosses, yardstick.Losses, actual.Losses, Bf16Budget.Forward, $"{model} losses");
            Bf16Budget.Within(expected.Floats("d_embeddings_out"), yardstick.Embeddings, actual.Embeddings, Bf16Budget.Backward, $"{model} d_embeddings_out");
            Assert.Equal(gradients.Names.Order(StringComparer.Ordinal), actual.Weights.Keys.Order(StringComparer.Ordinal));
            foreach ((string name, float[] gradient) in actual.Weights)
            {
                Bf16Budget.Within(gradients.Floats(name), yardstick.Weights[name], gradient, Bf16Budget.Backward, $"{model} gradient of {name}, recompute {recompute}");
            }
        }
    }

    /// <summary>The expected text is given token by token; each next token must be the expected one, unless rounding may decide.</summary>
    [Theory]
    [MemberData(nameof(GreedyModels))]
    public void GreedyTokens_AreThoseOfTransformers(string model, string mode)
    {
        using ModelFixture exact = new(model, ConfigFile, new CpuDevice(2, ModelFixture.ArenaBytes)), cuda = Cuda(model, mode);
        (int[] prompt, int[] text) = cuda.ExpectedGreedy();
        KeyValueCache exactCache = new(exact.Device, exact.Model, text.Length), cudaCache = new(cuda.Device, cuda.Model, text.Length);
        int compared = 0;

        // transformers' generate() hides tokens that equal the padding id in a prompt without a mask.
        int[] next = [.. prompt.Where(token => token != cuda.Model.Config.PadTokenId)];
        for (int position = prompt.Length; position < text.Length; position++)
        {
            float[] wanted = exact.LogitsAfter(next, exactCache), actual = cuda.LogitsAfter(next, cudaCache);
            float[] best = [.. wanted.OrderDescending().Take(2)];
            if (best[0] - best[1] > GreedyGap)
            {
                Assert.Equal(text[position], Array.IndexOf(actual, actual.Max()));
                compared++;
            }

            next = [text[position]];
        }

        output.WriteLine($"{model}: {compared} of {text.Length - prompt.Length} tokens are far enough from the second best");
        Assert.True(compared > 0, "no token was compared");
    }

    private static double MeanError(float[] exact, float[] actual)
    {
        Assert.Equal(exact.Length, actual.Length);
        return exact.Zip(actual, (a, b) => Math.Abs((double)a - b)).Average();
    }

    private static ModelFixture Exact(string model) => new(model, ConfigFile, new CpuDevice(2, ModelFixture.ArenaBytes), trainable: true);

    private static ModelFixture Rounded(string model, bool trainable = false) => new(model, ConfigFile, new CpuDevice(2, ModelFixture.ArenaBytes, roundsToBF16: true), trainable);

    private static ModelFixture Cuda(string model, string mode, bool trainable = false) => new(model, ConfigFile, CudaTestDevice.Open(mode, ModelFixture.ArenaBytes), trainable);

    private static bool IsSupported(string model) => ModelFixture.IsSupported(Path.Combine("models", model));

    private static TheoryData<string, string> Cases(string expectation, Func<string, bool> wanted)
    {
        var data = new TheoryData<string, string>();
        string? root = Fixtures.Root;
        foreach (string model in Fixtures.Cases("models").Where(model => wanted(model) && IsSupported(model)))
        {
            if (root is null || File.Exists(Path.Combine(root, "models", model, expectation)))
            {
                foreach (string mode in CudaTestDevice.ModesOf(model))
                {
                    data.Add(model, mode);
                }
            }
        }

        return data;
    }
}
