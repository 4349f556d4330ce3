using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Runtime.InteropServices;
using LoraTrainer.Engine.Native.Cuda;

namespace LoraTrainer.Engine.Devices;

public sealed unsafe partial class CudaDevice
{
    // bf16 tensor cores and asynchronous copies into shared memory begin here.
    private const int LowestComputeCapabilityMajor = 8;

    private const string InstallDriver = "Install the NVIDIA driver (Debian, Ubuntu: apt install nvidia-driver), or start the container with the GPU (docker run --gpus all); then nvidia-smi must list it.";

    private const string InstallCompiler = "Install it from NVIDIA's or the distribution's packages (apt install cuda-nvrtc-13-0, or libnvrtc12), with pip install nvidia-cuda-nvrtc, or use a container image nvidia/cuda:*-runtime-*; LT_CUDA_DIR names a folder of your own.";

    private const string InstallBlas = "Install it from NVIDIA's or the distribution's packages (apt install libcublas-13-0, or libcublaslt12), with pip install nvidia-cublas, or use a container image nvidia/cuda:*-runtime-*; LT_CUDA_DIR names a folder of your own.";

    /// <summary>
    /// Opens the first GPU with memory of the planned size. Where there is none that can be used, or not enough memory, that is no exception but a
    /// reason: one sentence on what is missing and what was tried, one on what to do.
    /// </summary>
    /// <param name="capacityBytes">Size of the arena; all other memory on the card stays the driver's.</param>
    /// <param name="device">Null on failure.</param>
    /// <param name="reason">Empty on success.</param>
    public static bool TryOpen(long capacityBytes, [NotNullWhen(true)] out CudaDevice? device, out string reason) => TryOpen(capacityBytes, new CudaDeviceOptions(), out device, out reason);

    internal static bool TryOpen(long capacityBytes, CudaDeviceOptions options, [NotNullWhen(true)] out CudaDevice? device, out string reason)
    {
        device = null;
        CudaReport report = Describe(askFreeMemory: false, out int ordinal, out Nvrtc? nvrtc);
        if (!report.Available)
        {
            reason = report.Reason;
            return false;
        }

        try
        {
            device = new CudaDevice(ordinal, report.Device!, nvrtc!, capacityBytes, options);
        }
        catch (Exception exception) when (exception is CudaException or InsufficientMemoryException or NotSupportedException)
        {
            reason = exception.Message;
            return false;
        }

        reason = "";
        return true;
    }

    /// <summary>The GPU that <see cref="TryOpen(long, out CudaDevice?, out string)"/> would take; nothing is allocated on it.</summary>
    public static bool TryDescribe([NotNullWhen(true)] out CudaDeviceInfo? info, out string reason)
    {
        CudaReport report = Describe();
        info = report.Available ? report.Device : null;
        reason = report.Reason;
        return report.Available;
    }

    /// <summary>All that was found and all that is missing, for <c>doctor</c>.</summary>
    public static CudaReport Describe() => Describe(askFreeMemory: true, out _, out _);

    /// <summary>What a machine without a driver is told.</summary>
    internal static string NoDriver(LibrarySearch search) => $"There is no NVIDIA driver: {search.Tried()}. {InstallDriver}";

    private static CudaReport Describe(bool askFreeMemory, out int ordinal, out Nvrtc? nvrtc)
    {
        LibrarySearch driver = CudaLibraries.Find(CudaLibrary.Driver), compiler = CudaLibraries.Find(CudaLibrary.Compiler), blas = CudaLibraries.Find(CudaLibrary.Blas);
        CudaDeviceInfo? info = null;
        int count = 0;
        ordinal = 0;
        string reason = driver.Found
            ? Look(askFreeMemory, out count, out ordinal, out info)
            : NoDriver(driver);
        nvrtc = null;
        if (compiler.Found && !Nvrtc.TryCreate(compiler, out nvrtc, out string broken))
        {
            reason = reason.Length > 0 ? reason : $"The CUDA compiler NVRTC cannot be used: {broken}. {InstallCompiler}";
        }
        else if (reason.Length == 0 && !compiler.Found)
        {
            reason = $"The CUDA compiler NVRTC was not found: {compiler.Tried()}. {InstallCompiler}";
        }

        if (reason.Length == 0 && !blas.Found)
        {
            reason = $"cuBLASLt was not found: {blas.Tried()}. {InstallBlas}";
        }

        return new CudaReport
        {
            Libraries =
            [
                LibraryInfo(driver, "libcuda", "driver", driver.Found && CudaDriver.cuDriverGetVersion(out int version) == CudaStatus.Success ? VersionText(version) : null, InstallDriver),
                LibraryInfo(compiler, "libnvrtc", "compiles the kernels", nvrtc?.Version.ToString(), InstallCompiler),
                LibraryInfo(blas, "libcublasLt", "matrix products", blas.Found ? BlasVersionText(CublasLt.cublasLtGetVersion()) : null, InstallBlas),
            ],
            Device = info,
            DeviceCount = count,
            Reason = reason,
        };
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
