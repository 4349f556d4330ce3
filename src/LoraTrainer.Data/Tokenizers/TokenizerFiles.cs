using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;
using LoraTrainer.Storage;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// Which files of a folder are its tokenizer, and how more tokens are written into them. tokenizer.json says all by itself and goes first. A tokenizer.model, of
/// SentencePiece or of tiktoken, is completed by tokenizer_config.json (added_tokens_decoder, add_bos_token, add_eos_token, legacy) and added_tokens.json, where there are such files.
/// </summary>
internal static class TokenizerFiles
{
    public const string Json = "tokenizer.json", Model = "tokenizer.model";

    private const string Config = "tokenizer_config.json", AddedTokens = "added_tokens.json", Decoder = "added_tokens_decoder";
    private const int LargestId = (1 << 24) - 1;

    /// <summary>Many times what real files have.</summary>
    private const long LargestFile = 256L << 20;

    private static readonly JsonSerializerOptions Indented = new() { WriteIndented = true, Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    /// <summary>The file that a folder's tokenizer is in; null where it has none.</summary>
    public static string? Find(string folder)
        => File.Exists(Path.Combine(folder, Json)) ? Path.Combine(folder, Json)
            : File.Exists(Path.Combine(folder, Model)) ? Path.Combine(folder, Model)
            : null;

    /// <param name="file">A tokenizer.json, or a model of SentencePiece or tiktoken.</param>
    /// <exception cref="TokenizerFormatException">The file is damaged or uses something that is not supported.</exception>
    public static TokenizerDefinition Read(string file)
    {
        byte[] bytes = ReadAll(file);
        if (IsJson(file))
        {
            return TokenizerJsonReader.Read(file, bytes);
        }

        string folder = Path.GetDirectoryName(Path.GetFullPath(file))!;
        using JsonDocument? config = ReadJson(Path.Combine(folder, Config)), added = ReadJson(Path.Combine(folder, AddedTokens));
        var settings = new JsonPart(Path.Combine(folder, Config), "", config?.RootElement ?? default);
        bool prefixOnlyAtStart = !settings.IsNull && !settings["legacy"].Flag(absent: true);
        TokenizerDefinition definition = TiktokenReader.Recognizes(bytes) ? TiktokenReader.Read(file, bytes) : SentencePieceReader.Read(file, bytes, prefixOnlyAtStart);
        var tokens = definition.AddedTokens.ToDictionary(token => token.Content, StringComparer.Ordinal);
        if (added is not null)
        {
            var list = new JsonPart(Path.Combine(folder, AddedTokens), "", added.RootElement);
            HashSet<string> special = SpecialTokens.AllNamed(folder);
            foreach (JsonProperty entry in list.Members())
            {
                string content = list.NameOf(entry);
                Put(tokens, definition, list[content], new AddedToken(list[content].Number(), content, content, SingleWord: false, StripLeft: false, StripRight: false, Normalized: false, special.Contains(content)));
            }
        }

        if (!settings.IsNull && !settings[Decoder].IsNull)
        {
            JsonPart list = settings[Decoder];
            foreach (JsonProperty entry in list.Members())
            {
                JsonPart item = list[list.NameOf(entry)];
                string content = item["content"].Text();
                if (!int.TryParse(entry.Name, System.Globalization.NumberStyles.None, System.Globalization.CultureInfo.InvariantCulture, out int id))
                {
                    throw item.Error("the key is not an id");
                }

                Put(tokens, definition, item, new AddedToken(
                    id, content, content, item["single_word"].Flag(absent: false), item["lstrip"].Flag(absent: false), item["rstrip"].Flag(absent: false), Normalized: false, item["special"].Flag(absent: false)));
            }
        }

        IEnumerable<IGrouping<int, AddedToken>> shared = tokens.Values.GroupBy(token => token.Id).Where(group => group.Count() > 1);
        if (shared.FirstOrDefault() is { } twice)
        {
            throw new TokenizerFormatException(file, $"the added tokens {string.Join(" and ", twice.Select(token => $"'{token.Content}'"))} both have the id {twice.Key}");
        }

        definition = definition with { AddedTokens = [.. tokens.Values.OrderBy(token => token.Id)] };
        SpecialTokens roles = SpecialTokens.Read(folder).Or(definition.Roles);
        return definition with
        {
            Prefix = settings.IsNull || settings["add_bos_token"].Flag(absent: true) ? Role(roles.Bos) : [],
            Suffix = !settings.IsNull && settings["add_eos_token"].Flag(absent: false) ? Role(roles.Eos) : [],
        };

        IReadOnlyList<int> Role(string? content)
            => content is null ? [] : tokens.TryGetValue(content, out AddedToken? token) ? [token.Id] : definition.Vocabulary.TryGetValue(content, out int id) ? [id] : [];
    }

    /// <summary>The file of a tokenizer that more tokens are written into, with these tokens, which take the ids after the largest.</summary>
    /// <param name="file">What the tokenizer was read from.</param>
    /// <param name="tokens">Content and id; none known so far.</param>
    /// <returns>The name of the file beside <paramref name="file"/>, or its own, and its new content.</returns>
    public static (string Name, byte[] Content) WithTokens(string file, IReadOnlyList<(string Content, int Id)> tokens)
    {
        string folder = Path.GetDirectoryName(Path.GetFullPath(file))!;
        if (IsJson(file))
        {
            JsonNode root = Parse(file)!;
            JsonArray list = root["added_tokens"] as JsonArray ?? [];
            root["added_tokens"] = list.Parent is null ? list : root["added_tokens"];
            foreach ((string content, int id) in tokens)
            {
                JsonObject entry = Entry(content);
                entry.Insert(0, "id", id);
                list.Add(entry);
            }

            return (Path.GetFileName(file), JsonSerializer.SerializeToUtf8Bytes(root, Indented));
        }

        // Where the config lists added tokens, other programs read them there only.
        if (Parse(Path.Combine(folder, Config)) is { } config && config[Decoder] is JsonObject decoder)
        {
            foreach ((string content, int id) in tokens)
            {
                decoder[id.ToString(System.Globalization.CultureInfo.InvariantCulture)] = Entry(content);
            }

            return (Config, JsonSerializer.SerializeToUtf8Bytes(config, Indented));
        }

        JsonNode map = Parse(Path.Combine(folder, AddedTokens)) ?? new JsonObject();
        foreach ((string content, int id) in tokens)
        {
            map[content] = id;
        }

        return (AddedTokens, JsonSerializer.SerializeToUtf8Bytes(map, Indented));

        static JsonObject Entry(string content) => new()
        {
            ["content"] = content, ["single_word"] = false, ["lstrip"] = false, ["rstrip"] = false, ["normalized"] = false, ["special"] = false,
        };
    }

    public static bool IsJson(string file) => !Path.GetExtension(file).Equals(".model", StringComparison.OrdinalIgnoreCase);

    /// <summary>More tokens of a definition; what <see cref="WithTokens"/> writes reads as this.</summary>
    public static TokenizerDefinition With(TokenizerDefinition definition, IReadOnlyList<(string Content, int Id)> tokens) => definition with
    {
        AddedTokens = [.. definition.AddedTokens, .. tokens.Select(token => new AddedToken(token.Id, token.Content, token.Content, SingleWord: false, StripLeft: false, StripRight: false, Normalized: false, Special: false))],
    };

    private static void Put(Dictionary<string, AddedToken> tokens, TokenizerDefinition definition, JsonPart place, AddedToken token)
    {
        if (token.Content.Length is 0 or > AddedTokenMatcher.LongestToken)
        {
            throw place.Error($"the token has {token.Content.Length} characters; expected 1 to {AddedTokenMatcher.LongestToken}");
        }

        if (token.Id > LargestId)
        {
            throw place.Error($"the id {token.Id} is too large; at most {LargestId} is supported");
        }

        if (definition.Vocabulary.TryGetValue(token.Content, out int known) && known != token.Id)
        {
            throw place.Error($"'{token.Content}' has the id {token.Id} here, and {known} in the model");
        }

        if (known != token.Id && definition.Ids.Contains(token.Id))
        {
            throw place.Error($"'{token.Content}' has the id {token.Id} here, which is another token's in the model");
        }

        tokens[token.Content] = token;
    }

    private static JsonNode? Parse(string path) => File.Exists(path) ? JsonNode.Parse(WithoutMark(ReadAll(path)).Span) : null;

    /// <summary>A JSON file; null where there is none.</summary>
    public static JsonDocument? ReadJson(string path) => File.Exists(path) ? ParseJson(path, ReadAll(path)) : null;

    /// <exception cref="TokenizerFormatException">It is not JSON.</exception>
    public static JsonDocument ParseJson(string path, byte[] bytes)
    {
        // The parser itself looks at texts only when they are asked for.
        if (!System.Text.Unicode.Utf8.IsValid(bytes))
        {
            throw new TokenizerFormatException(path, "not valid JSON: it is not UTF-8");
        }

        try
        {
            return JsonDocument.Parse(WithoutMark(bytes));
        }
        catch (JsonException exception)
        {
            throw new TokenizerFormatException(path, $"not valid JSON: {JsonProblem.Reason(exception)}", exception);
        }
    }

    /// <summary>Some editors put a byte order mark first.</summary>
    private static ReadOnlyMemory<byte> WithoutMark(byte[] bytes) => bytes.AsSpan().StartsWith("\uFEFF"u8) ? bytes.AsMemory(3) : bytes;

    private static byte[] ReadAll(string path)
    {
        long length = new FileInfo(path).Length;
        return length <= LargestFile ? File.ReadAllBytes(path) : throw new TokenizerFormatException(path, $"it has {length} bytes; a tokenizer's files have at most {LargestFile}");
    }
}
