using System.Buffers.Binary;
using System.Text;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// SentencePiece's precompiled map of characters: a double-array trie over UTF-8 whose leaves are places in a block of zero-terminated texts. Layout:
/// u32 size of the trie in bytes, the trie in u32 units, the texts; all little-endian. Its content is not trusted: every index is checked where it is used.
/// </summary>
internal sealed class CharacterMap
{
    /// <summary>No character's normal form is longer by far; a longer one would let a small file make a large text.</summary>
    private const int LongestReplacement = 256;

    private readonly uint[] units;
    private readonly byte[] texts;

    private CharacterMap(uint[] units, byte[] texts)
    {
        this.units = units;
        this.texts = texts;
    }

    /// <exception cref="FormatException">The sizes do not fit; the message says how.</exception>
    public static CharacterMap Parse(ReadOnlySpan<byte> data)
    {
        if (data.Length < 4)
        {
            throw new FormatException($"the character map has {data.Length} bytes; expected at least 4");
        }

        uint size = BinaryPrimitives.ReadUInt32LittleEndian(data);
        if (size % 4 != 0 || size == 0 || size > data.Length - 4)
        {
            throw new FormatException($"the character map's trie has {size} bytes; expected a multiple of 4 from 4 to {data.Length - 4}");
        }

        var units = new uint[size / 4];
        for (int i = 0; i < units.Length; i++)
        {
            units[i] = BinaryPrimitives.ReadUInt32LittleEndian(data[(4 + (4 * i))..]);
        }

        return new CharacterMap(units, data[(4 + (int)size)..].ToArray());
    }

    /// <summary>The longest entry that <paramref name="text"/> begins with.</summary>
    /// <param name="text">Without lone surrogates.</param>
    /// <param name="length">Its length in <paramref name="text"/>.</param>
    /// <param name="replacement">What it becomes, in UTF-8.</param>
    public bool Longest(ReadOnlySpan<char> text, out int length, out ReadOnlySpan<byte> replacement) => Find(text, longest: true, out length, out replacement);

    /// <summary>The shortest such entry.</summary>
    public bool Shortest(ReadOnlySpan<char> text, out int length, out ReadOnlySpan<byte> replacement) => Find(text, longest: false, out length, out replacement);

    private bool Find(ReadOnlySpan<char> text, bool longest, out int length, out ReadOnlySpan<byte> replacement)
    {
        int found = -1;
        length = 0;
        Span<byte> bytes = stackalloc byte[4];
        uint at = OffsetOf(units[0]);
        for (int i = 0; i < text.Length;)
        {
            Rune.DecodeFromUtf16(text[i..], out Rune rune, out int consumed);
            int byteCount = rune.EncodeToUtf8(bytes);
            uint unit = 0;
            foreach (byte b in bytes[..byteCount])
            {
                at ^= b;
                if (at >= (uint)units.Length || ((unit = units[at]) & 0x800000FF) != b)
                {
                    goto done;
                }

                at ^= OffsetOf(unit);
            }

            i += consumed;
            if ((unit >> 8 & 1) != 0)
            {
                if (at >= (uint)units.Length)
                {
                    break;
                }

                (found, length) = ((int)(units[at] & 0x7FFFFFFF), i);
                if (!longest)
                {
                    break;
                }
            }
        }

    done:
        replacement = found >= 0 ? TextAt(found) : default;
        return found >= 0;
    }

    private static uint OffsetOf(uint unit) => (unit >> 10) << (int)((unit & 0x200) >> 6);

    private ReadOnlySpan<byte> TextAt(int place)
    {
        int length = place < texts.Length ? texts.AsSpan(place).IndexOf((byte)0) : -1;
        return length is >= 0 and <= LongestReplacement ? texts.AsSpan(place, length)
            : throw new FormatException($"the character map is damaged: an entry points to byte {place} of its texts ({texts.Length} bytes), where no text of at most {LongestReplacement} bytes is");
    }
}
