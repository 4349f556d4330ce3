using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Benchmarks;

/// <summary>How a step trains.</summary>
internal enum CudaMethod
{
    /// <summary>LoRA on a base in bf16.</summary>
    Lora,

    /// <summary>LoRA on a base in 8 bits.</summary>
    Int8,

    /// <summary>LoRA on a base in NF4 with double quantization.</summary>
    Qlora,

    /// <summary>DoRA on a base in bf16.</summary>
    Dora,
}

/// <summary>One whole training step: a method, what it adapts, and a batch.</summary>
/// <param name="Method">Of training.</param>
/// <param name="AllLinear">Rank 16 on all linear layers of the blocks; else rank 8 on q, k and v.</param>
/// <param name="Rows">Documents of the batch.</param>
/// <param name="Length">Tokens of each.</param>
/// <param name="Checkpointing">Of the config.</param>
/// <param name="Graphs">Forward and backward as one CUDA graph.</param>
internal sealed record CudaStep(CudaMethod Method, bool AllLinear, int Rows, int Length, GradientCheckpointing Checkpointing = GradientCheckpointing.Off, CudaGraphs Graphs = CudaGraphs.Off)
{
    /// <summary>Of its rows; the batch is the full one, also where it is shrunk to be tried.</summary>
    public string Name
    {
        get
        {
            string method = Method switch { CudaMethod.Lora => "lora_bf16", CudaMethod.Int8 => "lora_int8", CudaMethod.Qlora => "qlora_nf4", _ => "dora_bf16" };
            string checkpointing = Checkpointing switch { GradientCheckpointing.On => "_recompute", GradientCheckpointing.Offload => "_offload", _ => "" };
            return string.Create(CultureInfo.InvariantCulture, $"cuda_step_{method}{(AllLinear ? "_all16" : "")}_8b_{Rows}x{Length}{checkpointing}{(Graphs == CudaGraphs.Off ? "" : "_graph")}");
        }
    }
}

/// <summary>
/// cuda_step_*: whole steps of Llama-3.1-8B, all tokens scored, with LoRA of rank 8 on q, k and v or (all16) of rank 16 on all linear layers: tokens/s, share of the GPU's rate, memory
/// as a whole and by kind. Work of a token: 4N + 3a floating-point operations with N the weights of all linear layers and the output layer and a = 2 * length * hidden_size *
/// layers; what is computed again does not count. A step with CUDA graphs (_graph) stands behind the same one without; both are proven to give the same bits first. The weights are random and made on the device: no file is written or read.
/// </summary>
internal static class CudaStepBenchmarks
{
    private const int WarmSteps = 3;
    private const int Steps = 12;
    private const float WeightScale = 0.02f;

    private const string Llama8B = """
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "vocab_size": 128256, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "max_position_embeddings": 131072, "rope_theta": 500000.0}
        """;

    private const string Tiny = """
        {"model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 320, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "max_position_embeddings": 131072, "rope_theta": 500000.0}
        """;

    // Lengths and models are as many times as small where the code is only tried.
    private const int Shrink = 32;

    public static IReadOnlyList<CudaStep> All { get; } =
    [
        new(CudaMethod.Qlora, false, 4, 512),
        new(CudaMethod.Qlora, false, 4, 512, Graphs: CudaGraphs.On),
        new(CudaMethod.Qlora, false, 8, 512),
        new(CudaMethod.Qlora, false, 1, 2048),
        new(CudaMethod.Qlora, false, 1, 2048, Graphs: CudaGraphs.On),
        new(CudaMethod.Qlora, false, 1, 2048, GradientCheckpointing.On),
        new(CudaMethod.Qlora, false, 1, 2048, GradientCheckpointing.Offload),
        new(CudaMethod.Qlora, false, 1, 2048, GradientCheckpointing.Offload, Graphs: CudaGraphs.On),
        new(CudaMethod.Qlora, true, 4, 512),
        new(CudaMethod.Qlora, true, 1, 2048),
        new(CudaMethod.Qlora, true, 8, 2048, GradientCheckpointing.On),
        new(CudaMethod.Qlora, false, 8, 2048),
        new(CudaMethod.Lora, false, 4, 512),
        new(CudaMethod.Lora, false, 4, 512, Graphs: CudaGraphs.On),
        new(CudaMethod.Lora, false, 8, 512),
        new(CudaMethod.Lora, false, 1, 2048),
        new(CudaMethod.Lora, false, 8, 2048),
        new(CudaMethod.Lora, true, 4, 512),
        new(CudaMethod.Lora, true, 1, 2048),
        new(CudaMethod.Int8, false, 4, 512),
        new(CudaMethod.Int8, false, 8, 512),
        new(CudaMethod.Int8, false, 1, 2048),
        new(CudaMethod.Int8, true, 1, 2048),
        new(CudaMethod.Dora, false, 4, 512),
        new(CudaMethod.Dora, false, 8, 512),
        new(CudaMethod.Dora, false, 1, 2048),
        new(CudaMethod.Dora, true, 1, 2048),
    ];

    /// <summary>Measures a step and prints its rows.</summary>
    public static void Run(BenchmarkReport report, CudaSizes sizes, CudaStep step)
    {
        string name = step.Name;
        ModelConfig shape = ModelConfig.Parse("config.json", Encoding.UTF8.GetBytes(sizes.Shrunk ? Tiny : Llama8B));
        step = sizes.Shrunk ? step with { Length = step.Length / Shrink } : step;
        TrainingConfig config = Config(step);
        int tokens = step.Rows * step.Length;
        MemoryPlan plan = MemoryPlan.Measure(config, shape, null, new DeviceSelection(DevicePlatform.Cuda, Environment.ProcessorCount, null), new PlannedPasses(tokens, [], step.Length));
        if (GemmRate(report, sizes) is not { } gemm)
        {
            return;
        }

        // Above the plan: what tensors are filled from, where a tiny step leaves no room for it.
        long beside = sizes.Shrunk ? 64L << 20 : 0;
        long? freeBefore = CudaDevice.Describe().Device?.FreeMemoryBytes;
        if (!CudaDevice.TryOpen(plan.Memory with { ArenaBytes = plan.ArenaBytes + beside }, out CudaDevice? device, out string reason, out _))
        {
            Console.Error.WriteLine($"{name} is left out: {reason}");
            return;
        }

        using (device)
        {
            ZeroAll(device);
            TrainedModel trained = TrainedModel.Build(config, shape, folder: null, device);
            using (device.Arena.Frame())
            {
                FillWeights(new CudaBench(report, device, sizes), trained.Model);
            }

            double[] seconds = Measure(device, trained, step, name, config.Device);
            long? taken = freeBefore - FreeMemory() - beside;
            Report(report, name, step, shape, device, [.. seconds.Select(time => tokens / time)], gemm);
            if (taken is { } bytes)
            {
                report.Add(name + "_memory", bytes / 1e9, "GB", "own plan", plan.ArenaBytes / 1e9, (double)plan.ArenaBytes / bytes);
            }

            foreach (MemoryKind kind in Enum.GetValues<MemoryKind>().Where(kind => plan.ByKind[kind] > 0))
            {
                long peak = device.Arena.HighWaterOf(kind);
                report.Add($"{name}_memory_{kind.ToString().ToLowerInvariant()}", peak / 1e9, "GB", "own plan", plan.ByKind[kind] / 1e9, (double)plan.ByKind[kind] / Math.Max(1, peak));
            }
        }
    }

    /// <summary>The fastest product's rate, on a device of its own, whose memory is given back; null where there is no room for it.</summary>
    private static double? GemmRate(BenchmarkReport report, CudaSizes sizes)
    {
        long bytes = 4L * 2 * sizes.Square * sizes.Square + 6L * 2 * sizes.Tokens * (sizes.Intermediate + sizes.Hidden) + (sizes.Shrunk ? 64L << 20 : 256L << 20);
        if (!CudaDevice.TryOpen(bytes, out CudaDevice? device, out string reason))
        {
            Console.Error.WriteLine($"The steps are left out: {reason}");
            return null;
        }

        using (device)
        {
            var bench = new CudaBench(report, device, sizes);
            CudaProduct fastest = CudaProduct.Fastest(bench);
            return bench.Rate(fastest.Flops, fastest.Call);
        }
    }

    private static void Report(BenchmarkReport report, string name, CudaStep step, ModelConfig shape, CudaDevice device, double[] tokensPerSecond, double gemm)
    {
        double matrices = shape.ExpectedTensors().Where(tensor => tensor.Shape.Length == 2 && tensor.Name != ModelConfig.EmbeddingTensor).Sum(tensor => (double)tensor.Shape[0] * tensor.Shape[1]);
        double flopsPerToken = 4 * matrices + 3 * (2.0 * step.Length * shape.HiddenSize * shape.NumHiddenLayers);
        double rate = CudaBench.Median(tokensPerSecond);
        report.Add(name, rate, "tokens/s", "fastest own bf16 GEMM, by the FLOPs of a token", gemm / flopsPerToken, rate * flopsPerToken / gemm, tokensPerSecond);
        if (PeakOf(device.Info.Name) is { } peak)
        {
            double[] rates = [.. tokensPerSecond.Select(value => value * flopsPerToken / 1e12)];
            report.Add(name + "_mfu", rate * flopsPerToken / 1e12, "TFLOP/s", "dense bf16 rate in the card's data sheet", peak, rate * flopsPerToken / 1e12 / peak, rates);
        }
        else
        {
            Console.Error.WriteLine($"{name}_mfu is left out: the rate of {device.Info.Name} in its data sheet is not known here.");
        }
    }

    private static TrainingConfig Config(CudaStep step)
    {
        AdapterOptions adapter = step.AllLinear
            ? new AdapterOptions { Rank = 16, Alpha = 32, TargetLinear = true }
            : new AdapterOptions { Rank = 8, Alpha = 16, TargetModules = ["q_proj", "k_proj", "v_proj"] };
        return new TrainingConfig
        {
            Adapter = adapter with { Kind = step.Method == CudaMethod.Qlora ? AdapterKind.Qlora : AdapterKind.Lora, UseDora = step.Method == CudaMethod.Dora },
            Quantization = new QuantizationOptions { LoadIn4Bit = step.Method == CudaMethod.Qlora, LoadIn8Bit = step.Method == CudaMethod.Int8 },
            Evaluation = new EvaluationOptions { Before = false, After = false },
            Device = new DeviceOptions { GradientCheckpointing = step.Checkpointing, CudaGraphs = step.Graphs },
        };
    }

    /// <summary>The seconds of each step, from its batch's arrival to its report; the first ones, which compile, choose, record and prove, are not among them.</summary>
    private static double[] Measure(CudaDevice device, TrainedModel trained, CudaStep step, string name, DeviceOptions options)
    {
        int count = step.Rows * step.Length, vocabulary = trained.Model.Config.VocabSize;
        var random = new Random(7);
        int[] tokens = [.. Enumerable.Range(0, count).Select(_ => random.Next(vocabulary))];
        int[] targets = [.. tokens[1..], tokens[0]];
        int[] positions = [.. Enumerable.Range(0, count).Select(index => index % step.Length)];
        int[] offsets = [.. Enumerable.Range(0, step.Rows + 1).Select(row => row * step.Length)];
        int[] scored = [.. Enumerable.Range(0, count)];
        double[] seconds = new double[Steps];
        var staged = new StagedBatches(device, count);
        PassGraphs? graphs = step.Graphs == CudaGraphs.Off ? null : new PassGraphs(trained.Model, options);
        void Start(int i) => staged.Start(new PassNumbers(0, (uint)(i + WarmSteps), 1f / count), tokens, positions, offsets, targets, scored);
        Start(-WarmSteps);
        for (int i = -WarmSteps; i < Steps; i++)
        {
            long start = Stopwatch.GetTimestamp();
            using ArenaFrame frame = device.Arena.Frame();
            StepReport numbers = StepReport.Allocate(device);
            device.Zero(trained.Model.Parameters.Gradients);
            PackedBatch batch = staged.Take();
            Start(i + 1);
            using (device.Arena.Frame())
            {
                var dropout = new DropoutState(IsActive: true, Seed: 1, Step: (uint)(i + WarmSteps));
                Trainer.Accumulate(trained, numbers, batch, dropout, 1f / count, step.Checkpointing, graphs);
            }

            Trainer.Update(trained, numbers, i + WarmSteps + 1, 1e-4);
            (double loss, double norm) = numbers.Read();
            if (!double.IsFinite(loss) || !double.IsFinite(norm) || norm == 0)
            {
                throw new InvalidOperationException(string.Create(CultureInfo.InvariantCulture, $"{name}: the loss is {loss / count} and the gradient norm {norm}; a step that does not train measures nothing."));
            }

            if (i >= 0)
            {
                seconds[i] = Stopwatch.GetElapsedTime(start).TotalSeconds;
            }
        }

        if (graphs is { } used && used.Launches < Steps)
        {
            throw new InvalidOperationException($"{name}: only {used.Launches} of {used.Passes} passes were launched as graphs; that is no row of graphs.");
        }

        return seconds;
    }

    /// <summary>Weights are laid out without a file, so what they and their scales are made of must be a number before anything computes with it.</summary>
    private static void ZeroAll(CudaDevice device)
    {
        // Not from the arena, whose peaks are measured.
        device.Zero(new Tensor(device, device.Arena.Start, new Shape(device.Arena.CapacityBytes), DType.U8));
        device.Synchronize();
    }

    private static void FillWeights(CudaBench bench, CausalLanguageModel model)
    {
        FillDense(bench, model.EmbeddingTable);
        FillDense(bench, ((DenseMatrix)model.Head).Values);
        foreach (AdaptedLinear linear in model.Linears)
        {
            switch (linear.Weight)
            {
                case FourBitMatrix nf4:
                    bench.Fill(nf4.Packed);
                    bench.Fill(nf4.AbsmaxCodes);
                    FillWith(bench, nf4.NestedAbsmax, 3 * WeightScale);
                    break;
                case Int8Matrix int8:
                    bench.Fill(int8.Codes);
                    FillWith(bench, int8.Scales, WeightScale);
                    break;
                default:
                    FillDense(bench, ((DenseMatrix)linear.Weight).Values);
                    break;
            }

            if (linear.Adapter?.Magnitude is { } magnitude)
            {
                // As a fresh adapter has them, of the weights that are there now.
                Dora.Norms(magnitude.Value, linear.Weight, Tensor.None, Tensor.None, 0);
            }
        }

        foreach (RmsNormLayer norm in model.Layers.SelectMany(layer => layer.Norms).Append(model.FinalNorm))
        {
            FillWith(bench, norm.Weight, 1);
        }
    }

    /// <summary>Random numbers of the size that trained weights have.</summary>
    private static void FillDense(CudaBench bench, Tensor tensor) => bench.FillScaled(tensor, WeightScale);

    private static void FillWith(CudaBench bench, Tensor tensor, float value)
    {
        float[] values = new float[tensor.ElementCount];
        values.AsSpan().Fill(value);
        bench.Device.Upload(tensor, MemoryMarshal.AsBytes(values.AsSpan()));
    }

    private static long? FreeMemory() => CudaDriver.cuMemGetInfo(out nuint free, out _) == CudaStatus.Success ? (long)free : null;

    /// <summary>Dense bf16 with f32 accumulation in TFLOP/s, as NVIDIA's data sheets give it, by the driver's names; null for others.</summary>
    private static double? PeakOf(string name)
    {
        (string Part, double Peak)[] sheets =
        [
            ("B200", 2250), ("H200", 989.4), ("H100 NVL", 835), ("H100 PCIe", 756), ("H100", 989.4), ("A100", 312), ("L40S", 362), ("L40", 181), ("L4", 121), ("A40", 149.7),
            ("A10G", 70), ("A10", 125), ("RTX A6000", 154.8), ("RTX 4090", 165.2), ("RTX 3090", 71),
        ];
        return sheets.Where(sheet => name.Contains(sheet.Part, StringComparison.Ordinal)).Select(sheet => (double?)sheet.Peak).FirstOrDefault();
    }
}
