using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Models.Formats;

/// <summary>Which files of a model's repository are needed, and no others: not the same weights in other formats, no code, no pictures.</summary>
public static class HubModelFiles
{
    private const string TorchFileName = "pytorch_model.bin";
    private const string TorchIndexFileName = "pytorch_model.bin.index.json";

    // Beside config.json: what tokenizers and chat templates of all families are read from.
    private static readonly string[] Described =
    [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
        "chat_template.jinja", "chat_template.json",
    ];

    /// <summary>Sees to it that the model's configuration and tokenizer are in the snapshot's folder.</summary>
    /// <exception cref="ModelFormatException">there is no config.json: it is no model of this kind</exception>
    public static async Task FetchDescriptionAsync(HubSnapshot snapshot, CancellationToken cancellation)
    {
        if (!snapshot.Has("config.json"))
        {
            string hint = snapshot.Files.Any(file => file.Path.EndsWith(".gguf", StringComparison.OrdinalIgnoreCase)) ? " It holds GGUF files, which are for inference: name the repository that they were made from."
                : snapshot.Has("adapter_config.json") ? " It holds an adapter: name its base, and the adapter with lora_model_dir." : "";
            throw new ModelFormatException($"{snapshot.Repository} has no config.json, so it is no model that can be trained.{hint}");
        }

        await snapshot.FetchAsync([.. snapshot.Files.Select(file => file.Path).Where(IsDescription)], cancellation).ConfigureAwait(false);
    }

    /// <summary>The same for its weights: safetensors, or else those of torch.</summary>
    /// <exception cref="ModelFormatException">there are none</exception>
    public static async Task FetchWeightsAsync(HubSnapshot snapshot, CancellationToken cancellation)
    {
        foreach ((string single, string index) in new[] { (ModelFolder.SingleFileName, ModelFolder.IndexFileName), (TorchFileName, TorchIndexFileName) })
        {
            if (snapshot.Has(single))
            {
                await snapshot.FetchAsync([single], cancellation).ConfigureAwait(false);
                return;
            }

            if (snapshot.Has(index))
            {
                await snapshot.FetchAsync([index], cancellation).ConfigureAwait(false);
                await snapshot.FetchAsync(ShardsOf(snapshot.PathOf(index)), cancellation).ConfigureAwait(false);
                return;
            }
        }

        throw new ModelFormatException($"{snapshot.Repository} has no weights that can be read: looked for {ModelFolder.SingleFileName}, {ModelFolder.IndexFileName}, {TorchFileName} and {TorchIndexFileName}.");
    }

    /// <summary>True where a snapshot's folder has every weight file of one of the formats; of a model that is fetched in parts there may be some.</summary>
    public static bool HasAllWeights(string folder)
        => File.Exists(Path.Combine(folder, ModelFolder.SingleFileName)) || File.Exists(Path.Combine(folder, TorchFileName))
            || new[] { ModelFolder.IndexFileName, TorchIndexFileName }.Select(name => Path.Combine(folder, name)).Any(index => File.Exists(index) && ShardsOf(index).All(shard => File.Exists(Path.Combine(folder, shard))));

    private static bool IsDescription(string path)
        => Described.Contains(path) || (path.StartsWith("additional_chat_templates/", StringComparison.Ordinal) && path.EndsWith(".jinja", StringComparison.Ordinal)) || (!path.Contains('/', StringComparison.Ordinal) && path.EndsWith(".tiktoken", StringComparison.Ordinal));

    private static string[] ShardsOf(string index)
    {
        try
        {
            using JsonDocument json = JsonDocument.Parse(File.ReadAllBytes(index));
            return [.. json.RootElement.GetProperty("weight_map").EnumerateObject().Select(item => item.Value.GetString() ?? "").Distinct(StringComparer.Ordinal)];
        }
        catch (Exception exception) when (exception is JsonException or KeyNotFoundException or InvalidOperationException)
        {
            throw new ModelFormatException($"{index}: the file does not say which shards the model has ({exception.Message}).", exception);
        }
    }
}
