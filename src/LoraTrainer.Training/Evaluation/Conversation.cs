using System.Runtime.InteropServices;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Evaluation;

/// <summary>
/// Turns of a user and a model, one text: prompt, answer, EOS, prompt, answer, EOS. Keys and values of what was said stay, so that a turn costs its own tokens only. Where the
/// text would grow beyond its limit the oldest turns are forgotten.
/// </summary>
public sealed class Conversation
{
    /// <summary>Tokens that pass through the model at once while a prompt is read: bounds the memory of long ones.</summary>
    private const int PieceTokens = 512;

    private readonly TextModel model;
    private readonly TextGenerator generator;
    private readonly KeyValueCache cache;

    // Prompt, answer and EOS of each turn that the model still knows; the text is all of them behind the tokenizer's prefix.
    private readonly List<List<int>> turns = [];
    private ulong turnsSoFar;

    /// <param name="model">Loaded with room for <see cref="Measure"/>; keys and values stay in it as long as it lives.</param>
    /// <param name="limitTokens">The longest text.</param>
    public Conversation(TextModel model, int limitTokens)
    {
        this.model = model;
        generator = new TextGenerator(model.Model, model.StopTokens);
        cache = new KeyValueCache(model.Model.Device, model.Model, limitTokens);
    }

    /// <summary>Tokens of everything that the model still knows.</summary>
    public int TokenCount => model.Tokenizer.PrefixIds.Count + turns.Sum(turn => turn.Count);

    public int LimitTokens => cache.Capacity;

    /// <summary>Takes the memory that a conversation takes at most and computes nothing: part of a plan.</summary>
    public static void Measure(CausalLanguageModel model, int limitTokens)
    {
        using ArenaFrame frame = model.Device.Arena.Frame();
        var cache = new KeyValueCache(model.Device, model, limitTokens);
        var generator = new TextGenerator(model, []);
        for (int fed = 0; fed < limitTokens; fed += PieceTokens)
        {
            generator.Feed(new int[Math.Min(PieceTokens, limitTokens - fed)], cache);
        }
    }

    /// <summary>Forgets everything.</summary>
    public void Reset()
    {
        turns.Clear();
        Reread();
    }

    /// <summary>What the model computes has changed: it reads what was said again with the next turn.</summary>
    public void Reread() => cache.Clear();

    /// <summary>One turn.</summary>
    /// <param name="prompt">The text that is put behind what was said.</param>
    /// <param name="options">Length and sampling; each turn draws from a stream of its own.</param>
    /// <param name="onText">Is told the answer as it comes.</param>
    /// <param name="onForgotten">Is told how many turns had to be forgotten.</param>
    /// <param name="cancellation">Ends the answer where it is.</param>
    /// <returns>The answer, and its tokens.</returns>
    /// <exception cref="TrainingSetupException">The prompt alone is too long.</exception>
    public (string Text, int Tokens) Say(string prompt, SamplingOptions options, Action<string> onText, Action<int> onForgotten, CancellationToken cancellation = default)
    {
        Tokenizer tokenizer = model.Tokenizer;
        int[] turn = tokenizer.Encode(prompt, addSpecialTokens: false);
        int needed = tokenizer.PrefixIds.Count + turn.Length + options.MaxNewTokens + 1;
        if (needed > cache.Capacity)
        {
            throw new TrainingSetupException($"The message has {turn.Length} tokens; with an answer of up to {options.MaxNewTokens} it does not fit into the {cache.Capacity} of this conversation. Shorten it, or start with a larger --context or a smaller --max-new-tokens.");
        }

        if (tokenizer.PrefixIds.Count + turn.Length == 0)
        {
            throw new TrainingSetupException("The message is empty.");
        }

        int forgotten = 0;
        while (turns.Count > 0 && TokenCount + turn.Length + options.MaxNewTokens + 1 > cache.Capacity)
        {
            turns.RemoveAt(0);
            forgotten++;
        }

        if (forgotten > 0)
        {
            Reread();
            onForgotten(forgotten);
        }

        turns.Add([.. turn]);
        int[] all = [.. tokenizer.PrefixIds, .. turns.SelectMany(tokens => tokens)];
        while (all.Length - cache.Length > PieceTokens)
        {
            generator.Feed(all.AsSpan(cache.Length, PieceTokens), cache);
        }

        StreamingDecoder decoder = tokenizer.StartDecoding(skipSpecialTokens: true);
        (List<int> answer, int? stop) = generator.Continue(all.AsSpan(cache.Length), cache, options with { Seed = options.Seed + turnsSoFar++ }, token => onText(decoder.Add(token)), cancellation);
        onText(decoder.Finish());
        turns[^1].AddRange(answer);
        if ((stop ?? tokenizer.EosId) is { } end)
        {
            turns[^1].Add(end);
        }

        return (tokenizer.Decode(CollectionsMarshal.AsSpan(answer), skipSpecialTokens: true), answer.Count);
    }
}
