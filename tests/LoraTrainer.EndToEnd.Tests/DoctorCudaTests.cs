using System.Text.Json;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>What <c>doctor</c> says where there is a GPU: the stand-in's.</summary>
[Trait("Category", "Emulator")]
public sealed class DoctorCudaTests
{
    [Fact]
    public async Task Doctor_WithAGpu_SaysWhatItIs()
    {
        using var run = new TinyFolder();
        Ending end = await run.RunAsync(["doctor"], environment: Environment());

        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Matches("gpu +.+ GiB, .+ free, compute capability [0-9]+\\.[0-9], [0-9]+ multiprocessors\n", end.Output);
        Assert.Matches($"libcuda +[0-9.]+ \\({CudaStandin.Folder}/libcuda.so.1\\)\n", end.Output);
        Assert.Matches("device: auto +takes the GPU\n", end.Output);
    }

    [Fact]
    public async Task Doctor_Json_WithAGpu_HasTheNumbers()
    {
        using var run = new TinyFolder();
        Ending end = await run.RunAsync(["doctor", "--json"], environment: Environment());

        Assert.True(end.ExitCode == 0, end.ToString());
        using JsonDocument document = JsonDocument.Parse(end.Output);
        JsonElement cuda = document.RootElement.GetProperty("cuda"), device = cuda.GetProperty("device");
        Assert.True(cuda.GetProperty("available").GetBoolean());
        Assert.Equal(JsonValueKind.Null, cuda.GetProperty("reason").ValueKind);
        Assert.True(device.GetProperty("total_bytes").GetInt64() > 0);
        Assert.InRange(device.GetProperty("free_bytes").GetInt64(), 1, device.GetProperty("total_bytes").GetInt64());
        Assert.All(cuda.GetProperty("libraries").EnumerateArray(), library => Assert.StartsWith(CudaStandin.Folder, library.GetProperty("path").GetString(), StringComparison.Ordinal));
        Assert.Equal("cuda", document.RootElement.GetProperty("auto_device").GetString());
    }

    /// <summary>A driver without the other two libraries: the reason names what is missing and what to install.</summary>
    [Fact]
    public async Task Doctor_CompilerIsMissing_SaysWhatToInstall()
    {
        using var run = new TinyFolder();
        Directory.CreateDirectory(run.PathOf("driver"));
        File.Copy(Path.Combine(CudaStandin.Folder, "libcuda.so.1"), run.PathOf("driver/libcuda.so.1"));
        Ending end = await run.RunAsync(["doctor", "--json"], environment: new Dictionary<string, string> { ["LT_CUDA_DIR"] = run.PathOf("driver") });

        using JsonDocument document = JsonDocument.Parse(end.Output);
        JsonElement cuda = document.RootElement.GetProperty("cuda"), compiler = cuda.GetProperty("libraries")[1];
        Assert.SkipWhen(compiler.GetProperty("path").ValueKind == JsonValueKind.String, "this machine has NVRTC");
        Assert.False(cuda.GetProperty("available").GetBoolean());
        Assert.Contains("NVRTC was not found: tried libnvrtc.so.13, libnvrtc.so.12, libnvrtc.so", cuda.GetProperty("reason").GetString(), StringComparison.Ordinal);
        Assert.Contains("pip install nvidia-cuda-nvrtc", compiler.GetProperty("install").GetString(), StringComparison.Ordinal);
        Assert.Equal("cpu", document.RootElement.GetProperty("auto_device").GetString());
    }

    [Fact]
    public async Task Doctor_NamedFolderIsNotThere_SaysSo()
    {
        using var run = new TinyFolder();
        Ending end = await run.RunAsync(["doctor"], environment: new Dictionary<string, string> { ["LT_CUDA_DIR"] = run.PathOf("nowhere") });

        Assert.Matches($"warning +LT_CUDA_DIR names {run.PathOf("nowhere")}, and there is no such folder", end.Output);
    }

    private static Dictionary<string, string> Environment() => new() { ["LT_CUDA_DIR"] = CudaStandin.Folder };
}
