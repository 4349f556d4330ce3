using LoraTrainer.Data.ChatTemplates.Jinja;
using LoraTrainer.Data.Tokenizers;

namespace LoraTrainer.Data.ChatTemplates;

/// <summary>A turn in the text of a conversation, in UTF-16 positions.</summary>
/// <param name="Message">Which message it is.</param>
/// <param name="Start">Where its speaker begins.</param>
/// <param name="ContentEnd">Behind the last character that came from the message.</param>
/// <param name="End">Behind what ends the turn.</param>
internal readonly record struct Turn(int Message, int Start, int ContentEnd, int End);

/// <summary>Finds the turns in a rendered conversation.</summary>
internal sealed class Turns(
    ChatTemplate template, Tokenizer tokenizer, ChatTemplateOptions forTemplate, ChatEncodingOptions options, ChatMessages messages, RenderedChat chat, TokenPlaces places)
{
    private readonly Text text = chat.Rendered;

    /// <summary>In the order of the text.</summary>
    public List<Turn> Find()
    {
        List<List<ForeignRange>> contents = Contents(text);
        List<Turn> found = template.MarksAnswers ? Marked(contents) : [];
        HashSet<int> marked = [.. found.Select(turn => turn.Message)];
        foreach (List<ForeignRange> content in contents)
        {
            // A template that marks answers has said all there is to say of them.
            int message = content[0].Source;
            if (Wants(message) && !marked.Contains(message) && !(template.MarksAnswers && messages.Role(message) == "assistant"))
            {
                found.Add(Locate(message, content, contents));
            }
        }

        return [.. found.OrderBy(turn => turn.Start)];
    }

    /// <summary>Whether anything of a message's turn may be scored; the others need not be looked for.</summary>
    private bool Wants(int message)
        => options.TrainOnEndOfTurn == EndOfTurnTraining.All || (messages.IsTrained(message) ?? options.RolesToTrain.Contains(messages.Role(message)))
            || (options.TrainOnEndOfTurn == EndOfTurnTraining.Last && message == messages.Count - 1);

    /// <summary>The spans that the template marks; whose they are is told by the characters in them, or by the message that comes next.</summary>
    private List<Turn> Marked(List<List<ForeignRange>> contents)
    {
        var found = new List<Turn>();
        foreach ((int from, int to) in chat.AnswerSpans)
        {
            int start = text.UnitOf(Math.Min(from, text.CodePoints)), end = text.UnitOf(Math.Min(to, text.CodePoints));
            int message = -1, contentEnd = start;
            foreach (ForeignRange range in text.Foreign)
            {
                if (range.Start < end && range.End > start && range.Source >= 0)
                {
                    message = message < 0 ? range.Source : message;
                    contentEnd = Math.Min(end, range.End);
                }
            }

            // A block around the end of a turn alone (an EOS token behind the last message) belongs to the turn that it follows.
            if (message < 0 && found.Count > 0 && found[^1].End == start)
            {
                found[^1] = found[^1] with { End = end };
                continue;
            }

            if (message < 0)
            {
                // An answer without a character of its own: that of the message behind those that came before.
                int before = contents.Where(content => content[0].Start < start).Select(content => content[0].Source).DefaultIfEmpty(-1).Max();
                message = before + 1 < messages.Count && messages.Role(before + 1) == "assistant" ? before + 1 : before;
            }

            if (message >= 0 && end > start)
            {
                found.Add(new Turn(message, start, contentEnd, end));
            }
        }

        return found;
    }

    /// <summary>The characters of each message in a text, in the order of the text, up to another message's. What is repeated behind that does not count.</summary>
    private static List<List<ForeignRange>> Contents(Text text)
    {
        var found = new List<List<ForeignRange>>();
        var seen = new HashSet<int>();
        foreach (ForeignRange range in text.Foreign)
        {
            if (range.Source >= 0 && found.Count > 0 && found[^1][0].Source == range.Source)
            {
                found[^1].Add(range);
            }
            else if (range.Source >= 0 && seen.Add(range.Source))
            {
                found.Add([range]);
            }
        }

        return found;
    }

    /// <summary>The turn of a message that the template does not mark.</summary>
    private Turn Locate(int message, List<ForeignRange> content, List<List<ForeignRange>> contents)
    {
        int contentEnd = content[^1].End;
        string closing = text.Value[contentEnd..];
        if (message < messages.Count - 1)
        {
            // The conversation that stops with the message shows what belongs to it and what ends it.
            (int ranges, closing) = Alone(message);
            contentEnd = content[Math.Clamp(ranges, 1, content.Count) - 1].End;
        }

        return new Turn(message, StartOf(message, content[0].Start, contentEnd, contents), contentEnd, EndOf(message, contentEnd, closing));
    }

    /// <summary>
    /// Behind the header: where the prompt for an answer ends that the template puts behind the messages before this one. Where the text does not begin with
    /// that (templates that show earlier messages differently once more follow), the message's own first character.
    /// </summary>
    private int StartOf(int message, int contentStart, int contentEnd, List<List<ForeignRange>> contents)
    {
        if (messages.Role(message) != "assistant" || message == 0 || !template.TakesGenerationPrompt)
        {
            return contentStart;
        }

        try
        {
            string prompt = template.Render(messages.First(message), forTemplate with { AddGenerationPrompt = true }).Text;
            int before = contents.Where(content => content[0].Start < contentStart).Select(content => content[^1].End).Where(end => end <= contentStart).DefaultIfEmpty(0).Max();
            return prompt.Length >= before && prompt.Length <= contentEnd && text.Value.StartsWith(prompt, StringComparison.Ordinal) ? prompt.Length : contentStart;
        }
        catch (ChatTemplateException)
        {
            return contentStart;
        }
    }

    /// <summary>
    /// Behind the last marker that ends the turn: one that stands behind the message here, and also where the conversation stops with it. A template may
    /// end a conversation with more than that, or with another token.
    /// </summary>
    /// <param name="message">Whose turn it is.</param>
    /// <param name="contentEnd">Behind its last character.</param>
    /// <param name="closing">What stands behind the message in the conversation that stops with it.</param>
    private int EndOf(int message, int contentEnd, string closing)
    {
        int limit = text.Length;
        foreach (ForeignRange range in text.Foreign)
        {
            if (range.Start >= contentEnd && range.Source != message && range.Source >= 0)
            {
                limit = range.Start;
                break;
            }
        }

        int common = text.Value.AsSpan(contentEnd..limit).CommonPrefixLength(closing);
        if (places.MarkersWithin(contentEnd, contentEnd + common) is { Length: > 0 } markers)
        {
            return places[markers[^1]].End;
        }

        // With no marker in common, another one in the same place: "end of a message" here, "end of the answer" there.
        int other = Array.Find(places.MarkersWithin(contentEnd, limit), marker => places[marker].IsSpecial && places[marker].Start == contentEnd);
        bool isEnd = other > 0 && TokenPlaces.Encode(Text.Own(closing), tokenizer, takeForeign: true) is { Count: > 0 } there && there[0].IsSpecial;
        return isEnd ? places[other].End : contentEnd;
    }

    /// <summary>How many stretches of characters a message has, and what stands behind them, in the conversation that stops with it; nothing where the template refuses that.</summary>
    private (int Ranges, string Closing) Alone(int message)
    {
        try
        {
            Text alone = template.Render(messages.First(message + 1), forTemplate).Rendered;
            return Contents(alone).Find(content => content[0].Source == message) is { } content ? (content.Count, alone.Value[content[^1].End..]) : (0, "");
        }
        catch (ChatTemplateException)
        {
            return (0, "");
        }
    }
}
