using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;

namespace LoraTrainer.Benchmarks;

/// <summary>
/// Compiles every kernel the way a run does, with the machine's own NVRTC, and prints a JSON object a line for each kernel and form: registers, spills,
/// stack, shared memory. Needs no GPU where the architectures are given.
/// </summary>
internal static partial class CudaCompileCheck
{
    private static readonly int[] UsualHeadDims = [64, 80, 96, 128, 256];

    private const string Verbose = "--ptxas-options=-v";

    public static int Run(string[] architectures)
    {
        LibrarySearch search = CudaLibraries.Find(CudaLibrary.Compiler);
        if (!Nvrtc.TryCreate(search, out Nvrtc? nvrtc, out string reason))
        {
            Console.Error.WriteLine($"There is no NVRTC to compile with: {reason}");
            return 1;
        }

        int[] targets;
        if (architectures.Length > 0)
        {
            targets = [.. architectures.Select(text => int.Parse(text, CultureInfo.InvariantCulture))];
        }
        else if (CudaDevice.TryDescribe(out CudaDeviceInfo? gpu, out string missing))
        {
            targets = [gpu.Architecture];
        }
        else
        {
            Console.Error.WriteLine($"No architecture was given, and there is no GPU to compile for: {missing}");
            return 1;
        }

        int failures = 0, spills = 0;
        foreach (int architecture in targets)
        {
            KernelTarget target = KernelTarget.For(architecture, nvrtc.Architectures, nvrtc.Version);
            Console.Error.WriteLine($"NVRTC {nvrtc.Version} ({nvrtc.Path}), {target.Architecture}");
            foreach (IGrouping<(string File, string? Define), CudaKernel> module in Forms().GroupBy(kernel => (kernel.File, kernel.Define)))
            {
                failures += Compile(nvrtc, target, module.Key.File, module.Key.Define, [.. module], ref spills);
            }
        }

        Console.Error.WriteLine($"{failures} failures, {spills} kernels with spills");
        return failures == 0 ? 0 : 1;
    }

    /// <summary>Every kernel in a folder that a release carries; attention for the sizes of heads that models have.</summary>
    public static int WriteReady(string folder, string[] architectures)
    {
        if (!Nvrtc.TryCreate(CudaLibraries.Find(CudaLibrary.Compiler), out Nvrtc? nvrtc, out string reason))
        {
            Console.Error.WriteLine($"There is no NVRTC to compile with: {reason}");
            return 1;
        }

        int written = ReadyKernels.WriteRelease(folder, nvrtc, [.. architectures.Select(text => int.Parse(text, CultureInfo.InvariantCulture))], UsualHeadDims, Console.Error.WriteLine);
        Console.Error.WriteLine($"{folder}: {written} modules, by NVRTC {nvrtc.Version}");
        return 0;
    }

    /// <summary>Every kernel, in each of its forms.</summary>
    private static IEnumerable<CudaKernel> Forms() =>
        ReadyKernels.KernelsOfRelease([.. Enumerable.Range(1, CudaKernels.LargestHeadDim / CudaKernels.HeadDimStep).Select(step => step * CudaKernels.HeadDimStep)]);

    private static int Compile(Nvrtc nvrtc, KernelTarget target, string file, string? define, CudaKernel[] kernels, ref int spills)
    {
        long start = Stopwatch.GetTimestamp();
        byte[] image;
        string log;
        try
        {
            (image, log) = Compile(nvrtc, target, file, define);
        }
        catch (KernelCompilationException exception)
        {
            Console.Error.WriteLine($"{file} {define} for {target.Architecture}: {exception.Message}");
            return kernels.Length;
        }

        double milliseconds = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
        Dictionary<string, Match> entries = Entry().Matches(log).ToDictionary(match => match.Groups["name"].Value, StringComparer.Ordinal);
        int missing = 0;
        foreach (CudaKernel kernel in kernels)
        {
            Match? entry = entries.GetValueOrDefault(kernel.Name);
            if (entry is null && entries.Count > 0)
            {
                Console.Error.WriteLine($"{file} {define} for {target.Architecture} has no kernel {kernel.Name}");
                missing++;
                continue;
            }

            spills += entry is not null && Number(entry, "stores") + Number(entry, "loads") > 0 ? 1 : 0;
            Write(nvrtc, target, kernel, entry, image.Length, milliseconds);
        }

        return missing;
    }

    /// <summary>With the assembler's account of each kernel; a compiler that has no assembler does without.</summary>
    private static (byte[] Image, string Log) Compile(Nvrtc nvrtc, KernelTarget target, string file, string? define)
    {
        KernelSources sources = KernelSources.Embedded;
        List<string> options = target.Options(define);
        if (target.Output == NvrtcOutput.Cubin)
        {
            try
            {
                return (nvrtc.Compile(file, sources.Read(file), sources.Headers, [.. options, Verbose], target.Output, out string log), log);
            }
            catch (KernelCompilationException exception) when (exception.Message.Contains("INVALID_OPTION", StringComparison.Ordinal))
            {
                // As below.
            }
        }

        return (nvrtc.Compile(file, sources.Read(file), sources.Headers, options, target.Output, out _), "");
    }

    private static void Write(Nvrtc nvrtc, KernelTarget target, CudaKernel kernel, Match? entry, int imageBytes, double milliseconds)
    {
        using var line = new MemoryStream();
        using (var json = new Utf8JsonWriter(line))
        {
            json.WriteStartObject();
            json.WriteString("kernel", kernel.Name);
            json.WriteString("file", kernel.File);
            json.WriteString("define", kernel.Define);
            json.WriteString("architecture", target.Architecture);
            json.WriteString("compiler", $"NVRTC {nvrtc.Version}");
            foreach ((string name, string group) in ((string, string)[])[("registers", "registers"), ("spill_stores", "stores"), ("spill_loads", "loads"), ("stack", "stack"), ("shared", "shared")])
            {
                if (entry is null)
                {
                    json.WriteNull(name);
                }
                else
                {
                    json.WriteNumber(name, Number(entry, group));
                }
            }

            json.WriteNumber("image_bytes", imageBytes);
            json.WriteNumber("milliseconds", Math.Round(milliseconds));
            json.WriteEndObject();
        }

        Console.WriteLine(System.Text.Encoding.UTF8.GetString(line.ToArray()));
    }

    private static int Number(Match entry, string group) => entry.Groups[group].Success ? int.Parse(entry.Groups[group].ValueSpan, CultureInfo.InvariantCulture) : 0;

    [GeneratedRegex(
        @"Compiling entry function '(?<name>\w+)' for '\w+'\s+.*?Function properties for \w+[\s.]+(?:ptxas[\s.]+)?(?<stack>\d+) bytes stack frame, (?<stores>\d+) bytes spill stores, (?<loads>\d+) bytes spill loads\s+ptxas info\s+: Used (?<registers>\d+) registers(?:[^\n]*?(?<shared>\d+) bytes smem)?",
        RegexOptions.Singleline)]
    private static partial Regex Entry();
}
