namespace LoraTrainer.Data.Datasets;

/// <summary>The bytes of a stream from a place on, as many as were asked for. It needs memory for those only.</summary>
internal sealed class ByteWindow(Stream stream)
{
    /// <summary>The most that one row may have. Longer ones are no data, and would let a small compressed file fill the memory.</summary>
    public const int MostRowBytes = 64 << 20;

    public const string TooLong = "longer than 64 MiB, which is no row";

    private static readonly byte[] ByteOrderMark = [0xEF, 0xBB, 0xBF];

    private byte[] buffer = new byte[1 << 16];
    private int start;
    private int end;
    private bool ended;

    public int Length => end - start;

    public ReadOnlySpan<byte> Span => buffer.AsSpan(start, end - start);

    /// <summary>Valid until the next call of <see cref="More"/>.</summary>
    public ReadOnlyMemory<byte> Memory(int offset, int length) => buffer.AsMemory(start + offset, length);

    /// <summary>Reads on behind what is there; false at the end of the stream.</summary>
    public bool More()
    {
        if (ended)
        {
            return false;
        }

        if (end == buffer.Length)
        {
            if (start > 0)
            {
                buffer.AsSpan(start, end - start).CopyTo(buffer);
                end -= start;
                start = 0;
            }
            else
            {
                Array.Resize(ref buffer, checked(2 * buffer.Length));
            }
        }

        int read = stream.Read(buffer, end, buffer.Length - end);
        ended = read == 0;
        end += read;
        return !ended;
    }

    /// <summary>Reads on until there are <paramref name="count"/> bytes, or all that there are.</summary>
    public void Ensure(int count)
    {
        while (Length < count && More())
        {
        }
    }

    public void Consume(int count) => start += count;

    /// <summary>At the start of a file.</summary>
    public void SkipByteOrderMark()
    {
        Ensure(ByteOrderMark.Length);
        if (Span.StartsWith(ByteOrderMark))
        {
            Consume(ByteOrderMark.Length);
        }
    }
}
