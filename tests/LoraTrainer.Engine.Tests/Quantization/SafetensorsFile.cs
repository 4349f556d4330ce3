using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text.Json;

namespace LoraTrainer.Engine.Tests.Quantization;

/// <summary>Just enough of the safetensors format to read the reference files: no checks, that is the product's reader's work.</summary>
internal sealed class SafetensorsFile
{
    private readonly byte[] data;
    private readonly JsonDocument header;
    private readonly int start;

    public SafetensorsFile(string path)
    {
        data = File.ReadAllBytes(path);
        int length = (int)BinaryPrimitives.ReadInt64LittleEndian(data);
        header = JsonDocument.Parse(data.AsMemory(8, length));
        start = 8 + length;
    }

    public bool Has(string name) => header.RootElement.TryGetProperty(name, out _);

    public string DType(string name) => header.RootElement.GetProperty(name).GetProperty("dtype").GetString()!;

    public long[] Shape(string name) => [.. header.RootElement.GetProperty(name).GetProperty("shape").EnumerateArray().Select(extent => extent.GetInt64())];

    public byte[] Bytes(string name)
    {
        JsonElement offsets = header.RootElement.GetProperty(name).GetProperty("data_offsets");
        return data[(start + offsets[0].GetInt32())..(start + offsets[1].GetInt32())];
    }

    public float[] Floats(string name) => MemoryMarshal.Cast<byte, float>(Bytes(name)).ToArray();
}
