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
public class OptimizerFixtureTests(ITestOutputHelper output)
{
    /// <summary>The names of the schedules of the fixture: <c>KIND|warmup=STEPS|total=STEPS|{further settings}</c>.</summary>
    private static string[] AllSchedules
    {
        get
        {
            string path = Path.Combine(Fixtures.Root ?? "", "optim", "schedules.json");
            if (Fixtures.Root is null || !File.Exists(path))
            {
                return ["(absent)"];
            }

            using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(path));
            return [.. document.RootElement.GetProperty("lr_per_step").EnumerateObject().Select(item => item.Name)];
        }
    }

    public static TheoryData<string> Schedules => [.. AllSchedules];

    [Fact]
    public void Discovery_EverySchedule_IsRun()
    {
        Fixtures.Require("optim/schedules.json");
        string[] kinds = [.. AllSchedules.Select(name => name.Split('|')[0]).Distinct()];
        output.WriteLine($"schedules run: {Schedules.Count} of {AllSchedules.Length}, {kinds.Length} kinds: {string.Join(", ", kinds)}");
        Assert.True(AllSchedules.Length > 0 && AllSchedules[0] != "(absent)");
        Assert.Equal(AllSchedules.Length, Schedules.Count);
    }

    [Theory]
    [MemberData(nameof(Schedules))]
    public void Schedule_EqualsTransformers(string name)
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Require("optim/schedules.json")));
        double[] expected = [.. document.RootElement.GetProperty("lr_per_step").GetProperty(name).EnumerateArray().Select(rate => rate.GetDouble())];
        string[] parts = name.Split('|');

        // As a user writes it: the fixture's keyword arguments are those of lr_scheduler_kwargs.
        string text = TinyRun.Config("", ("lr_scheduler", parts[0]), ("warmup_steps", parts[1].Split('=')[1]), ("lr_scheduler_kwargs", parts[3] == "{}" ? null : parts[3]), ("learning_rate", document.RootElement.GetProperty("base_lr").GetRawText()));
        var schedule = Schedule.From(ConfigurationLoader.LoadText(text, "tiny.yaml", []).Require(), int.Parse(parts[2].Split('=')[1]));
        Assert.NotEmpty(expected);
        for (int step = 0; step < expected.Length; step++)
        {
            Assert.True(Math.Abs(expected[step] - schedule.RateAt(step)) <= 1e-12, $"{name}, step {step}: {schedule.RateAt(step)}, expected {expected[step]}");
        }
    }

    [Fact]
    public void AdamW_EqualsTorch()
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Require("optim/adamw.json")));
        JsonElement settings = document.RootElement;
        var tensors = new FixtureTensors(Fixtures.Require("optim/adamw.safetensors"));
        long[] extents = tensors.Shape("param_0");
        var shape = new Shape(extents[..^1].Aggregate(1L, (product, extent) => product * extent), extents[^1]);
        using var device = new CpuDevice(2, (64 << 10) + 64 * shape.ElementCount);
        var parameters = new ParameterStore();
        Parameter parameter = parameters.Declare("weight", shape);
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

        int updates = settings.GetProperty("updates").GetInt32(), moments = 0;
        for (int step = 1; step <= updates; step++)
        {
            device.Upload(parameter.Gradient, MemoryMarshal.AsBytes(tensors.Floats($"grad_{step}").AsSpan()));
            state.Step(step, settings.GetProperty("lr").GetDouble(), report.Values);
            TensorAssert.Close(tensors.Floats($"param_{step}"), parameter.Value.Download(), 1e-6, $"parameters after update {step}");
            if (tensors.Has($"exp_avg_{step}"))
            {
                TensorAssert.Close(tensors.Floats($"exp_avg_{step}"), state.FirstMoment.Slice(0, parameter.Shape).Download(), 1e-6, $"first moment after update {step}");
                TensorAssert.Close(tensors.Floats($"exp_avg_sq_{step}"), state.SecondMoment.Slice(0, parameter.Shape).Download(), 1e-6, $"second moment after update {step}");
                moments++;
            }
        }

        output.WriteLine($"AdamW: {updates} updates of {shape}, moments compared {moments} times");
        Assert.True(updates > 0 && moments > 0 && tensors.Has($"exp_avg_{updates}"), $"{updates} updates, {moments} of them with moments");
        Assert.False(tensors.Has($"param_{updates + 1}"), "the fixture has more updates than were compared");
    }
}
