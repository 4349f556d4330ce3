using LoraTrainer.Data.ChatTemplates;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Config;

/// <summary>The names that <c>chat_template</c> takes, as axolotl's does.</summary>
internal static class ChatTemplates
{
    public const string OfModel = "tokenizer_default";
    public const string OfModelOr = OfModel + "_fallback_";
    public const string Own = "jinja";

    public static IReadOnlyList<string> BuiltIn => ChatTemplate.BuiltInNames;

    public static bool IsName(string value) => value is OfModel or Own || BuiltIn.Contains(Fallback(value) ?? value);

    /// <summary>The template that a data set's conversations go through.</summary>
    /// <param name="config">Of the run.</param>
    /// <param name="given">Of the data set.</param>
    /// <returns>The template, and its name where it stands in for one that the model does not have; null otherwise.</returns>
    /// <exception cref="TrainingSetupException">There is no such template.</exception>
    public static (ChatTemplate Template, string? Fallback) Of(TrainingConfig config, ConversationOptions given)
    {
        string name = given.Template ?? config.Data.ChatTemplate;
        if (name == Own)
        {
            string jinja = (given.Template is null ? config.Data.ChatTemplateJinja : given.TemplateJinja) ?? throw new TrainingSetupException("chat_template: jinja needs chat_template_jinja, the template or a file with it.");
            return (File.Exists(jinja) ? ChatTemplate.Parse(jinja, File.ReadAllText(jinja))
                : jinja.Contains('{', StringComparison.Ordinal) ? ChatTemplate.Parse("chat_template_jinja", jinja)
                : throw new TrainingSetupException($"chat_template_jinja: there is no file {jinja}, and a template it is not."), null);
        }

        string? fallback = Fallback(name);
        if (name != OfModel && fallback is null)
        {
            return (ChatTemplate.BuiltIn(name), null);
        }

        ChatTemplate? own = Directory.Exists(config.BaseFolder) ? ChatTemplate.OfModel(config.BaseFolder) : null;
        return own is not null ? (own, null)
            : fallback is not null ? (ChatTemplate.BuiltIn(fallback), fallback)
            : throw new TrainingSetupException($"{config.BaseModel} has no chat template, and chat_template is {name}. Name one, for example chat_template: chatml.");
    }

    /// <summary>The template that is used where the model has none; null where none is named.</summary>
    public static string? Fallback(string value) => value.StartsWith(OfModelOr, StringComparison.Ordinal) ? value[OfModelOr.Length..] : null;
}
