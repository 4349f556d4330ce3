using System.CommandLine;
using System.CommandLine.Completions;
using System.CommandLine.Parsing;
using System.Globalization;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Cli;

/// <summary>What the parser finds wrong with an option or an argument, in the words of this program: which one, what it got, and what it takes.</summary>
internal static class WrongCommandLine
{
    /// <summary>An option of a few words; another one is refused in the sentence that all such options have.</summary>
    public static Option<string> OneOf(this Option<string> option, params string[] words)
    {
        option.CompletionSources.Add(words);
        option.Validators.Add(result =>
        {
            if (result.Tokens is [{ Value: var word }] && !words.Contains(word, StringComparer.Ordinal))
            {
                result.AddError(NoSuchWord(option.Name, word, words));
            }
        });
        return option;
    }

    /// <summary>That a word is none of those that an option takes.</summary>
    public static string NoSuchWord(string option, string word, IReadOnlyCollection<string> words) =>
        $"{option} must be one of {string.Join(", ", words)}, got '{word}'.{(Suggestions.Nearest(word, words) is { } near ? $" Did you mean {near}?" : "")}";

    /// <summary>The sentence for an error. What an option of words checks is a sentence already, and the parser says the rest of it well enough.</summary>
    public static string Sentence(ParseError error) => error.SymbolResult switch
    {
        ArgumentResult { Parent: OptionResult given } => OfOption(given, error.Message),
        OptionResult given => OfOption(given, error.Message),
        ArgumentResult { Parent: CommandResult verb, Argument: var argument } given when given.Tokens.Count < argument.Arity.MinimumNumberOfValues => Missing(verb.Command, argument, given.Tokens),
        _ => error.Message,
    };

    private static string OfOption(OptionResult given, string otherwise)
    {
        Option option = given.Option;
        return given.Implicit && option.Required ? $"{option.Name} must be given. {Takes(option)}"
            : given.Tokens.Count == 0 ? $"{option.Name} is given without a value. {Takes(option)}"
            : given.IdentifierTokenCount > 1 && option.Arity.MaximumNumberOfValues == 1 ? $"{option.Name} is given {given.IdentifierTokenCount} times. Keep one."
            : Kind(option) is { } kind && given.Tokens is [{ Value: var text }] ? $"{option.Name} must be {kind}, got '{text}'.{Range(option, text)}"
            : otherwise;
    }

    private static string Takes(Option option) => Kind(option) is { } kind ? $"It takes {kind}."
        : option.GetCompletions(CompletionContext.Empty).Select(item => item.Label).ToArray() is { Length: > 0 } words ? $"It takes one of {string.Join(", ", words)}."
        : option.HelpName is { } name ? $"It is written {option.Name} {name}."
        : option.Description ?? "";

    /// <summary>What an option of numbers takes; null for another option.</summary>
    private static string? Kind(Option option) => Type.GetTypeCode(Nullable.GetUnderlyingType(option.ValueType) ?? option.ValueType) switch
    {
        TypeCode.Int32 or TypeCode.Int64 => "a whole number",
        TypeCode.UInt64 => "a whole number of 0 or more",
        TypeCode.Single or TypeCode.Double or TypeCode.Decimal => "a number",
        _ => null,
    };

    /// <summary>Only for a number that is too large: to everybody else the limit would be one number more to read.</summary>
    private static string Range(Option option, string text)
    {
        if (!text.TrimStart('-').All(char.IsAsciiDigit) || text.TrimStart('-').Length < 10)
        {
            return "";
        }

        object? largest = (Nullable.GetUnderlyingType(option.ValueType) ?? option.ValueType).GetField(nameof(int.MaxValue))?.GetValue(null);
        return string.Create(CultureInfo.InvariantCulture, $" The largest is {largest}.");
    }

    private static string Missing(Command verb, Argument argument, IReadOnlyList<Token> tokens)
    {
        string name = argument.HelpName ?? argument.Name;
        string got = tokens.Count > 0 ? $", got {string.Join(' ', tokens.Select(token => token.Value))} alone" : "";
        return argument.Description is { Length: > 0 } about ? $"{verb.Name} needs {name}{got}: {char.ToLowerInvariant(about[0])}{about[1..]}" : $"{verb.Name} needs {name}{got}.";
    }
}
