using System.Text.RegularExpressions;
using LoraTrainer.Data.Tokenizers;
using Xunit;

namespace LoraTrainer.Data.Tests.Tokenizers;

public class SplitPatternTests
{
    public const string Llama3 = @"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    public static TheoryData<string> Patterns =>
    [
        Llama3,
        @"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        @"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        @"[^a-f]{2,3}x|a+b?|(?:ab|a)c|\S",
        @"a++b|\w+(?=\d)|.",
    ];

    /// <summary>On basic-plane text the platform's engine is an independent implementation of the same rules (old characters have the same categories).</summary>
    [Theory]
    [MemberData(nameof(Patterns))]
    public void Find_RandomBasicPlaneText_EqualsThePlatformsEngine(string pattern)
    {
        SplitPattern ours = SplitPattern.Parse(pattern);
        // Atomic group: the platform has no possessive quantifiers.
        var platform = new Regex(pattern.Replace("a++", "(?>a+)", StringComparison.Ordinal), RegexOptions.CultureInvariant);
        var scratch = new SplitPattern.Scratch();
        var random = new Random(7);
        const string alphabet = "aabcfxSsTtlLmMdDrReEvV''  \n\r\t19\u00B2é中Ä.,/!-_\u0301\u3000";
        int matches = 0;
        for (int round = 0; round < 3000; round++)
        {
            string text = new([.. Enumerable.Range(0, random.Next(1, 30)).Select(_ => alphabet[random.Next(alphabet.Length)])]);
            int at = 0;
            foreach (Match expected in platform.Matches(text))
            {
                Assert.True(ours.Find(text, at, scratch, out int start, out int end), text);
                Assert.Equal((expected.Index, expected.Index + expected.Length), (start, end));
                at = end;
                matches++;
            }

            Assert.False(ours.Find(text, at, scratch, out _, out _));
        }

        Assert.True(matches > 3000);
    }

    [Theory]
    [InlineData("'\u017Fa", "'\u017F|a")]
    [InlineData("\U0001D400\U00020000x", "\U0001D400\U00020000x")]
    [InlineData("\U0001D7D81", "\U0001D7D81")]
    [InlineData("a  \U00020000", "a| | \U00020000")]
    [InlineData("   \n\n  x", "   \n\n| | x")]
    [InlineData("\U0001F600\U0001F600a", "\U0001F600\U0001F600|a")]
    [InlineData("\U0001F600a", "\U0001F600a")]
    public void Llama3_AstralAndFoldedText_SplitsByScalars(string text, string expected)
    {
        SplitPattern pattern = SplitPattern.Parse(Llama3);
        var scratch = new SplitPattern.Scratch();
        var parts = new List<string>();
        for (int at = 0; pattern.Find(text, at, scratch, out int start, out int end); at = end)
        {
            parts.Add(text[start..end]);
        }

        Assert.Equal(expected, string.Join('|', parts));
    }

    [Theory]
    [InlineData(@"\s+$", "a  \nb ", "  | ")]
    [InlineData(@"^b", "b\nbb", "b|b")]
    [InlineData(@"\w++\d|\S", "a1", "a|1")]
    [InlineData(@"\w+\d|\S", "a1", "a1")]
    public void Find_LineEndsAndPossessive_AreRubys(string pattern, string text, string expected)
    {
        SplitPattern parsed = SplitPattern.Parse(pattern);
        var scratch = new SplitPattern.Scratch();
        var parts = new List<string>();
        for (int at = 0; parsed.Find(text, at, scratch, out int start, out int end); at = end)
        {
            parts.Add(text[start..end]);
        }

        Assert.Equal(expected, string.Join('|', parts));
    }

    [Theory]
    [InlineData(@"a*", "it can match the empty text")]
    [InlineData(@"(?<=a)b", "the group '(?<' at character 0 is not supported: only (?:, (?i:, (?! and (?= are")]
    [InlineData(@"\p{Han}+", "the property \\p{Han} is not supported: only general categories are")]
    [InlineData(@"(?:ab)+", "it repeats a group other than with ?")]
    [InlineData(@"a+?", "lazy quantifiers are not supported (at character 2)")]
    [InlineData(@"[a-z&&[^b]]", "nested classes and intersections are not supported (at character 4)")]
    [InlineData(@"[ab", "'[' at character 0 is not closed")]
    [InlineData(@"(ab", "'(' at character 0 is not closed")]
    [InlineData(@"ab)", "there is a ')' without '(' at character 2")]
    [InlineData(@"\bx", "the escape \\b is not supported (at character 0)")]
    [InlineData(@"(?i:é)", "ignoring the case of other than ASCII letters is not supported (at character 5)")]
    [InlineData(@"a{x}", "'{' at character 1 does not begin a count like {1,3}")]
    [InlineData(@"+a", "the quantifier at character 0 has nothing to repeat")]
    [InlineData("a\\", "it ends in a backslash")]
    public void Parse_Unsupported_IsRefusedByName(string pattern, string message)
        => Assert.Equal(message, Assert.Throws<FormatException>(() => SplitPattern.Parse(pattern)).Message);
}
