using System.Text;

namespace LoraTrainer.Data.Tests.Tokenizers;

/// <summary>Texts of everything that tokenizers treat apart: spaces and line ends in runs, letters of several scripts, marks, digits, astral characters, U+2581 left out.</summary>
internal static class RandomText
{
    private static readonly string[] Parts =
    [
        " ", "  ", "\n", "\r\n", "\t", "\u00A0", "\u3000", "a", "Zz", "the", " the", "ing", "'s", "'LL", "'\u017F", "1", "234", "\u0661", "\u00BD", ".", "...", "!?", "--", "é", "e\u0301", "ß", "Ж", "字", "日本", "가", "\u1100\u1161",
        "\uFFFD", "\u200D", "\U0001F468\u200D\U0001F469", "\U0001D49E", "\U00020000", "\U0001F980", "<s>", "</s>", "<|x|>", "<unk>", "<0x0A>", "\0", "\u0001", "\u007F", "\uFEFF", "\uE000", "\U0010FFFF",
    ];

    /// <param name="random">The choice.</param>
    /// <param name="count">How many parts.</param>
    public static string Make(Random random, int count)
    {
        var text = new StringBuilder();
        for (int i = 0; i < count; i++)
        {
            if (random.Next(8) > 0)
            {
                text.Append(Parts[random.Next(Parts.Length)]);
                continue;
            }

            int scalar = random.Next(0x110000);
            text.Append(Rune.IsValid(scalar) && scalar != 0x2581 ? new Rune(scalar).ToString() : "x");
        }

        return text.ToString();
    }
}
