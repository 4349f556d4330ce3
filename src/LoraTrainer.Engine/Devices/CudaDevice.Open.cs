using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Runtime.InteropServices;
using LoraTrainer.Engine.Native.Cuda;

namespace LoraTrainer.Engine.Devices;

public sealed unsafe partial class CudaDevice
{
    // bf16 tensor cores and asynchronous copies into shared memory begin here.
    private const int LowestComputeCapabilityMajor = 8;

    // What NVRTC and cuBLASLt are of at least, and so are the bindings.
    private const int LowestCudaMajor = 12;

    private const string InstallDriver = "Install the NVIDIA driver (Debian, Ubuntu: apt install nvidia-driver), or start the container with the GPU (docker run --gpus all); then nvidia-smi must list it.";

    private const string DriverCommand = "apt install nvidia-driver (Debian), ubuntu-drivers install (Ubuntu)";

    private const string OutOfMemoryName = "CUDA_ERROR_OUT_OF_MEMORY";

    /// <summary>
    /// Opens the first GPU with memory of the planned size. Where there is none that can be used, or not enough memory, that is no exception but a
    /// reason: one sentence on what is missing and what was tried, one on what to do.
    /// </summary>
    /// <param name="capacityBytes">Size of the arena; all other memory on the card stays the driver's.</param>
    /// <param name="device">Null on failure.</param>
    /// <param name="reason">Empty on success.</param>
    public static bool TryOpen(long capacityBytes, [NotNullWhen(true)] out CudaDevice? device, out string reason) => TryOpen(new DeviceMemory(capacityBytes), out device, out reason, out _);

    /// <inheritdoc cref="TryOpen(long, out CudaDevice?, out string)"/>
    /// <param name="planned">All memory that will be used; what else is on the card stays the driver's.</param>
    /// <param name="device">Null on failure.</param>
    /// <param name="reason">Empty on success.</param>
    /// <param name="shortage">Whose memory is too little, where the GPU can be used otherwise: what needs less would run. The caller knows what that is.</param>
    public static bool TryOpen(DeviceMemory planned, [NotNullWhen(true)] out CudaDevice? device, out string reason, out MemoryShortage shortage) =>
        TryOpen(planned, new CudaDeviceOptions(), out device, out reason, out shortage);

    internal static bool TryOpen(long capacityBytes, CudaDeviceOptions options, [NotNullWhen(true)] out CudaDevice? device, out string reason) =>
        TryOpen(new DeviceMemory(capacityBytes), options, out device, out reason, out _);

    internal static bool TryOpen(DeviceMemory planned, CudaDeviceOptions options, [NotNullWhen(true)] out CudaDevice? device, out string reason, out MemoryShortage shortage)
    {
        device = null;
        shortage = MemoryShortage.None;
        CudaReport report = Describe(askFreeMemory: false, options.ReadyFolder, out int ordinal, out Nvrtc? nvrtc);
        if (!report.Available)
        {
            reason = report.Reason;
            return false;
        }

        try
        {
            device = new CudaDevice(ordinal, report.Device!, nvrtc, planned, options);
        }
        catch (Exception exception) when (exception is CudaException or InsufficientMemoryException or HostMemoryException or NotSupportedException)
        {
            // On a full card not even a context can be made.
            reason = exception.Message;
            shortage = exception switch
            {
                InsufficientMemoryException or CudaException { StatusName: OutOfMemoryName, Call: nameof(CudaDriver.cuDevicePrimaryCtxRetain) } => MemoryShortage.Device,
                HostMemoryException => MemoryShortage.Host,
                _ => MemoryShortage.None,
            };
            return false;
        }

        reason = "";
        return true;
    }

    /// <summary>
    /// The GPU that <see cref="TryOpen(long, out CudaDevice?, out string)"/> would take. Nothing is made on it, not even a context, so free memory is
    /// not told: <see cref="Describe()"/> tells it.
    /// </summary>
    public static bool TryDescribe([NotNullWhen(true)] out CudaDeviceInfo? info, out string reason)
    {
        CudaReport report = Describe(askFreeMemory: false, ReadyKernels.DefaultFolder(Environment.GetEnvironmentVariable), out _, out _);
        info = report.Available ? report.Device : null;
        reason = report.Reason;
        return report.Available;
    }

    /// <summary>All that was found and all that is missing, for <c>doctor</c> and <c>plan</c>. Makes a context for a moment, because the question for free memory needs one.</summary>
    public static CudaReport Describe() => Describe(askFreeMemory: true, ReadyKernels.DefaultFolder(Environment.GetEnvironmentVariable), out _, out _);

    /// <summary>What a machine without a driver is told.</summary>
    internal static string NoDriver(LibrarySearch search) => $"{DriverProblem(search)} {InstallDriver}";

    /// <summary>How a library is installed that the driver can work with: one of its CUDA major version, or of the last known one before it.</summary>
    /// <param name="library">The compiler or cuBLASLt.</param>
    /// <param name="driverMajor">The CUDA major version that the driver serves, 0 if unknown.</param>
    internal static string InstallCommand(CudaLibrary library, int driverMajor)
    {
        (string apt, string pip) = library == CudaLibrary.Compiler ? ("cuda-nvrtc", "nvidia-cuda-nvrtc") : ("libcublas", "nvidia-cublas");
        string of12 = $"apt install {apt}-12-9, or pip install {pip}-cu12", of13 = $"apt install {apt}-13-0, or pip install {pip}";
        return driverMajor switch
        {
            0 => $"{of13} ({apt}-12-9, {pip}-cu12 for a driver that serves CUDA 12)",
            < 13 => of12,
            _ => of13,
        };
    }

    /// <summary>What is wrong with a library that was found, or null: one of a newer major version than the driver's makes nothing that loads.</summary>
    /// <param name="library">The compiler or cuBLASLt.</param>
    /// <param name="name">Its name for people.</param>
    /// <param name="major">The CUDA major version that it belongs to.</param>
    /// <param name="driver">The CUDA version that the driver serves, as in "12.8".</param>
    internal static string? NewerThanDriver(CudaLibrary library, string name, int major, string driver)
    {
        int driverMajor = Version.Parse(driver).Major;
        return major > driverMajor
            ? string.Create(CultureInfo.InvariantCulture, $"{name} is of CUDA {major} and the driver serves {driver}: it will not work. Update the driver, or install one of CUDA {driverMajor}: {InstallCommand(library, driverMajor)}.")
            : null;
    }

    private static string DriverProblem(LibrarySearch search) => $"There is no NVIDIA driver: {search.Tried()}.";

    private static string Remedy(CudaLibrary library, int driverMajor) =>
        $"Install it ({InstallCommand(library, driverMajor)}), or use a container image nvidia/cuda:*-runtime-*; LT_CUDA_DIR names a folder of your own.";

    private static CudaReport Describe(bool askFreeMemory, string? readyFolder, out int ordinal, out Nvrtc? nvrtc)
    {
        LibrarySearch driver = CudaLibraries.Find(CudaLibrary.Driver), compiler = CudaLibraries.Find(CudaLibrary.Compiler), blas = CudaLibraries.Find(CudaLibrary.Blas);
        CudaDeviceInfo? info = null;
        int count = 0;
        ordinal = 0;
        int driverVersion = driver.Found && CudaDriver.cuDriverGetVersion(out int version) == CudaStatus.Success ? version : 0, driverMajor = driverVersion / 1000;
        (string problem, string remedy) = driver.Found
            ? (Look(askFreeMemory, out count, out ordinal, out info), "")
            : (DriverProblem(driver), InstallDriver);
        ReadyKernels? ready = info is null ? null : ReadyKernels.In(readyFolder);
        bool isReady = ready?.TargetFor(info!.Architecture) is not null;
        nvrtc = null;
        if (compiler.Found && !Nvrtc.TryCreate(compiler, out nvrtc, out string broken))
        {
            (problem, remedy) = problem.Length > 0 || isReady ? (problem, remedy) : ($"The CUDA compiler NVRTC cannot be used: {broken}.", Remedy(CudaLibrary.Compiler, driverMajor));
        }
        else if (problem.Length == 0 && !compiler.Found && !isReady)
        {
            (problem, remedy) = ($"The CUDA compiler NVRTC was not found: {compiler.Tried()}.", Remedy(CudaLibrary.Compiler, driverMajor));
        }

        if (problem.Length == 0 && !blas.Found)
        {
            (problem, remedy) = ($"cuBLASLt was not found: {blas.Tried()}.", Remedy(CudaLibrary.Blas, driverMajor));
        }

        nuint blasVersion = blas.Found ? CublasLt.cublasLtGetVersion() : 0;
        if (problem.Length == 0)
        {
            string serves = VersionText(driverVersion);
            problem = driverMajor < LowestCudaMajor
                ? string.Create(CultureInfo.InvariantCulture, $"The NVIDIA driver is too old: it serves CUDA {serves}, and {LowestCudaMajor}.0 is the least. Update it to 525 or later ({DriverCommand}).")
                : (isReady ? null : NewerThanDriver(CudaLibrary.Compiler, "libnvrtc", nvrtc?.Version.Major ?? 0, serves)) ?? NewerThanDriver(CudaLibrary.Blas, "libcublasLt", (int)(blasVersion / 10000), serves) ?? "";
        }

        return new CudaReport
        {
            Libraries =
            [
                LibraryInfo(driver, "libcuda", "driver", driverVersion > 0 ? VersionText(driverVersion) : null, DriverCommand),
                LibraryInfo(compiler, "libnvrtc", isReady ? $"compiles what of the kernels is not in {ready!.Folder}" : "compiles the kernels", nvrtc?.Version.ToString(), InstallCommand(CudaLibrary.Compiler, driverMajor)),
                LibraryInfo(blas, "libcublasLt", "matrix products", blas.Found ? BlasVersionText(blasVersion) : null, InstallCommand(CudaLibrary.Blas, driverMajor)),
            ],
            Device = info,
            DeviceCount = count,
            Problem = problem,
            Remedy = remedy,
            Warnings = [.. Warnings(driverVersion, nvrtc?.Version.Major ?? 0, (int)(blasVersion / 10000))],
        };
    }

    /// <summary>What does not keep a run from starting, and is not as it should be.</summary>
    private static IEnumerable<string> Warnings(int driverVersion, int compilerMajor, int blasMajor)
    {
        if (CudaLibraries.Folder is { } folder && !Directory.Exists(folder))
        {
            yield return $"LT_CUDA_DIR names {folder}, and there is no such folder; the libraries were looked for elsewhere.";
        }

        if (driverVersion == 0)
        {
            yield break;
        }

        string driver = VersionText(driverVersion);
        foreach (string? warning in (string?[])[NewerThanDriver(CudaLibrary.Compiler, "libnvrtc", compilerMajor, driver), NewerThanDriver(CudaLibrary.Blas, "libcublasLt", blasMajor, driver)])
        {
            if (warning is not null)
            {
                yield return warning;
            }
        }
    }

    /// <summary>Asks the driver for the first GPU. Returns why it cannot be used, or nothing.</summary>
    private static string Look(bool askFreeMemory, out int count, out int ordinal, out CudaDeviceInfo? info)
    {
        count = 0;
        ordinal = 0;
        info = null;
        CudaStatus status = CudaDriver.cuInit(0);
        if (status != CudaStatus.Success)
        {
            return $"The NVIDIA driver does not start: cuInit gives {CudaDriver.NameOf(status)} ({CudaDriver.SentenceOf(status).TrimEnd('.')}). {AdviceOn(status)}";
        }

        try
        {
            CudaCheck.ThrowIfFailed(CudaDriver.cuDeviceGetCount(out count));
            if (count == 0)
            {
                return $"The NVIDIA driver shows no GPU to this process. {AdviceOn(CudaStatus.NoDevice)}";
            }

            CudaCheck.ThrowIfFailed(CudaDriver.cuDeviceGet(out ordinal, 0));
            info = ReadInfo(ordinal, askFreeMemory);
        }
        catch (CudaException exception)
        {
            return $"The GPU does not answer: {exception.Message}";
        }

        return info.ComputeCapabilityMajor < LowestComputeCapabilityMajor
            ? $"{info.Name} has compute capability {info.ComputeCapability}; training here needs {LowestComputeCapabilityMajor}.0 or more (Ampere, Ada, Hopper, Blackwell), for bf16 arithmetic and asynchronous copies."
            : "";
    }

    private static CudaDeviceInfo ReadInfo(int device, bool askFreeMemory)
    {
        const int nameBytes = 256;
        byte* name = stackalloc byte[nameBytes];
        CudaCheck.ThrowIfFailed(CudaDriver.cuDeviceGetName(name, nameBytes, device));
        CudaCheck.ThrowIfFailed(CudaDriver.cuDeviceTotalMem(out nuint total, device));
        CudaCheck.ThrowIfFailed(CudaDriver.cuDriverGetVersion(out int driverVersion));
        return new CudaDeviceInfo
        {
            Name = Marshal.PtrToStringUTF8((nint)name)!,
            ComputeCapabilityMajor = Attribute(CudaDriver.AttributeComputeCapabilityMajor),
            ComputeCapabilityMinor = Attribute(CudaDriver.AttributeComputeCapabilityMinor),
            MultiprocessorCount = Attribute(CudaDriver.AttributeMultiprocessorCount),
            SharedBytesPerBlock = Attribute(CudaDriver.AttributeSharedBytesPerBlockOptIn),
            TotalMemoryBytes = (long)total,
            FreeMemoryBytes = askFreeMemory ? FreeMemory(device) : null,
            DriverVersion = VersionText(driverVersion),
        };

        int Attribute(int attribute)
        {
            CudaCheck.ThrowIfFailed(CudaDriver.cuDeviceGetAttribute(out int value, attribute, device));
            return value;
        }
    }

    /// <summary>Free memory is a question to a context, which costs some tenths of a second to make; where none can be made (the card is taken), there is no answer.</summary>
    private static long? FreeMemory(int device)
    {
        if (CudaDriver.cuDevicePrimaryCtxRetain(out nint context, device) != CudaStatus.Success)
        {
            return null;
        }

        long? free = CudaDriver.cuCtxSetCurrent(context) == CudaStatus.Success && CudaDriver.cuMemGetInfo(out nuint bytes, out _) == CudaStatus.Success ? (long)bytes : null;
        _ = CudaDriver.cuCtxSetCurrent(0);
        _ = CudaDriver.cuDevicePrimaryCtxRelease(device);
        return free;
    }

    private static string AdviceOn(CudaStatus status) => status switch
    {
        CudaStatus.NoDevice => "Is there a GPU in nvidia-smi? CUDA_VISIBLE_DEVICES may hide it, and a container has to be started with it (docker run --gpus all).",
        CudaStatus.StubLibrary => "What was found is the stub of a toolkit, made for linking; the driver's own libcuda.so.1 has to come before it.",
        CudaStatus.SystemDriverMismatch or CudaStatus.CompatNotSupportedOnDevice => "The driver's kernel module and its library are of different versions: restart the machine after a driver update, or take cuda-compat out of the library path.",
        _ => "nvidia-smi tells whether the driver works; in a container, /dev/nvidia* must be there and open to this user.",
    };

    private static CudaLibraryInfo LibraryInfo(LibrarySearch search, string name, string purpose, string? version, string install) =>
        new(name, purpose, search.Path, version, [.. search.Attempts.Select(attempt => (attempt.Path, attempt.Error))], install);

    private static string VersionText(int version) => string.Create(CultureInfo.InvariantCulture, $"{version / 1000}.{version % 1000 / 10}");

    private static string BlasVersionText(nuint version) => string.Create(CultureInfo.InvariantCulture, $"{version / 10000}.{version / 100 % 100}.{version % 100}");
}
