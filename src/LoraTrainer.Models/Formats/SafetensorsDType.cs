namespace LoraTrainer.Models.Formats;

/// <summary>
/// The element types of the safetensors format. The order of the members is the format's own rank, by which a writer sorts:
/// larger first (huggingface/safetensors, safetensors/src/tensor.rs, enum Dtype).
/// </summary>
public enum SafetensorsDType
{
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

/// <summary>The spelling in files and the width of each <see cref="SafetensorsDType"/>.</summary>
public static class SafetensorsDTypes
{
    private static readonly (string Name, int Bits)[] Table =
    [
        ("BOOL", 8), ("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("U8", 8), ("I8", 8), ("F8_E5M2", 8), ("F8_E4M3", 8), ("F8_E8M0", 8),
        ("F8_E4M3FNUZ", 8), ("F8_E5M2FNUZ", 8), ("I16", 16), ("U16", 16), ("F16", 16), ("BF16", 16), ("I32", 32), ("U32", 32), ("F32", 32),
        ("C64", 64), ("F64", 64), ("I64", 64), ("U64", 64),
    ];

    /// <summary>All spellings, by rank.</summary>
    public static IEnumerable<string> Names => Table.Select(row => row.Name);

    /// <summary>The spelling in the file, for example BF16.</summary>
    public static string Name(this SafetensorsDType dtype) => Table[(int)dtype].Name;

    /// <summary>Bits of one element; F4 and the F6 types are packed, so only some shapes fill whole bytes.</summary>
    public static int Bits(this SafetensorsDType dtype) => Table[(int)dtype].Bits;

    public static bool TryParse(string name, out SafetensorsDType dtype)
    {
        int index = Array.FindIndex(Table, row => row.Name == name);
        dtype = (SafetensorsDType)Math.Max(index, 0);
        return index >= 0;
    }
}
