using System.Buffers;
using System.Collections.Immutable;
using System.Numerics;
using System.Text.Json;
using LoraTrainer.Data.ChatTemplates.Jinja;
using LoraTrainer.Storage;

namespace LoraTrainer.Data.ChatTemplates;

/// <summary>
/// The messages of a conversation, as a chat template gets them: dictionaries with "role", mostly "content" (a text, or a list of parts), and whatever else
/// they have (tool_calls, name, ...). Immutable.
/// </summary>
public sealed class ChatMessages
{
    /// <summary>Characters of a role that templates may put between the halves of a marker.</summary>
    private static readonly SearchValues<char> RoleCharacters = SearchValues.Create("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");

    /// <summary>The fields that hold what a model thought before it spoke, in the order in which they count.</summary>
    private static readonly string[] ReasoningFields = ["reasoning_content", "thinking", "reasoning"];

    private readonly ImmutableArray<DictValue> items;

    private ChatMessages(ImmutableArray<DictValue> items) => this.items = items;

    public static ChatMessages None { get; } = new([]);

    public int Count => items.Length;

    /// <summary>Messages with a role and a text each.</summary>
    public static ChatMessages Of(params ReadOnlySpan<(string Role, string Content)> messages)
    {
        ChatMessages made = None;
        foreach ((string role, string content) in messages)
        {
            made = made.With(role, content);
        }

        return made;
    }

    /// <summary>From the JSON of a conversation.</summary>
    /// <param name="messages">A list of objects; each has a "role" that is a text. A part of a content that has its text in "value" gets it in "text" too.</param>
    /// <param name="where">Where it stands, for errors: a file and line, or a data set's row.</param>
    /// <exception cref="ChatTemplateException">It is something else; the message names the place.</exception>
    public static ChatMessages FromJson(JsonElement messages, string where)
    {
        if (messages.ValueKind != JsonValueKind.Array)
        {
            throw new ChatTemplateException(where, $"the messages are {JsonProblem.Kind(messages.ValueKind)}; expected a list of objects with \"role\" and \"content\"");
        }

        var items = ImmutableArray.CreateBuilder<DictValue>(messages.GetArrayLength());
        foreach (JsonElement message in messages.EnumerateArray())
        {
            string place = $"{where}, message {items.Count + 1}";
            if (message.ValueKind != JsonValueKind.Object || !message.TryGetProperty("role", out JsonElement role) || role.ValueKind != JsonValueKind.String)
            {
                throw new ChatTemplateException(place, message.ValueKind == JsonValueKind.Object ? "it has no \"role\" that is a text" : $"it is {JsonProblem.Kind(message.ValueKind)}; expected an object");
            }

            items.Add(Prepared((DictValue)TemplateJson.Value(message, items.Count, place)!, items.Count));
        }

        return new ChatMessages(items.MoveToImmutable());
    }

    /// <summary>The same, and one more message behind them.</summary>
    public ChatMessages With(string role, string content)
        => new(items.Add(Prepared(new DictValue([(Text.Own("role"), Text.From(role, Count)), (Text.Own("content"), Text.From(content, Count))]), Count)));

    /// <summary>The first <paramref name="count"/> of them.</summary>
    public ChatMessages First(int count) => new(items[..count]);

    public string Role(int index) => items[index].TryGet("role", out object? role) ? ((Text)role!).Value : "";

    /// <summary>What the message itself says of whether it is to be learned: "train" or "training" (true, false), or "weight" (0: no). Null where it says nothing.</summary>
    public bool? IsTrained(int index)
    {
        foreach (string field in (ReadOnlySpan<string>)["train", "training", "weight"])
        {
            if (items[index].TryGet(field, out object? value) && value is bool or BigInteger or double)
            {
                return Operators.IsTrue(value);
            }
        }

        return null;
    }

    /// <summary>What the message says, without its white space at both ends: its content as a text, or the texts of its parts. Empty where it has none.</summary>
    public string TextOf(int index) => !items[index].TryGet("content", out object? content) ? "" : content switch
    {
        Text text => text.Value.Trim(),
        ListValue parts => string.Concat(parts.Items.Select(part => part is DictValue dict && dict.TryGet("text", out object? text) ? (text as Text)?.Value : "")).Trim(),
        _ => "",
    };

    /// <summary>Contents that are lists of texts become one text, which nearly all templates expect; the few others get lists of one text.</summary>
    internal ChatMessages WithContentAs(bool parts)
    {
        var shaped = items.ToBuilder();
        for (int i = 0; i < shaped.Count; i++)
        {
            if (!shaped[i].TryGet("content", out object? content))
            {
                continue;
            }

            if (!parts && content is ListValue { Items.Count: > 0 } list && list.Items.All(IsTextPart))
            {
                var builder = new TextBuilder(new RenderBudget(RenderLimits.Default));
                foreach (object? part in list.Items)
                {
                    ((DictValue)part!).TryGet("text", out object? text);
                    builder.Append((Text)text!);
                }

                shaped[i] = shaped[i].With("content", builder.ToText());
            }
            else if (parts && content is Text whole)
            {
                shaped[i] = shaped[i].With("content", new ListValue([new DictValue([(Text.Own("type"), Text.Own("text")), (Text.Own("text"), whole)])]));
            }
        }

        return new ChatMessages(shaped.ToImmutable());
    }

    internal ListValue ToValue() => new([.. items]);

    private static bool IsTextPart(object? part)
        => part is DictValue dict && dict.TryGet("text", out object? text) && text is Text && (!dict.TryGet("type", out object? type) || type is Text { Value: "text" });

    private static DictValue Prepared(DictValue message, int index)
    {
        // Templates build markers around a role; one that is a plain word cannot be half of another marker.
        if (message.TryGet("role", out object? role) && role is Text { Length: > 0 and <= 64 } word && !word.Value.AsSpan().ContainsAnyExcept(RoleCharacters))
        {
            message = message.With("role", Text.Own(word.Value));
        }

        foreach (string field in ReasoningFields)
        {
            if (message.TryGet(field, out object? reasoning) && reasoning is not null)
            {
                message = message.With("thinking", reasoning).With("reasoning_content", reasoning);
                break;
            }
        }

        if (message.TryGet("content", out object? content) && content is ListValue parts && parts.Items.Any(IsValuePart))
        {
            message = message.With("content", new ListValue([.. parts.Items.Select(part => IsValuePart(part) && ((DictValue)part!).TryGet("value", out object? value)
                ? ((DictValue)part).With("text", value).With("type", Text.From("text", index)) : part)]));
        }

        return message;

        static bool IsValuePart(object? part) => part is DictValue dict && !dict.TryGet("text", out _) && dict.TryGet("value", out object? value) && value is Text;
    }
}
