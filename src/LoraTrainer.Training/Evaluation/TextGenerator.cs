using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Layers;

namespace LoraTrainer.Training.Evaluation;

/// <summary>How tokens are chosen.</summary>
public sealed record SamplingOptions
{
    /// <summary>The most tokens that are generated.</summary>
    public int MaxNewTokens { get; init; } = 128;

    /// <summary>0: always the most likely token; above: divides the logits before sampling.</summary>
    public double Temperature { get; init; }

    /// <summary>Sample from the so many most likely tokens only; 0: from all.</summary>
    public int TopK { get; init; }

    /// <summary>Sample from the most likely tokens that together have this probability; 1: from all.</summary>
    public double TopP { get; init; } = 1;

    /// <summary>The same seed gives the same text.</summary>
    public ulong Seed { get; init; } = 42;
}

/// <summary>Continues texts with a model, one token at a time over a cache of keys and values.</summary>
public sealed class TextGenerator
{
    private readonly CausalLanguageModel model;
    private readonly HashSet<int> stopTokens;
    private readonly float[] logits;

    /// <param name="model">With or without adapters.</param>
    /// <param name="stopTokens">Tokens that end a text.</param>
    public TextGenerator(CausalLanguageModel model, IEnumerable<int> stopTokens)
    {
        this.model = model;
        this.stopTokens = [.. stopTokens];
        logits = new float[model.Config.VocabSize];
    }

    /// <summary>Takes the memory that <see cref="Generate"/> will take at most and computes nothing: part of a plan.</summary>
    /// <param name="model">On a device that only measures.</param>
    /// <param name="promptTokens">The longest prompt.</param>
    /// <param name="maxNewTokens">The longest continuation.</param>
    public static void Measure(CausalLanguageModel model, int promptTokens, int maxNewTokens)
    {
        using ArenaFrame frame = model.Device.Arena.Frame();
        var cache = new KeyValueCache(model.Device, model, promptTokens + maxNewTokens);
        var generator = new TextGenerator(model, []);
        generator.Advance(new int[promptTokens], cache);
        if (maxNewTokens > 1)
        {
            // A single token has products of its own, and these a workspace.
            generator.Advance([0], cache);
        }
    }

    /// <summary>Does the work of one more token and computes nothing: part of a plan.</summary>
    /// <param name="model">On a device that only measures.</param>
    /// <param name="textTokens">Tokens before it.</param>
    internal static void MeasureToken(CausalLanguageModel model, int textTokens)
    {
        using ArenaFrame frame = model.Device.Arena.Frame();
        var cache = new KeyValueCache(model.Device, model, textTokens + 1);
        var generator = new TextGenerator(model, []);
        generator.Advance(new int[textTokens], cache);
        ((MeasureDevice)model.Device).ResetWork();
        generator.Advance([0], cache);
    }

    /// <summary>The tokens that follow <paramref name="prompt"/>, without the token that ends the text.</summary>
    /// <param name="prompt">At least one token.</param>
    /// <param name="options">Length and sampling.</param>
    /// <param name="onToken">Is told each token as it comes.</param>
    /// <param name="cancellation">Stops between tokens.</param>
    public List<int> Generate(ReadOnlySpan<int> prompt, SamplingOptions options, Action<int>? onToken = null, CancellationToken cancellation = default)
    {
        using ArenaFrame frame = model.Device.Arena.Frame();
        return Continue(prompt, new KeyValueCache(model.Device, model, prompt.Length + options.MaxNewTokens), options, onToken, cancellation).Tokens;
    }

    /// <summary>Reads tokens that stand behind what the cache holds.</summary>
    /// <param name="tokens">At least one.</param>
    /// <param name="cache">With room for them.</param>
    public void Feed(ReadOnlySpan<int> tokens, KeyValueCache cache) => Advance(tokens, cache);

    /// <summary>The tokens that follow what the cache holds and <paramref name="input"/>. The last of them is not in the cache afterwards.</summary>
    /// <param name="input">At least one token.</param>
    /// <param name="cache">With room for the input and the answer.</param>
    /// <param name="options">Length and sampling.</param>
    /// <param name="onToken">Is told each token as it comes.</param>
    /// <param name="cancellation">Stops between tokens.</param>
    /// <returns>The tokens, and the one that ended the text; null where something else did.</returns>
    public (List<int> Tokens, int? Stop) Continue(ReadOnlySpan<int> input, KeyValueCache cache, SamplingOptions options, Action<int>? onToken, CancellationToken cancellation)
    {
        var generated = new List<int>();
        var random = new CounterRandom(options.Seed, Loop.RandomStreams.Sampling, 0);
        int[] next = new int[1];
        while (generated.Count < options.MaxNewTokens && !cancellation.IsCancellationRequested)
        {
            Advance(input, cache);
            int token = options.Temperature <= 0 ? MostLikely() : Sample(options, random.Uniform((ulong)generated.Count));
            if (stopTokens.Contains(token))
            {
                return (generated, token);
            }

            generated.Add(token);
            onToken?.Invoke(token);
            next[0] = token;
            input = next;
        }

        return (generated, null);
    }

    /// <summary>Feeds the tokens to the model; leaves the logits of what follows in <see cref="logits"/>.</summary>
    private void Advance(ReadOnlySpan<int> tokens, KeyValueCache cache)
    {
        Arena arena = model.Device.Arena;
        using ArenaFrame frame = arena.Frame();
        int[] positions = new int[tokens.Length];
        for (int i = 0; i < positions.Length; i++)
        {
            positions[i] = cache.Length + i;
        }

        PackedBatch batch = PackedBatch.Upload(model.Device, tokens, positions, new[] { 0, tokens.Length });
        Tensor lastRow = arena.Allocate(MemoryKind.Activations, DType.I32, new Shape(1));
        Span<int> last = [tokens.Length - 1];
        model.Device.Upload(lastRow, MemoryMarshal.AsBytes(last));
        Tensor result = arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(1, model.Config.VocabSize));
        model.Logits(result, batch, lastRow, cache);
        model.Device.Download(result, MemoryMarshal.AsBytes(logits.AsSpan()));
    }

    /// <summary>The lowest token among the most likely ones, as argmax in torch on a CPU.</summary>
    private int MostLikely()
    {
        int best = 0;
        for (int i = 1; i < logits.Length; i++)
        {
            if (logits[i] > logits[best])
            {
                best = i;
            }
        }

        return best;
    }

    /// <summary>Draws a token: temperature, then top-k, then top-p, then the inverse of the cumulated probabilities at <paramref name="uniform"/>.</summary>
    private int Sample(SamplingOptions options, float uniform)
    {
        int[] order = [.. Enumerable.Range(0, logits.Length)];
        float[] descending = Array.ConvertAll(logits, value => -value);
        Array.Sort(descending, order);
        int count = options.TopK > 0 ? Math.Min(options.TopK, order.Length) : order.Length;
        double[] weights = new double[count];
        double total = 0;
        for (int i = 0; i < count; i++)
        {
            weights[i] = DeterministicMath.Exp((descending[0] - descending[i]) / options.Temperature);
            total += weights[i];
        }

        double kept = 0;
        int candidates = 0;
        while (candidates < count && (candidates == 0 || kept < options.TopP * total))
        {
            kept += weights[candidates++];
        }

        double threshold = uniform * kept;
        double cumulated = 0;
        for (int i = 0; i < candidates; i++)
        {
            cumulated += weights[i];
            if (threshold < cumulated)
            {
                return order[i];
            }
        }

        return order[candidates - 1];
    }
}
