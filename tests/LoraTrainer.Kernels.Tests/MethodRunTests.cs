using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>The first steps of a tiny run on the CUDA device, method by method, within the bf16 budget of the CPU's losses in f32; the arena holds what the plan says.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class MethodRunTests(ITestOutputHelper output)
{
    private const int Steps = 3;

    private static readonly Dictionary<string, (ModelConfig Shape, (string Key, object? Value)[] Changes)> Cases = new(StringComparer.Ordinal)
    {
        ["fp4"] = (TinyRun.Shape, [("load_in_4bit", "true"), ("bnb_config_kwargs", "{bnb_4bit_quant_type: fp4}")]),
        ["8 bits"] = (TinyRun.Shape, [("load_in_8bit", "true")]),
        ["output layer in 8 bits"] = (TinyRun.Shape with { TieWordEmbeddings = false }, [("lm_head", "int8")]),
        ["dora"] = (TinyRun.Shape, [("peft_use_dora", "true"), ("load_in_4bit", "true")]),
        ["noise"] = (TinyRun.Shape, [("neftune_noise_alpha", 5)]),

        // A rank with which most of the adapter's tensors are large enough for codes.
        ["8-bit optimizer"] = (TinyRun.Shape, [("lora_r", 32), ("optimizer", "adamw_8bit"), ("learning_rate", "2e-3")]),
        ["window"] = (TinyRun.Shape with { ModelType = "mistral", Architecture = "MistralForCausalLM", SlidingWindow = 9, SlidingLayers = [true, true] }, []),
        ["gemma2"] = (Gemma, []),
        ["gemma2, all parameters"] = (Gemma, [("adapter", null), ("lora_r", null), ("lora_alpha", null), ("lora_dropout", null), ("lora_target_linear", null), ("learning_rate", "1e-3"), ("optimizer", "adamw_8bit")]),
        ["phi3"] = (TinyRun.Shape with { ModelType = "phi3", Architecture = "Phi3ForCausalLM", FusedProjections = true }, [("peft_use_dora", "true")]),
    };

    public static TheoryData<string> Names => [.. Cases.Keys];

    private static ModelConfig Gemma => TinyRun.Shape with
    {
        ModelType = "gemma2",
        Architecture = "Gemma2ForCausalLM",
        SandwichNorms = true,
        NormGainOffset = 1,
        Activation = GatedActivation.GeluTanh,
        ScalesEmbeddings = true,
        QueryPreAttnScalar = 16,
        AttentionSoftcap = 5,
        LogitSoftcap = 8,
        SlidingWindow = 9,
        SlidingLayers = [true, false],
    };

    [Theory]
    [MemberData(nameof(Names))]
    public void FirstSteps_HaveTheLossesOfTheCpu(string name)
    {
        (ModelConfig shape, (string Key, object? Value)[] changes) = Cases[name];
        using TemporaryFolder folder = TinyTraining.Folder(shape);
        float[] exact = Train(folder.Path, changes, DevicePlatform.Cpu, memory => new CpuDevice(1, memory.ArenaBytes));
        float[] rounded = Train(folder.Path, changes, DevicePlatform.Cpu, _ => new CpuDevice(1, ModelFixture.ArenaBytes, roundsToBF16: true));
        string mode = CudaTestDevice.Modes[^1];
        float[] actual = Train(folder.Path, changes, DevicePlatform.Cuda, memory => CudaTestDevice.Open(mode, memory));
        output.WriteLine($"CPU {string.Join(" ", exact)}, CUDA {string.Join(" ", actual)}");
        Assert.NotEqual(exact[0], exact[^1]);
        Bf16Budget.Within(exact, rounded, actual, Bf16Budget.Backward, name);
    }

    /// <summary>Adapters that share their products with A, against ones that are computed alone in f32: with so small a dropout nothing is dropped, and every mask is one of ones.</summary>
    [Theory]
    [InlineData("lora")]
    [InlineData("dora")]
    public void Gradients_OfAdaptersTogether_AreThoseOfAdaptersAlone(string method)
    {
        (string Key, object? Value)[] shared = [("lora_r", 8), ("lora_rank_pattern", "{k_proj: 12}"), ("peft_use_dora", method == "dora" ? "true" : "false"), ("val_set_size", null), ("lora_dropout", 0)];
        (string Key, object? Value)[] single = [.. shared[..^1], ("lora_dropout", "1e-9")];
        using TemporaryFolder folder = TinyTraining.Folder();
        Dictionary<string, float[]> exact = Gradients(single, DevicePlatform.Cpu, memory => new CpuDevice(1, memory.ArenaBytes));
        Dictionary<string, float[]> rounded = Gradients(single, DevicePlatform.Cpu, _ => new CpuDevice(1, ModelFixture.ArenaBytes, roundsToBF16: true));
        string mode = CudaTestDevice.Modes[^1];
        Dictionary<string, float[]> together = Gradients(shared, DevicePlatform.Cuda, memory => CudaTestDevice.Open(mode, memory));
        Assert.Equal(exact.Keys.Order(StringComparer.Ordinal), together.Keys.Order(StringComparer.Ordinal));
        foreach ((string name, float[] gradient) in exact)
        {
            Bf16Budget.Within(gradient, rounded[name], together[name], Bf16Budget.Backward, name);
        }

        Dictionary<string, float[]> Gradients((string Key, object? Value)[] changes, DevicePlatform platform, Func<DeviceMemory, Device> open)
        {
            using var run = new TinyTraining(folder.Path, platform, (_, memory) => open(memory), changes);
            uint stream = 0;

            // By name: shared ones lie in another order in the buffers.
            foreach (Parameter parameter in run.Trained.Model.Parameters.Parameters.OrderBy(parameter => parameter.Name, StringComparer.Ordinal))
            {
                run.Trained.Model.Device.Upload(parameter.Value, MemoryMarshal.AsBytes(OpHarness.Values(++stream, parameter.Shape.ElementCount, 0.1f).AsSpan()));
            }

            run.Trainer.Step();
            Assert.Equal(platform == DevicePlatform.Cuda, run.Trained.Model.Linears.Any(linear => linear.Adapter!.Joint != linear.Adapter.A));
            return run.Trained.Model.Parameters.Parameters.ToDictionary(parameter => parameter.Name, parameter => parameter.Gradient.Download(), StringComparer.Ordinal);
        }
    }

    private static float[] Train(string folder, (string Key, object? Value)[] changes, DevicePlatform platform, Func<DeviceMemory, Device> open)
    {
        using var run = new TinyTraining(folder, platform, (_, memory) => open(memory), [("val_set_size", null), ("gradient_accumulation_steps", 2), ("warmup_steps", 0), .. changes]);
        return [.. Enumerable.Range(0, Steps).Select(_ => (float)run.Trainer.Step().Loss)];
    }
}
