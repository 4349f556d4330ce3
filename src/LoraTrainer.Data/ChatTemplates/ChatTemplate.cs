using System.Reflection;
using System.Text.Json;
using LoraTrainer.Data.ChatTemplates.Jinja;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Storage;

namespace LoraTrainer.Data.ChatTemplates;

/// <summary>What a chat template is given besides the messages.</summary>
public sealed record ChatTemplateOptions
{
    private static readonly IReadOnlyDictionary<string, JsonElement> NoVariables = new Dictionary<string, JsonElement>();

    /// <summary>By the names that templates use: bos_token, eos_token, ...; <see cref="SpecialTokensOf"/> has those of a tokenizer.</summary>
    public IReadOnlyDictionary<string, string> SpecialTokens { get; init; } = new Dictionary<string, string>();

    /// <summary>Definitions of functions (a JSON list), which go into the template as they are; null: none.</summary>
    public JsonElement? Tools { get; init; }

    /// <summary>Whether the text ends where the model begins to answer.</summary>
    public bool AddGenerationPrompt { get; init; }

    /// <summary>Other variables: enable_thinking, date_string, documents, ...</summary>
    public IReadOnlyDictionary<string, JsonElement> Variables { get; init; } = NoVariables;

    /// <summary>The clock of templates that write today's date.</summary>
    public TimeProvider Clock { get; init; } = TimeProvider.System;

    /// <summary>The special tokens of a tokenizer by the names that templates use.</summary>
    public static IReadOnlyDictionary<string, string> SpecialTokensOf(Tokenizer tokenizer)
    {
        SpecialTokens known = tokenizer.SpecialTokens;
        return new (string Name, string? Token)[] { ("bos_token", known.Bos), ("eos_token", known.Eos), ("pad_token", known.Pad), ("unk_token", known.Unknown) }
            .Where(pair => pair.Token is not null).ToDictionary(pair => pair.Name, pair => pair.Token!);
    }
}

/// <summary>A conversation as the text that a model reads.</summary>
public sealed class RenderedChat
{
    internal RenderedChat(Rendering rendering)
    {
        Rendered = rendering.Text;
        AnswerSpans = rendering.Generations;
    }

    public string Text => Rendered.Value;

    /// <summary>What the template marks as said by the model ({% generation %}): start and end in code points of <see cref="Text"/>. Empty where it marks nothing.</summary>
    public IReadOnlyList<(int Start, int End)> AnswerSpans { get; }

    /// <summary>The text, with what of it came from which message.</summary>
    internal Text Rendered { get; }
}

/// <summary>
/// A chat template: the model's own Jinja, or one of those built in. It is run by an interpreter of ours, as transformers runs it (trim_blocks,
/// lstrip_blocks, tojson, raise_exception, strftime_now, generation blocks), which reaches nothing but the messages and bounds its time and memory, because
/// templates come from strangers. Immutable; may be used from several threads at once.
/// </summary>
public sealed class ChatTemplate
{
    /// <summary>Where a folder has its template by itself.</summary>
    public const string FileName = "chat_template.jinja";

    private const string ResourcePrefix = "chat_templates/";

    /// <summary>Bytes of a file that may hold a template; tokenizer_config.json lists all added tokens too.</summary>
    private const long MostBytes = 64 << 20;

    private readonly TemplateTree tree;
    private readonly RenderLimits limits;
    private ChatTemplate? forTools;

    private ChatTemplate(string name, string source, TemplateTree tree, RenderLimits limits)
    {
        Name = name;
        Source = source;
        this.tree = tree;
        this.limits = limits;
    }

    /// <summary>The names of <see cref="BuiltIn"/>, as axolotl's chat_template has them.</summary>
    public static IReadOnlyList<string> BuiltInNames { get; } =
        [.. Assembly.GetExecutingAssembly().GetManifestResourceNames().Where(name => name.StartsWith(ResourcePrefix, StringComparison.Ordinal)).Select(name => name[ResourcePrefix.Length..^6]).Order(StringComparer.Ordinal)];

    /// <summary>For people: the file it came from, or its name.</summary>
    public string Name { get; }

    /// <summary>Its text, to be saved beside what was trained with it.</summary>
    public string Source { get; }

    /// <summary>Whether it says itself what the model is to say.</summary>
    public bool MarksAnswers => tree.HasGeneration;

    /// <summary>Whether it can end where the model begins to answer.</summary>
    public bool TakesGenerationPrompt => Source.Contains("add_generation_prompt", StringComparison.Ordinal);

    /// <exception cref="ChatTemplateException">It is not a template; the message names the line.</exception>
    public static ChatTemplate Parse(string name, string source) => Parse(name, source, RenderLimits.Default);

    /// <summary>A template of the program.</summary>
    /// <param name="name">One of <see cref="BuiltInNames"/>.</param>
    /// <exception cref="ChatTemplateException">There is none of that name.</exception>
    public static ChatTemplate BuiltIn(string name)
    {
        using Stream? stream = Assembly.GetExecutingAssembly().GetManifestResourceStream($"{ResourcePrefix}{name}.jinja");
        if (stream is null)
        {
            throw new ChatTemplateException($"chat_template '{name}'", $"there is none of that name; built in are {string.Join(", ", BuiltInNames)}");
        }

        using var reader = new StreamReader(stream);
        return Parse(name, reader.ReadToEnd());
    }

    /// <summary>
    /// The template of a model: chat_template.jinja, else tokenizer_config.json (chat_template, one or several with names), else chat_template.json. Where
    /// the model has one named tool_use too, messages with tools go through that.
    /// </summary>
    /// <param name="folder">The model's folder.</param>
    /// <param name="name">Of several; null: default.</param>
    /// <returns>Null where the model has none.</returns>
    /// <exception cref="ChatTemplateException">A file is damaged, or there is no template of that name.</exception>
    public static ChatTemplate? OfModel(string folder, string? name = null)
    {
        Dictionary<string, (string File, string Source)> found = Find(folder);
        if (found.Count == 0)
        {
            return null;
        }

        string wanted = name ?? "default";
        if (!found.TryGetValue(wanted, out (string File, string Source) chosen))
        {
            throw new ChatTemplateException(folder, $"the model has no chat template named '{wanted}'; it has {string.Join(", ", found.Keys)}");
        }

        ChatTemplate template = Parse(chosen.File, chosen.Source);
        if (name is null && found.TryGetValue("tool_use", out (string File, string Source) tools))
        {
            template.forTools = Parse($"{tools.File} (tool_use)", tools.Source);
        }

        return template;
    }

    /// <summary>Messages as text.</summary>
    /// <exception cref="ChatTemplateException">The template refuses them, or fails on them, or takes more time or memory than a template should.</exception>
    public RenderedChat Render(ChatMessages messages, ChatTemplateOptions options)
    {
        if (forTools is not null && options.Tools is { ValueKind: not JsonValueKind.Null })
        {
            return forTools.Render(messages, options);
        }

        var variables = new Dictionary<string, object?>(StringComparer.Ordinal);
        foreach ((string name, string token) in options.SpecialTokens)
        {
            variables[name] = Jinja.Text.Own(token);
        }

        variables["messages"] = messages.ToValue();
        variables["tools"] = options.Tools is { } tools ? TemplateJson.Value(tools, -1, $"{Name}: tools") : null;
        variables["documents"] = null;
        variables["add_generation_prompt"] = options.AddGenerationPrompt;
        foreach ((string name, JsonElement value) in options.Variables)
        {
            variables[name] = TemplateJson.Value(value, -1, $"{Name}: the variable {name}");
        }

        try
        {
            return new RenderedChat(Interpreter.Run(tree, variables, options.Clock.GetLocalNow().DateTime, limits));
        }
        catch (JinjaException exception)
        {
            throw new ChatTemplateException(Name, exception.Message, exception.Line, exception.IsRaisedByTemplate, exception);
        }
    }

    internal static ChatTemplate Parse(string name, string source, RenderLimits limits)
    {
        try
        {
            return new ChatTemplate(name, source, Parser.Parse(source), limits);
        }
        catch (JinjaException exception)
        {
            throw new ChatTemplateException(name, exception.Message, exception.Line, cause: exception);
        }
    }

    private static Dictionary<string, (string File, string Source)> Find(string folder)
    {
        var found = new Dictionary<string, (string File, string Source)>(StringComparer.Ordinal);
        string jinja = Path.Combine(folder, FileName), more = Path.Combine(folder, "additional_chat_templates");
        if (File.Exists(jinja))
        {
            found["default"] = (jinja, Read(jinja));
            foreach (string file in Directory.Exists(more) ? Directory.GetFiles(more, "*.jinja") : [])
            {
                found[Path.GetFileNameWithoutExtension(file)] = (file, Read(file));
            }

            return found;
        }

        foreach (string file in new[] { Path.Combine(folder, "tokenizer_config.json"), Path.Combine(folder, "chat_template.json") })
        {
            if (found.Count > 0 || !File.Exists(file))
            {
                continue;
            }

            try
            {
                using JsonDocument document = JsonDocument.Parse(Read(file));
                if (document.RootElement.ValueKind == JsonValueKind.Object && document.RootElement.TryGetProperty("chat_template", out JsonElement template))
                {
                    Add(file, template);
                }
            }
            catch (JsonException exception)
            {
                throw new ChatTemplateException(file, $"not valid JSON: {JsonProblem.Reason(exception)}", cause: exception);
            }
            catch (InvalidOperationException exception)
            {
                throw new ChatTemplateException(file, "chat_template is not valid Unicode (a surrogate without its partner)", cause: exception);
            }
        }

        return found;

        void Add(string file, JsonElement template)
        {
            switch (template.ValueKind)
            {
                case JsonValueKind.String:
                    found["default"] = (file, template.GetString()!);
                    break;
                case JsonValueKind.Array:
                    foreach (JsonElement entry in template.EnumerateArray())
                    {
                        bool isNamed = entry.ValueKind == JsonValueKind.Object && entry.TryGetProperty("name", out JsonElement name) & entry.TryGetProperty("template", out JsonElement text)
                            && name.ValueKind == JsonValueKind.String && text.ValueKind == JsonValueKind.String;
                        if (!isNamed)
                        {
                            throw new ChatTemplateException(file, "an entry of the list chat_template is not an object with the texts \"name\" and \"template\"");
                        }

                        found[entry.GetProperty("name").GetString()!] = (file, entry.GetProperty("template").GetString()!);
                    }

                    break;
                case not JsonValueKind.Null:
                    throw new ChatTemplateException(file, $"chat_template is {JsonProblem.Kind(template.ValueKind)}; expected a text, or a list of objects with \"name\" and \"template\"");
            }
        }
    }

    private static string Read(string file) => new FileInfo(file).Length is var length && length <= MostBytes
        ? File.ReadAllText(file)
        : throw new ChatTemplateException(file, $"the file has {length} bytes; a template has at most {MostBytes}");
}
