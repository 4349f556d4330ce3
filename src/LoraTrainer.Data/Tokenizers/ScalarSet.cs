using LoraTrainer.Data.Tokenizers.Unicode;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>A set of Unicode scalars as a character class of a regular expression names it: ranges, categories, white space, word characters, negated or not.</summary>
internal sealed class ScalarSet
{
    private readonly List<(int First, int Last)> ranges = [];
    private uint categories;
    private bool whiteSpace, notWhiteSpace, word, notWord, negated;
    private ulong asciiLow, asciiHigh;

    public void AddRange(int first, int last) => ranges.Add((first, last));

    /// <summary>Adds a letter and, for ASCII letters, all that simple case folding makes equal to it (U+017F is an s, U+212A a k).</summary>
    public void AddIgnoringCase(int scalar)
    {
        AddRange(scalar, scalar);
        if (scalar < 128 && char.IsAsciiLetter((char)scalar))
        {
            AddRange(scalar ^ 0x20, scalar ^ 0x20);
            switch (scalar | 0x20)
            {
                case 's':
                    AddRange(0x17F, 0x17F);
                    break;
                case 'k':
                    AddRange(0x212A, 0x212A);
                    break;
            }
        }
    }

    public void AddCategories(uint mask, bool complement) => categories |= complement ? ~mask & 0x3FFFFFFF : mask;

    public void AddWhiteSpace(bool complement)
    {
        whiteSpace |= !complement;
        notWhiteSpace |= complement;
    }

    public void AddWord(bool complement)
    {
        word |= !complement;
        notWord |= complement;
    }

    /// <summary>Ends the building of the set.</summary>
    public ScalarSet Freeze(bool negate = false)
    {
        negated = negate;
        for (int c = 0; c < 128; c++)
        {
            if (Compute(c))
            {
                if (c < 64)
                {
                    asciiLow |= 1UL << c;
                }
                else
                {
                    asciiHigh |= 1UL << (c - 64);
                }
            }
        }

        return this;
    }

    public ulong AsciiLow => asciiLow;

    public ulong AsciiHigh => asciiHigh;

    public bool Contains(int scalar)
        => scalar < 64 ? (asciiLow >> scalar & 1) != 0
            : scalar < 128 ? (asciiHigh >> (scalar - 64) & 1) != 0
            : Compute(scalar);

    private bool Compute(int scalar)
    {
        bool contained = UnicodeTables.IsInCategories(scalar, categories);
        if (!contained && (whiteSpace || notWhiteSpace))
        {
            contained = UnicodeTables.IsWhiteSpace(scalar) ? whiteSpace : notWhiteSpace;
        }

        if (!contained && (word || notWord))
        {
            contained = UnicodeTables.IsWord(scalar) ? word : notWord;
        }

        for (int i = 0; !contained && i < ranges.Count; i++)
        {
            contained = scalar >= ranges[i].First && scalar <= ranges[i].Last;
        }

        return contained != negated;
    }
}
