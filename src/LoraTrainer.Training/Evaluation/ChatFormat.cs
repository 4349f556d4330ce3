using System.Text.Json;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Evaluation;

/// <summary>How a message becomes the text that a model answers: as the rows of a training were made, by the same code.</summary>
public sealed class ChatFormat
{
    private readonly Data.Datasets.DatasetFormat? rows;

    private ChatFormat(string name, Data.Datasets.DatasetFormat? rows)
    {
        Name = name;
        this.rows = rows;
    }

    /// <summary>The words of <see cref="Parse"/>.</summary>
    public static IReadOnlyList<string> Words { get; } = ["plain", "alpaca"];

    /// <summary>For people: what is put around a message.</summary>
    public string Name { get; }

    /// <summary>Whether the format has a place for a system text.</summary>
    public bool TakesSystem => rows is Data.Datasets.DatasetFormat.Custom { FieldSystem: not null };

    /// <summary>A format by its word.</summary>
    /// <param name="word">One of <see cref="Words"/>.</param>
    /// <param name="option">Where it was written, for the sentence.</param>
    public static ChatFormat Parse(string word, string option) => word switch
    {
        "plain" => new ChatFormat("plain: the text as it is", null),
        "alpaca" => new ChatFormat("alpaca: the message as the instruction", new Data.Datasets.DatasetFormat.Alpaca()),
        _ => throw new TrainingSetupException($"{option} must be one of {string.Join(", ", Words)}, got '{word}'."),
    };

    /// <summary>As the first data set of a run has it.</summary>
    public static ChatFormat OfRun(TrainingConfig config)
    {
        DatasetOptions? first = config.Data.Datasets.Count > 0 ? config.Data.Datasets[0] : null;
        return first?.Format.Kind switch
        {
            DatasetFormatKind.Alpaca or DatasetFormatKind.Custom => new ChatFormat("as the rows of the run's training", ConfiguredData.FormatOf(first)),
            _ => Parse("plain", ""),
        };
    }

    /// <summary>Whether a model folder comes with a chat template.</summary>
    public static bool HasTemplate(string folder)
    {
        string settings = Path.Combine(folder, "tokenizer_config.json");
        if (File.Exists(Path.Combine(folder, "chat_template.jinja")))
        {
            return true;
        }

        if (!File.Exists(settings))
        {
            return false;
        }

        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(settings));
        return document.RootElement.TryGetProperty("chat_template", out JsonElement template) && template.ValueKind is not (JsonValueKind.Null or JsonValueKind.Undefined);
    }

    /// <summary>The text that the model continues.</summary>
    /// <param name="message">Of the user.</param>
    /// <param name="system">The system text; empty: none, or the format's own.</param>
    public string Prompt(string message, string system)
    {
        if (rows is null)
        {
            return message;
        }

        var fields = new Dictionary<string, string>(StringComparer.Ordinal);
        if (rows is Data.Datasets.DatasetFormat.Custom custom)
        {
            fields[custom.FieldInstruction] = message;
            fields[custom.FieldOutput] = "";
            if (system.Length > 0 && custom.FieldSystem is { } place)
            {
                fields[place] = system;
            }
        }
        else
        {
            fields["instruction"] = message;
            fields["output"] = "";
        }

        return ((DatasetRow.Answered)rows.Convert(new SourceRow(default, JsonSerializer.SerializeToElement(fields)))).Prompt;
    }
}
