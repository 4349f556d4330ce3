using System.Diagnostics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;
using Xunit;

namespace LoraTrainer.TestSupport;

/// <summary>
/// NVIDIA's own run-time compiler, which needs no GPU: what it accepts is what a GPU machine's will. Taken from the folder LT_NVRTC_DIR, else unpacked
/// from <c>../shared/tools/nvrtc/nvrtc.tar.xz</c> beside the repository. Where it is not, tests that use it are skipped, or fail under CI=true.
/// </summary>
public static class RealNvrtc
{
    private const string LibraryName = "libnvrtc.so.13";

    private static readonly Lazy<(string? Path, string Reason)> Prepared = new(Prepare);

    /// <summary>The path of the library.</summary>
    public static string Require()
    {
        if (Prepared.Value.Path is { } path)
        {
            return path;
        }

        if (Fixtures.IsContinuousIntegration)
        {
            Assert.Fail(Prepared.Value.Reason);
        }

        Assert.Skip(Prepared.Value.Reason);
        return "";
    }

    /// <summary>Compiles the program's kernels with it into a folder, as <c>scripts/ready-kernels.sh</c> does for a release, and reads each back as a machine of that architecture would.</summary>
    /// <param name="folder">Made if it is not there.</param>
    /// <param name="architecture">10 * major + minor; of a generation without portable text.</param>
    /// <param name="headDim">Of attention.</param>
    /// <returns>Modules that were written, and the code of each kernel in the order of the declarations.</returns>
    public static (int Written, IReadOnlyList<byte[]?> Images) WriteReadyKernels(string folder, int architecture, int headDim)
    {
        Assert.True(Nvrtc.TryLoad(Require(), out Nvrtc? nvrtc, out string reason), reason);
        int written = ReadyKernels.WriteRelease(folder, nvrtc, [architecture], [headDim]);
        ReadyKernels? ready = ReadyKernels.In(folder);
        Assert.NotNull(ready);
        KernelTarget? target = ready.TargetFor(architecture);
        Assert.NotNull(target);
        return (written, [.. ReadyKernels.KernelsOfRelease([headDim]).Select(kernel => ready.TryRead(KernelSources.Embedded, kernel, target))]);
    }

    private static (string? Path, string Reason) Prepare()
    {
        if (Environment.GetEnvironmentVariable("LT_NVRTC_DIR") is { Length: > 0 } given)
        {
            string named = Path.Combine(given, LibraryName);
            return File.Exists(named) ? (named, "") : (null, $"LT_NVRTC_DIR names {given}, and there is no {LibraryName} in it");
        }

        string archive = Path.Combine(Fixtures.RepositoryRoot, "..", "shared", "tools", "nvrtc", "nvrtc.tar.xz");
        if (!File.Exists(archive))
        {
            return (null, "NVIDIA's NVRTC is not here: expected ../shared/tools/nvrtc/nvrtc.tar.xz beside the repository, or a folder with it in LT_NVRTC_DIR");
        }

        // A folder of its own moved into place when it is whole: several test programs may come here at once.
        string folder = Path.Combine(Fixtures.RepositoryRoot, "artifacts", "nvrtc");
        if (!Directory.Exists(folder))
        {
            string unpacked = $"{folder}-{Environment.ProcessId}";
            Directory.CreateDirectory(unpacked);
            using Process tar = Process.Start("tar", ["-xJf", archive, "-C", unpacked, "--strip-components=1"]);
            tar.WaitForExit();
            if (tar.ExitCode != 0)
            {
                return (null, $"{archive} cannot be unpacked (tar ended with {tar.ExitCode}; it needs xz-utils)");
            }

            try
            {
                Directory.Move(unpacked, folder);
            }
            catch (IOException) when (Directory.Exists(folder))
            {
                Directory.Delete(unpacked, recursive: true);
            }
        }

        string library = Path.Combine(folder, LibraryName);
        return File.Exists(library) ? (library, "") : (null, $"{archive} has no {LibraryName}");
    }
}
