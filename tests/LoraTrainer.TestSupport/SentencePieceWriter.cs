using System.Buffers.Binary;
using System.Globalization;
using System.Text;

namespace LoraTrainer.TestSupport;

/// <summary>Makes the bytes of a SentencePiece model.</summary>
public sealed class SentencePieceWriter
{
    private readonly List<byte> bytes = [];

    public byte[] ToArray() => [.. bytes];

    /// <summary>A piece.</summary>
    /// <param name="text">Its text, a space written as U+2581.</param>
    /// <param name="score">Of two, the one with the higher score goes first.</param>
    /// <param name="kind">1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.</param>
    public SentencePieceWriter Piece(string text, float score = 0, int kind = 1)
        => Message(1, piece => piece.Text(1, text).Real(2, score).Number(3, kind));

    /// <summary>The 256 bytes.</summary>
    public SentencePieceWriter Bytes()
    {
        for (int b = 0; b < 256; b++)
        {
            Piece(string.Create(CultureInfo.InvariantCulture, $"<0x{b:X2}>"), 0, kind: 6);
        }

        return this;
    }

    public SentencePieceWriter Message(int field, Action<SentencePieceWriter> fill)
    {
        var message = new SentencePieceWriter();
        fill(message);
        return Blob(field, message.ToArray());
    }

    public SentencePieceWriter Text(int field, string text) => Blob(field, Encoding.UTF8.GetBytes(text));

    public SentencePieceWriter Blob(int field, byte[] content)
    {
        Varint(((ulong)field << 3) | 2);
        Varint((ulong)content.Length);
        bytes.AddRange(content);
        return this;
    }

    public SentencePieceWriter Number(int field, long value)
    {
        Varint((ulong)field << 3);
        Varint((ulong)value);
        return this;
    }

    public SentencePieceWriter Real(int field, float value)
    {
        Varint(((ulong)field << 3) | 5);
        Span<byte> four = stackalloc byte[4];
        BinaryPrimitives.WriteSingleLittleEndian(four, value);
        bytes.AddRange(four);
        return this;
    }

    private void Varint(ulong value)
    {
        for (; value >= 0x80; value >>= 7)
        {
            bytes.Add((byte)(value | 0x80));
        }

        bytes.Add((byte)value);
    }
}
