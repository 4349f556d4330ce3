using System.Globalization;
using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Models.Formats;

/// <summary>A tensor that is to be written, and who gives its bytes.</summary>
/// <param name="Name">As in the weight files.</param>
/// <param name="Shape">Matrices are (out, in).</param>
/// <param name="Bytes">Asked when the tensor's turn comes, from its first byte to its last.</param>
public readonly record struct WrittenTensor(string Name, long[] Shape, SafetensorsBytes Bytes);

/// <summary>
/// Writes the weights of a model as transformers does: <c>model.safetensors</c>, or, where they are larger than one file may be,
/// <c>model-00001-of-0000N.safetensors</c> and the index that says which tensor is where.
/// </summary>
public static class ModelFolderWriter
{
    /// <param name="folder">Exists.</param>
    /// <param name="tensors">In the order in which they fill the files.</param>
    /// <param name="dtype">Of all of them.</param>
    /// <param name="largestFileBytes">Of the tensors of a file; a single larger tensor gets one of its own.</param>
    /// <param name="progress">Is told the fraction of the bytes that is done, after each file.</param>
    /// <returns>The names of the weight files.</returns>
    public static IReadOnlyList<string> Write(string folder, IEnumerable<WrittenTensor> tensors, SafetensorsDType dtype, long largestFileBytes, Action<double>? progress = null)
    {
        List<List<WrittenTensor>> shards = Cut(tensors, dtype, largestFileBytes);
        long total = shards.Sum(shard => shard.Sum(tensor => BytesOf(tensor, dtype)));
        var names = new List<string>();
        long done = 0;
        for (int shard = 0; shard < shards.Count; shard++)
        {
            var writer = new SafetensorsWriter();
            foreach (WrittenTensor tensor in shards[shard])
            {
                writer.Add(tensor.Name, dtype, tensor.Shape, tensor.Bytes);
            }

            names.Add(FileName(shard, shards.Count));
            writer.Save(Path.Combine(folder, names[^1]));
            done += shards[shard].Sum(tensor => BytesOf(tensor, dtype));
            progress?.Invoke((double)done / Math.Max(1, total));
        }

        if (shards.Count > 1)
        {
            WriteIndex(folder, shards, total);
        }

        return names;
    }

    private static List<List<WrittenTensor>> Cut(IEnumerable<WrittenTensor> tensors, SafetensorsDType dtype, long largestFileBytes)
    {
        var shards = new List<List<WrittenTensor>> { new() };
        long size = 0;
        foreach (WrittenTensor tensor in tensors)
        {
            long bytes = BytesOf(tensor, dtype);
            if (size > 0 && size + bytes > largestFileBytes)
            {
                shards.Add([]);
                size = 0;
            }

            shards[^1].Add(tensor);
            size += bytes;
        }

        return shards;
    }

    private static void WriteIndex(string folder, List<List<WrittenTensor>> shards, long totalBytes)
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteStartObject("metadata");
            json.WriteNumber("total_size", totalBytes);
            json.WriteEndObject();
            json.WriteStartObject("weight_map");
            foreach ((string name, int shard) in shards.SelectMany((tensors, shard) => tensors.Select(tensor => (tensor.Name, shard))).OrderBy(item => item.Name, StringComparer.Ordinal))
            {
                json.WriteString(name, FileName(shard, shards.Count));
            }

            json.WriteEndObject();
            json.WriteEndObject();
        }

        AtomicFile.WriteAllBytes(Path.Combine(folder, ModelFolder.IndexFileName), buffer.ToArray());
    }

    private static string FileName(int shard, int count) => count == 1
        ? ModelFolder.SingleFileName
        : string.Create(CultureInfo.InvariantCulture, $"model-{shard + 1:D5}-of-{count:D5}.safetensors");

    private static long BytesOf(WrittenTensor tensor, SafetensorsDType dtype) => tensor.Shape.Aggregate(1L, (product, extent) => product * extent) * dtype.Bits() / 8;
}
