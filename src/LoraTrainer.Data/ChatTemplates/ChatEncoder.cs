using LoraTrainer.Data.ChatTemplates.Jinja;
using LoraTrainer.Data.Tokenizers;

namespace LoraTrainer.Data.ChatTemplates;

/// <summary>
/// Conversations as tokens of which those are scored that the model has to say. What that is, the template says itself ({% generation %}); where it does
/// not, each turn is found by what came from its message, by where the template puts the prompt for an answer, and by how the conversation ends that stops
/// there. May be used from several threads at once.
/// </summary>
/// <param name="template">Of the model.</param>
/// <param name="tokenizer">Of the model.</param>
public sealed class ChatEncoder(ChatTemplate template, Tokenizer tokenizer)
{
    public ChatTemplate Template => template;

    /// <summary>The text and the tokens that the model continues with its answer.</summary>
    /// <exception cref="ChatTemplateException">The template refuses the messages, or fails on them.</exception>
    public (string Text, int[] Tokens) EncodePrompt(ChatMessages messages, ChatTemplateOptions options)
    {
        (RenderedChat chat, _, _) = Render(messages, WithTokens(options) with { AddGenerationPrompt = true });
        return (chat.Text, TokenPlaces.Encode(chat.Rendered, tokenizer, takeForeign: false).Ids());
    }

    /// <summary>A conversation for training.</summary>
    /// <exception cref="ChatTemplateException">The template refuses the messages, or fails on them.</exception>
    /// <exception cref="TokenizerFormatException">Special tokens of the template and of messages cannot be told apart.</exception>
    public EncodedChat Encode(ChatMessages messages, ChatEncodingOptions options)
    {
        ChatTemplateOptions forTemplate = WithTokens(options.Template) with { AddGenerationPrompt = false };
        (RenderedChat chat, ChatMessages shaped, List<int> missing) = Render(messages, forTemplate);
        TokenPlaces places = TokenPlaces.Encode(chat.Rendered, tokenizer, options.TakeSpecialTokensInMessages);
        List<Turn> found = new Turns(template, tokenizer, forTemplate, options, shaped, chat, places).Find();
        HashSet<int> trained = [.. found.Select(turn => turn.Message).Where(message => messages.IsTrained(message) ?? options.RolesToTrain.Contains(messages.Role(message)))];
        if (options.LastTurnOnly && trained.Count > 0)
        {
            trained = [trained.Max()];
        }

        bool[] supervised = new bool[places.Count];
        var encoded = new List<EncodedTurn>(found.Count);
        for (int i = 0; i < found.Count; i++)
        {
            Turn turn = found[i];
            bool isTrained = trained.Contains(turn.Message);
            (int first, int end) = places.Within(turn.Start, turn.End);
            int[] closing = places.MarkersWithin(turn.ContentEnd, turn.End);
            int? endOfTurn = closing.Length > 0 ? closing[0] : null;
            bool withEnd = options.TrainOnEndOfTurn switch
            {
                EndOfTurnTraining.All => true,
                EndOfTurnTraining.Turn => isTrained,
                EndOfTurnTraining.Last => i == found.Count - 1,
                _ => false,
            };
            if (isTrained)
            {
                supervised.AsSpan(first..(withEnd ? end : endOfTurn ?? end)).Fill(true);
            }

            if (withEnd && endOfTurn is { } from)
            {
                supervised.AsSpan(from..(closing[^1] + 1)).Fill(true);
            }

            encoded.Add(new EncodedTurn(turn.Message, first, end, endOfTurn, isTrained));
        }

        if (options.TrainOnInputs)
        {
            supervised.AsSpan().Fill(true);
        }

        supervised.AsSpan(0, Math.Min(1, supervised.Length)).Clear();
        return new EncodedChat(chat.Text, places.Ids(), supervised, encoded, missing);
    }

    private ChatTemplateOptions WithTokens(ChatTemplateOptions options) => options.SpecialTokens.Count > 0 ? options : options with { SpecialTokens = ChatTemplateOptions.SpecialTokensOf(tokenizer) };

    /// <summary>
    /// Contents as texts, and where the template refuses those or shows nothing of a message, as lists of parts: most templates know only the first, a few only
    /// the second, and some drop silently what they do not know.
    /// </summary>
    private (RenderedChat Chat, ChatMessages Messages, List<int> Missing) Render(ChatMessages messages, ChatTemplateOptions options)
    {
        ChatMessages texts = messages.WithContentAs(parts: false);
        RenderedChat? chat = null;
        ChatTemplateException? refusal = null;
        try
        {
            chat = template.Render(texts, options);
        }
        catch (ChatTemplateException exception)
        {
            refusal = exception;
        }

        List<int> missing = chat is null ? [] : Missing(texts, chat.Rendered);
        if (chat is not null && missing.Count == 0)
        {
            return (chat, texts, missing);
        }

        ChatMessages parts = messages.WithContentAs(parts: true);
        try
        {
            RenderedChat other = template.Render(parts, options);
            List<int> otherMissing = Missing(parts, other.Rendered);
            if (chat is null ? otherMissing.Count == 0 : otherMissing.Count < missing.Count)
            {
                return (other, parts, otherMissing);
            }
        }
        catch (ChatTemplateException) when (chat is not null || refusal is not null)
        {
            // The first refusal says what is wrong with the messages as they are.
        }

        return chat is not null ? (chat, texts, missing) : throw refusal!;
    }

    /// <summary>Messages that say something, and no character of the text is theirs.</summary>
    private static List<int> Missing(ChatMessages messages, Text text)
    {
        var shown = new HashSet<int>();
        foreach (ForeignRange range in text.Foreign)
        {
            shown.Add(range.Source);
        }

        return [.. Enumerable.Range(0, messages.Count).Where(i => !shown.Contains(i) && messages.TextOf(i).Length > 0)];
    }
}
