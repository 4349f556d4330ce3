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
    internal static SpecialTokens Read(string folder)
    {
        var files = new List<JsonDocument>();
        try
        {
            var roots = new List<JsonPart>();
            foreach (string name in (ReadOnlySpan<string>)["tokenizer_config.json", "special_tokens_map.json"])
            {
                string path = Path.Combine(folder, name);
                if (TokenizerFiles.ReadJson(path) is not { } file)
                {
                    continue;
                }

                files.Add(file);
                roots.Add(new JsonPart(path, "", file.RootElement));
            }

            return new SpecialTokens { Bos = Find("bos_token"), Eos = Find("eos_token"), Pad = Find("pad_token"), Unknown = Find("unk_token") };

            string? Find(string role)
            {
                foreach (JsonPart root in roots)
                {
                    JsonPart value = root[role];
                    if (!value.IsNull)
                    {
                        return value.Kind == JsonValueKind.Object ? value["content"].Text() : value.Text();
                    }
                }

                return null;
            }
        }
        finally
        {
            files.ForEach(file => file.Dispose());
        }
    }
}
