using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>
/// The emulator is worth what it finds: small kernels with one mistake each, and their right twins, in the four modes that all kernels are
/// tested in. A mistake that no mode finds is listed as such, so that nobody counts on it.
/// </summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed partial class PlantedMistakesTests
{
    private const string Page = "docs/emulator.md";

    private static readonly string[] Modes = ["forward/late", "forward/early", "reverse/late", "reverse/early"];

    private static readonly Lazy<Mistake[]> Found = new(RunAll);

    private static string Folder => Path.Combine(Fixtures.RepositoryRoot, "tests", "CudaEmulator", "mistakes");

    public static TheoryData<string> Names => [.. Planted().Matches(File.ReadAllText(Path.Combine(Folder, "planted.cu"))).Select(match => match.Groups[1].Value)];

    [Theory]
    [MemberData(nameof(Names))]
    public void Mistake_InTheFourModes_IsFoundAndItsRightTwinPasses(string name)
    {
        Tool.Require("g++");
        Mistake mistake = Found.Value.Single(mistake => mistake.Name == name);
        Assert.Equal("ok", mistake.RightTwin);
        Assert.True(mistake.IsFound == mistake.IsFindable, mistake.IsFindable ? $"{name} was not found" : $"{name} is found now and is listed as not findable");
    }

    [Theory]
    [InlineData("self")]
    [InlineData("gemm")]
    [InlineData("misuse")]
    public void OwnTests_OfTheEmulator_Pass(string part)
    {
        Tool.Require("g++");
        (int exitCode, string output) = Run(part);
        Assert.True(exitCode == 0, $"exit code {exitCode}\n{output}");
        Assert.Contains($"{part} tests: all passed", output, StringComparison.Ordinal);
    }

    [Fact]
    public void Page_OfTheMistakes_IsWhatTheEmulatorFinds()
    {
        Tool.Require("g++");
        Assert.Equal(Names.Select(row => row.Data).Order(StringComparer.Ordinal), Found.Value.Select(mistake => mistake.Name).Order(StringComparer.Ordinal));
        var text = new StringBuilder();
        text.Append("""
            # What the emulator finds

            Kernels with one planted mistake each (`tests/CudaEmulator/mistakes/planted.cu`), run in four modes: threads in forward or reverse order, asynchronous copies carried
            out late (at the wait that asks for them) or early (at once). "error": the emulator reports kernel, block, thread and source line. "numbers": the result is
            wrong, so a comparison with a reference finds it. Every kernel of the program is tested in all four modes, because no single one finds everything.
            A test compares this page with the emulator: `LT_UPDATE_DOCS=1` with `tests/LoraTrainer.Kernels.Tests` writes it anew.

            | mistake | forward, late | forward, early | reverse, late | reverse, early |
            |---|---|---|---|---|

            """);
        foreach (Mistake mistake in Found.Value)
        {
            string kind = mistake.How.Contains("numbers wrong", StringComparison.Ordinal) ? "numbers" : "error";
            string cells = mistake.IsFindable ? string.Join(" | ", Modes.Select(mode => mistake.FoundIn.Contains(mode) ? kind : "-")) : "cannot be found | | | ";
            text.Append("| ").Append(mistake.Name).Append(" | ").Append(cells).Append(" |\n");
        }

        WrittenPage.Check(Page, text.ToString());
    }

    private static Mistake[] RunAll()
    {
        string output = Run("planted").Output;
        Mistake[] found = [.. output.Split('\n').Where(line => line.StartsWith('{')).Select(Mistake.Parse)];
        Assert.True(found.Length > 0, output);
        return found;
    }

    private static (int ExitCode, string Output) Run(string part) =>
        Tool.Run("bash", Path.Combine(Folder, "run.sh"), Path.Combine(Fixtures.RepositoryRoot, "artifacts", "emulator-tests"), Path.Combine(Fixtures.RepositoryRoot, "kernels"), part);

    [GeneratedRegex(@"^KERNEL\((\w+)\)", RegexOptions.Multiline)]
    private static partial Regex Planted();

    private sealed record Mistake(string Name, bool IsFindable, bool IsFound, string[] FoundIn, string RightTwin, string How)
    {
        public static Mistake Parse(string line)
        {
            using JsonDocument json = JsonDocument.Parse(line);
            JsonElement root = json.RootElement;
            return new Mistake(
                root.GetProperty("mistake").GetString()!, root.GetProperty("findable").GetBoolean(), root.GetProperty("found").GetBoolean(),
                [.. root.GetProperty("modes").EnumerateArray().Select(mode => mode.GetString()!)], root.GetProperty("right_twin").GetString()!, root.GetProperty("how").GetString()!);
        }
    }
}
