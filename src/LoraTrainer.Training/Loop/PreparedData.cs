using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Storage;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Loop;

/// <summary>
/// Tokenized data that is kept in a folder for the next start. A file's name is the hash of all that its content depends on: the data files, the model's
/// tokenizer and chat template, what the configuration says about rows, and the build of the code that makes tokens of them. So a file that is there is
/// right, whoever made it; one that is damaged is replaced.
/// </summary>
internal static class PreparedData
{
    public const string Extension = ".tokens";

    // What becomes of a row depends on these alone, beside the files.
    private static readonly string[] Keys =
    [
        "datasets", "test_datasets", "val_set_size", "seed", "sequence_len", "excess_length_strategy", "train_on_inputs", "mask_history", "chat_template", "chat_template_jinja", "tokens",
    ];

    private static readonly string[] ModelFiles =
        ["config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"];

    /// <summary>The file of a configuration's data.</summary>
    public static string PathOf(TrainingConfig config, string folder, CancellationToken cancellation)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        void Say(string text) => hash.AppendData(Encoding.UTF8.GetBytes(text + "\n"));
        Say($"tokens of {typeof(TokenizedDataset).Module.ModuleVersionId} and {typeof(PreparedData).Module.ModuleVersionId}");
        foreach (string name in ModelFiles.Where(name => File.Exists(Path.Combine(config.BaseFolder, name))))
        {
            Say($"{name} {ContentHash.OfFile(Path.Combine(config.BaseFolder, name), cancellation)}");
        }

        foreach (DatasetOptions dataset in config.Data.Datasets.Concat(config.Data.TestDatasets))
        {
            foreach (string file in config.Fetched.FilesOf(dataset))
            {
                Say($"{Path.GetFileName(file)} {ContentHash.OfFile(file, cancellation)}");
            }

            Say(TemplateFile(dataset.Conversation.TemplateJinja));
        }

        Say(TemplateFile(config.Data.ChatTemplateJinja));
        using JsonDocument said = JsonDocument.Parse(Said(config));
        foreach (string key in Keys)
        {
            Say($"{key} {(said.RootElement.TryGetProperty(key, out JsonElement value) ? value.GetRawText() : "")}");
        }

        return Path.Combine(folder, Convert.ToHexStringLower(hash.GetHashAndReset()) + Extension);
    }

    /// <summary>The configuration without the places of its data: a file that was moved, or is in the next commit too, is the same file.</summary>
    private static ReadOnlyMemory<byte> Said(TrainingConfig config)
    {
        EquatableList<DatasetOptions> WithoutPlaces(EquatableList<DatasetOptions> datasets) => [.. datasets.Select(dataset => dataset with { Path = "", Revision = "" })];
        var bytes = new MemoryStream();
        using (var json = new Utf8JsonWriter(bytes))
        {
            (config with { Data = config.Data with { Datasets = WithoutPlaces(config.Data.Datasets), TestDatasets = WithoutPlaces(config.Data.TestDatasets) } }).WriteJson(json);
        }

        return bytes.ToArray();
    }

    private static string TemplateFile(string? template) => File.Exists(template) ? File.ReadAllText(template) : "";
}
