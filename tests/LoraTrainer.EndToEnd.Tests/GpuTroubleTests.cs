using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>What can be wrong with a GPU: each ends in a sentence that says what to do, and leaves what was done before.</summary>
[Trait("Category", "Emulator")]
public sealed class GpuTroubleTests
{
    private static readonly string[] Train = ["train", "tiny.yaml", "--set", "device=cuda"];

    /// <summary>
    /// What <c>scripts/ready-kernels.sh</c> makes with NVIDIA's compiler is what a machine without one looks for: each kernel is there, as machine code, and comes to the driver. The stand-in's
    /// driver cannot run it, and says so.
    /// </summary>
    [Fact]
    public async Task Train_WithKernelsOfARelease_GivesThemToTheDriver()
    {
        using var folder = new TinyFolder();
        string kernels = folder.PathOf("kernels"), driver = WithoutCompiler(folder);
        (int written, IReadOnlyList<byte[]?> images) = RealNvrtc.WriteReadyKernels(kernels, 80, TinyRun.Shape.HeadDim);
        Assert.Equal(written, Directory.EnumerateFiles(kernels, "*.kernels").Count());
        Assert.True(images.Count > written, $"{written} modules, {images.Count} kernels");
        Assert.All(images, image => Assert.Equal("\u007fELF"u8, image.AsSpan(0, 4)));

        var environment = new Dictionary<string, string> { ["LT_CUDA_DIR"] = driver, ["LT_READY_KERNELS"] = kernels, ["LT_KERNEL_CACHE"] = "off", ["LT_EMULATOR_VERBOSE"] = "1" };
        Ending doctor = await folder.RunAsync(["doctor"], environment: environment);
        Assert.Matches("device: auto +takes the GPU\n", doctor.Output);
        Assert.SkipWhen(!doctor.Output.Contains($"not found (compiles what of the kernels is not in {kernels})", StringComparison.Ordinal), "this machine has NVRTC");
        Ending train = await folder.RunAsync(Train, environment: environment);
        Assert.True(train.ExitCode == 1, train.ToString());
        Assert.True(train.Error.Contains("cuModuleLoadData: the image was not made by the stand-in NVRTC", StringComparison.Ordinal), train.ToString());
        Assert.Contains($" is not among the kernels in {kernels}, or its file there is damaged, and there is no NVRTC to compile it. Install NVRTC", train.Error, StringComparison.Ordinal);
        AssertCalm(train);
    }

    // What the run comes to where nothing goes wrong.
    private static readonly Lazy<Task<Dictionary<string, string>>> Whole = new(async () =>
    {
        using var whole = new TinyFolder();
        Ending expected = await whole.RunAsync(Train, environment: Environment());
        Assert.True(expected.ExitCode == 0, expected.ToString());
        return whole.Result();
    });

    public static TheoryData<string, string, string> Unusable => new()
    {
        { "LT_EMULATOR_DRIVER", "11040", "The NVIDIA driver is too old: it serves CUDA 11.4, and 12.0 is the least. Update it to 525 or later" },
        { "LT_EMULATOR_DRIVER", "12080", "libnvrtc is of CUDA 13 and the driver serves 12.8: it will not work. Update the driver, or install one of CUDA 12: " },
        { "LT_EMULATOR_CAPABILITY", "75", "Emulated device (CPU) has compute capability 7.5; training here needs 8.0 or more (Ampere, Ada, Hopper, Blackwell)" },
        { "LT_EMULATOR_MEMORY", "100000", "; other programs on this GPU take what they hold. The plan's largest parts: workspace " },

        // Uploads go through 16 MiB of it, and the run asks for more.
        { "LT_EMULATOR_PINNED", "16777300", "bytes of the host's memory, page-locked for the GPU, and the driver does not get them" },
    };

    [Theory]
    [MemberData(nameof(Unusable))]
    public async Task Train_OnWhatCannotBeUsed_IsRefusedBeforeARunBegins(string variable, string value, string sentence)
    {
        using var folder = new TinyFolder(changes: ("gradient_checkpointing", "offload"));
        Ending end = await folder.RunAsync(Train, environment: Environment((variable, value)));

        Assert.True(end.ExitCode == 2, end.ToString());
        Assert.Contains(sentence, end.Error, StringComparison.Ordinal);
        AssertCalm(end);
        Assert.False(Directory.Exists(folder.Out), end.ToString());
    }

    [Fact]
    public async Task Train_LibrariesAreMissing_NamesTheFirstAndHowItIsInstalled()
    {
        using var folder = new TinyFolder();
        Directory.CreateDirectory(folder.PathOf("driver"));
        File.Copy(Path.Combine(CudaStandin.Folder, "libcuda.so.1"), folder.PathOf("driver/libcuda.so.1"));
        Ending end = await folder.RunAsync(Train, environment: new Dictionary<string, string> { ["LT_CUDA_DIR"] = folder.PathOf("driver") });
        Assert.SkipWhen(end.Error.Contains("cuBLASLt was not found", StringComparison.Ordinal), "this machine has NVRTC");

        Assert.True(end.ExitCode == 2, end.ToString());
        Assert.Contains("device: cuda cannot be used: The CUDA compiler NVRTC was not found: tried libnvrtc.so.13, libnvrtc.so.12, libnvrtc.so", end.Error, StringComparison.Ordinal);
        Assert.Contains("pip install nvidia-cuda-nvrtc", end.Error, StringComparison.Ordinal);
        AssertCalm(end);
    }

    /// <summary>A release that carries compiled kernels runs without NVRTC, to the same bytes; a file of them that is damaged is never used.</summary>
    [Fact]
    public async Task Train_WithKernelsThatCameReady_NeedsNoCompiler()
    {
        using TinyFolder compiled = new(), ready = new();
        string driver = WithoutCompiler(ready), kernels = ready.PathOf("kernels");
        CudaStandin.WriteReadyKernels(kernels, TinyRun.Shape.HeadDim);
        var environment = new Dictionary<string, string> { ["LT_CUDA_DIR"] = driver, ["LT_READY_KERNELS"] = kernels, ["LT_KERNEL_CACHE"] = "off" };
        Ending expected = await compiled.RunAsync(Train, environment: Environment()), end = await ready.RunAsync(Train, environment: environment);
        Assert.True(expected.ExitCode == 0, expected.ToString());
        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Equal(compiled.Result(), ready.Result());

        foreach (string entry in Directory.EnumerateFiles(kernels, "*.kernels"))
        {
            byte[] bytes = File.ReadAllBytes(entry);
            bytes[^1] ^= 1;
            File.WriteAllBytes(entry, bytes);
        }

        Ending damaged = await ready.RunAsync([.. Train, "--set", "output_dir=other"], environment: environment);
        Assert.SkipWhen(damaged.ExitCode == 0, "this machine has NVRTC");
        Assert.Contains($"is not among the kernels in {kernels}, or its file there is damaged, and there is no NVRTC to compile it. Install NVRTC", damaged.Error, StringComparison.Ordinal);
        AssertCalm(damaged);
    }

    /// <summary>Errors of a GPU come later than the work that they belong to; waiting for each launch tells which it was. Where the error does not tell a kernel's fault from a card that is lost, a new process does.</summary>
    [Theory]
    [InlineData("LT_EMULATOR_FAULT", "swiglu_backward:30", true, "The kernel swiglu_backward of gated.cu failed with CUDA_ERROR_ILLEGAL_ADDRESS", "The GPU is not lost: a new process can use it.\n")]
    [InlineData("LT_EMULATOR_FAULT", "swiglu_backward:30", false, "The GPU reported CUDA_ERROR_ILLEGAL_ADDRESS", "The GPU is not lost: a new process can use it.\n")]
    [InlineData("LT_EMULATOR_FAULT", "swiglu_backward:30:719", true, "while the kernel swiglu_backward of gated.cu ran", "The GPU is not lost: a new process can use it. So a kernel was at fault, or the card failed for a moment")]
    [InlineData("LT_EMULATOR_FAULT", "swiglu_backward:30:214", false, "The GPU reported an error of its hardware, CUDA_ERROR_ECC_UNCORRECTABLE", "The GPU is not lost: a new process can use it.\n")]
    [InlineData("LT_EMULATOR_LOST", "2500:lost", false, "The GPU reported CUDA_ERROR_UNKNOWN", "The GPU is lost, it failed or was taken away: a new process cannot use it. The NVIDIA driver does not start: cuInit gives CUDA_ERROR_NO_DEVICE")]
    public async Task Train_TheGpuFailsInTheMiddle_IsResumedFromItsCheckpoint(string variable, string value, bool waits, string sentence, string found)
    {
        using var folder = new TinyFolder();
        Ending end = await folder.RunAsync(Train, environment: Environment((variable, value), ("LT_CUDA_SYNC", waits ? "1" : "0"), ("LT_EMULATOR_LAZY", "1")));
        Assert.True(end.ExitCode == 1, end.ToString());
        Assert.True(end.Error.Contains(sentence, StringComparison.Ordinal), end.ToString());
        Assert.True(end.Error.Contains($"error: {found}", StringComparison.Ordinal), end.ToString());
        Assert.Matches("The checkpoint of step [0-9]+ is intact\\. Once a GPU works, here or elsewhere, go on with: lora-trainer resume out\n", end.Error);
        AssertCalm(end);

        // Once more, before the process has saved anything of its own: in the first pass that is tried.
        Ending again = await folder.RunAsync(["resume", "out"], environment: Environment(("LT_EMULATOR_LOST", "100")));
        Assert.True(again.ExitCode == 1, again.ToString());
        Assert.Matches("The checkpoint of step [0-9]+ is intact\\.", again.Error);

        Ending resumed = await folder.RunAsync(["resume", "out"], environment: Environment());
        Assert.True(resumed.ExitCode == 0, resumed.ToString());
        Assert.Equal(await Whole.Value, folder.Result());
    }

    [Fact]
    public async Task Train_TheGpuIsLostBeforeTheFirstStep_LeavesNothing()
    {
        using var folder = new TinyFolder();
        Ending end = await folder.RunAsync(Train, environment: Environment(("LT_EMULATOR_LOST", "50:lost")));

        Assert.True(end.ExitCode == 1, end.ToString());
        Assert.Contains("warning: This run has not begun, and nothing of it is left. Once a GPU works, give the same command again.\n", end.Error, StringComparison.Ordinal);
        Assert.Contains("error: The GPU is lost", end.Error, StringComparison.Ordinal);
        AssertCalm(end);
        Assert.False(Directory.Exists(folder.Out), end.ToString());
    }

    /// <summary>What a GPU needs beside the plan, such as room for the kernels' code, is had before the first step, or the run does not begin.</summary>
    [Fact]
    public async Task Train_ThereIsNoRoomForTheKernelsThatComeLast_IsRefusedBeforeARunBegins()
    {
        using var folder = new TinyFolder(changes: ("evaluate_before", "false"));
        Ending whole = await folder.RunAsync([.. Train, "--set", "output_dir=whole"], environment: Environment());
        Assert.True(whole.ExitCode == 0, whole.ToString());
        Assert.Matches("note: The largest micro-batch went through: [0-9]+ tokens in 2 sequences, [0-9.]+ s; that of an evaluation too: [0-9]+ tokens, [0-9.]+ s\\.\n", whole.Error);

        // The plan, and so many modules of a MiB, of which passes need more.
        using JsonDocument summary = JsonDocument.Parse(File.ReadAllText(folder.PathOf("whole/summary.json")));
        long planned = summary.RootElement.GetProperty("memory").GetProperty("planned_arena_bytes").GetInt64(), module = 1 << 20;
        string memory = (planned + 5 * module).ToString(CultureInfo.InvariantCulture);
        (string, string)[] full = [("LT_EMULATOR_MEMORY", memory), ("LT_EMULATOR_MODULES", module.ToString(CultureInfo.InvariantCulture))];
        Ending end = await folder.RunAsync(Train, environment: Environment(full));
        Assert.True(end.ExitCode == 2, end.ToString());
        Assert.True(Regex.IsMatch(end.Error, "error: The largest passes of the run do not go through: cuModuleLoadData got no memory of the GPU: CUDA_ERROR_OUT_OF_MEMORY\\. [0-9,]+ of its [0-9,]+ bytes are free\\. Asked for: room for the code of .+ of [a-z_0-9]+\\.cu, a file of [0-9,]+ bytes; code lies beside the plan\\. The plan's largest parts: .+ Less is needed with "), end.ToString());
        AssertCalm(end);
        Assert.False(Directory.Exists(folder.Out), end.ToString());

        // A run that is there stays as it is.
        Ending begun = await folder.RunAsync(Train, new Moment("step 7/", 1, 0), environment: Environment());
        Assert.NotEqual(0, begun.ExitCode);
        string[] before = folder.CheckpointFolders();
        Assert.NotEmpty(before);
        Ending refused = await folder.RunAsync(["resume", "out"], environment: Environment(full));
        Assert.True(refused.ExitCode == 2, refused.ToString());
        Assert.Equal(before, folder.CheckpointFolders());
        Ending resumed = await folder.RunAsync(["resume", "out"], environment: Environment());
        Assert.True(resumed.ExitCode == 0, resumed.ToString());
        Assert.Equal(folder.Result(folder.PathOf("whole"), folder.PathOf("whole/checkpoints/tiny")), folder.Result());
    }

    /// <summary>A folder with the stand-in's driver and cuBLASLt.</summary>
    private static string WithoutCompiler(TinyFolder folder)
    {
        string driver = folder.PathOf("driver");
        Directory.CreateDirectory(driver);
        foreach (string library in (string[])["libcuda.so.1", "libcublasLt.so"])
        {
            File.Copy(Directory.EnumerateFiles(CudaStandin.Folder, library + "*").Order(StringComparer.Ordinal).First(), Path.Combine(driver, library));
        }

        return driver;
    }

    /// <summary>Graphs that the driver does not make, or that do something else than what was recorded: the run says so and goes on without them.</summary>
    [Theory]
    [InlineData("refuse", "could not be recorded as a CUDA graph: cuStreamEndCapture failed with CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")]
    [InlineData("wrong", "its CUDA graph does not give the bits that its launches one by one do: ")]
    public async Task Train_GraphsDoNotWork_IsResumedWithoutThem(string misfortune, string sentence)
    {
        using TinyFolder whole = new(changes: OfOneLength), folder = new(changes: [.. OfOneLength, ("cuda_graphs", "true")]);
        Ending expected = await whole.RunAsync(Train, environment: Environment());
        Assert.True(expected.ExitCode == 0, expected.ToString());

        Ending end = await folder.RunAsync(Train, environment: Environment(("LT_EMULATOR_GRAPH", misfortune)));
        Assert.True(end.ExitCode == 1, end.ToString());
        Assert.True(end.Error.Contains(sentence, StringComparison.Ordinal), end.ToString());
        Assert.Contains("cuda_graphs: false trains without such graphs, to the same result; lora-trainer resume takes --set cuda_graphs=false.", end.Error, StringComparison.Ordinal);
        AssertCalm(end);

        Ending resumed = await folder.RunAsync(["resume", "out", "--set", "cuda_graphs=false"], environment: Environment(("LT_EMULATOR_GRAPH", misfortune)));
        Assert.True(resumed.ExitCode == 0, resumed.ToString());
        Assert.Equal(whole.Result(), folder.Result());
    }

    /// <summary>A fault of a kernel in a graph: which graph, in which step, and how to learn which kernel.</summary>
    [Theory]
    [InlineData(false, "The GPU reported CUDA_ERROR_ILLEGAL_ADDRESS .* Launched last: adamw_step, and before it the pass of 10 tokens \\(9 scored\\) in step [0-9]+, many kernels in a CUDA graph\\. With LT_CUDA_SYNC=1")]
    [InlineData(true, "The kernel swiglu_backward of gated.cu failed with CUDA_ERROR_ILLEGAL_ADDRESS")]
    public async Task Train_AKernelInAGraphFaults_NamesTheGraphAndTheStep(bool waits, string sentence)
    {
        using TinyFolder folder = new(changes: [.. OfOneLength, ("cuda_graphs", "true")]);
        Ending end = await folder.RunAsync(Train, environment: Environment(("LT_EMULATOR_FAULT", "swiglu_backward:50"), ("LT_CUDA_SYNC", waits ? "1" : "0"), ("LT_EMULATOR_LAZY", "1")));

        Assert.True(end.ExitCode == 1, end.ToString());
        Assert.True(Regex.IsMatch(end.Error, sentence), end.ToString());
        Assert.Equal(waits, end.ToString().Contains("cuda_graphs has no effect with LT_CUDA_SYNC=1", StringComparison.Ordinal));
        AssertCalm(end);
    }

    /// <summary>Rows that are cut to one length, and micro-batches of one size.</summary>
    private static (string Key, object? Value)[] OfOneLength => [("sequence_len", 10), ("excess_length_strategy", "truncate"), ("train_on_inputs", "true"), ("micro_batch_size", 1)];

    private static void AssertCalm(Ending end)
    {
        Assert.DoesNotContain("   at ", end.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("defect", end.Error, StringComparison.Ordinal);
    }

    private static Dictionary<string, string> Environment(params (string Name, string Value)[] more)
    {
        var environment = new Dictionary<string, string> { ["LT_CUDA_DIR"] = CudaStandin.Folder };
        foreach ((string name, string value) in more)
        {
            environment[name] = value;
        }

        return environment;
    }
}
