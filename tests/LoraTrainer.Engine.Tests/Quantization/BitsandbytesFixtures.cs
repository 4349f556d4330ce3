using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Quantization;

/// <summary>The files of bitsandbytes/ among the fixtures: which are run by <see cref="BlockwiseFourBitTests"/>, <see cref="Int8QuantizerTests"/>, <see cref="DynamicMapTests"/> and <see cref="Ops.AdamW8BitTests"/>.</summary>
[Trait("Category", "Fixtures")]
public sealed class BitsandbytesFixtures(ITestOutputHelper output)
{
    /// <summary>Files of which there is one each; the tests name them.</summary>
    private static readonly string[] Single = ["adamw8bit_blockwise.json", "adamw8bit_blockwise.safetensors", "dynamic_maps.safetensors", "linear4bit_io.safetensors", "linear4bit_state_dict.safetensors"];

    public static TheoryData<string> Nf4 => CasesOf("nf4_*.safetensors");

    public static TheoryData<string> Fp4 => CasesOf("fp4_*.safetensors");

    public static TheoryData<string> Int8Rowwise => CasesOf("int8_rowwise_*.safetensors");

    /// <summary>Made by the library's CUDA kernels; always there.</summary>
    public static TheoryData<string> CudaNf4 =>
        [.. Directory.GetFiles(Fixtures.Golden("bitsandbytes_cuda"), "nf4_*.safetensors").Select(path => Path.GetFileName(path)!).Order(StringComparer.Ordinal)];

    public static TheoryData<string> Blockwise8 => CasesOf("blockwise8_*.safetensors");

    [Fact]
    public void Discovery_EveryFile_IsRun()
    {
        string[] all = [.. Directory.GetFiles(Fixtures.Require("bitsandbytes")).Select(path => Path.GetFileName(path)).Order(StringComparer.Ordinal)];
        string[] run = [.. Nf4.Concat(Fp4).Concat(Int8Rowwise).Concat(Blockwise8).Select(row => row.Data).Concat(Single)];
        output.WriteLine($"bitsandbytes run: {run.Length} of {all.Length}: {string.Join(", ", run)}");

        // A file of a kind that nobody thought of shows here.
        Assert.Equal(all, run.Order(StringComparer.Ordinal));
        Assert.Equal(all.Count(name => name.StartsWith("nf4", StringComparison.Ordinal)), Nf4.Count);
        Assert.Equal(all.Count(name => name.StartsWith("blockwise8", StringComparison.Ordinal)), Blockwise8.Count);
        Assert.Contains(Nf4, row => row.Data.StartsWith("nf4_double_", StringComparison.Ordinal));
        Assert.Contains(Nf4, row => !row.Data.StartsWith("nf4_double_", StringComparison.Ordinal));
        Assert.Contains(Fp4, row => row.Data.StartsWith("fp4_double_", StringComparison.Ordinal));
        Assert.Contains(Fp4, row => !row.Data.StartsWith("fp4_double_", StringComparison.Ordinal));
        Assert.Equal(all.Count(name => name.StartsWith("fp4", StringComparison.Ordinal)), Fp4.Count);
        Assert.Equal(all.Count(name => name.StartsWith("int8_rowwise", StringComparison.Ordinal)), Int8Rowwise.Count);
        Assert.NotEmpty(Int8Rowwise);
        Assert.NotEmpty(Blockwise8);
    }

    private static TheoryData<string> CasesOf(string pattern)
    {
        IReadOnlyList<string> files = Fixtures.Files("bitsandbytes", pattern);
        return files.Count > 0 ? [.. files] : ["(none)"];
    }
}
