using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using LoraTrainer.Data.Tokenizers.Unicode;
using Xunit;

namespace LoraTrainer.Data.Tests.Tokenizers;

public class UnicodeTests
{
    /// <summary>Counts over scalars of Unicode 16.0, as the libraries' own tables have them.</summary>
    [Theory]
    [InlineData("L", 141028)]
    [InlineData("N", 1911)]
    [InlineData("M", 2501)]
    [InlineData("P", 855)]
    [InlineData("S", 8514)]
    [InlineData("Lu", 1858)]
    [InlineData("Ll", 2258)]
    [InlineData("Lt", 31)]
    [InlineData("Lm", 404)]
    [InlineData("Lo", 136477)]
    public void CategoryMask_OverAllScalars_CountsAsInUnicode16(string name, int expected)
    {
        uint mask = UnicodeTables.CategoryMask(name)!.Value;
        Assert.Equal(expected, Scalars().Count(scalar => UnicodeTables.IsInCategories(scalar, mask)));
    }

    [Fact]
    public void CategoryMask_ClassesOfOneLetter_PartitionAllScalars()
    {
        uint all = 0;
        foreach (string name in new[] { "L", "M", "N", "Z", "C", "P", "S" })
        {
            uint mask = UnicodeTables.CategoryMask(name)!.Value;
            Assert.Equal(0u, all & mask);
            all |= mask;
        }

        Assert.Equal(0x3FFFFFFFu, all);
        Assert.Null(UnicodeTables.CategoryMask("Han"));
    }

    [Fact]
    public void IsWhiteSpace_OverAllScalars_Is25CodePoints()
    {
        int[] spaces = [.. Scalars().Where(UnicodeTables.IsWhiteSpace)];
        Assert.Equal(25, spaces.Length);
        Assert.DoesNotContain(0x1C, spaces);
        Assert.Contains(0x85, spaces);
        Assert.Contains(0x3000, spaces);
    }

    [Theory]
    [InlineData('_', true)]
    [InlineData('9', true)]
    [InlineData('é', true)]
    [InlineData(0x301, true)]
    [InlineData(0x200D, true)]
    [InlineData(0x24B6, true)]
    [InlineData('-', false)]
    [InlineData(0xB2, false)]
    [InlineData(0x20, false)]
    [InlineData(0x1D7D8, true)]
    public void IsWord_Scalar_FollowsTr18(int scalar, bool expected) => Assert.Equal(expected, UnicodeTables.IsWord(scalar));

    /// <summary>Examples of TR15 and its corner cases: exclusions, singletons, blocked marks, Hangul, an astral composite.</summary>
    [Theory]
    [InlineData("e\u0301", "\u00E9", "e\u0301", "\u00E9", "e\u0301")]
    [InlineData("\u212B", "\u00C5", "A\u030A", "\u00C5", "A\u030A")]
    [InlineData("\uFB01", "\uFB01", "\uFB01", "fi", "fi")]
    [InlineData("\u1E9B\u0323", "\u1E9B\u0323", "\u017F\u0323\u0307", "\u1E69", "s\u0323\u0307")]
    [InlineData("\u0958", "\u0915\u093C", "\u0915\u093C", "\u0915\u093C", "\u0915\u093C")]
    [InlineData("q\u0307\u0323", "q\u0323\u0307", "q\u0323\u0307", "q\u0323\u0307", "q\u0323\u0307")]
    [InlineData("\u1112\u1161\u11AB", "\uD55C", "\u1112\u1161\u11AB", "\uD55C", "\u1112\u1161\u11AB")]
    [InlineData("\uD55C", "\uD55C", "\u1112\u1161\u11AB", "\uD55C", "\u1112\u1161\u11AB")]
    [InlineData("\uAC00\u11A8", "\uAC01", "\u1100\u1161\u11A8", "\uAC01", "\u1100\u1161\u11A8")]
    [InlineData("\U00011099\U000110BA", "\U0001109A", "\U00011099\U000110BA", "\U0001109A", "\U00011099\U000110BA")]
    [InlineData("\u0344", "\u0308\u0301", "\u0308\u0301", "\u0308\u0301", "\u0308\u0301")]
    [InlineData("a\u0315\u0300\u05AE\u0300b", "\u00E0\u05AE\u0300\u0315b", "a\u05AE\u0300\u0300\u0315b", "\u00E0\u05AE\u0300\u0315b", "a\u05AE\u0300\u0300\u0315b")]
    [InlineData("1\uFF0F\u00BD", "1\uFF0F\u00BD", "1\uFF0F\u00BD", "1/1\u20442", "1/1\u20442")]
    [InlineData("plain", "plain", "plain", "plain", "plain")]
    public void Normalize_Example_GivesAllFourForms(string text, string c, string d, string kc, string kd)
    {
        Assert.Equal(c, UnicodeNormalization.Normalize(text, NormalForm.C));
        Assert.Equal(d, UnicodeNormalization.Normalize(text, NormalForm.D));
        Assert.Equal(kc, UnicodeNormalization.Normalize(text, NormalForm.KC));
        Assert.Equal(kd, UnicodeNormalization.Normalize(text, NormalForm.KD));
    }

    [Fact]
    public void Normalize_EveryScalar_IsStableUnderItself()
    {
        int changed = 0;
        foreach (int scalar in Scalars())
        {
            string text = new Rune(scalar).ToString();
            string decomposed = UnicodeNormalization.Normalize(text, NormalForm.D);
            string composed = UnicodeNormalization.Normalize(text, NormalForm.C);
            changed += decomposed == text ? 0 : 1;
            Assert.Equal(composed, UnicodeNormalization.Normalize(decomposed, NormalForm.C));
            Assert.Equal(decomposed, UnicodeNormalization.Normalize(composed, NormalForm.D));
        }

        // 2061 characters with a canonical mapping and 11172 Hangul syllables in Unicode 14.
        Assert.Equal(2061 + 11172, changed);
    }

    /// <summary>Why the tables are embedded: under the settings this program is published with, the platform leaves text as it is.</summary>
    [Fact]
    public void StringNormalize_UnderInvariantGlobalization_CannotBeUsed()
    {
        Assert.Equal(CultureInfo.InvariantCulture, CultureInfo.CurrentCulture);
        Assert.Equal("e\u0301", "e\u0301".Normalize(NormalizationForm.FormC));
    }

    /// <summary>SHA-256 of the UTF-8 of every scalar twice with two marks between, normalized by Python 3.11's unicodedata (Unicode 14.0).</summary>
    [Theory]
    [InlineData("C", "131ec5a3802939db37536e2bba5b732e65b9ff287ddc403bd42cdf2aa33b1c4e")]
    [InlineData("D", "717c036218e2afb6dee3c3a19f6100014cce531e06a81751cd8bafe1b0bca219")]
    [InlineData("KC", "cd1d1ba65de75f50f2ea7a909b65e6559ac42e9dab8d06a70529290af3f5efdc")]
    [InlineData("KD", "7194df90a7978c37eb11329f31ecb9b65f9f31dc3051a8c15a0fa2b4b2f989fc")]
    public void Normalize_EveryScalarWithMarks_EqualsPythons(string form, string expected)
    {
        var text = new StringBuilder();
        foreach (int scalar in Scalars())
        {
            string one = new Rune(scalar).ToString();
            text.Append(one).Append("\u0301\u0323").Append(one);
        }

        string normalized = UnicodeNormalization.Normalize(text.ToString(), Enum.Parse<NormalForm>(form));
        Assert.Equal(expected, Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(normalized))));
    }

    /// <summary>Not an InlineData theory: attributes are stored as UTF-8, which has no lone surrogates.</summary>
    [Fact]
    public void ReplaceLoneSurrogates_Text_KeepsPairs()
    {
        foreach ((string text, string expected, bool lone) in new[]
        {
            ("a\uD83D\uDE00b", "a\uD83D\uDE00b", false), ("a\uD83Db", "a\uFFFDb", true), ("\uDE00", "\uFFFD", true), ("\uDE00\uD83D", "\uFFFD\uFFFD", true),
        })
        {
            Assert.Equal(lone, UnicodeTables.HasLoneSurrogate(text));
            Assert.Equal(expected, UnicodeTables.ReplaceLoneSurrogates(text));
        }
    }

    private static IEnumerable<int> Scalars() => Enumerable.Range(0, 0x110000).Where(Rune.IsValid);
}
