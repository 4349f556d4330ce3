using System.Globalization;
using System.Text;
using System.Text.Json;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli;

/// <summary>A row of data, token by token, with what is learned of it.</summary>
internal static class RowPage
{
    private const string Green = "\u001b[32m";
    private const string Dim = "\u001b[2m";
    private const string Plain = "\u001b[0m";
    private const char Border = '│';
    private const int LabelWidth = 12;

    /// <summary>Runs of tokens with the same mask, each under its word, so that they are told apart without colours too.</summary>
    public static string Words(InspectedRow row, Tokenizer tokenizer, int? width, bool hasColour)
    {
        int[] tokens = row.Encoded.Tokens;
        bool[] supervised = row.Encoded.IsSupervised;
        var text = new StringBuilder();
        text.AppendLine(CultureInfo.InvariantCulture, $"{row.Source}: {Quantities.Count(tokens.Length, "token")}, {row.Encoded.TargetCount} of them supervised");
        if (row.Fate is not null)
        {
            text.AppendLine(row.Fate);
        }

        text.AppendLine();
        int room = Math.Max(20, (width ?? 100) - LabelWidth);
        for (int start = 0; start < tokens.Length;)
        {
            int end = start;
            while (end < tokens.Length && supervised[end] == supervised[start])
            {
                end++;
            }

            string label = supervised[start] ? "supervised" : "ignored";
            foreach (string line in Lines(tokens[start..end], tokenizer, room))
            {
                text.Append(label.PadRight(LabelWidth)).AppendLine(hasColour ? $"{(supervised[start] ? Green : Dim)}{line}{Plain}" : line);
                label = "";
            }

            start = end;
        }

        return text.ToString().TrimEnd();
    }

    public static void Write(Utf8JsonWriter json, InspectedRow row, Tokenizer tokenizer)
    {
        json.WriteStartObject();
        json.WriteString("file", row.Source.File);
        json.WriteNumber("line", row.Source.Line);
        json.WriteNumber("row", row.Source.Row);
        json.WriteString("prompt", row.Prompt);
        json.WriteString("completion", row.Completion);
        json.WriteString("fate", row.Fate);
        json.WriteNumber("supervised_tokens", row.Encoded.TargetCount);
        json.WriteStartArray("tokens");
        for (int i = 0; i < row.Encoded.Tokens.Length; i++)
        {
            json.WriteStartObject();
            json.WriteNumber("id", row.Encoded.Tokens[i]);
            json.WriteString("token", tokenizer.TokenOf(row.Encoded.Tokens[i]));
            json.WriteBoolean("supervised", row.Encoded.IsSupervised[i]);
            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WriteEndObject();
    }

    private static IEnumerable<string> Lines(int[] tokens, Tokenizer tokenizer, int room)
    {
        var line = new StringBuilder().Append(Border);
        for (int i = 0; i < tokens.Length; i++)
        {
            // Decoders drop what stands for a space at the start of a text: each token is read behind the one before it.
            string piece = Visible(TextOf(tokenizer, i == 0 ? null : tokens[i - 1], tokens[i]));
            if (line.Length > 1 && line.Length + piece.Length + 1 > room)
            {
                yield return line.ToString();
                line.Clear().Append(Border);
            }

            line.Append(piece).Append(Border);
            if (piece.EndsWith("\\n", StringComparison.Ordinal))
            {
                yield return line.ToString();
                line.Clear().Append(Border);
            }
        }

        if (line.Length > 1)
        {
            yield return line.ToString();
        }
    }

    private static string TextOf(Tokenizer tokenizer, int? before, int token)
    {
        if (before is not { } first)
        {
            return tokenizer.Decode([token], skipSpecialTokens: false);
        }

        string prefix = tokenizer.Decode([first], skipSpecialTokens: false), both = tokenizer.Decode([first, token], skipSpecialTokens: false);
        return both.StartsWith(prefix, StringComparison.Ordinal) ? both[prefix.Length..] : tokenizer.TokenOf(token) ?? "";
    }

    private static string Visible(string text) => string.Concat(text.Select(letter => letter switch
    {
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        _ when char.IsControl(letter) => string.Create(CultureInfo.InvariantCulture, $"\\x{(int)letter:x2}"),
        _ => letter.ToString(),
    }));
}
