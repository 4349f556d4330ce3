using System.Buffers.Binary;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>Reads the fields of one protobuf message, in the order of the file. Nothing is copied, and nothing outside the span is read.</summary>
internal ref struct ProtobufReader(ReadOnlySpan<byte> message)
{
    private const int LongestVarint = 10;

    private readonly ReadOnlySpan<byte> message = message;
    private int at;

    /// <summary>Where the next field begins.</summary>
    public readonly int Position => at;

    /// <summary>The number of the field read last.</summary>
    public int Field { get; private set; }

    /// <summary>Its value, where it is a varint or has four or eight bytes.</summary>
    public ulong Value { get; private set; }

    /// <summary>Its content, where it has a length.</summary>
    public ReadOnlySpan<byte> Content { get; private set; }

    private int wireType;

    /// <summary>Reads the next field; false at the end.</summary>
    /// <exception cref="FormatException">The message breaks off or is not protobuf.</exception>
    public bool Next()
    {
        if (at == message.Length)
        {
            return false;
        }

        int start = at;
        ulong key = Varint();
        if (key >> 3 is 0 or > 0x1FFFFFFF)
        {
            throw new FormatException($"no field begins at byte {start}");
        }

        (Field, wireType) = ((int)(key >> 3), (int)(key & 7));
        Content = default;
        Value = 0;
        switch (wireType)
        {
            case 0:
                Value = Varint();
                break;
            case 1:
                Value = BinaryPrimitives.ReadUInt64LittleEndian(Take(8));
                break;
            case 2:
                Content = Take(Varint());
                break;
            case 5:
                Value = BinaryPrimitives.ReadUInt32LittleEndian(Take(4));
                break;
            default:
                throw new FormatException($"field {Field} at byte {start} has the wire type {wireType}; expected 0, 1, 2 or 5");
        }

        return true;
    }

    /// <summary>The field's content as bytes.</summary>
    public readonly ReadOnlySpan<byte> Bytes() => wireType == 2 ? Content : throw Wrong("bytes");

    /// <summary>The field as text.</summary>
    /// <exception cref="FormatException">It is not valid UTF-8.</exception>
    public readonly string Text()
        => System.Text.Unicode.Utf8.IsValid(Bytes()) ? System.Text.Encoding.UTF8.GetString(Content) : throw new FormatException($"field {Field} before byte {at} is not valid UTF-8");

    /// <summary>The field as a number of 32 bits; negative ones are written with 64.</summary>
    public readonly int Int32() => wireType == 0 ? unchecked((int)(long)Value) : throw Wrong("a varint");

    public readonly bool Flag() => wireType == 0 ? Value != 0 : throw Wrong("a varint");

    /// <summary>The field as a finite number.</summary>
    public readonly float Single()
    {
        float value = wireType == 5 ? BitConverter.UInt32BitsToSingle((uint)Value) : throw Wrong("four bytes");
        return float.IsFinite(value) ? value : throw new FormatException($"field {Field} before byte {at} is not a finite number");
    }

    private readonly FormatException Wrong(string expected) => new($"field {Field} before byte {at} has the wire type {wireType}; expected {expected}");

    private ulong Varint()
    {
        int start = at;
        ulong value = 0;
        for (int i = 0; i < LongestVarint && at < message.Length; i++)
        {
            byte b = message[at++];
            value |= (ulong)(b & 0x7F) << (7 * i);
            if (b < 0x80)
            {
                return value;
            }
        }

        throw new FormatException(at == message.Length ? $"it breaks off in the number at byte {start} of {message.Length}" : $"the number at byte {start} has more than {LongestVarint} bytes");
    }

    private ReadOnlySpan<byte> Take(ulong length)
    {
        if (length > (ulong)(message.Length - at))
        {
            throw new FormatException($"field {Field} has {length} bytes from byte {at} on; only {message.Length - at} are left");
        }

        ReadOnlySpan<byte> taken = message.Slice(at, (int)length);
        at += (int)length;
        return taken;
    }
}
