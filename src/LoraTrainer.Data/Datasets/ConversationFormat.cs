using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Data.Datasets;

/// <summary>
/// Messages, as OpenAI's (messages: role, content) or ShareGPT's (conversations: from, value) rows have them; axolotl's <c>type: chat_template</c>. Either is
/// turned into the first: human and gpt become user and assistant, a function_call becomes a call of the assistant, what a function gave a message of the
/// tool. A message's own word on whether it is learned (train, training, weight, loss_weight) stays with it.
/// </summary>
public sealed record ConversationFormat : DatasetFormat
{
    private static readonly string[] MessagesFields = ["messages", "conversations", "conversation"], RoleFields = ["role", "from"], ContentFields = ["content", "value"], WeightFields = ["weight", "loss_weight"], TrainFields = ["train", "training"];

    /// <summary>Messages of a row of which is told what is wrong with them.</summary>
    private const int MostFaults = 3;

    private static readonly Dictionary<string, string> KnownRoles = new(StringComparer.Ordinal)
    {
        ["human"] = "user", ["gpt"] = "assistant", ["model"] = "assistant", ["chatgpt"] = "assistant", ["bot"] = "assistant", ["observation"] = "tool", ["function_response"] = "tool", ["function"] = "tool", ["ipython"] = "tool",
    };

    /// <summary>The list of messages; null: messages or conversations, whichever is there.</summary>
    public string? FieldMessages { get; init; }

    /// <summary>Who speaks; null: role or from.</summary>
    public string? FieldRole { get; init; }

    /// <summary>What is said; null: content or value.</summary>
    public string? FieldContent { get; init; }

    /// <summary>Whether a message is learned, true or false; null: train, training, weight or loss_weight.</summary>
    public string? FieldTraining { get; init; }

    /// <summary>Definitions of functions, of the whole row: a list, or its JSON as a text.</summary>
    public string FieldTools { get; init; } = "tools";

    /// <summary>A system text of the whole row, used where the messages have none.</summary>
    public string FieldSystem { get; init; } = "system";

    /// <summary>A role to the names that stand for it, besides those that are known.</summary>
    public IReadOnlyDictionary<string, IReadOnlyList<string>> Roles { get; init; } = new Dictionary<string, IReadOnlyList<string>>();

    /// <summary>Whether messages of the system are left out.</summary>
    public bool DropsSystem { get; init; }

    public override string Name => "messages of a chat (field " + (FieldMessages ?? "messages or conversations") + ")";

    /// <summary>Whether a value is a list of objects that say who speaks.</summary>
    internal static bool AreMessages(JsonElement value) => Inner(value) is { ValueKind: JsonValueKind.Array } list && list.GetArrayLength() > 0
        && list.EnumerateArray().All(message => message.ValueKind == JsonValueKind.Object && RoleFields.Any(role => message.TryGetProperty(role, out JsonElement who) && who.ValueKind == JsonValueKind.String));

    /// <summary>What to do with a row whose messages are not where they are looked for, a sentence; null where it shows none.</summary>
    /// <param name="row">Has fields.</param>
    /// <param name="isConfigured">They are looked for where field_messages says.</param>
    internal static string? AdviceOn(SourceRow row, bool isConfigured = false)
    {
        string? field = row.Fields.EnumerateObject().FirstOrDefault(member => AreMessages(member.Value)) is { Value.ValueKind: not JsonValueKind.Undefined } found ? found.Name : null;
        return field is not null ? $"Its field '{field}' is a list of messages: {(isConfigured ? $"set field_messages: {field}." : $"name it messages, or set type: chat_template and field_messages: {field} in the data set's block of a configuration.")}"
            : RoleFields.Any(row.Has) && ContentFields.Any(row.Has) ? "It is one message of a chat: put the messages of each conversation into one row, {\"messages\": [...]}."
            : null;
    }

    /// <summary>Whether a row has a list that messages usually are in.</summary>
    public static bool Fits(SourceRow row) => MessagesFields.Any(field => row.Fields.TryGetProperty(field, out JsonElement list) && Inner(list) is { ValueKind: JsonValueKind.Array });

    public override DatasetRow Convert(SourceRow row)
    {
        string? field = FieldMessages ?? Array.Find(MessagesFields, row.Has);
        if (field is null || !row.Fields.TryGetProperty(field, out JsonElement list))
        {
            throw new DatasetException(row.Source, $"no list '{FieldMessages ?? "messages"}'; the row has: {row.FieldNames}{(AdviceOn(row, FieldMessages is not null) is { } advice ? $". {advice}" : "")}");
        }

        // A table can hold a list as its JSON only.
        list = Inner(list) ?? list;
        if (list.ValueKind != JsonValueKind.Array)
        {
            throw new DatasetException(row.Source, $"field '{field}' is not a list of messages but {JsonProblem.Kind(list.ValueKind)}");
        }

        var faults = new List<string>();
        using var bytes = new MemoryStream();

        // Behind a message that is faulty, and half written, others are looked at, too.
        using (var json = new Utf8JsonWriter(bytes, new JsonWriterOptions { SkipValidation = true }))
        {
            json.WriteStartArray();
            string system = row.OptionalText(FieldSystem);
            if (system.Length > 0 && !DropsSystem && !list.EnumerateArray().Any(message => message.ValueKind == JsonValueKind.Object && RoleOf(message) == "system"))
            {
                json.WriteStartObject();
                json.WriteString("role", "system");
                json.WriteString("content", system);
                json.WriteEndObject();
            }

            int number = 0;
            foreach (JsonElement message in list.EnumerateArray().TakeWhile(_ => faults.Count < MostFaults))
            {
                try
                {
                    Write(json, message, row.Source, ++number);
                }
                catch (DatasetException exception) when (exception.Reason is { } reason)
                {
                    faults.Add(reason);
                }
            }

            if (faults.Count > 0)
            {
                throw new DatasetException(row.Source, string.Join("; ", faults));
            }

            json.WriteEndArray();
        }

        JsonElement messages = JsonElement.Parse(bytes.ToArray());
        return messages.GetArrayLength() == 0
            ? throw new DatasetException(row.Source, $"field '{field}' has no messages")
            : new DatasetRow.Conversed(row.Source, messages, Tools(row));
    }

    /// <summary>The messages for a template that knows no calls of functions: a message that only calls says its calls as JSON.</summary>
    internal static JsonElement WithCallsAsText(JsonElement messages)
    {
        if (!messages.EnumerateArray().Any(IsCall))
        {
            return messages;
        }

        using var bytes = new MemoryStream();
        using (var json = new Utf8JsonWriter(bytes))
        {
            json.WriteStartArray();
            foreach (JsonElement message in messages.EnumerateArray())
            {
                json.WriteStartObject();
                foreach (JsonProperty member in message.EnumerateObject().Where(member => !IsCall(message) || member.Name is not ("tool_calls" or "content")))
                {
                    member.WriteTo(json);
                }

                if (IsCall(message))
                {
                    json.WriteString("content", string.Join("\n", message.GetProperty("tool_calls").EnumerateArray().Select(call => (call.TryGetProperty("function", out JsonElement function) ? function : call).GetRawText())));
                }

                json.WriteEndObject();
            }

            json.WriteEndArray();
        }

        return JsonElement.Parse(bytes.ToArray());

        static bool IsCall(JsonElement message) => message.TryGetProperty("tool_calls", out JsonElement calls) && calls.ValueKind == JsonValueKind.Array && calls.GetArrayLength() > 0
            && (!message.TryGetProperty("content", out JsonElement content) || content.ValueKind == JsonValueKind.Null || (content.ValueKind == JsonValueKind.String && content.GetString()!.Length == 0));
    }

    private void Write(Utf8JsonWriter json, JsonElement message, RowSource source, int number)
    {
        if (message.ValueKind != JsonValueKind.Object)
        {
            throw new DatasetException(source, $"message {number} is {JsonProblem.Kind(message.ValueKind)}; expected an object with a role and a content");
        }

        string given = GivenRole(message) ?? throw new DatasetException(source, $"message {number} does not say who speaks; it has: {SourceRow.NamesOf(message)}");
        string role = Role(given);
        if (role == "system" && DropsSystem)
        {
            return;
        }

        string? contentField = ContentFieldOf(message);
        json.WriteStartObject();
        json.WriteString("role", given == "function_call" ? "assistant" : role);
        if (given == "function_call" && contentField is not null)
        {
            WriteCalls(json, message.GetProperty(contentField), source, number);
        }
        else if (contentField is not null)
        {
            json.WritePropertyName("content");
            message.GetProperty(contentField).WriteTo(json);
        }
        else if (!message.TryGetProperty("tool_calls", out _))
        {
            throw new DatasetException(source, $"message {number} ({SourceRow.Quoted(given)}) says nothing; it has: {SourceRow.NamesOf(message)}");
        }

        if (IsLearned(message, source, number) is { } learned)
        {
            json.WriteBoolean("train", learned);
        }

        foreach (JsonProperty member in message.EnumerateObject().Where(member => member.Name != contentField && !IsTaken(member.Name)))
        {
            member.WriteTo(json);
        }

        json.WriteEndObject();
    }

    private bool IsTaken(string name) =>
        name == FieldTraining || (FieldRole is null ? RoleFields.Contains(name) : name == FieldRole || name == "role") || name == "content" || WeightFields.Contains(name) || TrainFields.Contains(name);

    private string? GivenRole(JsonElement message)
    {
        foreach (string name in FieldRole is null ? RoleFields : [FieldRole])
        {
            if (message.TryGetProperty(name, out JsonElement role) && role.ValueKind == JsonValueKind.String)
            {
                return role.GetString();
            }
        }

        return null;
    }

    private string? RoleOf(JsonElement message) => GivenRole(message) is { } given ? Role(given) : null;

    private string Role(string given) =>
        Roles.FirstOrDefault(pair => pair.Value.Contains(given)).Key ?? KnownRoles.GetValueOrDefault(given, given);

    private string? ContentFieldOf(JsonElement message) => FieldContent is not null
        ? message.TryGetProperty(FieldContent, out _) ? FieldContent : null
        : Array.Find(ContentFields, name => message.TryGetProperty(name, out JsonElement content) && content.ValueKind != JsonValueKind.Null);

    private bool? IsLearned(JsonElement message, RowSource source, int number)
    {
        foreach (string name in FieldTraining is null ? [.. TrainFields, .. WeightFields] : (string[])[FieldTraining])
        {
            if (!message.TryGetProperty(name, out JsonElement value) || value.ValueKind == JsonValueKind.Null)
            {
                continue;
            }

            return value.ValueKind switch
            {
                JsonValueKind.True => true,
                JsonValueKind.False => false,
                JsonValueKind.Number when value.GetDouble() is 0 or 1 => value.GetDouble() == 1,
                _ => throw new DatasetException(source, $"message {number}: '{name}' must be true, false, 0 or 1, got {SourceRow.Quoted(value.GetRawText())}; a message is learned or not"),
            };
        }

        return null;
    }

    /// <summary>A call, or a list of calls, as JSON in a text: {"name": ..., "arguments": ...}.</summary>
    private static void WriteCalls(Utf8JsonWriter json, JsonElement value, RowSource source, int number)
    {
        JsonElement calls = Inner(value) ?? throw new DatasetException(source, $"message {number} (function_call) is not JSON with a name and arguments");
        json.WriteStartArray("tool_calls");
        foreach (JsonElement call in calls.ValueKind == JsonValueKind.Array ? [.. calls.EnumerateArray()] : (JsonElement[])[calls])
        {
            if (call.ValueKind != JsonValueKind.Object || !call.TryGetProperty("name", out JsonElement name) || name.ValueKind != JsonValueKind.String)
            {
                throw new DatasetException(source, $"message {number} (function_call) is not JSON with a name and arguments");
            }

            json.WriteStartObject();
            json.WriteString("type", "function");
            json.WriteStartObject("function");
            json.WriteString("name", name.GetString());
            json.WritePropertyName("arguments");
            if (call.TryGetProperty("arguments", out JsonElement arguments))
            {
                (Inner(arguments) ?? arguments).WriteTo(json);
            }
            else
            {
                json.WriteStartObject();
                json.WriteEndObject();
            }

            json.WriteEndObject();
            json.WriteEndObject();
        }

        json.WriteEndArray();
    }

    private JsonElement? Tools(SourceRow row)
    {
        if (!row.Fields.TryGetProperty(FieldTools, out JsonElement given) || given.ValueKind == JsonValueKind.Null || (given.ValueKind == JsonValueKind.String && string.IsNullOrWhiteSpace(given.GetString())))
        {
            return null;
        }

        JsonElement tools = Inner(given) ?? default;
        if (tools.ValueKind != JsonValueKind.Array)
        {
            throw new DatasetException(row.Source, $"field '{FieldTools}' is not a list of function definitions");
        }

        if (tools.GetArrayLength() == 0)
        {
            return null;
        }

        // Templates expect the definitions as OpenAI's interface has them.
        using var bytes = new MemoryStream();
        using (var json = new Utf8JsonWriter(bytes))
        {
            json.WriteStartArray();
            foreach (JsonElement tool in tools.EnumerateArray())
            {
                if (tool.ValueKind == JsonValueKind.Object && !tool.TryGetProperty("function", out _))
                {
                    json.WriteStartObject();
                    json.WriteString("type", "function");
                    json.WritePropertyName("function");
                    tool.WriteTo(json);
                    json.WriteEndObject();
                }
                else
                {
                    tool.WriteTo(json);
                }
            }

            json.WriteEndArray();
        }

        return JsonElement.Parse(bytes.ToArray());
    }

    /// <summary>The JSON that a text holds; anything but a text as it is. Null where the text is not JSON.</summary>
    private static JsonElement? Inner(JsonElement value)
    {
        if (value.ValueKind != JsonValueKind.String)
        {
            return value;
        }

        try
        {
            return JsonElement.Parse(value.GetString()!);
        }
        catch (Exception exception) when (exception is JsonException or InvalidOperationException)
        {
            // The second: a surrogate without its partner.
            return null;
        }
    }
}
