using System.Globalization;
using System.Numerics;
using System.Text.Json;
using LoraTrainer.Data.ChatTemplates.Jinja;

namespace LoraTrainer.Data.ChatTemplates;

/// <summary>JSON as values of templates.</summary>
internal static class TemplateJson
{
    /// <summary>Digits of a number; no file of people has more, and a longer one would take long to read.</summary>
    private const int MostDigits = 1000;

    /// <param name="element">Any JSON.</param>
    /// <param name="source">The message that all texts in it come from, counted from 0; -1 for what belongs to none.</param>
    /// <param name="where">For errors.</param>
    /// <exception cref="ChatTemplateException">A text is not Unicode, or something is too deep or too long.</exception>
    public static object? Value(JsonElement element, int source, string where)
    {
        try
        {
            return Convert(element, source);
        }
        catch (InvalidOperationException exception)
        {
            throw new ChatTemplateException(where, "a text is not valid Unicode (a surrogate without its partner)", cause: exception);
        }
        catch (JinjaException exception)
        {
            throw new ChatTemplateException(where, exception.Message, cause: exception);
        }
    }

    private static object? Convert(JsonElement element, int source)
    {
        switch (element.ValueKind)
        {
            case JsonValueKind.Object:
                return new DictValue(element.EnumerateObject().Select(member => ((object?)Text.From(member.Name, source), Convert(member.Value, source))));
            case JsonValueKind.Array:
                return new ListValue([.. element.EnumerateArray().Select(item => Convert(item, source))]);
            case JsonValueKind.String:
                return Text.From(element.GetString()!, source);
            case JsonValueKind.Number:
                string digits = element.GetRawText();
                return digits.Length > MostDigits ? throw new JinjaException($"a number has more than {MostDigits} digits")
                    : digits.AsSpan().ContainsAny('.', 'e', 'E') ? double.Parse(digits, NumberStyles.Float, CultureInfo.InvariantCulture)
                    : BigInteger.Parse(digits, CultureInfo.InvariantCulture);
            case JsonValueKind.True or JsonValueKind.False:
                return element.ValueKind == JsonValueKind.True;
            default:
                return null;
        }
    }
}
