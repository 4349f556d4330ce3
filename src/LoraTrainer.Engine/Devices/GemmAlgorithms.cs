using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Text;
using LoraTrainer.Engine.Native.Cuda;

namespace LoraTrainer.Engine.Devices;

/// <summary>What decides which algorithm a matrix product may use. As text it is the key of a stored algorithm.</summary>
internal readonly record struct GemmKey(
    long M, long N, long K, bool TransposeA, bool TransposeB, bool OutputIsBf16, long LeadingA, long LeadingB, long LeadingC, byte AlignmentA, byte AlignmentB, byte AlignmentC, bool BetaIsZero, long WorkspaceBytes)
{
    public override string ToString() => string.Create(CultureInfo.InvariantCulture,
        $"{M}x{N}x{K}{(TransposeA ? "T" : "N")}{(TransposeB ? "T" : "N")}:{(OutputIsBf16 ? "bf16" : "f32")}:{LeadingA},{LeadingB},{LeadingC}:{AlignmentA},{AlignmentB},{AlignmentC}:{(BetaIsZero ? "=" : "+")}:{WorkspaceBytes}");
}

/// <summary>
/// The algorithms that were chosen for the matrix products of a run. A choice decides the order of additions and so the last bits of results;
/// checkpoints keep the table, and a resumed run on the same kind of card with the same library uses it instead of choosing again.
/// </summary>
internal sealed class GemmAlgorithms(string libraryVersion, string deviceName)
{
    private const string Title = "gemm-algorithms 1";

    private readonly SortedDictionary<string, MatmulAlgorithm> table = new(StringComparer.Ordinal);

    public int Count => table.Count;

    public bool TryGet(in GemmKey key, out MatmulAlgorithm algorithm) => table.TryGetValue(key.ToString(), out algorithm);

    public void Add(in GemmKey key, in MatmulAlgorithm algorithm) => table[key.ToString()] = algorithm;

    /// <summary>The table as text: a title, the library's version, the device's name, then a line "key hex" for each entry, sorted. Equal tables give equal bytes.</summary>
    public byte[] Export()
    {
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"{Title}\ncublasLt {libraryVersion}\ndevice {deviceName}\n");
        foreach ((string key, MatmulAlgorithm algorithm) in table)
        {
            text.Append(key).Append(' ').Append(Convert.ToHexStringLower(algorithm)).Append('\n');
        }

        return Encoding.UTF8.GetBytes(text.ToString());
    }

    /// <summary>
    /// Takes over what another run exported. Refused as a whole, with a reason, where library or device are others: their algorithms mean nothing
    /// here. An entry that is known here already stays as it is: products may have used it.
    /// </summary>
    /// <exception cref="FormatException">The bytes are not an exported table.</exception>
    public bool TryImport(ReadOnlySpan<byte> exported, [NotNullWhen(false)] out string? reason)
    {
        string[] lines = Encoding.UTF8.GetString(exported).Split('\n');
        if (lines.Length < 4 || lines[0] != Title || !lines[1].StartsWith("cublasLt ", StringComparison.Ordinal) || !lines[2].StartsWith("device ", StringComparison.Ordinal) || lines[^1].Length > 0)
        {
            throw new FormatException($"This is not a table of matrix product algorithms: it should begin with \"{Title}\", then library and device, and end with a line break.");
        }

        string library = lines[1]["cublasLt ".Length..], device = lines[2]["device ".Length..];
        if (library != libraryVersion || device != deviceName)
        {
            reason = $"the algorithms of the matrix products were chosen for cuBLASLt {library} on {device}; here is {libraryVersion} on {deviceName}, so they are chosen anew";
            return false;
        }

        var read = new List<(string Key, MatmulAlgorithm Algorithm)>(lines.Length - 4);
        foreach (string line in lines[3..^1])
        {
            int space = line.IndexOf(' ', StringComparison.Ordinal);
            MatmulAlgorithm algorithm = default;
            if (space <= 0 || Convert.FromHexString(line.AsSpan(space + 1), algorithm, out int consumed, out int written) != System.Buffers.OperationStatus.Done
                || written != MatmulAlgorithm.SizeBytes || consumed != line.Length - space - 1)
            {
                throw new FormatException($"\"{line}\" is not an entry of a table of matrix product algorithms: a key, a space and {2 * MatmulAlgorithm.SizeBytes} hexadecimal digits.");
            }

            read.Add((line[..space], algorithm));
        }

        foreach ((string key, MatmulAlgorithm algorithm) in read)
        {
            table.TryAdd(key, algorithm);
        }

        reason = null;
        return true;
    }
}
