using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using LoraTrainer.Engine.Devices;
using System.Text.RegularExpressions;

namespace LoraTrainer.Engine.Native.Cuda;

/// <summary>What a compilation is to give.</summary>
internal enum NvrtcOutput
{
    /// <summary>Machine code for one architecture (options with sm_XY).</summary>
    Cubin,

    /// <summary>Portable text that a driver translates (options with compute_XY).</summary>
    Ptx,
}

/// <summary>
/// NVIDIA's run-time compiler (libnvrtc), loaded from a given file: a process may use several side by side, which is why its functions are
/// called through their addresses and not through a resolver. It needs no GPU and no driver. One compilation at a time in each thread; an
/// instance may be used by several threads.
/// </summary>
internal sealed unsafe partial class Nvrtc
{
    // nvrtcResult of nvrtc.h.
    private const int Success = 0;

    // Since 12.9 the compiler keeps what it compiled, and asks the process's driver library about it. We keep that ourselves (KernelCache), and need no driver.
    private const string NoCache = "--no-cache";
    private static readonly Version FirstWithCache = new(12, 9);

    private readonly delegate* unmanaged<int*, int*, int> version;
    private readonly delegate* unmanaged<nint*, byte*, byte*, int, byte**, byte**, int> createProgram;
    private readonly delegate* unmanaged<nint, int, byte**, int> compileProgram;
    private readonly delegate* unmanaged<nint*, int> destroyProgram;
    private readonly delegate* unmanaged<nint, nuint*, int> logSize;
    private readonly delegate* unmanaged<nint, byte*, int> log;
    private readonly delegate* unmanaged<nint, nuint*, int> cubinSize;
    private readonly delegate* unmanaged<nint, byte*, int> cubin;
    private readonly delegate* unmanaged<nint, nuint*, int> ptxSize;
    private readonly delegate* unmanaged<nint, byte*, int> ptx;
    private readonly delegate* unmanaged<int, byte*> errorString;

    private Nvrtc(string path, nint handle)
    {
        Path = path;
        version = (delegate* unmanaged<int*, int*, int>)Export(handle, "nvrtcVersion");
        createProgram = (delegate* unmanaged<nint*, byte*, byte*, int, byte**, byte**, int>)Export(handle, "nvrtcCreateProgram");
        compileProgram = (delegate* unmanaged<nint, int, byte**, int>)Export(handle, "nvrtcCompileProgram");
        destroyProgram = (delegate* unmanaged<nint*, int>)Export(handle, "nvrtcDestroyProgram");
        logSize = (delegate* unmanaged<nint, nuint*, int>)Export(handle, "nvrtcGetProgramLogSize");
        log = (delegate* unmanaged<nint, byte*, int>)Export(handle, "nvrtcGetProgramLog");
        cubinSize = (delegate* unmanaged<nint, nuint*, int>)Export(handle, "nvrtcGetCUBINSize");
        cubin = (delegate* unmanaged<nint, byte*, int>)Export(handle, "nvrtcGetCUBIN");
        ptxSize = (delegate* unmanaged<nint, nuint*, int>)Export(handle, "nvrtcGetPTXSize");
        ptx = (delegate* unmanaged<nint, byte*, int>)Export(handle, "nvrtcGetPTX");
        errorString = (delegate* unmanaged<int, byte*>)Export(handle, "nvrtcGetErrorString");
        int major, minor;
        Check(version(&major, &minor), "nvrtcVersion");
        Version = new Version(major, minor);
        Architectures = ReadArchitectures(handle);
    }

    /// <summary>The file it was loaded from.</summary>
    public string Path { get; }

    public Version Version { get; }

    /// <summary>The compute capabilities it can compile for, as 10 * major + minor, ascending. Empty where the library does not tell.</summary>
    public IReadOnlyList<int> Architectures { get; }

    /// <summary>Loads a file. It stays loaded until the process ends: code of it may run at any time.</summary>
    public static bool TryLoad(string path, [NotNullWhen(true)] out Nvrtc? nvrtc, out string reason)
    {
        LibrarySearch search = CudaLibraries.Search(CudaLibrary.Compiler, [path]);
        return TryCreate(search, out nvrtc, out reason);
    }

    /// <summary>From a search that was done before.</summary>
    public static bool TryCreate(LibrarySearch search, [NotNullWhen(true)] out Nvrtc? nvrtc, out string reason)
    {
        nvrtc = null;
        if (!search.Found)
        {
            reason = string.Join("; ", search.Attempts.Select(attempt => $"{attempt.Path}: {attempt.Error}"));
            return false;
        }

        try
        {
            nvrtc = new Nvrtc(search.Path!, search.Handle);
        }
        catch (Exception exception) when (exception is EntryPointNotFoundException or KernelCompilationException)
        {
            reason = $"{search.Path}: {exception.Message}";
            return false;
        }

        reason = "";
        return true;
    }

    /// <summary>Compiles one source.</summary>
    /// <param name="name">Its name in messages.</param>
    /// <param name="source">CUDA C++.</param>
    /// <param name="headers">What it may include, by name.</param>
    /// <param name="options">As nvcc takes them; the architecture among them.</param>
    /// <param name="output">Must fit the architecture: sm_XY for a cubin.</param>
    /// <param name="messages">Warnings and notes, empty if there were none.</param>
    /// <returns>The cubin; or the PTX with its closing zero.</returns>
    /// <exception cref="KernelCompilationException">The compiler's messages with file:line.</exception>
    public byte[] Compile(string name, string source, IReadOnlyList<(string Name, string Text)> headers, IReadOnlyList<string> options, NvrtcOutput output, out string messages)
    {
        string[] given = Version >= FirstWithCache ? [.. options, NoCache] : [.. options];
        using var strings = new NativeStrings(2 + 2 * headers.Count + given.Length);
        byte** headerTexts = stackalloc byte*[headers.Count];
        byte** headerNames = stackalloc byte*[headers.Count];
        for (int i = 0; i < headers.Count; i++)
        {
            headerNames[i] = strings.Add(headers[i].Name);
            headerTexts[i] = strings.Add(headers[i].Text);
        }

        byte** optionTexts = stackalloc byte*[given.Length];
        for (int i = 0; i < given.Length; i++)
        {
            optionTexts[i] = strings.Add(given[i]);
        }

        nint program = 0;
        Check(createProgram(&program, strings.Add(source), strings.Add(name), headers.Count, headerTexts, headerNames), "nvrtcCreateProgram");
        try
        {
            int status = compileProgram(program, given.Length, optionTexts);
            messages = ReadLog(program);
            if (status != Success)
            {
                throw new KernelCompilationException($"The kernels in {name} do not compile ({Describe(status)}, NVRTC {Version}, {string.Join(' ', given)}):\n{messages}");
            }

            return output == NvrtcOutput.Cubin ? Read(program, cubinSize, cubin, "nvrtcGetCUBIN") : Read(program, ptxSize, ptx, "nvrtcGetPTX");
        }
        finally
        {
            // Nothing can be done about a failure here, and nothing depends on it.
            _ = destroyProgram(&program);
        }
    }

    private static nint Export(nint handle, string name) => NativeLibrary.GetExport(handle, name);

    private byte[] Read(nint program, delegate* unmanaged<nint, nuint*, int> size, delegate* unmanaged<nint, byte*, int> read, string call)
    {
        nuint bytes;
        Check(size(program, &bytes), call + "Size");
        byte[] content = new byte[checked((int)bytes)];
        fixed (byte* start = content)
        {
            Check(read(program, start), call);
        }

        return content;
    }

    /// <summary>The messages of the last compilation, with places as file:line.</summary>
    private string ReadLog(nint program)
    {
        string text = Encoding.UTF8.GetString(Read(program, logSize, log, "nvrtcGetProgramLog")).TrimEnd('\0', '\n', ' ');
        return PlaceInParentheses().Replace(text, "$1:$2:");
    }

    private void Check(int status, string call)
    {
        if (status != Success)
        {
            throw new KernelCompilationException($"{call} failed: {Describe(status)}.");
        }
    }

    private string Describe(int status) => Marshal.PtrToStringUTF8((nint)errorString(status)) ?? string.Create(CultureInfo.InvariantCulture, $"NVRTC error {status}");

    private int[] ReadArchitectures(nint handle)
    {
        // Both since NVRTC 11.2.
        if (!NativeLibrary.TryGetExport(handle, "nvrtcGetNumSupportedArchs", out nint count) || !NativeLibrary.TryGetExport(handle, "nvrtcGetSupportedArchs", out nint list))
        {
            return [];
        }

        int length;
        Check(((delegate* unmanaged<int*, int>)count)(&length), "nvrtcGetNumSupportedArchs");
        int[] architectures = new int[length];
        fixed (int* start = architectures)
        {
            Check(((delegate* unmanaged<int*, int>)list)(start), "nvrtcGetSupportedArchs");
        }

        return [.. architectures.Order()];
    }

    [GeneratedRegex(@"^([^\s()]+)\((\d+)\):", RegexOptions.Multiline)]
    private static partial Regex PlaceInParentheses();

    /// <summary>Strings with a closing zero in memory that does not move; freed together.</summary>
    private sealed class NativeStrings(int capacity) : IDisposable
    {
        private readonly List<nint> memory = new(capacity);

        public byte* Add(string text)
        {
            nint copy = Marshal.StringToCoTaskMemUTF8(text);
            memory.Add(copy);
            return (byte*)copy;
        }

        public void Dispose()
        {
            foreach (nint copy in memory)
            {
                Marshal.FreeCoTaskMem(copy);
            }
        }
    }
}
