using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;
using Xunit;

namespace LoraTrainer.TestSupport;

/// <summary>In which order the stand-in runs the threads of a block, and when it carries out asynchronous copies.</summary>
public enum StandinOrder
{
    Forward = 0,
    Reverse = 1,
    Random = 2,
}

/// <summary>When an asynchronous copy into shared memory is carried out.</summary>
public enum StandinCopies
{
    /// <summary>At the wait that asks for it.</summary>
    Late = 0,

    /// <summary>At once.</summary>
    Early = 1,
}

/// <summary>
/// The CUDA driver, compiler and cuBLASLt of a machine without a GPU: three libraries that run the product's kernels on the processor
/// (<c>tests/CudaEmulator</c>). A process has one set of CUDA libraries, so a test program either uses these or the machine's own. Tests that
/// use them belong into one collection (<see cref="Collection"/>), so that they run one after the other: counters and scheduling are the process's.
/// </summary>
public static unsafe class CudaStandin
{
    /// <summary>The name for the collection of these tests.</summary>
    public const string Collection = "CUDA stand-in";

    private const long DefaultCapacityBytes = 64L << 20;

    private static readonly Lazy<(string? Folder, string Reason)> Prepared = new(Prepare);

    private static readonly Lazy<nint> Driver = new(() => NativeLibrary.Load(Path.Combine(Folder, "libcuda.so.1")));

    /// <summary>The folder with the three libraries. Skips the running test where they cannot be made, or fails it under CI=true.</summary>
    public static string Folder
    {
        get
        {
            Require();
            return Prepared.Value.Folder!;
        }
    }

    /// <summary>Builds the libraries if they are not there and makes the product use them. Skips the running test where that is not possible, or fails it under CI=true.</summary>
    public static void Require()
    {
        if (Prepared.Value.Folder is null)
        {
            if (Fixtures.IsContinuousIntegration)
            {
                Assert.Fail(Prepared.Value.Reason);
            }

            Assert.Skip(Prepared.Value.Reason);
        }
    }

    /// <summary>Opens the stand-in's device; fails the test where that does not work.</summary>
    public static CudaDevice Open(long capacityBytes = DefaultCapacityBytes) => Open(new DeviceMemory(capacityBytes));

    /// <inheritdoc cref="Open(long)"/>
    public static CudaDevice Open(DeviceMemory memory)
    {
        Require();
        RequireCollection();
        Assert.True(CudaDevice.TryOpen(memory, out CudaDevice? device, out string reason, out _), reason);
        return device;
    }

    /// <param name="order">Of the threads of a block.</param>
    /// <param name="copies">When asynchronous copies happen.</param>
    /// <param name="lazy">True: work stays queued on its stream until something waits for it, as on a real GPU that is busy.</param>
    /// <param name="uploadsFirst">With <paramref name="lazy"/>: copies from the host are made as soon as their stream's waits allow, so that one that should have waited comes too early.</param>
    public static void Configure(StandinOrder order = StandinOrder.Forward, StandinCopies copies = StandinCopies.Late, bool lazy = false, bool uploadsFirst = false)
    {
        RequireCollection();
        ((delegate* unmanaged<int, int, int, void>)Export("lt_standin_configure"))((int)order, (int)copies, !lazy ? 0 : uploadsFirst ? 2 : 1);
    }

    /// <summary>Launches of a kernel by its name, or one of the stand-in's other counters ("gemms", "synchronizations", "live_allocations" ...).</summary>
    public static long Count(string name)
    {
        fixed (byte* text = Encoding.UTF8.GetBytes(name + '\0'))
        {
            return ((delegate* unmanaged<byte*, long>)Export("lt_standin_count"))(text);
        }
    }

    /// <summary>Compiles the program's kernels into a folder, as a release carries them.</summary>
    /// <param name="folder">Made if it is not there.</param>
    /// <param name="headDim">Of attention.</param>
    public static void WriteReadyKernels(string folder, int headDim)
    {
        Require();
        Assert.True(Nvrtc.TryCreate(CudaLibraries.Find(CudaLibrary.Compiler), out Nvrtc? nvrtc, out string reason), reason);
        ReadyKernels.WriteRelease(folder, nvrtc, [80], [headDim]);
    }

    /// <summary>Sets the counters to zero; what is live stays counted.</summary>
    public static void Reset() => ((delegate* unmanaged<void>)Export("lt_standin_reset_counts"))();

    /// <summary>A test outside the collection would run beside its tests, and be counted by them.</summary>
    private static void RequireCollection() => Assert.True(
        TestContext.Current.TestCollection?.TestCollectionDisplayName == Collection, $"a test of the stand-ins' device is outside their collection: give its class [Collection(CudaStandin.Collection)]");

    private static nint Export(string name) => NativeLibrary.GetExport(Driver.Value, name);

    private static (string? Folder, string Reason) Prepare()
    {
        (string? folder, string reason) = Find();
        if (folder is not null)
        {
            CudaLibraries.Folder = folder;

            // The stand-in keeps what it compiled by itself, and knows better what that depends on.
            Environment.SetEnvironmentVariable("LT_KERNEL_CACHE", "off");
        }

        return (folder, reason);
    }

    private static (string? Folder, string Reason) Find()
    {
        if (Environment.GetEnvironmentVariable("LT_CUDA_STANDIN_DIR") is { Length: > 0 } given)
        {
            return Directory.Exists(given) ? (Path.GetFullPath(given), "") : (null, $"LT_CUDA_STANDIN_DIR names {given}, which is not there");
        }

        string sources = Path.Combine(Fixtures.RepositoryRoot, "tests", "CudaEmulator");
        string script = Path.Combine(sources, "build.sh");
        if (!File.Exists(script))
        {
            return (null, $"the CUDA stand-ins are not here: there is no {script}, and LT_CUDA_STANDIN_DIR names no folder with them");
        }

        string folder = Path.Combine(Fixtures.RepositoryRoot, "artifacts", "cuda-standin", HashOf(sources));
        Directory.CreateDirectory(folder);
        string done = Path.Combine(folder, "done");
        using (Lock(Path.Combine(folder, "lock")))
        {
            if (!File.Exists(done))
            {
                (int exitCode, string output) = Tool.Run("bash", script, folder);
                if (exitCode != 0)
                {
                    return (null, $"the CUDA stand-ins could not be built ({script}, exit code {exitCode}):\n{output}");
                }

                File.WriteAllText(done, "");
            }
        }

        return (folder, "");
    }

    /// <summary>A name for what the sources are now, so that a change of any of them leads to a new build; and for the processor, whose instructions the build uses.</summary>
    private static string HashOf(string folder)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        const string processor = "/proc/cpuinfo";
        hash.AppendData(Encoding.UTF8.GetBytes(File.Exists(processor) ? File.ReadLines(processor).FirstOrDefault(line => line.StartsWith("flags", StringComparison.Ordinal)) ?? "" : ""));
        foreach (string file in Directory.EnumerateFiles(folder, "*", SearchOption.AllDirectories).Order(StringComparer.Ordinal))
        {
            hash.AppendData(Encoding.UTF8.GetBytes(Path.GetRelativePath(folder, file) + '\0'));
            hash.AppendData(SHA256.HashData(File.ReadAllBytes(file)));
        }

        return Convert.ToHexStringLower(hash.GetHashAndReset())[..16];
    }

    /// <summary>Other test programs may be at it at the same time.</summary>
    private static FileStream Lock(string path)
    {
        while (true)
        {
            try
            {
                return new FileStream(path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None);
            }
            catch (IOException)
            {
                Thread.Sleep(100);
            }
        }
    }
}
