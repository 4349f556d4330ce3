namespace LoraTrainer.Data.Datasets;

/// <summary>The bytes of a stream from a place on, as many as were asked for. It needs memory for those only.</summary>
internal sealed class ByteWindow(Stream stream)
{
    /// <summary>The most that one row may have. Longer ones are no data, and would let a small compressed file fill the memory.</summary>
    public const int MostRowBytes = 64 << 20;

    public const string TooLong = "longer than 64 MiB, which is no row";

    private const int SmallestBuffer = 1 << 16;

    private static readonly byte[] ByteOrderMark = [0xEF, 0xBB, 0xBF];

    private byte[] buffer = new byte[SmallestBuffer];
    private int start;
    private int end;
    private bool ended;

    public int Length => end - start;

    public ReadOnlySpan<byte> Span => buffer.AsSpan(start, end - start);

    /// <summary>Valid until the next call of <see cref="More"/>.</summary>
    public ReadOnlyMemory<byte> Memory(int offset, int length) => buffer.AsMemory(start + offset, length);

    /// <summary>Reads on behind what is there, which is no longer than a row may be; false at the end of the stream.</summary>
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
                Array.Resize(ref buffer, Math.Min(2 * buffer.Length, MostRowBytes + SmallestBuffer));
            }
        }

        // Full, however little the stream gives at once: who looks at all of the window again after each call then does so a few times, and not thousands.
        int room = buffer.Length - end, read = stream.ReadAtLeast(buffer.AsSpan(end), room, throwOnEndOfStream: false);
        ended = read < room;
        end += read;
        return read > 0;
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
