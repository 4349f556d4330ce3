using System.Collections.Concurrent;
using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;
using LoraTrainer.Engine.Ops;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>
/// What the compilers make of kernels/*.cu: NVIDIA's own compiler for every card that is served, clang, and g++. None of them needs a GPU, or the stand-ins' device: these tests run beside those that do.
/// </summary>
[Trait("Category", "Emulator")]
public sealed partial class CudaSourcesTests
{
    private const string Page = "docs/kernels.md";

    // Compute capabilities as 10 * major + minor.
    private static readonly int[] Cards = [80, 86, 89, 90, 100, 120];

    private static readonly int[] HeadDims = [16, 64, 80, 96, 128, 192, 256];

    // Of the models that have windows, and of those with softcaps and their like.
    private static readonly int[][] HeadDimsOfForms = [HeadDims, [64, 96, 128, 256], [64, 128, 256]];

    // What the page calls the forms that attention comes in.
    private static readonly string[] ScoresNames = ["", ", window", ", softcap"];

    // What the cards that are served give a block at most, those of 9.0 and 10.0.
    private const int LargestSharedBytesPerBlock = 227 << 10;

    private static readonly string[] ReportOptions = ["--ptxas-options=-v"];

    private static readonly Lazy<Nvrtc> Compiler = new(() =>
    {
        Assert.True(Nvrtc.TryLoad(RealNvrtc.Require(), out Nvrtc? nvrtc, out string reason), reason);
        return nvrtc;
    });

    private static readonly Lazy<ConcurrentDictionary<(Unit Unit, int Card), CompilerReport>> Reports = new(CompileAll);

    /// <summary>A file as it is compiled: attention once for each head dim.</summary>
    public static TheoryData<string, int, int, int> Compilations
    {
        get
        {
            var data = new TheoryData<string, int, int, int>();
            foreach (Unit unit in Units)
            {
                foreach (int card in Cards)
                {
                    data.Add(unit.File, unit.HeadDim, unit.Scores, card);
                }
            }

            return data;
        }
    }

    public static TheoryData<string> KernelNames => [.. CudaKernels.All.Select(kernel => kernel.Name)];

    private static IEnumerable<Unit> Units => KernelSources.Embedded.Files.Where(file => file.EndsWith(".cu", StringComparison.Ordinal))
        .SelectMany(file => CudaKernels.All.First(kernel => kernel.File == file) is { NeedsVariant: true } kernel
            ? Enumerable.Range(0, kernel.Forms).SelectMany(scores => HeadDimsOfForms[scores].Select(dim => new Unit(file, dim, scores)))
            : [new Unit(file, 0, 0)]);

    [Theory]
    [MemberData(nameof(Compilations))]
    public void Compile_ForEveryCard_HasNoWarningAndNoSpill(string file, int headDim, int scores, int card)
    {
        _ = Compiler.Value;
        CompilerReport report = Reports.Value[(new Unit(file, headDim, scores), card)];
        Assert.Equal("", report.Complaints);
        Assert.Equal(CudaKernels.All.Where(kernel => kernel.File == file).Select(kernel => kernel.Name).Order(StringComparer.Ordinal), report.Kernels.Select(kernel => kernel.Name).Order(StringComparer.Ordinal));
        Assert.All(report.Kernels, kernel => Assert.True(kernel.SpillBytes == 0, $"{kernel.Name} spills: {kernel}"));

        // Sine and cosine of large angles reduce them in an array of their own; nothing else has a stack.
        Assert.All(report.Kernels.Where(kernel => kernel.Name != "rope_tables"), kernel => Assert.True(kernel.StackBytes == 0, $"{kernel.Name} has a stack: {kernel}"));
    }

    [Fact]
    public void Page_OfTheKernels_IsWhatTheCompilerReports()
    {
        string version = Compiler.Value.Version.ToString();
        string[] cards = [.. Cards.Select(card => KernelTarget.For(card, Compiler.Value.Architectures, Compiler.Value.Version).Architecture)];
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"""
            # Kernels

            Registers of a thread for each architecture, and the shared memory of a block in bytes, as NVRTC {version} compiles `kernels/*.cu`. None of them
            spills registers to memory. Dynamic shared memory is the most that a launch asks for; attention is compiled for each head dim by itself (D, here those that
            models have) and each thing that is done to its scores. A test compares this page with the compiler: `LT_UPDATE_DOCS=1` with `tests/LoraTrainer.Kernels.Tests` writes it anew. The test needs NVIDIA's
            library, in the folder that `LT_NVRTC_DIR` names or in `../shared/tools/nvrtc` beside the checkout, and is skipped elsewhere.

            | kernel | static | dynamic | {string.Join(" | ", cards)} |
            |---|--:|--:|{string.Concat(Enumerable.Repeat("--:|", cards.Length))}

            """);
        foreach (CudaKernel kernel in CudaKernels.All)
        {
            foreach (Unit unit in Units.Where(unit => unit.File == kernel.File))
            {
                KernelReport[] reports = [.. Cards.Select(card => Reports.Value[(unit, card)].Kernels.Single(report => report.Name == kernel.Name))];
                int[] staticBytes = [.. reports.Select(report => report.StaticBytes).Distinct().Order()];
                string name = unit.HeadDim == 0 ? kernel.Name : string.Create(CultureInfo.InvariantCulture, $"{kernel.Name}, D = {unit.HeadDim}{ScoresNames[unit.Scores]}");
                text.Append(CultureInfo.InvariantCulture, $"| {name} | {string.Join(" or ", staticBytes)} | {DynamicBytes(kernel, unit.HeadDim)} | {string.Join(" | ", reports.Select(report => report.Registers))} |\n");
            }
        }

        WrittenPage.Check(Page, text.ToString());
    }

    /// <summary>The types of all parameters, as they are in the compiled text, are those of the declaration; no kernel is declared without a source or the other way round.</summary>
    [Fact]
    public void Parameters_OfEveryKernel_AreThoseOfItsDeclaration()
    {
        var compiled = new SortedDictionary<string, string>(StringComparer.Ordinal);
        foreach (Unit unit in Units.DistinctBy(unit => unit.File))
        {
            foreach (Match entry in Entry().Matches(Ptx(unit)))
            {
                compiled.Add($"{unit.File} {entry.Groups["name"].Value}", string.Join(", ", PtxParameter().Matches(entry.Groups["parameters"].Value).Select(PtxType)));
            }
        }

        Compare(Declared(kernel => $"{kernel.File} {kernel.Name}"), compiled);
    }

    /// <summary>Names and types in the source: tells an address from a count and an int from an unsigned, which are alike in the compiled text.</summary>
    [Theory]
    [MemberData(nameof(KernelNames))]
    public void Parameters_InTheSource_HaveTheDeclaredNamesAndTypes(string name)
    {
        CudaKernel kernel = CudaKernels.All.Single(kernel => kernel.Name == name);
        string source = Comment().Replace(KernelSources.Embedded.Read(kernel.File), "");
        Match signature = Regex.Match(source, $@"__launch_bounds__\([^()]*\)\s+{name}\(([^)]*)\)");
        Assert.True(signature.Success, $"{kernel.File} has no kernel {name}");
        IEnumerable<string> parameters = signature.Groups[1].Value.Split(',').Select(parameter =>
        {
            Match parts = Regex.Match(parameter.Trim(), @"^(.*[\s*])(\w+)$", RegexOptions.Singleline);
            return $"{parts.Groups[2].Value} {KindOf(parts.Groups[1].Value.Replace("__restrict__", "", StringComparison.Ordinal).Trim())}";
        });
        Assert.Equal(kernel.Parameters.Select(parameter => $"{parameter.Name} {parameter.Kind}"), parameters);
    }

    [Theory]
    [InlineData(64, 0)]
    [InlineData(80, 0)]
    [InlineData(128, 0)]
    [InlineData(256, 0)]
    [InlineData(128, 1)]
    [InlineData(256, 2)]
    public void Attention_OnTensorCores_UsesTheirInstructions(int headDim, int scores)
    {
        string ptx = Ptx(new Unit("attention.cu", headDim, scores));
        foreach (string kernel in (string[])["attention_forward", "attention_backward_keys", "attention_backward_queries"])
        {
            int start = ptx.IndexOf($".entry {kernel}(", StringComparison.Ordinal), end = ptx.IndexOf(".entry ", start + 1, StringComparison.Ordinal);
            string body = ptx[start..(end < 0 ? ptx.Length : end)];
            foreach (string instruction in (string[])["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "ldmatrix.sync.aligned.m8n8.x4.shared.b16", "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "cp.async.cg.shared.global", "cp.async.wait_group", "ex2.approx.ftz.f32"])
            {
                Assert.True(body.Contains(instruction, StringComparison.Ordinal), $"{kernel} for head dim {headDim} has no {instruction}");
            }

            Assert.DoesNotMatch(@"\s(atom|red)\.", body);
        }
    }

    /// <summary>Clang compiles every file without a warning, our inline PTX is LLVM's own text of the instructions, and the parameters are the declared ones here too.</summary>
    [Fact]
    public void Clang_OfEveryFile_HasNothingToSay()
    {
        Tool.Require("clang-19");
        Tool.Require("g++");
        string results = Path.Combine(Fixtures.RepositoryRoot, "artifacts", "clang-check");
        (int exitCode, string output) = Tool.Run("bash", EmulatorFile("clang/check.sh"), Path.Combine(Fixtures.RepositoryRoot, "kernels"), results);
        Assert.True(exitCode == 0 && output.Length == 0, $"exit code {exitCode}\n{output}");
        using JsonDocument entries = JsonDocument.Parse(File.ReadAllText(Path.Combine(results, "entries.json")));
        var compiled = new SortedDictionary<string, string>(StringComparer.Ordinal);
        foreach (JsonProperty entry in entries.RootElement.EnumerateObject())
        {
            compiled.Add(entry.Name, string.Join(", ", entry.Value.EnumerateArray().Select(type => type.GetString())));
        }

        Compare(Declared(kernel => kernel.Name), compiled);
    }

    /// <summary>The check itself: of planted mistakes it reports every one.</summary>
    [Fact]
    public void Clang_OfPlantedMistakes_ReportsThem()
    {
        Tool.Require("clang-19");
        Tool.Require("g++");
        (int exitCode, string output) = Tool.Run("bash", EmulatorFile("clang/mistakes.sh"), Path.Combine(Fixtures.RepositoryRoot, "kernels"), Path.Combine(Fixtures.RepositoryRoot, "artifacts", "clang-mistakes"));
        Assert.True(exitCode == 0, $"exit code {exitCode}\n{output}");
    }

    /// <summary>Launches of attention use a table of their own; the kernels' constants say what is right.</summary>
    [Fact]
    public void AttentionTiles_ForEveryHeadDim_AreTheConstantsOfTheKernels()
    {
        Tool.Require("g++");
        string folder = Path.Combine(Fixtures.RepositoryRoot, "artifacts", "attention-tiles");
        Directory.CreateDirectory(folder);
        string source = Path.Combine(folder, "tiles.cpp");
        File.WriteAllText(source, """
            #include <stdio.h>
            #include "attention.cu"
            int main() {
                printf("%d %d %d ", kForwardRows, kForwardThreads, kForwardBytes);
                printf("%d %d %d ", kKeysRows, kKeysThreads, kKeysBytes);
                printf("%d %d %d\n", kQueriesRows, kQueriesThreads, kQueriesBytes);
            }

            """);
        int[] dims = [.. Enumerable.Range(1, CudaKernels.LargestHeadDim / CudaKernels.HeadDimStep).Select(i => i * CudaKernels.HeadDimStep)];
        string standins = CudaStandin.Folder;
        string[] printed = new string[dims.Length];
        Parallel.For(0, dims.Length, i =>
        {
            string program = Path.Combine(folder, string.Create(CultureInfo.InvariantCulture, $"tiles{dims[i]}"));
            (int exitCode, string output) = Tool.Run(
                "g++", "-std=c++17", "-O0", "-w", "-fPIC", "-DLT_EMULATOR", $"-DLT_HEAD_DIM={dims[i]}", "-I" + EmulatorFile("emulator"), "-I" + Path.Combine(Fixtures.RepositoryRoot, "kernels"),
                source, "-o", program, "-L" + standins, "-l:libcuda.so.1", "-Wl,-rpath," + standins);
            printed[i] = exitCode == 0 ? Tool.Run(program).Output.Trim() : output;
        });
        for (int i = 0; i < dims.Length; i++)
        {
            foreach (int dim in (int[])[dims[i], dims[i] - 8])
            {
                CudaAttentionTiles forward = CudaAttentionTiles.Forward(dim), keys = CudaAttentionTiles.BackwardKeys(dim), queries = CudaAttentionTiles.BackwardQueries(dim);
                string expected = string.Join(' ', ((CudaAttentionTiles[])[forward, keys, queries]).Select(tiles => string.Create(CultureInfo.InvariantCulture, $"{tiles.Rows} {tiles.Threads} {tiles.SharedBytes}")));
                Assert.True(printed[i] == expected, $"head dim {dim}: launched with {expected}, the kernels have {printed[i]}");
            }
        }
    }

    private static string EmulatorFile(string path) => Path.Combine(Fixtures.RepositoryRoot, "tests", "CudaEmulator", path);

    private static SortedDictionary<string, string> Declared(Func<CudaKernel, string> title) =>
        new(CudaKernels.All.ToDictionary(title, kernel => string.Join(", ", kernel.Parameters.Select(TypeOf))), StringComparer.Ordinal);

    private static void Compare(SortedDictionary<string, string> declared, SortedDictionary<string, string> compiled)
    {
        Assert.NotEmpty(compiled);
        Assert.Equal([], declared.Keys.Union(compiled.Keys).Where(name => declared.GetValueOrDefault(name) != compiled.GetValueOrDefault(name))
            .Select(name => $"{name}: declared ({declared.GetValueOrDefault(name, "nothing")}), compiled ({compiled.GetValueOrDefault(name, "nothing")})"));
    }

    private static string TypeOf(KernelParameter parameter) => parameter.Kind switch
    {
        KernelParameterKind.Pointer or KernelParameterKind.Int64 or KernelParameterKind.UInt64 => "u64",
        KernelParameterKind.Int32 or KernelParameterKind.UInt32 => "u32",
        KernelParameterKind.Float32 => "f32",
        KernelParameterKind.Float64 => "f64",
        _ => string.Create(CultureInfo.InvariantCulture, $"b8[{parameter.SizeBytes}]"),
    };

    private static string PtxType(Match parameter) => parameter.Groups["size"].Success ? $"{parameter.Groups["type"].Value}[{parameter.Groups["size"].Value}]" : parameter.Groups["type"].Value;

    private static KernelParameterKind KindOf(string type) => type switch
    {
        _ when type.EndsWith('*') => KernelParameterKind.Pointer,
        "int" => KernelParameterKind.Int32,
        "unsigned" => KernelParameterKind.UInt32,
        "long long" => KernelParameterKind.Int64,
        "unsigned long long" => KernelParameterKind.UInt64,
        "float" => KernelParameterKind.Float32,
        "double" => KernelParameterKind.Float64,
        _ => KernelParameterKind.Struct,
    };

    private static int DynamicBytes(CudaKernel kernel, int headDim) => kernel.Name switch
    {
        "attention_forward" => CudaAttentionTiles.Forward(headDim).SharedBytes,
        "attention_backward_keys" => CudaAttentionTiles.BackwardKeys(headDim).SharedBytes,
        "attention_backward_queries" => CudaAttentionTiles.BackwardQueries(headDim).SharedBytes,
        "softmax_cross_entropy" => (int)LinearCrossEntropy.CudaLaunch(1, 1 << 20, LargestSharedBytesPerBlock).Shape.SharedBytes,
        _ => 0,
    };

    private static string Ptx(Unit unit)
    {
        byte[] text = Compiler.Value.Compile(unit.File, KernelSources.Embedded.Read(unit.File), KernelSources.Embedded.Headers, new KernelTarget("compute_80", NvrtcOutput.Ptx).Options(unit.Define), NvrtcOutput.Ptx, out _);
        return Encoding.UTF8.GetString(text);
    }

    /// <summary>All files for all cards, on all cores. What the compiler said is kept by the hash of all that went into it.</summary>
    private static ConcurrentDictionary<(Unit Unit, int Card), CompilerReport> CompileAll()
    {
        Nvrtc nvrtc = Compiler.Value;
        var cache = new KernelCache(Path.Combine(Fixtures.RepositoryRoot, "artifacts", "compiler-reports"));
        var reports = new ConcurrentDictionary<(Unit Unit, int Card), CompilerReport>();
        Parallel.ForEach(Units.SelectMany(unit => Cards.Select(card => (unit, card))), problem =>
        {
            (Unit unit, int card) = problem;
            KernelTarget target = KernelTarget.For(card, nvrtc.Architectures, nvrtc.Version);
            Assert.Equal(NvrtcOutput.Cubin, target.Output);
            KernelSources sources = KernelSources.Embedded;
            List<string> options = [.. target.Options(unit.Define), .. ReportOptions];
            byte[] key = KernelCache.KeyOf([unit.File, sources.Read(unit.File), .. sources.Headers.SelectMany(header => (string[])[header.Name, header.Text]), .. options, nvrtc.Version.ToString()]);
            if (cache.TryRead(key) is not { } kept)
            {
                nvrtc.Compile(unit.File, sources.Read(unit.File), sources.Headers, options, NvrtcOutput.Cubin, out string messages);
                kept = Encoding.UTF8.GetBytes(messages);
                cache.TryWrite(key, kept);
            }

            reports[problem] = CompilerReport.Parse(Encoding.UTF8.GetString(kept));
        });
        return reports;
    }

    [GeneratedRegex(@"\.entry (?<name>\w+)\((?<parameters>[^)]*)\)")]
    private static partial Regex Entry();

    // ".param .u64 .ptr .align 1 name" or ".param .align 8 .b8 name[56]"
    [GeneratedRegex(@"\.param (?:\.align \d+ )?\.(?<type>[a-z]+\d+)[^,\[]*(?:\[(?<size>\d+)\])?")]
    private static partial Regex PtxParameter();

    [GeneratedRegex(@"//[^\n]*")]
    private static partial Regex Comment();

    /// <summary>A source file with the head dim that it is compiled for, or 0, and what attention does to scores.</summary>
    private readonly record struct Unit(string File, int HeadDim, int Scores)
    {
        public string? Define => HeadDim == 0 ? null : CudaKernels.All.First(kernel => kernel.NeedsVariant).With(HeadDim, Scores).Define;
    }

    private sealed record KernelReport(string Name, int Registers, int StaticBytes, int StackBytes, int SpillBytes);

    /// <summary>What the compiler said about one file.</summary>
    /// <param name="Kernels">Its numbers.</param>
    /// <param name="Complaints">Every line that is not one of the known ones.</param>
    private sealed partial record CompilerReport(IReadOnlyList<KernelReport> Kernels, string Complaints)
    {
        public static CompilerReport Parse(string messages)
        {
            var kernels = new List<KernelReport>();
            var complaints = new StringBuilder();
            foreach (string line in messages.Split('\n', StringSplitOptions.RemoveEmptyEntries))
            {
                if (Begin().Match(line) is { Success: true } begin)
                {
                    kernels.Add(new KernelReport(begin.Groups[1].Value, 0, 0, 0, 0));
                }
                else if (Memory().Match(line) is { Success: true } memory && kernels.Count > 0)
                {
                    kernels[^1] = kernels[^1] with { StackBytes = Number(memory, 1), SpillBytes = Number(memory, 2) + Number(memory, 3) };
                }
                else if (Use().Match(line) is { Success: true } use && kernels.Count > 0)
                {
                    kernels[^1] = kernels[^1] with { Registers = Number(use, 1), StaticBytes = use.Groups[2].Success ? Number(use, 2) : 0 };
                }
                else if (!OfNoInterest().IsMatch(line))
                {
                    complaints.AppendLine(line);
                }
            }

            if (kernels.Any(kernel => kernel.Registers == 0))
            {
                complaints.AppendLine("a kernel's registers are not reported");
            }

            return new CompilerReport(kernels, complaints.ToString());
        }

        private static int Number(Match match, int group) => int.Parse(match.Groups[group].Value, CultureInfo.InvariantCulture);

        [GeneratedRegex(@"^ptxas info    : Compiling entry function '(\w+)' for 'sm_\w+'$")]
        private static partial Regex Begin();

        [GeneratedRegex(@"^ptxas         \. +(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads$")]
        private static partial Regex Memory();

        [GeneratedRegex(@"^ptxas info    : Used (\d+) registers(?:, used \d+ barriers)?(?:, \d+ bytes cumulative stack size)?(?:, (\d+) bytes smem)?(?:, \d+ bytes cmem\[\d+\])*$")]
        private static partial Regex Use();

        [GeneratedRegex(@"^ptxas info    : (?:\d+ bytes gmem(?:, \d+ bytes cmem\[\d+\])*|Function properties for \w+|Compile time = [\d.]+ ms)$")]
        private static partial Regex OfNoInterest();
    }
}
