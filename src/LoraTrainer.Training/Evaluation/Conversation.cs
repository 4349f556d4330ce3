using System.Runtime.InteropServices;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Evaluation;

/// <summary>What a user said and what came of it.</summary>
/// <param name="Message">Of the user.</param>
/// <param name="Answer">Of the model.</param>
/// <param name="Tokens">Both, and what ended the answer, where turns stand one behind another.</param>
public sealed record ConversationTurn(string Message, string Answer, IReadOnlyList<int> Tokens);

/// <summary>
/// Turns of a user and a model, one text, as the format puts them together. Keys and values of what was said stay as far as the text stays the same, so that a turn mostly costs
/// its own tokens only. Where the text would grow beyond its limit the oldest turns are forgotten.
/// </summary>
public sealed class Conversation
{
    /// <summary>Tokens that pass through the model at once while a prompt is read: bounds the memory of long ones.</summary>
    private const int PieceTokens = 512;

    private readonly TextModel model;
    private readonly ChatFormat format;
    private readonly TextGenerator generator;
    private readonly KeyValueCache cache;
    private readonly List<ConversationTurn> turns = [];

    // Of everything that was said; the cache holds keys and values of its beginning.
    private readonly List<int> text = [];
    private ulong turnsSoFar;

    /// <param name="model">Loaded with room for <see cref="Measure"/>; keys and values stay in it as long as it lives.</param>
    /// <param name="format">How messages become text.</param>
    /// <param name="limitTokens">The longest text.</param>
    public Conversation(TextModel model, ChatFormat format, int limitTokens)
    {
        this.model = model;
        this.format = format;
        generator = new TextGenerator(model.Model, [.. model.StopTokens, .. format.StopTokens(model.Tokenizer)]);
        cache = new KeyValueCache(model.Model.Device, model.Model, limitTokens);
    }

    /// <summary>Tokens of everything that the model still knows.</summary>
    public int TokenCount => text.Count;

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

        // A single token has products of its own, and these a workspace.
        cache.Truncate(limitTokens - 1);
        generator.Feed([0], cache);
    }

    /// <summary>Forgets everything.</summary>
    public void Reset()
    {
        turns.Clear();
        text.Clear();
        Reread();
    }

    /// <summary>What the model computes has changed: it reads what was said again with the next turn.</summary>
    public void Reread() => cache.Clear();

    /// <summary>One turn.</summary>
    /// <param name="message">Of the user.</param>
    /// <param name="system">The system text; empty: none, or the format's own.</param>
    /// <param name="options">Length and sampling; each turn draws from a stream of its own.</param>
    /// <param name="onText">Is told the answer as it comes.</param>
    /// <param name="onForgotten">Is told how many turns had to be forgotten.</param>
    /// <param name="cancellation">Ends the answer where it is.</param>
    /// <returns>The answer, and its tokens.</returns>
    /// <exception cref="TrainingSetupException">The message alone is too long, or the format does not take it.</exception>
    public (string Text, int Tokens) Say(string message, string system, SamplingOptions options, Action<string> onText, Action<int> onForgotten, CancellationToken cancellation = default)
    {
        Tokenizer tokenizer = model.Tokenizer;
        int most = cache.Capacity - options.MaxNewTokens - 1, alone = format.Encode(tokenizer, system, [], message).Length;
        if (alone > most)
        {
            throw new TrainingSetupException($"The message has {alone} tokens; with an answer of up to {options.MaxNewTokens} it does not fit into the {cache.Capacity} of this conversation. Shorten it, or start with a larger --context or a smaller --max-new-tokens.");
        }

        if (alone == 0)
        {
            throw new TrainingSetupException("The message is empty.");
        }

        int forgotten = 0;
        int[] all = format.Encode(tokenizer, system, turns, message);
        while (all.Length > most)
        {
            turns.RemoveAt(0);
            forgotten++;
            all = format.Encode(tokenizer, system, turns, message);
        }

        if (forgotten > 0)
        {
            onForgotten(forgotten);
        }

        // At least one token has to pass through the model.
        int known = Math.Min(cache.Length, Math.Min(all.Length - 1, all.AsSpan().CommonPrefixLength(CollectionsMarshal.AsSpan(text))));
        cache.Truncate(known);
        text.Clear();
        text.AddRange(all);
        while (all.Length - cache.Length > PieceTokens)
        {
            generator.Feed(all.AsSpan(cache.Length, PieceTokens), cache);
        }

        StreamingDecoder decoder = tokenizer.StartDecoding(skipSpecialTokens: true);
        (List<int> answer, int? stop) = generator.Continue(all.AsSpan(cache.Length), cache, options with { Seed = options.Seed + turnsSoFar++ }, token => onText(decoder.Add(token)), cancellation);
        onText(decoder.Finish());
        text.AddRange(answer);
        if ((stop ?? tokenizer.EosId) is { } end)
        {
            text.Add(end);
        }

        string said = tokenizer.Decode(CollectionsMarshal.AsSpan(answer), skipSpecialTokens: true);
        int before = tokenizer.PrefixIds.Count + turns.Sum(turn => turn.Tokens.Count);
        turns.Add(new ConversationTurn(message, said, [.. text.Skip(before)]));
        return (said, answer.Count);
    }
}
