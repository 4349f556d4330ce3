using System.Globalization;
using LoraTrainer.Engine.Native.Cuda;

namespace LoraTrainer.Engine.Devices;

/// <summary>
/// Kernels that were compiled when the program was released, so that a machine needs no NVRTC: a folder with entries of <see cref="KernelCache"/>, checked by hash as there, and
/// an index that says by which compiler they were made and for what. What of them is not of the program's own sources is not found, and so never used.
/// </summary>
internal sealed class ReadyKernels
{
    /// <summary>Beside the program, and named in the environment: LT_READY_KERNELS.</summary>
    public const string FolderName = "ready-kernels";

    private const string FolderVariable = "LT_READY_KERNELS";
    private const string IndexName = "index";
    private const string FirstLine = "lora-trainer kernels 1";

    // Portable text is for generations that come later than these: a driver translates it for them.
    private const int FirstWithText = 100;

    private readonly KernelCache entries;

    private ReadyKernels(string folder, Version compiler, IReadOnlyList<int> architectures)
    {
        Folder = folder;
        Compiler = compiler;
        Architectures = architectures;
        entries = new KernelCache(folder);
    }

    public string Folder { get; }

    /// <summary>The NVRTC that made them.</summary>
    public Version Compiler { get; }

    /// <summary>For which they were made: 10 * major + minor, ascending.</summary>
    public IReadOnlyList<int> Architectures { get; }

    /// <summary>The folder that LT_READY_KERNELS names, else the one beside the program.</summary>
    public static string DefaultFolder(Func<string, string?> environment) => environment(FolderVariable) is { Length: > 0 } named ? named : Path.Combine(AppContext.BaseDirectory, FolderName);

    /// <summary>What lies in a folder; null where there is no index, or none that can be read: a machine then compiles.</summary>
    public static ReadyKernels? In(string? folder)
    {
        string[] lines;
        try
        {
            string path = Path.Combine(folder ?? "", IndexName);
            if (folder is null || !File.Exists(path))
            {
                return null;
            }

            lines = File.ReadAllLines(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return null;
        }

        return lines is [FirstLine, var compiler, var architectures] && Version.TryParse(compiler, out Version? version) && Numbers(architectures) is { Length: > 0 } numbers
            ? new ReadyKernels(folder, version, numbers)
            : null;
    }

    /// <summary>Compiles all kernels of the program into a folder, as a release carries them.</summary>
    /// <param name="folder">Made if it is not there.</param>
    /// <param name="nvrtc">The compiler.</param>
    /// <param name="architectures">10 * major + minor each.</param>
    /// <param name="headDims">Sizes of heads that attention is compiled for.</param>
    /// <param name="progress">Is told each module as it is compiled.</param>
    /// <returns>Entries that were written.</returns>
    /// <exception cref="KernelCompilationException">The compiler does not take a source.</exception>
    /// <exception cref="IOException">The folder cannot be written.</exception>
    public static int WriteRelease(string folder, Nvrtc nvrtc, IReadOnlyList<int> architectures, IReadOnlyList<int> headDims, Action<string>? progress = null) =>
        Write(folder, nvrtc, KernelSources.Embedded, architectures, KernelsOfRelease(headDims), progress);

    /// <summary>Every kernel in each of its forms.</summary>
    /// <param name="headDims">Sizes of heads that attention is compiled for.</param>
    public static IEnumerable<CudaKernel> KernelsOfRelease(IReadOnlyList<int> headDims) =>
        CudaKernels.All.SelectMany(kernel => kernel.NeedsVariant ? headDims.SelectMany(size => Enumerable.Range(0, kernel.Forms).Select(form => kernel.With(size, form))) : [kernel]);

    /// <summary>Compiles kernels into a folder.</summary>
    /// <param name="folder">Made if it is not there.</param>
    /// <param name="nvrtc">The compiler.</param>
    /// <param name="sources">What it compiles.</param>
    /// <param name="architectures">10 * major + minor each.</param>
    /// <param name="kernels">Of one form each.</param>
    /// <param name="progress">Is told each module as it is compiled.</param>
    /// <returns>Entries that were written.</returns>
    /// <exception cref="KernelCompilationException">The compiler does not take a source.</exception>
    /// <exception cref="IOException">The folder cannot be written.</exception>
    public static int Write(string folder, Nvrtc nvrtc, KernelSources sources, IReadOnlyList<int> architectures, IEnumerable<CudaKernel> kernels, Action<string>? progress = null)
    {
        Directory.CreateDirectory(folder);
        int[] sorted = [.. architectures.Distinct().Order()];
        var entries = new KernelCache(folder);
        (string File, string? Define)[] modules = [.. kernels.Select(kernel => (kernel.File, kernel.Define)).Distinct()];
        int written = 0;
        foreach (KernelTarget target in Targets(sorted, nvrtc.Version))
        {
            foreach ((string file, string? define) in modules)
            {
                progress?.Invoke($"{file} {define} for {target.Architecture}");
                byte[] key = KeyOf(sources, file, define, target, nvrtc.Version);
                entries.TryWrite(key, nvrtc.Compile(file, sources.Read(file), sources.Headers, target.Options(define), target.Output, out _));
                written += entries.TryRead(key) is not null ? 1 : throw new IOException($"{entries.PathOf(key)} cannot be written.");
            }
        }

        // Last: a folder that was not finished has none.
        File.WriteAllLines(Path.Combine(folder, IndexName), [FirstLine, nvrtc.Version.ToString(), string.Join(' ', sorted.Select(number => number.ToString(CultureInfo.InvariantCulture)))]);
        return written;
    }

    /// <summary>What of them a card runs; null where there is nothing for it.</summary>
    /// <param name="architecture">The card's compute capability as 10 * major + minor.</param>
    public KernelTarget? TargetFor(int architecture)
    {
        if (Architectures[0] > architecture)
        {
            return null;
        }

        KernelTarget target = KernelTarget.For(architecture, Architectures, Compiler);
        return Targets(Architectures, Compiler).Contains(target) ? target : null;
    }

    /// <summary>The compiled module; null where it is not here, or not whole.</summary>
    /// <param name="sources">Of the program.</param>
    /// <param name="kernel">One of the module's.</param>
    /// <param name="target">Of <see cref="TargetFor"/>.</param>
    public byte[]? TryRead(KernelSources sources, CudaKernel kernel, KernelTarget target) => entries.TryRead(KeyOf(sources, kernel.File, kernel.Define, target, Compiler));

    private static byte[] KeyOf(KernelSources sources, string file, string? define, KernelTarget target, Version compiler) => KernelCache.KeyOf([
        "ready", file, sources.Read(file), .. sources.Headers.SelectMany(header => (string[])[header.Name, header.Text]), .. target.Options(define), compiler.ToString(), target.Output.ToString(),
    ]);

    private static IEnumerable<KernelTarget> Targets(IReadOnlyList<int> architectures, Version compiler) =>
        architectures.Select(architecture => KernelTarget.For(architecture, architectures, compiler))
            .Concat(architectures.Where(architecture => architecture >= FirstWithText).Select(architecture => new KernelTarget(string.Create(CultureInfo.InvariantCulture, $"compute_{architecture}"), NvrtcOutput.Ptx)));

    private static int[]? Numbers(string line)
    {
        string[] words = line.Split(' ');
        int[] numbers = [.. words.Select(word => int.TryParse(word, NumberStyles.None, CultureInfo.InvariantCulture, out int number) ? number : 0)];
        return numbers.Zip(numbers.Skip(1)).All(pair => pair.First < pair.Second) && numbers[0] > 0 ? numbers : null;
    }
}
