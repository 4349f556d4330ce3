using System.Runtime.InteropServices;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.TestSupport;

/// <summary>The tensors of one fixture file as arrays.</summary>
public sealed class FixtureTensors
{
    private readonly Dictionary<string, (long[] Shape, Array Values)> tensors = new(StringComparer.Ordinal);

    public FixtureTensors(string path)
    {
        using SafetensorsFile file = SafetensorsFile.Open(path);
        foreach (SafetensorsEntry entry in file.Entries)
        {
            byte[] bytes = new byte[entry.ByteLength];
            file.ReadInto(entry, 0, bytes);
            tensors.Add(entry.Name, (entry.Shape.ToArray(), entry.DType switch
            {
                SafetensorsDType.F32 => MemoryMarshal.Cast<byte, float>(bytes).ToArray(),
                SafetensorsDType.I64 => Array.ConvertAll(MemoryMarshal.Cast<byte, long>(bytes).ToArray(), value => checked((int)value)),
                _ => bytes,
            }));
        }
    }

    public IEnumerable<string> Names => tensors.Keys;

    public float[] Floats(string name) => (float[])tensors[name].Values;

    public int[] Integers(string name) => (int[])tensors[name].Values;

    public long[] Shape(string name) => tensors[name].Shape;

    public bool Has(string name) => tensors.ContainsKey(name);
}
