namespace LoraTrainer.Models.Formats;

/// <summary>A file of tensors that are read in pieces; opening it has checked what it says about them.</summary>
public interface IWeightFile : IDisposable
{
    string Path { get; }

    /// <summary>All tensors.</summary>
    IReadOnlyList<SafetensorsEntry> Entries { get; }

    /// <summary>The tensor of that name, or null.</summary>
    SafetensorsEntry? Find(string name);

    /// <summary>
    /// Reads <paramref name="destination"/>.Length bytes of the tensor, in C order, from its byte <paramref name="offsetInTensor"/> on; both are multiples of an
    /// element. Safe to call from several threads.
    /// </summary>
    /// <exception cref="FormatException">the file has become shorter since it was opened</exception>
    void ReadInto(SafetensorsEntry entry, long offsetInTensor, Span<byte> destination);
}
