using LoraTrainer.Data.ChatTemplates;

namespace LoraTrainer.Training.Config;

/// <summary>The names that <c>chat_template</c> takes, as axolotl's does.</summary>
internal static class ChatTemplates
{
    public const string OfModel = "tokenizer_default";
    public const string OfModelOr = OfModel + "_fallback_";
    public const string Own = "jinja";

    public static IReadOnlyList<string> BuiltIn => ChatTemplate.BuiltInNames;

    public static bool IsName(string value) => value is OfModel or Own || BuiltIn.Contains(Fallback(value) ?? value);

    /// <summary>The template that is used where the model has none; null where none is named.</summary>
    public static string? Fallback(string value) => value.StartsWith(OfModelOr, StringComparison.Ordinal) ? value[OfModelOr.Length..] : null;
}
