using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Devices;

/// <summary>Where CUDA's libraries are looked for, and what is said when they are not there.</summary>
public sealed class CudaLibrariesTests
{
    [Fact]
    public void Candidates_BeginWithTheNamedFolder_ThenTheLoader()
    {
        string[] candidates = [.. CudaLibraries.Candidates(CudaLibrary.Compiler, "/named", driverMajor: 13, _ => null)];

        Assert.Equal(["/named/libnvrtc.so.13", "/named/libnvrtc.so.12", "/named/libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"], candidates[..6]);
        Assert.Contains("/usr/lib/x86_64-linux-gnu/libnvrtc.so.13", candidates);
        Assert.Contains(Path.Combine(AppContext.BaseDirectory, "nvidia-libs", "libnvrtc.so.12"), candidates);
    }

    [Fact]
    public void Candidates_ForTheDriver_AreOneName() =>
        Assert.All(CudaLibraries.Candidates(CudaLibrary.Driver, "/named", driverMajor: 0, _ => null), path => Assert.Equal("libcuda.so.1", Path.GetFileName(path)));

    [Fact]
    public void Candidates_NewerThanTheDriver_ComeLast()
    {
        string[] candidates = [.. CudaLibraries.Candidates(CudaLibrary.Blas, null, driverMajor: 12, _ => null)];

        int lastFitting = Array.FindLastIndex(candidates, path => !path.EndsWith(".13", StringComparison.Ordinal));
        int firstNewer = Array.FindIndex(candidates, path => path.EndsWith(".13", StringComparison.Ordinal));
        Assert.Equal("libcublasLt.so.12", candidates[0]);
        Assert.True(firstNewer > lastFitting, $"{candidates[firstNewer]} comes before {candidates[lastFitting]}");
    }

    [Theory]
    [InlineData("VIRTUAL_ENV", "lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib")]
    [InlineData("VIRTUAL_ENV", "lib/python3.12/site-packages/nvidia/cu13/lib")]
    [InlineData("CONDA_PREFIX", "lib")]
    [InlineData("CONDA_PREFIX", "lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib")]
    [InlineData("HOME", ".local/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib")]
    [InlineData("HOME", ".pyenv/versions/3.12.1/lib/python3.12/site-packages/nvidia/cu13/lib")]
    [InlineData("PATH", "lib/python3/dist-packages/nvidia/cu13/lib")]
    public void Candidates_HoldTheLibrariesOfPythonEnvironments(string variable, string folder)
    {
        using var root = new TemporaryFolder();
        Directory.CreateDirectory(root.File(folder));
        Directory.CreateDirectory(root.File("bin"));
        File.WriteAllText(root.File("bin/python3"), "");
        string value = variable == "PATH" ? $"/nowhere:{root.File("bin")}" : root.Path;

        Assert.Contains(root.File(folder + "/libnvrtc.so.13"), CudaLibraries.Candidates(CudaLibrary.Compiler, null, 0, name => name == variable ? value : null));
    }

    [Fact]
    public void Search_NothingLoads_RemembersEveryAttemptWithItsReason()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("libnvrtc.so.12"), "no library");

        LibrarySearch search = CudaLibraries.Search(CudaLibrary.Compiler, [folder.File("libnvrtc.so.13"), folder.File("libnvrtc.so.12"), "liblora-trainer-has-no-such-library.so.13"]);

        Assert.False(search.Found);
        Assert.Null(search.Path);
        Assert.Equal([folder.File("libnvrtc.so.13"), folder.File("libnvrtc.so.12"), "liblora-trainer-has-no-such-library.so.13"], search.Attempts.Select(attempt => attempt.Path));
        Assert.Equal("no such file", search.Attempts[0].Error);
        Assert.Contains("file too short", search.Attempts[1].Error, StringComparison.Ordinal);
        Assert.Contains("No such file or directory", search.Attempts[2].Error, StringComparison.Ordinal);
        Assert.Equal(
            $"tried libnvrtc.so.13, libnvrtc.so.12, liblora-trainer-has-no-such-library.so.13 through the system's loader and in 1 folder; {folder.File("libnvrtc.so.12")} is there but cannot be loaded: file too short",
            search.Tried());
    }

    [Fact]
    public void Search_LibraryOfAnotherKind_IsNotTaken()
    {
        LibrarySearch search = CudaLibraries.Search(CudaLibrary.Driver, ["libc.so.6"]);

        Assert.False(search.Found);
        Assert.Equal("it has no function cuInit", search.Attempts[0].Error);
    }

    [Fact]
    public void NoDriver_NamesTheFilesTriedAndWhatToInstall()
    {
        LibrarySearch search = CudaLibraries.Search(CudaLibrary.Driver, CudaLibraries.Candidates(CudaLibrary.Driver, "/named", 0, _ => null).Where(path => path.StartsWith("/named", StringComparison.Ordinal)));

        Assert.Equal(
            "There is no NVIDIA driver: tried libcuda.so.1 through the system's loader and in 1 folder. Install the NVIDIA driver (Debian, Ubuntu: apt install nvidia-driver), or start the container with the GPU (docker run --gpus all); then nvidia-smi must list it.",
            CudaDevice.NoDriver(search));
    }

    [Theory]
    [InlineData(12, "apt install cuda-nvrtc-12-9, or pip install nvidia-cuda-nvrtc-cu12", "apt install libcublas-12-9, or pip install nvidia-cublas-cu12")]
    [InlineData(13, "apt install cuda-nvrtc-13-0, or pip install nvidia-cuda-nvrtc", "apt install libcublas-13-0, or pip install nvidia-cublas")]
    [InlineData(14, "apt install cuda-nvrtc-13-0, or pip install nvidia-cuda-nvrtc", "apt install libcublas-13-0, or pip install nvidia-cublas")]
    public void InstallCommand_IsOfTheMajorVersionOfTheDriver(int driver, string compiler, string blas) =>
        Assert.Equal((compiler, blas), (CudaDevice.InstallCommand(CudaLibrary.Compiler, driver), CudaDevice.InstallCommand(CudaLibrary.Blas, driver)));

    [Theory]
    [InlineData(12, "12.8", null)]
    [InlineData(12, "13.0", null)]
    [InlineData(13, "12.8", "libnvrtc is of CUDA 13 and the driver serves 12.8: it will not work. Update the driver, or install one of CUDA 12: apt install cuda-nvrtc-12-9, or pip install nvidia-cuda-nvrtc-cu12.")]
    public void NewerThanDriver_OfAnotherMajorVersion_IsAWarning(int major, string driver, string? warning) =>
        Assert.Equal(warning, CudaDevice.NewerThanDriver(CudaLibrary.Compiler, "libnvrtc", major, driver));

    [Fact]
    public void Nvrtc_FileIsMissing_SaysWhich()
    {
        Assert.False(Nvrtc.TryLoad("/nowhere/libnvrtc.so.13", out Nvrtc? nvrtc, out string reason));

        Assert.Null(nvrtc);
        Assert.Equal("/nowhere/libnvrtc.so.13: no such file", reason);
    }
}
