using System.Globalization;
using System.Text.Json;

namespace LoraTrainer.Storage;

/// <summary>What is wrong with a JSON text, and what is found in one, in words for people.</summary>
public static class JsonProblem
{
    /// <summary>Where the parser speaks of its own work, what it means for the text.</summary>
    private static readonly (string Parsers, string Ours)[] Words =
    [
        ("Expected depth to be zero at the end of the JSON payload", "it ends before its last object or list is closed"),
        ("Expected end of string, but instead reached end of data", "it ends within a text in quotes"),
        ("Expected start of a property name or value, but instead reached end of data", "it ends where a name or a value should follow"),
        ("The input does not contain any JSON tokens", "it is empty"),
    ];

    /// <summary>The parser's reason and the place: "'x' is an invalid end of a number, at byte 7 of line 2".</summary>
    /// <param name="exception">Of the parser.</param>
    /// <param name="isOneLine">The text is a single line, whose number is said elsewhere.</param>
    public static string Reason(JsonException exception, bool isOneLine = false)
    {
        // The parser puts the place behind its sentence, counted from 0.
        int place = exception.Message.IndexOf(" LineNumber:", StringComparison.Ordinal);
        string sentence = (place < 0 ? exception.Message : exception.Message[..place]).TrimEnd('.', ' ');
        sentence = Words.FirstOrDefault(known => sentence.StartsWith(known.Parsers, StringComparison.Ordinal)).Ours ?? sentence;
        string at = exception.BytePositionInLine is { } position ? string.Create(CultureInfo.InvariantCulture, $", at byte {position + 1}") : "";
        string line = exception.LineNumber is { } number && !isOneLine ? string.Create(CultureInfo.InvariantCulture, $" of line {number + 1}") : "";
        return sentence + at + line;
    }

    /// <summary>The kind of a value: "a number".</summary>
    public static string Kind(JsonValueKind kind) => kind switch
    {
        JsonValueKind.Object => "an object",
        JsonValueKind.Array => "a list",
        JsonValueKind.String => "a text",
        JsonValueKind.Number => "a number",
        JsonValueKind.True or JsonValueKind.False => "a truth value",
        _ => "null",
    };
}
