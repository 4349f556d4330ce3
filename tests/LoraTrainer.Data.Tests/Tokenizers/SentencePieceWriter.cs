using System.Buffers.Binary;
using System.Text;
using LoraTrainer.Data.Tokenizers;

namespace LoraTrainer.Data.Tests.Tokenizers;

/// <summary>Makes the bytes of a SentencePiece model.</summary>
internal sealed class SentencePieceWriter
{
    private readonly List<byte> bytes = [];

    public byte[] ToArray() => [.. bytes];

    public SentencePieceWriter Piece(string text, float score = 0, PieceKind kind = PieceKind.Normal)
        => Message(1, piece => piece.Text(1, text).Single(2, score).Number(3, (int)kind));

    /// <summary>The 256 bytes.</summary>
    public SentencePieceWriter Bytes()
    {
        for (int b = 0; b < 256; b++)
        {
            Piece($"<0x{b:X2}>", 0, PieceKind.Byte);
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

    public SentencePieceWriter Single(int field, float value)
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
