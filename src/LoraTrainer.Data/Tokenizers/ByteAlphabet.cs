using System.Collections.Frozen;
using System.Text;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// The byte-level alphabet of GPT-2: bytes 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF are themselves, the other 68 in ascending order are U+0100, U+0101, ...
/// </summary>
internal static class ByteAlphabet
{
    private static readonly char[] CharOfByte = MakeAlphabet();
    private static readonly FrozenDictionary<char, byte> ByteOfChar = CharOfByte.Select((c, b) => (c, b)).ToFrozenDictionary(pair => pair.c, pair => (byte)pair.b);

    public static char CharOf(byte value) => CharOfByte[value];

    /// <summary>Writes one character per UTF-8 byte of <paramref name="text"/>, which has no lone surrogates; returns how many. At most 3 per UTF-16 unit.</summary>
    public static int Map(ReadOnlySpan<char> text, Span<char> destination)
    {
        int written = 0;
        for (int i = 0; i < text.Length; i++)
        {
            int c = text[i];
            if (c < 0x80)
            {
                destination[written++] = CharOfByte[c];
            }
            else if (c < 0x800)
            {
                destination[written++] = CharOfByte[0xC0 | (c >> 6)];
                destination[written++] = CharOfByte[0x80 | (c & 0x3F)];
            }
            else if (!char.IsHighSurrogate((char)c))
            {
                destination[written++] = CharOfByte[0xE0 | (c >> 12)];
                destination[written++] = CharOfByte[0x80 | (c >> 6 & 0x3F)];
                destination[written++] = CharOfByte[0x80 | (c & 0x3F)];
            }
            else
            {
                c = char.ConvertToUtf32((char)c, text[++i]);
                destination[written++] = CharOfByte[0xF0 | (c >> 18)];
                destination[written++] = CharOfByte[0x80 | (c >> 12 & 0x3F)];
                destination[written++] = CharOfByte[0x80 | (c >> 6 & 0x3F)];
                destination[written++] = CharOfByte[0x80 | (c & 0x3F)];
            }
        }

        return written;
    }

    /// <summary>Adds the bytes a token stands for; a token with any character outside the alphabet stands for its own UTF-8.</summary>
    public static void Unmap(string token, List<byte> destination)
    {
        int before = destination.Count;
        foreach (char c in token)
        {
            if (!ByteOfChar.TryGetValue(c, out byte value))
            {
                destination.RemoveRange(before, destination.Count - before);
                destination.AddRange(Encoding.UTF8.GetBytes(token));
                return;
            }

            destination.Add(value);
        }
    }

    private static char[] MakeAlphabet()
    {
        char[] alphabet = new char[256];
        int next = 0x100;
        for (int b = 0; b < 256; b++)
        {
            alphabet[b] = b is >= 0x21 and <= 0x7E or >= 0xA1 and <= 0xAC or >= 0xAE ? (char)b : (char)next++;
        }

        return alphabet;
    }
}
