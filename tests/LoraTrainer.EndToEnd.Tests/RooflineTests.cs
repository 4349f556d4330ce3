using System.Text;
using System.Text.Json;
using LoraTrainer.Cli;
using LoraTrainer.Costs.Estimates;
using LoraTrainer.Costs.Prices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Planning;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>Planned work and rates of devices against training steps that were measured on them.</summary>
public sealed class RooflineTests(ITestOutputHelper output)
{
    private const string Results = "tests/Benchmarks/results/2026-11-26-nvidia-h200.jsonl";

    internal const string Llama8B = """
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "vocab_size": 128256, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "max_position_embeddings": 131072, "rope_theta": 500000.0}
        """;

    private static DeviceRates Rates => PlannedTime.RatesOf(GpuTable.Load(null).Named("H200")!)!.Value;

    [Fact]
    public void UsualGpu_IsWhatKernelsReached()
    {
        Dictionary<string, double> rates = [];
        foreach ((string name, double value, string _) in Lines())
        {
            rates.TryAdd(name, value);
        }

        double flops = Rates.FlopsPerSecond / 1e12, bytes = Rates.BytesPerSecond / 1e9;
        double[] products = [.. rates.Where(row => row.Key.StartsWith("cuda_gemm_bf16_nt_2048", StringComparison.Ordinal) || row.Key.StartsWith("cuda_gemm_bf16_nn_2048", StringComparison.Ordinal)).Select(row => row.Value).Order()];
        double[] kernels = [.. rates.Where(row => row.Key.StartsWith("cuda_kernel_", StringComparison.Ordinal) && !row.Key.Contains("nf4", StringComparison.Ordinal) && row.Value > 1000).Select(row => row.Value).Order()];
        Assert.Equal((8, 19), (products.Length, kernels.Length));
        Assert.Equal(flops / ((products[3] + products[4]) / 2), UsualSpeeds.Gpu.Products, 0.005);

        // Forward is a third of the work of a step's attention.
        double attention = (flops / 3 / rates["cuda_attention_forward_4096x32x128"]) + (2 * flops / 3 / rates["cuda_attention_backward_4096x32x128"]);
        Assert.Equal(attention, UsualSpeeds.Gpu.Attention, 0.005);
        Assert.Equal(bytes / rates["cuda_kernel_nf4_dequantize_double_14336x4096"], UsualSpeeds.Gpu.Expansion, 0.005);
        Assert.Equal(bytes / kernels[9], UsualSpeeds.Gpu.Memory, 0.005);
    }

    /// <summary>Whole steps against what single kernels reached: nothing was fitted to them.</summary>
    [Fact]
    public void MeasuredSteps_FromTheRatesOfKernels_AreWithin15Percent()
    {
        MeasuredTime[] rows = Rows();
        Assert.Equal(10, rows.Length);
        foreach (MeasuredTime row in rows)
        {
            output.WriteLine($"measured {row.Seconds * 1000:0.0} ms, planned {UsualSpeeds.Gpu.Seconds(row.Work) * 1000:0.0} ms, {UsualSpeeds.Gpu.Seconds(row.Work) / row.Seconds - 1:+0.0%;-0.0%}; {row.Work}");
        }

        Assert.All(rows, row => Assert.InRange(UsualSpeeds.Gpu.Seconds(row.Work) / row.Seconds, 0.85, 1.15));
    }

    /// <summary>As a user's own rows would do it on that card: each configuration is predicted from the four others.</summary>
    [Fact]
    public void MeasuredSteps_EachFromTheOthers_AreWithinTenPercent()
    {
        ModelCheck check = ModelCheck.Of(UsualSpeeds.Gpu, Rows());
        output.WriteLine($"{check}");
        Assert.Equal((10, 5), (check.Rows, check.Configurations));
        Assert.InRange(check.Worst!.Value, 0, 0.10);
    }

    [Fact]
    public void LeastTime_OfMeasuredSteps_IsBelowTheirTime() =>
        Assert.All(Rows(), row => Assert.True(row.Work.Products + row.Work.Attention + row.Work.Memory + row.Work.Expansion < row.Seconds, $"{row}"));

    private static IEnumerable<(string Name, double Value, string Unit)> Lines()
    {
        foreach (string line in File.ReadLines(Path.Combine(Fixtures.RepositoryRoot, Results)))
        {
            using JsonDocument document = JsonDocument.Parse(line);
            yield return (document.RootElement.GetProperty("name").GetString()!, document.RootElement.GetProperty("value").GetDouble(), document.RootElement.GetProperty("unit").GetString()!);
        }
    }

    private static MeasuredTime[] Rows()
    {
        var rows = new List<MeasuredTime>();
        foreach ((string name, double value, string _) in Lines().Where(line => line.Name.StartsWith("cuda_step_", StringComparison.Ordinal) && line.Unit == "tokens/s"))
        {
            bool isQuantized = name.Contains("qlora", StringComparison.Ordinal);
            (int count, int length) = name.Contains("4x512", StringComparison.Ordinal) ? (4, 512) : (1, 2048);
            var config = new TrainingConfig
            {
                Adapter = new AdapterOptions { Kind = isQuantized ? AdapterKind.Qlora : AdapterKind.Lora, Rank = 8, Alpha = 16, TargetModules = ["q_proj", "k_proj", "v_proj"] },
                Quantization = new QuantizationOptions { LoadIn4Bit = isQuantized },
                Device = new DeviceOptions { GradientCheckpointing = name.EndsWith("recompute", StringComparison.Ordinal) ? GradientCheckpointing.On : GradientCheckpointing.Off },
                Batch = new BatchOptions { MicroBatchSize = count },
                Data = new DataOptions { SequenceLen = length },
            };
            WorkPlan work = WorkPlan.Measure(
                config, ModelConfig.Parse("config.json", Encoding.UTF8.GetBytes(Llama8B)), null, new DeviceSelection(DevicePlatform.Cuda, 1, null), StepBins.Full(config), count, null);
            rows.Add(new MeasuredTime(PlannedTime.StepOf(work, Rates), count * length / value));
        }

        return [.. rows];
    }
}
