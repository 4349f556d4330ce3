using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Quantization;

/// <summary>The files of bitsandbytes/ among the fixtures: which are run, by <see cref="Nf4Tests"/> and <see cref="DynamicMapTests"/>, and which are to come.</summary>
[Trait("Category", "Fixtures")]
public sealed class BitsandbytesFixtures(ITestOutputHelper output)
{
    /// <summary>Kinds that the engine does not have yet, by the beginning of the file's name. Enabling one is deleting its line.</summary>
    private static readonly string[] NotYetSupported = ["fp4_", "int8_rowwise_", "adamw8bit_blockwise"];

    /// <summary>Files of which there is one each; the tests name them.</summary>
    private static readonly string[] Single = ["dynamic_maps.safetensors", "linear4bit_io.safetensors", "linear4bit_state_dict.safetensors"];

    public static TheoryData<string> Nf4 => CasesOf("nf4_*.safetensors");

    /// <summary>Made by the library's CUDA kernels; always there.</summary>
    public static TheoryData<string> CudaNf4 =>
        [.. Directory.GetFiles(Fixtures.Golden("bitsandbytes_cuda"), "nf4_*.safetensors").Select(path => Path.GetFileName(path)!).Order(StringComparer.Ordinal)];

    public static TheoryData<string> Blockwise8 => CasesOf("blockwise8_*.safetensors");

    [Fact]
    public void Discovery_EveryFile_IsRunOrNamed()
    {
        string[] all = [.. Directory.GetFiles(Fixtures.Require("bitsandbytes")).Select(path => Path.GetFileName(path)).Order(StringComparer.Ordinal)];
        string[] run = [.. Nf4.Concat(Blockwise8).Select(row => row.Data).Concat(Single)];
        string[] left = [.. all.Where(name => NotYetSupported.Any(kind => name.StartsWith(kind, StringComparison.Ordinal)))];
        output.WriteLine($"bitsandbytes run: {run.Length} of {all.Length}: {string.Join(", ", run)}");
        output.WriteLine($"bitsandbytes not yet supported ({left.Length}): {string.Join(", ", left)}");

        // A file of a kind that nobody thought of is neither, and shows here.
        Assert.Equal(all, run.Concat(left).Order(StringComparer.Ordinal));
        Assert.Equal(all.Count(name => name.StartsWith("nf4", StringComparison.Ordinal)), Nf4.Count);
        Assert.Equal(all.Count(name => name.StartsWith("blockwise8", StringComparison.Ordinal)), Blockwise8.Count);
        Assert.Contains(Nf4, row => row.Data.StartsWith("nf4_double_", StringComparison.Ordinal));
        Assert.Contains(Nf4, row => !row.Data.StartsWith("nf4_double_", StringComparison.Ordinal));
        Assert.NotEmpty(Blockwise8);
    }

    private static TheoryData<string> CasesOf(string pattern)
    {
        IReadOnlyList<string> files = Fixtures.Files("bitsandbytes", pattern);
        return files.Count > 0 ? [.. files] : ["(none)"];
    }
}
