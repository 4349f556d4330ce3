using System.Globalization;
using LoraTrainer.Engine.Native.Cuda;

namespace LoraTrainer.Engine.Devices;

/// <summary>
/// The kernels of one device: those that came with the program where there are some for it; else compiled for its architecture when they are first asked for, and taken from the
/// cache where they were compiled before.
/// The device's context must be current in every call; the caller sees to it that there is one call at a time.
/// </summary>
/// <param name="nvrtc">The compiler; null where there is none and <paramref name="ready"/> is all there is.</param>
/// <param name="ready">What came with the program, or null.</param>
/// <param name="sources">What it compiles.</param>
/// <param name="cache">Where images are kept.</param>
/// <param name="info">The card.</param>
/// <param name="notice">Receives the compiler's warnings.</param>
internal sealed unsafe class CudaModules(Nvrtc? nvrtc, ReadyKernels? ready, KernelSources sources, KernelCache cache, CudaDeviceInfo info, Action<string> notice) : IDisposable
{
    // What a block may have without being asked for: static and dynamic shared memory together.
    private const int SharedBytesWithoutAsking = 48 << 10;

    private readonly Dictionary<(string File, string? Define), nint> modules = [];
    private readonly KernelTarget? readyTarget = ready?.TargetFor(info.Architecture);
    private readonly KernelTarget? target = nvrtc is null ? null : KernelTarget.For(info.Architecture, nvrtc.Architectures, nvrtc.Version);
    private LoadedKernel?[] loaded = new LoadedKernel?[64];

    /// <summary>Modules that had to be compiled so far.</summary>
    public int Compilations { get; private set; }

    /// <summary>The kernel's function, allowed to have that much dynamic shared memory.</summary>
    public nint Function(CudaKernel kernel, uint sharedBytes)
    {
        if (kernel.Index >= loaded.Length)
        {
            Array.Resize(ref loaded, Math.Max(2 * loaded.Length, kernel.Index + 1));
        }

        LoadedKernel function = loaded[kernel.Index] ??= Load(kernel);
        if (sharedBytes > function.SharedLimit)
        {
            RaiseSharedLimit(kernel, function, sharedBytes);
        }

        return function.Handle;
    }

    public void Dispose()
    {
        foreach (nint module in modules.Values)
        {
            _ = CudaDriver.cuModuleUnload(module);
        }

        modules.Clear();
        Array.Clear(loaded);
    }

    private static void CheckDeclaration(CudaKernel kernel, nint function)
    {
        // Older drivers cannot tell; the declarations are compared with the compiled sources by a test in any case.
        if (!CudaLibraries.Exports(CudaLibrary.Driver, nameof(CudaDriver.cuFuncGetParamInfo)))
        {
            return;
        }

        int count = 0;
        for (; CudaDriver.cuFuncGetParamInfo(function, (nuint)count, out _, out nuint bytes) == CudaStatus.Success; count++)
        {
            if (count < kernel.Parameters.Count && bytes != (nuint)kernel.Parameters[count].SizeBytes)
            {
                throw new InvalidOperationException($"{kernel.Title}: parameter {kernel.Parameters[count]} has {bytes} bytes in {kernel.File}.");
            }
        }

        if (count != kernel.Parameters.Count)
        {
            throw new InvalidOperationException($"{kernel.Title} is declared with {kernel.Parameters.Count} parameters and has {count} in {kernel.File}.");
        }
    }

    private LoadedKernel Load(CudaKernel kernel)
    {
        nint module = Module(kernel);
        CudaStatus status = CudaDriver.cuModuleGetFunction(out nint function, module, kernel.Name);
        if (status != CudaStatus.Success)
        {
            CudaCheck.Throw(status, nameof(CudaDriver.cuModuleGetFunction), null, $"{kernel.File} should have the kernel {kernel.Name}.");
        }

        CheckDeclaration(kernel, function);
        CudaCheck.ThrowIfFailed(CudaDriver.cuFuncGetAttribute(out int staticBytes, CudaDriver.FunctionStaticSharedBytes, function));
        return new LoadedKernel(function, staticBytes) { SharedLimit = (uint)Math.Max(0, SharedBytesWithoutAsking - staticBytes) };
    }

    private void RaiseSharedLimit(CudaKernel kernel, LoadedKernel function, uint sharedBytes)
    {
        if (sharedBytes > (uint)Math.Max(0, info.SharedBytesPerBlock - function.StaticSharedBytes))
        {
            throw new NotSupportedException(
                $"{kernel.Title} needs {sharedBytes:N0} bytes of shared memory a block beside its own {function.StaticSharedBytes:N0}; {info.Name} has {info.SharedBytesPerBlock:N0}.");
        }

        CudaCheck.ThrowIfFailed(CudaDriver.cuFuncSetAttribute(function.Handle, CudaDriver.FunctionMaxDynamicSharedBytes, (int)sharedBytes));
        function.SharedLimit = sharedBytes;
    }

    private nint Module(CudaKernel kernel)
    {
        if (modules.TryGetValue((kernel.File, kernel.Define), out nint module))
        {
            return module;
        }

        module = readyTarget is null ? 0 : Loaded(kernel, ready!.TryRead(sources, kernel, readyTarget));
        if (module == 0)
        {
            module = nvrtc is not null ? Compiled(nvrtc, target!, kernel) : throw new KernelCompilationException(
                $"{kernel.Title} is not among the kernels in {ready?.Folder}, or its file there is damaged, and there is no NVRTC to compile it. Install NVRTC; lora-trainer doctor says how.");
        }

        modules.Add((kernel.File, kernel.Define), module);
        return module;
    }

    private nint Compiled(Nvrtc compiler, KernelTarget wanted, CudaKernel kernel)
    {
        string source = sources.Read(kernel.File);
        List<string> options = wanted.Options(kernel.Define);
        byte[] key = KernelCache.KeyOf([
            kernel.File, source, .. sources.Headers.SelectMany(header => (string[])[header.Name, header.Text]), .. options,
            compiler.Version.ToString(), string.Create(CultureInfo.InvariantCulture, $"{wanted.Output} {info.Architecture}"),
        ]);
        nint module = Loaded(kernel, cache.TryRead(key));
        if (module != 0)
        {
            return module;
        }

        byte[] image = compiler.Compile(kernel.File, source, sources.Headers, options, wanted.Output, out string messages);
        Compilations++;
        if (messages.Length > 0)
        {
            notice($"NVRTC about {kernel.File}: {messages}");
        }

        fixed (byte* start = image)
        {
            CudaStatus status = CudaDriver.cuModuleLoadData(out module, start);
            if (status != CudaStatus.Success)
            {
                CudaCheck.Throw(status, nameof(CudaDriver.cuModuleLoadData), null, status == CudaStatus.OutOfMemory ? NeedOf(kernel, image) : LoadFailure(compiler, wanted, kernel));
            }
        }

        cache.TryWrite(key, image);
        return module;
    }

    /// <summary>The module of a kept image; 0 if there is none, or if the driver does not take it: then it is compiled again.</summary>
    private static nint Loaded(CudaKernel kernel, byte[]? image)
    {
        if (image is null)
        {
            return 0;
        }

        fixed (byte* start = image)
        {
            CudaStatus status = CudaDriver.cuModuleLoadData(out nint module, start);
            if (status == CudaStatus.OutOfMemory || status.Fault() != GpuFault.None)
            {
                CudaCheck.Throw(status, nameof(CudaDriver.cuModuleLoadData), null, status == CudaStatus.OutOfMemory ? NeedOf(kernel, image) : null);
            }

            return status == CudaStatus.Success ? module : 0;
        }
    }

    private static string NeedOf(CudaKernel kernel, byte[] image) => string.Create(CultureInfo.InvariantCulture, $"Asked for: room for the code of {kernel.Title} of {kernel.File}, a file of {image.Length:N0} bytes; code lies beside the plan.");

    private string LoadFailure(Nvrtc compiler, KernelTarget wanted, CudaKernel kernel) => wanted.Output == NvrtcOutput.Ptx
        ? $"{kernel.File} was compiled to PTX by NVRTC {compiler.Version}, which does not know compute capability {info.ComputeCapability}; a newer NVRTC or a newer driver is needed."
        : $"{kernel.File} was compiled by NVRTC {compiler.Version} for {wanted.Architecture}; the driver serves CUDA {info.DriverVersion}. An NVRTC that is not newer than the driver helps.";

    private sealed class LoadedKernel(nint handle, int staticSharedBytes)
    {
        public nint Handle => handle;

        public int StaticSharedBytes => staticSharedBytes;

        /// <summary>Dynamic shared memory that a launch may ask for now.</summary>
        public uint SharedLimit { get; set; }
    }
}

/// <summary>What kernels are compiled to for a card.</summary>
/// <param name="Architecture">sm_XY for machine code, compute_XY for portable text.</param>
/// <param name="Output">Which of the two.</param>
internal sealed record KernelTarget(string Architecture, NvrtcOutput Output)
{
    /// <summary>
    /// Machine code for the card itself if the compiler knows it; else for the newest of the same generation before it, whose code it runs; else
    /// portable text for the newest that the compiler knows below it.
    /// </summary>
    /// <param name="architecture">The card's compute capability as 10 * major + minor.</param>
    /// <param name="known">What the compiler can compile for, ascending; empty if it does not tell.</param>
    /// <param name="compiler">The compiler's version.</param>
    public static KernelTarget For(int architecture, IReadOnlyList<int> known, Version compiler)
    {
        // The instructions that only the 9.0 chip has are in sm_90a, which NVRTC has since 12.0.
        string suffix = architecture == 90 && compiler.Major >= 12 ? "a" : "";
        int best = known.Count == 0 ? architecture : known.Where(candidate => candidate <= architecture).DefaultIfEmpty(0).Max();
        if (best == 0)
        {
            throw new NotSupportedException(string.Create(CultureInfo.InvariantCulture,
                $"NVRTC {compiler} cannot compile for compute capability {architecture / 10}.{architecture % 10}; the lowest it knows is {known[0] / 10}.{known[0] % 10}. An older NVRTC does."));
        }

        return best / 10 == architecture / 10
            ? new KernelTarget(string.Create(CultureInfo.InvariantCulture, $"sm_{best}{(best == architecture ? suffix : "")}"), NvrtcOutput.Cubin)
            : new KernelTarget(string.Create(CultureInfo.InvariantCulture, $"compute_{best}"), NvrtcOutput.Ptx);
    }

    /// <summary>The options of a compilation.</summary>
    /// <param name="define">NAME=VALUE, a blank between two; or null.</param>
    public List<string> Options(string? define)
    {
        // Contraction to fused multiply-adds is on by default and wanted; it is named because results depend on it.
        List<string> options = [$"--gpu-architecture={Architecture}", "--std=c++17", "-default-device", "--fmad=true"];
        if (define is not null)
        {
            options.AddRange(define.Split(' ').Select(macro => "-D" + macro));
        }

        return options;
    }
}
