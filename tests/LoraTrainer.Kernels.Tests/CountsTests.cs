using LoraTrainer.Engine.Devices;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>What a training step asks of the driver: launches that follow from the layers, one copy back, no other wait, no allocation.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class CountsTests
{
    private const int MicroSteps = 4;

    /// <summary>Projections of a block: q, k, v, o, gate, up, down; each has an adapter.</summary>
    private const int Linears = 7;

    /// <summary>Tensors that these read: without dropout the adapters of one tensor share their products with A.</summary>
    private const int Inputs = 4;

    /// <summary>Of these the lowest block needs no gradient of their input, because nothing below it is trained: q, k, v.</summary>
    private const int LowestWithoutInputGradient = 3;

    /// <summary>Calls that the host waits in.</summary>
    private static readonly string[] Waits = ["cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize"];

    /// <summary>Calls that make something or give it back, which the driver may wait for the GPU in.</summary>
    private static readonly string[] Makers =
    [
        "cuMemAlloc_v2", "cuMemAllocManaged", "cuMemHostAlloc", "cuMemFree_v2", "cuMemFreeHost", "cuStreamCreate", "cuStreamDestroy_v2", "cuEventCreate", "cuEventDestroy_v2",
        "cuModuleLoadData", "cuModuleUnload", "cuModuleGetFunction", "cuFuncSetAttribute", "cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags", "cuGraphExecDestroy",
    ];

    private static int Layers => TinyRun.Shape.NumHiddenLayers;

    /// <summary>What is trained; "recompute": a block's forward pass runs again in backward.</summary>
    public static TheoryData<string> Cases => ["lora", "lora recompute", "qlora", "qlora double recompute", "lora without dropout", "qlora without dropout recompute"];

    [Theory]
    [MemberData(nameof(Cases))]
    public void Step_EveryCall_FollowsFromTheLayers(string what)
    {
        Assert.SkipWhen(CudaTestDevice.IsRealGpuRequired, "a real driver does not count");
        using TemporaryFolder folder = TinyTraining.Folder();
        using var run = new TinyTraining(folder.Path, DevicePlatform.Cuda, (_, memory) => CudaTestDevice.Open("lazy", memory), Changes(what));
        run.Trainer.Step();
        (string, long)[] live = [.. Live()];
        CudaStandin.Reset();
        run.Trainer.Step();

        int forwards = what.Contains("recompute", StringComparison.Ordinal) ? 2 : 1;
        int withInputGradient = Linears * Layers - LowestWithoutInputGradient;
        bool drops = !what.Contains("without dropout", StringComparison.Ordinal);
        int joint = drops ? Linears : Inputs, jointWithInputGradient = drops ? withInputGradient : Inputs * Layers - 1;
        var perMicroStep = new Dictionary<string, int>
        {
            ["cast_to_bf16"] = 1,
            ["rope_tables"] = 1,
            ["embedding_forward"] = 1,

            // Two norms a block, formed again in backward; the last one.
            ["rms_norm_forward"] = Layers * (2 * forwards + 2) + 1,
            ["rms_norm_backward"] = Layers * 2 - 1 + 1,

            // Queries and keys.
            ["rope_apply"] = Layers * (2 * forwards + 2),
            ["attention_forward"] = Layers * forwards,
            ["attention_delta"] = Layers,
            ["attention_backward_keys"] = Layers,
            ["attention_backward_queries"] = Layers,
            ["swiglu_forward"] = Layers * (forwards + 1),
            ["swiglu_backward"] = Layers,

            // Two residuals a block; in backward each adapter's part of the input's gradient, which has a mask of its own.
            ["add"] = Layers * 2 * forwards + (drops ? withInputGradient : 0),
            ["dropout_apply"] = drops ? Layers * Linears * (forwards + 1) + withInputGradient : 0,

            // One chunk of logits.
            ["rows_gather"] = 1,
            ["rows_scatter"] = 1,
            ["softmax_cross_entropy"] = 1,
            ["sum_losses"] = 1,

            // Forward: the base, A, B. Backward: B's gradient, A's gradient and between them that of A's output; the input's gradient through A and through
            // the base. The output layer forward and back. Those with A for all adapters of a tensor at once, where they share it: of a block's 56 products 9 are saved.
            ["gemms"] = Layers * (Linears * (2 * forwards + 2) + joint * (forwards + 1)) + withInputGradient + jointWithInputGradient + 2,
        };
        if (what.StartsWith("qlora", StringComparison.Ordinal))
        {
            // The base in 4 bits is expanded for each of its products.
            perMicroStep[what.Contains("double", StringComparison.Ordinal) ? "nf4_dequantize_double" : "nf4_dequantize"] = Layers * Linears * forwards + withInputGradient;
        }

        var expected = new SortedDictionary<string, long>(StringComparer.Ordinal);
        foreach (CudaKernel kernel in CudaKernels.All)
        {
            expected[kernel.Name] = MicroSteps * perMicroStep.GetValueOrDefault(kernel.Name);
        }

        foreach (string once in (string[])["sum_of_squares", "norm_of_partials", "adamw_step"])
        {
            expected[once] = 1;
        }

        expected["gemms"] = MicroSteps * perMicroStep["gemms"];

        // The next batch, in one piece; then the rotary frequencies; once a step the optimizer's table.
        expected["copies_to_device"] = MicroSteps * (1 + 1) + 1;

        // Losses and the gradient at the output layer; once the gradients and the report.
        expected["memsets"] = MicroSteps * 2 + 2;

        // Each batch from where it arrives to where it is read.
        expected["copies_on_device"] = MicroSteps;
        expected["copies_to_host"] = 1;
        expected["synchronizations"] = 1;
        Assert.Equal([], expected.Where(pair => CudaStandin.Count(pair.Key) != pair.Value).Select(pair => $"{pair.Key}: {CudaStandin.Count(pair.Key)} instead of {pair.Value}"));
        Assert.Equal(live, Live());
    }

    /// <summary>Micro-batches on their way beside the work, block inputs on the host, paged moments, graphs: the host waits for the report of the step and for nothing else.</summary>
    [Theory]
    [InlineData("qlora", "eager")]
    [InlineData("qlora", "lazy")]
    [InlineData("qlora offload paged", "lazy")]
    [InlineData("qlora offload paged graphs", "lazy")]
    [InlineData("qlora offload paged graphs", "uploads first")]
    public void Step_Steady_WaitsOnceAndMakesNothing(string what, string mode)
    {
        Assert.SkipWhen(CudaTestDevice.IsRealGpuRequired, "a real driver does not count");
        using TemporaryFolder folder = TinyTraining.Folder(TinyRun.Shape with { TieWordEmbeddings = false, NumHiddenLayers = 4 });
        WriteRowsOfOneLength(folder);
        bool graphs = what.Contains("graphs", StringComparison.Ordinal);
        using var run = new TinyTraining(folder.Path, DevicePlatform.Cuda, (_, memory) => CudaTestDevice.Open(mode, memory), [.. Changes(what), ("num_epochs", 2)]);
        for (int step = 0; step < 3; step++)
        {
            run.Trainer.Step();
        }

        (string, long)[] live = [.. Live()];
        const int steps = 4;
        CudaStandin.Reset();
        for (int step = 0; step < steps; step++)
        {
            run.Trainer.Step();
        }

        Assert.Equal(steps, Waits.Sum(CudaStandin.Count));
        Assert.Equal(steps, CudaStandin.Count("synchronizations"));
        Assert.Equal([], Makers.Append("blocking_copies").Append("allocations").Where(name => CudaStandin.Count(name) > 0));
        Assert.Equal(live, Live());
        Assert.Equal(graphs ? steps * MicroSteps : 0, CudaStandin.Count("cuGraphLaunch"));
        Assert.Equal(what.Contains("paged", StringComparison.Ordinal) ? steps : 0, CudaStandin.Count("prefetches"));

        // What is in the graph is asked for with one call: the rest of a pass is its beginning, the sum of its losses, and once a step the update.
        Assert.Equal(graphs ? 0 : steps * MicroSteps * run.Trained.Model.Config.NumHiddenLayers, CudaStandin.Count("swiglu_backward"));
    }

    [Theory]
    [InlineData("lora")]
    [InlineData("qlora double recompute")]
    [InlineData("qlora graphs")]
    public void Step_Steady_AllocatesNearlyNothing(string what)
    {
        using TemporaryFolder folder = TinyTraining.Folder();

        WriteRowsOfOneLength(folder);
        using var run = new TinyTraining(folder.Path, DevicePlatform.Cuda, (_, memory) => CudaTestDevice.Open(CudaTestDevice.Modes[0], memory), [.. Changes(what), ("num_epochs", 1)]);
        const int warmup = 6, steps = 6;
        Assert.True(run.Trainer.TotalSteps >= warmup + steps);
        for (int step = 0; step < warmup; step++)
        {
            run.Trainer.Step();
        }

        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int step = 0; step < steps; step++)
        {
            run.Trainer.Step();
        }

        // The list of the step's rows is all there is.
        long perStep = (GC.GetAllocatedBytesForCurrentThread() - before) / steps;
        TestContext.Current.TestOutputHelper?.WriteLine($"{perStep} bytes a step");
        Assert.True(perStep < 1024, $"{perStep} bytes a step on the training thread");
    }

    private static IEnumerable<(string Name, long Count)> Live() =>
        ((string[])["live_allocations", "live_host_allocations", "allocated_bytes", "live_streams", "live_events", "live_modules", "live_graphs", "context_references"]).Select(name => (name, CudaStandin.Count(name)));

    /// <summary>A kind of product that was not seen before gets descriptors, which are kept; a shape that was not seen before gets a graph.</summary>
    private static void WriteRowsOfOneLength(TemporaryFolder folder) =>
        File.WriteAllLines(folder.File("train.jsonl"), Enumerable.Range(0, 120).Select(i => $$"""{"instruction":"row {{i:000}}","input":"","output":"{{i * i:00000}}"}"""));

    private static (string Key, object? Value)[] Changes(string what)
    {
        bool Has(string word) => what.Contains(word, StringComparison.Ordinal);
        var changes = new List<(string, object?)> { ("gradient_checkpointing", Has("offload") ? "offload" : Has("recompute") ? "true" : "false") };
        if (Has("paged"))
        {
            changes.Add(("optimizer", "paged_adamw_32bit"));
        }

        if (Has("without dropout"))
        {
            changes.Add(("lora_dropout", 0));
        }

        if (Has("graphs"))
        {
            changes.Add(("cuda_graphs", "true"));
        }

        if (what.StartsWith("qlora", StringComparison.Ordinal))
        {
            string doubled = what.Contains("double", StringComparison.Ordinal) ? "true" : "false";
            changes.AddRange([("adapter", "qlora"), ("load_in_4bit", "true"), ("bnb_config_kwargs", $"{{bnb_4bit_use_double_quant: {doubled}}}")]);
        }

        return [.. changes];
    }
}
