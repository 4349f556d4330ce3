using System.Text.Json;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>The tokens a model family gives a role, by content; null where the folder does not say.</summary>
public sealed record SpecialTokens
{
    public string? Bos { get; init; }

    public string? Eos { get; init; }

    public string? Pad { get; init; }

    public string? Unknown { get; init; }

    /// <summary>These, and those of <paramref name="others"/> where these do not say.</summary>
    internal SpecialTokens Or(SpecialTokens others) => new() { Bos = Bos ?? others.Bos, Eos = Eos ?? others.Eos, Pad = Pad ?? others.Pad, Unknown = Unknown ?? others.Unknown };

    /// <summary>From tokenizer_config.json; what it does not name, from special_tokens_map.json.</summary>
    internal static SpecialTokens Read(string folder) => Ask(folder, files => new SpecialTokens
    {
        Bos = Find(files, "bos_token"), Eos = Find(files, "eos_token"), Pad = Find(files, "pad_token"), Unknown = Find(files, "unk_token"),
    });

    /// <summary>All tokens that the two files call special, in whatever role.</summary>
    internal static HashSet<string> AllNamed(string folder) => Ask(folder, files =>
    {
        var named = new HashSet<string>(StringComparer.Ordinal);
        foreach (JsonPart file in files)
        {
            foreach (string role in (ReadOnlySpan<string>)["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"])
            {
                if (!file[role].IsNull)
                {
                    named.Add(ContentOf(file[role]));
                }
            }

            foreach (string list in (ReadOnlySpan<string>)["additional_special_tokens", "extra_special_tokens"])
            {
                if (file[list].Kind == JsonValueKind.Array)
                {
                    named.UnionWith(file[list].Items().ConvertAll(ContentOf));
                }
            }
        }

        return named;
    });

    private static T Ask<T>(string folder, Func<List<JsonPart>, T> question)
    {
        var documents = new List<JsonDocument>();
        try
        {
            var files = new List<JsonPart>();
            foreach (string name in (ReadOnlySpan<string>)["tokenizer_config.json", "special_tokens_map.json"])
            {
                string path = Path.Combine(folder, name);
                if (TokenizerFiles.ReadJson(path) is { } document)
                {
                    documents.Add(document);
                    files.Add(new JsonPart(path, "", document.RootElement));
                }
            }

            return question(files);
        }
        finally
        {
            documents.ForEach(document => document.Dispose());
        }
    }

    private static string? Find(List<JsonPart> files, string role)
    {
        foreach (JsonPart file in files)
        {
            if (!file[role].IsNull)
            {
                return ContentOf(file[role]);
            }
        }

        return null;
    }

    /// <summary>A token is written as its text, or as an object with it.</summary>
    private static string ContentOf(JsonPart token) => token.Kind == JsonValueKind.Object ? token["content"].Text() : token.Text();
}
