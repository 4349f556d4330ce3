using System.Runtime.InteropServices;
using System.Text;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Benchmarks;

/// <summary>
/// Whole training steps against the rate of the engine's own f32 matrix product in the same run. Work of a token: 4N + 3a floating-point
/// operations with N the weights of all linear layers and the output layer and a = 2 * length * hidden_size * layers. adapter_products_*: what adapters that read one
/// input share.
/// </summary>
internal static class StepBenchmarks
{
    private const int Tokens = 512;

    /// <summary>SmolLM2-135M.</summary>
    private const string Shape = """
        {
          "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
          "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": true, "torch_dtype": "bfloat16"
        }
        """;

    public static void Run(BenchmarkReport report)
    {
        Step(report, "step_qlora_nf4_135m", recompute: false);
        Step(report, "step_qlora_nf4_135m_recompute", recompute: true);
        Decode(report, "decode_nf4_135m");
        foreach ((int hidden, int rank) in ((int, int)[])[(576, 8), (576, 16), (2048, 16)])
        {
            SharedProducts(report, $"adapter_products_{Tokens}x{hidden}_3x{rank}", hidden, rank);
        }
    }

    /// <summary>u = x A^T, dA += du^T x and dX += du A of three adapters that read one x, as one product each, against three.</summary>
    private static void SharedProducts(BenchmarkReport report, string name, int hidden, int rank)
    {
        if (!report.Wants(name))
        {
            return;
        }

        const int adapters = 3;
        using var device = new CpuDevice(Environment.ProcessorCount, 128 << 20);
        Tensor x = Zeroed(Tokens, hidden), dX = Zeroed(Tokens, hidden);
        AdapterOperands together = Operands(adapters * rank);
        AdapterOperands[] alone = [.. Enumerable.Range(0, adapters).Select(_ => Operands(rank))];
        report.Compare(
            name, "GFLOP/s", 3 * 2.0 * Tokens * hidden * adapters * rank / 1e9, () => Multiply(together), "each adapter alone", () =>
            {
                foreach (AdapterOperands one in alone)
                {
                    Multiply(one);
                }
            });

        void Multiply(AdapterOperands operands)
        {
            Linear.Forward(operands.Projected, x, operands.A);
            Linear.BackwardWeight(operands.Gradient, operands.Projected, x);
            Linear.BackwardInput(dX, operands.Projected, operands.A, GradientMode.Accumulate);
        }

        AdapterOperands Operands(int rows) => new(new DenseMatrix(Zeroed(rows, hidden)), Zeroed(rows, hidden), Zeroed(Tokens, rows));

        Tensor Zeroed(long rows, long columns) => device.AllocateZeroed(MemoryKind.Activations, DType.F32, new Shape(rows, columns));
    }

    /// <param name="A">(R, In)</param>
    /// <param name="Gradient">(R, In)</param>
    /// <param name="Projected">(N, R)</param>
    private sealed record AdapterOperands(DenseMatrix A, Tensor Gradient, Tensor Projected);

    /// <summary>
    /// Tokens a second, one after another, against the machine's limit: each token needs every weight once, and the keys and values of all tokens before it, so
    /// it takes at least the time in which all threads together read these from memory.
    /// </summary>
    private static void Decode(BenchmarkReport report, string name)
    {
        if (!report.Wants(name))
        {
            return;
        }

        // Forty tokens in the middle of a text of 1,024, whose first 64 are a prompt. One after another, as a text is written: a token alone would meet caches and
        // tables of pages that the baseline has just filled.
        const int tokens = 40, length = (64 + 1024) / 2;
        ModelConfig shape = ModelConfig.Parse("config.json", Encoding.UTF8.GetBytes(Shape));
        string folder = Directory.CreateTempSubdirectory("lora-trainer-benchmark-").FullName;
        try
        {
            RandomModel.Write(shape, folder, seed: 1);
            using var device = new CpuDevice(Environment.ProcessorCount, 512 << 20);
            using ModelFolder files = ModelFolder.Open(folder);
            CausalLanguageModel model = ModelLoader.LoadFrozen(shape, files, device, BaseFormat.Nf4DoubleQuantized);
            long bytes = model.Linears.Sum(linear => linear.Weight.SizeBytes) + model.Head.SizeBytes;
            var cache = new KeyValueCache(device, model, length + tokens / 2);
            Tensor logits = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(1, shape.VocabSize));
            Tensor lastRow = device.Arena.Allocate(MemoryKind.Activations, DType.I32, new Shape(1));
            long cached = (long)length * shape.NumHiddenLayers * 2 * shape.NumKeyValueHeads * shape.HeadDim * sizeof(float);
            using var reader = new MemoryReader(bytes + cached, Environment.ProcessorCount);
            Advance(length - tokens / 2);
            report.Compare(name, "token/s", tokens, Write, $"reading {bytes / 1000000} MB of weights and {cached / 1000000} MB of keys and values", reader.Read, baselineWorkPerCall: 1);

            void Write()
            {
                for (int i = 0; i < tokens; i++)
                {
                    Advance(1);
                }

                cache.Truncate(length - tokens / 2);
            }

            void Advance(int count)
            {
                using ArenaFrame frame = device.Arena.Frame();
                int[] ids = [.. Enumerable.Range(cache.Length, count).Select(index => index * 37 % shape.VocabSize)], positions = [.. Enumerable.Range(cache.Length, count)];
                Span<int> last = [count - 1];
                device.Upload(lastRow, MemoryMarshal.AsBytes(last));
                model.Logits(logits, PackedBatch.Upload(device, ids, positions, new[] { 0, count }), lastRow, cache);
            }
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static void Step(BenchmarkReport report, string name, bool recompute)
    {
        if (!report.Wants(name))
        {
            return;
        }

        ModelConfig shape = ModelConfig.Parse("config.json", Encoding.UTF8.GetBytes(Shape));
        var config = new TrainingConfig
        {
            Adapter = new AdapterOptions { Kind = AdapterKind.Qlora, Rank = 8, Alpha = 16 },
            Quantization = new QuantizationOptions { LoadIn4Bit = true },
            Device = new DeviceOptions { GradientCheckpointing = recompute ? GradientCheckpointing.On : GradientCheckpointing.Off },
        };
        string folder = Directory.CreateTempSubdirectory("lora-trainer-benchmark-").FullName;
        try
        {
            RandomModel.Write(shape, folder, seed: 1);
            int threads = Environment.ProcessorCount;
            MemoryPlan plan = MemoryPlan.Measure(config, shape, null, new DeviceSelection(DevicePlatform.Cpu, threads, null), new PlannedPasses(Tokens, [], Tokens));
            using var device = new CpuDevice(threads, plan.ArenaBytes + (16 << 20));
            using ModelFolder weights = ModelFolder.Open(folder);
            TrainedModel trained = TrainedModel.Build(config, shape, weights, device);
            Compare(report, name, shape, trained, recompute);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static void Compare(BenchmarkReport report, string name, ModelConfig shape, TrainedModel trained, bool recompute)
    {
        Device device = trained.Model.Device;
        int[] tokens = [.. Enumerable.Range(0, Tokens).Select(index => index * 37 % shape.VocabSize)];
        int[] positions = [.. Enumerable.Range(0, Tokens)];
        int[] offsets = [0, Tokens];
        int step = 0;

        // The product of an MLP's gate: the most frequent shape of the step, with its operands kept outside the step's memory.
        Tensor input = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(Tokens, shape.HiddenSize));
        Tensor output = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(Tokens, shape.IntermediateSize));
        Tensor weight = device.AllocateZeroed(MemoryKind.Activations, DType.F32, new Shape(shape.IntermediateSize, shape.HiddenSize));
        device.Zero(input);
        var matrix = new DenseMatrix(weight);

        double linears = shape.ExpectedTensors().Where(tensor => tensor.Shape.Length == 2).Sum(tensor => (double)tensor.Shape[0] * tensor.Shape[1]);
        double attention = 2.0 * Tokens * shape.HiddenSize * shape.NumHiddenLayers;
        report.Compare(
            name,
            "GFLOP/s",
            Tokens * (4 * linears + 3 * attention) / 1e9,
            () =>
            {
                using ArenaFrame frame = device.Arena.Frame();
                PackedBatch batch = PackedBatch.Upload(device, tokens, positions, offsets, tokens, positions);
                Tensor losses = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(Tokens));
                device.Zero(trained.Model.Parameters.Gradients);
                trained.Model.ForwardBackward(losses, batch, DropoutState.Inactive, 1f / Tokens, recompute);
                Trainer.Update(trained, StepReport.Allocate(device), ++step, 1e-4);
            },
            "own f32 GEMM",
            () => Linear.Forward(output, input, matrix),
            baselineWorkPerCall: 2.0 * Tokens * shape.HiddenSize * shape.IntermediateSize / 1e9);
    }
}
