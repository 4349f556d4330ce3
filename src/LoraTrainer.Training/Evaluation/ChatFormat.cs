using System.Text.Json;
using LoraTrainer.Data.ChatTemplates;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Evaluation;

/// <summary>How a message becomes the text that a model answers: as the rows of a training were made, by the same code, or by a chat template.</summary>
public sealed class ChatFormat
{
    private readonly DatasetFormat? rows;
    private readonly ChatTemplate? template;

    private ChatFormat(string name, DatasetFormat? rows, ChatTemplate? template = null)
    {
        Name = name;
        this.rows = rows;
        this.template = template;
    }

    /// <summary>The words of <see cref="Parse"/>.</summary>
    public static IReadOnlyList<string> Words { get; } = ["plain", "alpaca", "template"];

    /// <summary>For people: how messages become text.</summary>
    public string Name { get; }

    /// <summary>Whether the format has a place for a system text.</summary>
    public bool TakesSystem => template is not null || rows is DatasetFormat.Custom { FieldSystem: not null };

    /// <summary>A format by its word.</summary>
    /// <param name="word">One of <see cref="Words"/>.</param>
    /// <param name="option">Where it was written, for the sentence.</param>
    /// <param name="folders">Where a chat template is looked for, in this order.</param>
    public static ChatFormat Parse(string word, string option, params IReadOnlyList<string> folders) => word switch
    {
        "plain" => new ChatFormat("in the format plain (the text as it is)", null),
        "alpaca" => new ChatFormat("in the format alpaca (the message as the instruction)", new DatasetFormat.Alpaca()),
        "template" => OfTemplate(folders) ?? throw new TrainingSetupException($"{option} template: there is no chat template in {string.Join(" or ", folders)}."),
        _ => throw new TrainingSetupException($"{option} must be one of {string.Join(", ", Words)}, got '{word}'."),
    };

    /// <summary>As the first data set of a run has it; where its rows are not here, as a model with those files is talked to.</summary>
    /// <param name="config">Of the run.</param>
    /// <param name="folders">Where a chat template is looked for: the run's own before the base's.</param>
    public static ChatFormat OfRun(TrainingConfig config, params IReadOnlyList<string> folders)
    {
        DatasetOptions? first = config.Data.Datasets.Count > 0 ? config.Data.Datasets[0] : null;
        DatasetFormat? rows = first is null ? null : ConfiguredData.FormatOf(first) ?? Recognized(config, first);
        return rows switch
        {
            DatasetFormat.Alpaca or DatasetFormat.Custom => new ChatFormat("as the rows of the run's training", rows),
            ConversationFormat => OfTemplate(folders) ?? Parse("plain", ""),
            null when first is not null => OfModel(folders),
            _ => Parse("plain", ""),
        };
    }

    /// <summary>By the chat template that a model comes with; plain without one.</summary>
    /// <param name="folders">Where it is looked for, in this order.</param>
    public static ChatFormat OfModel(params IReadOnlyList<string> folders) => OfTemplate(folders) ?? Parse("plain", "");

    /// <summary>Tokens that end an answer besides the model's own.</summary>
    public IReadOnlyList<int> StopTokens(Tokenizer tokenizer)
    {
        if (template is null)
        {
            return [];
        }

        EncodedChat probe = new ChatEncoder(template, tokenizer).Encode(ChatMessages.Of(("user", "a"), ("assistant", "b")), new ChatEncodingOptions());
        return [.. probe.Turns.Where(turn => turn.EndOfTurn is not null).Select(turn => probe.Tokens[turn.EndOfTurn!.Value]).Where(token => tokenizer.Decode([token], skipSpecialTokens: true).Length == 0)];
    }

    /// <summary>The tokens that the model continues.</summary>
    /// <param name="tokenizer">Of the model.</param>
    /// <param name="system">The system text; empty: none, or the format's own.</param>
    /// <param name="before">What was said already.</param>
    /// <param name="message">Of the user.</param>
    /// <exception cref="TrainingSetupException">The chat template does not take these messages.</exception>
    public int[] Encode(Tokenizer tokenizer, string system, IReadOnlyList<ConversationTurn> before, string message)
    {
        if (template is null)
        {
            return [.. tokenizer.PrefixIds, .. before.SelectMany(turn => turn.Tokens), .. tokenizer.Encode(Prompt(message, system), addSpecialTokens: false)];
        }

        ChatMessages messages = system.Length > 0 ? ChatMessages.Of(("system", system)) : ChatMessages.None;
        foreach (ConversationTurn turn in before)
        {
            messages = messages.With("user", turn.Message).With("assistant", turn.Answer);
        }

        try
        {
            return new ChatEncoder(template, tokenizer).EncodePrompt(messages.With("user", message), new ChatTemplateOptions()).Tokens;
        }
        catch (ChatTemplateException exception)
        {
            throw new TrainingSetupException(exception.Message);
        }
    }

    /// <summary>The text that the model continues, where no chat template makes it.</summary>
    /// <param name="message">Of the user.</param>
    /// <param name="system">The system text; empty: none, or the format's own.</param>
    public string Prompt(string message, string system)
    {
        if (rows is null)
        {
            return message;
        }

        var fields = new Dictionary<string, string>(StringComparer.Ordinal);
        if (rows is DatasetFormat.Custom custom)
        {
            fields[custom.FieldInstruction] = message;
            fields[custom.FieldOutput] = "";
            if (system.Length > 0 && custom.FieldSystem is { } place)
            {
                fields[place] = system;
            }
        }
        else if (rows is DatasetFormat.Alpaca alpaca)
        {
            fields["instruction"] = message;
            fields[alpaca.OutputField] = "";
        }

        return ((DatasetRow.Answered)rows.Convert(new SourceRow(default, JsonSerializer.SerializeToElement(fields)))).Prompt;
    }

    private static ChatFormat? OfTemplate(IReadOnlyList<string> folders)
    {
        ChatTemplate? found = folders.Select(folder => ChatTemplate.OfModel(folder)).FirstOrDefault(template => template is not null);
        return found is null ? null : new ChatFormat($"by the chat template {found.Name}", null, found);
    }

    /// <summary>The format that the first row tells; null where there is none to ask.</summary>
    private static DatasetFormat? Recognized(TrainingConfig config, DatasetOptions dataset)
    {
        try
        {
            return ConfiguredData.SourceRows(config, dataset).Where(row => row.Fault is null).Select(row => DatasetFormat.Recognize(row)).FirstOrDefault();
        }
        catch (DatasetException)
        {
            // The data may be on another machine; talking with the model does not need it.
            return null;
        }
    }
}
