using System.Runtime.InteropServices;
using System.Text.Json;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Optimizers;
using Xunit;

namespace LoraTrainer.Training.Tests.Optimizers;

/// <summary>The optimizer and the schedules against torch and transformers.</summary>
[Trait("Category", "Fixtures")]
public class OptimizerFixtureTests
{
    private static readonly Dictionary<string, LearningRateSchedule> Supported = new()
    {
        ["linear"] = LearningRateSchedule.Linear,
        ["cosine"] = LearningRateSchedule.Cosine,
        ["constant"] = LearningRateSchedule.Constant,
        ["constant_with_warmup"] = LearningRateSchedule.ConstantWithWarmup,
    };

    [Fact]
    public void Schedules_EqualTransformers()
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Require("optim/schedules.json")));
        double baseRate = document.RootElement.GetProperty("base_lr").GetDouble();
        int compared = 0;
        var missing = new List<string>();
        foreach (JsonProperty item in document.RootElement.GetProperty("lr_per_step").EnumerateObject())
        {
            string[] parts = item.Name.Split('|');
            if (!Supported.TryGetValue(parts[0], out LearningRateSchedule kind))
            {
                missing.Add(parts[0]);
                continue;
            }

            var schedule = new Schedule(kind, baseRate, int.Parse(parts[1].Split('=')[1]), int.Parse(parts[2].Split('=')[1]));
            int step = 0;
            foreach (JsonElement expected in item.Value.EnumerateArray())
            {
                Assert.True(Math.Abs(expected.GetDouble() - schedule.RateAt(step)) <= 1e-12, $"{item.Name}, step {step}: {schedule.RateAt(step)}, expected {expected.GetDouble()}");
                step++;
            }

            compared++;
        }

        Assert.Equal(5, compared);
        Assert.Equal(["cosine_with_restarts", "polynomial", "cosine_with_min_lr", "inverse_sqrt", "warmup_stable_decay"], missing);
        TestContext.Current.TestOutputHelper?.WriteLine("not yet supported: " + string.Join(", ", missing));
    }

    [Fact]
    public void AdamW_EqualsTorch()
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Require("optim/adamw.json")));
        JsonElement settings = document.RootElement;
        var tensors = new FixtureTensors(Fixtures.Require("optim/adamw.safetensors"));
        using var device = new CpuDevice(2, 1 << 20);
        var parameters = new ParameterStore();
        Parameter parameter = parameters.Declare("weight", new Shape(37, 11));
        parameters.Allocate(device);
        device.Upload(parameter.Value, MemoryMarshal.AsBytes(tensors.Floats("param_0").AsSpan()));
        var state = new OptimizerState(device, parameters, new OptimizerOptions
        {
            Beta1 = settings.GetProperty("beta1").GetDouble(),
            Beta2 = settings.GetProperty("beta2").GetDouble(),
            Epsilon = settings.GetProperty("eps").GetDouble(),
            WeightDecay = settings.GetProperty("weight_decay").GetDouble(),
            MaxGradNorm = 0,
        });
        StepReport report = StepReport.Allocate(device);

        for (int step = 1; step <= settings.GetProperty("updates").GetInt32(); step++)
        {
            device.Upload(parameter.Gradient, MemoryMarshal.AsBytes(tensors.Floats($"grad_{step}").AsSpan()));
            state.Step(step, settings.GetProperty("lr").GetDouble(), report.Values);
            TensorAssert.Close(tensors.Floats($"param_{step}"), parameter.Value.Download(), 1e-6, $"parameters after update {step}");
        }

        TensorAssert.Close(tensors.Floats("exp_avg_7"), state.FirstMoment.Slice(0, parameter.Shape).Download(), 1e-6, "first moment");
        TensorAssert.Close(tensors.Floats("exp_avg_sq_7"), state.SecondMoment.Slice(0, parameter.Shape).Download(), 1e-6, "second moment");
    }
}
