using System.Text.Json;
using System.Text.RegularExpressions;
using Xunit;

namespace LoraTrainer.Architecture.Tests;

/// <summary>docs/gpu-status.md says of each kernel what is true of it, and never more.</summary>
public sealed partial class GpuStatusTests
{
    private const string Page = "docs/gpu-status.md";
    private const string Never = "never";

    private static readonly (string Kernel, string[] Tests, bool Compiled, string Gpu)[] Rows =
        [.. Row().Matches(File.ReadAllText(Repository.PathOf(Page))).Select(match => (match.Groups["kernel"].Value, match.Groups["tests"].Value.Split(", "), match.Groups["compiled"].Value == "yes", match.Groups["gpu"].Value.Trim()))];

    [Fact]
    public void Kernels_AllHaveOneRow()
    {
        string[] kernels = [.. Repository.Files("kernels", "*.cu").SelectMany(file => Kernel().Matches(File.ReadAllText(Repository.PathOf(file)))).Select(match => match.Groups["name"].Value).Order(StringComparer.Ordinal)];

        Assert.True(kernels.Length > 20, $"only {kernels.Length} kernels were found in kernels/");
        Assert.Equal(kernels, Rows.Select(row => row.Kernel).Order(StringComparer.Ordinal));
    }

    [Fact]
    public void Tests_ThatRowsName_Exist()
    {
        string[] files = [.. Repository.Files("tests/LoraTrainer.Kernels.Tests", "*.cs").Select(file => Path.GetFileNameWithoutExtension(file))];

        Assert.Equal([], Rows.SelectMany(row => row.Tests.Except(files).Select(test => $"{row.Kernel}: {test}")));
    }

    /// <summary>The page that a test of the kernels compares with what NVRTC makes of them.</summary>
    [Fact]
    public void Compiled_AreThoseOfThePageOfKernels()
    {
        string[] compiled = [.. CompiledKernel().Matches(File.ReadAllText(Repository.PathOf("docs/kernels.md"))).Select(match => match.Groups["name"].Value).Distinct().Order(StringComparer.Ordinal)];

        Assert.Equal(compiled, Rows.Where(row => row.Compiled).Select(row => row.Kernel).Order(StringComparer.Ordinal));
    }

    [Fact]
    public void RunsOnAGpu_AreThoseOfTheResults() => Assert.Equal([], Rows.SelectMany(row => WhatIsWrong(row.Kernel, row.Gpu)));

    [Theory]
    [InlineData("never", true)]
    [InlineData("2026-12-01, NVIDIA H100", false)]
    [InlineData("[2026-12-01, NVIDIA H100, 0123456789ab](../tests/Benchmarks/results/no-such-file.jsonl)", false)]
    [InlineData("[2026-11-24, AMD EPYC, d5fb69984a8c](../tests/Benchmarks/results/2026-11-24-gemm-amd-epyc-2c.jsonl)", false)]
    public void Claim_WithoutAResult_IsRefused(string claim, bool accepted) => Assert.Equal(accepted, !WhatIsWrong("rms_norm_forward", claim).Any());

    /// <summary>A claim is a link to rows that were measured on a GPU, at the commit and on the card that it names, with a row of this kernel among them.</summary>
    private static IEnumerable<string> WhatIsWrong(string kernel, string claim)
    {
        if (claim == Never)
        {
            yield break;
        }

        Match link = Claim().Match(claim);
        if (!link.Success)
        {
            yield return $"{kernel}: \"{claim}\" is neither \"{Never}\" nor [date, card, commit](../tests/Benchmarks/results/file)";
            yield break;
        }

        string file = Repository.PathOf(link.Groups["file"].Value);
        string row = kernel.StartsWith("attention_", StringComparison.Ordinal) ? "cuda_attention_" : $"cuda_kernel_{kernel}_";
        bool found = File.Exists(file) && File.ReadLines(file).Select(line => JsonDocument.Parse(line).RootElement).Any(result =>
            result.GetProperty("name").GetString()!.StartsWith(row, StringComparison.Ordinal)
            && result.GetProperty("commit").GetString() == link.Groups["commit"].Value
            && result.GetProperty("machine").GetString() is { } machine && machine.StartsWith(link.Groups["card"].Value, StringComparison.Ordinal) && machine.Contains("compute capability", StringComparison.Ordinal));
        if (!found)
        {
            yield return $"{kernel}: {link.Groups["file"].Value} has no row {row}* of {link.Groups["card"].Value} at {link.Groups["commit"].Value}";
        }
    }

    [GeneratedRegex(@"^\| `(?<kernel>\w+)` \| (?<tests>[\w, ]+?) \| (?<compiled>yes|no) \| (?<gpu>[^|]+) \|$", RegexOptions.Multiline)]
    private static partial Regex Row();

    [GeneratedRegex(@"^\| (?<name>[a-z]\w+)(?:, D = \d+(?:, \w+)?)? \| \d", RegexOptions.Multiline)]
    private static partial Regex CompiledKernel();

    [GeneratedRegex(@"extern ""C"" __global__ void\s+__launch_bounds__\([^()]*\)\s+(?<name>\w+)\(")]
    private static partial Regex Kernel();

    [GeneratedRegex(@"^\[\d{4}-\d\d-\d\d, (?<card>[^,\]]+), (?<commit>[0-9a-f]+)\]\(\.\./(?<file>tests/Benchmarks/results/[^)]+)\)$")]
    private static partial Regex Claim();
}
