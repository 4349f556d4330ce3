using System.Text.Json;
using System.Text.Json.Nodes;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>The quickstart itself on the CUDA device: its config, its data and the lower half of its base.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class QuickstartTests(ITestOutputHelper output)
{
    private const int Layers = 2;
    private const int Steps = 10;

    public static TheoryData<string> Modes => [.. CudaTestDevice.Modes];

    /// <summary>The plan's bytes are the run's, and the losses are those of the CPU within the bf16 budget.</summary>
    [Theory]
    [MemberData(nameof(Modes))]
    public void FirstSteps_HaveTheLossesOfTheCpu(string mode)
    {
        using var folder = new TemporaryFolder();
        TrainingConfig config = Config(LowerHalfOfTheBase(folder.Path), folder.File("out"));
        double[] exact = Train(config, DevicePlatform.Cpu, bytes => new CpuDevice(2, bytes));
        double[] rounded = Train(config, DevicePlatform.Cpu, _ => new CpuDevice(2, ModelFixture.ArenaBytes, roundsToBF16: true));
        double[] actual = Train(config, DevicePlatform.Cuda, bytes => CudaTestDevice.Open(mode, bytes));
        output.WriteLine($"CPU  {string.Join(" ", exact.Select(loss => loss.ToString("0.0000", System.Globalization.CultureInfo.InvariantCulture)))}");
        output.WriteLine($"CUDA {string.Join(" ", actual.Select(loss => loss.ToString("0.0000", System.Globalization.CultureInfo.InvariantCulture)))}");
        Bf16Budget.Within(Floats(exact), Floats(rounded), Floats(actual), Bf16Budget.Forward, "losses of the first steps");
    }

    private static float[] Floats(double[] values) => Array.ConvertAll(values, value => (float)value);

    private static double[] Train(TrainingConfig config, DevicePlatform platform, Func<long, Device> open)
    {
        ModelConfig shape = ModelConfig.Parse(config.BaseModel);
        using TrainingData data = TrainingData.Load(config, Tokenizer.Load(config.BaseModel), shape.VocabSize, 2, Path.GetTempPath(), SilentObserver.Instance, TestContext.Current.CancellationToken);
        using ModelFolder weights = ModelFolder.Open(config.BaseModel);
        MemoryPlan plan = MemoryPlan.Measure(config, shape, weights, new DeviceSelection(platform, 2, null), new PlannedPasses(LargestMicroBatch.Of(config, data).Tokens, [], config.Data.SequenceLen));
        using Device device = open(plan.ArenaBytes);
        var trainer = new Trainer(config, TrainedModel.Build(config, shape, weights, device), data);
        double[] losses = [.. Enumerable.Range(0, Steps).Select(_ => trainer.Step().Loss)];
        if (!device.ComputesInBF16 || platform == DevicePlatform.Cuda)
        {
            Assert.Equal(plan.ArenaBytes, device.Arena.HighWaterBytes);
        }

        return losses;
    }

    private static TrainingConfig Config(string baseModel, string outputDir)
    {
        string quickstart = Path.Combine(Fixtures.RepositoryRoot, "configs", "quickstart.yaml");
        string Absolute(string relative) => Path.Combine(Fixtures.RepositoryRoot, relative);
        return ConfigurationLoader.LoadFile(
            quickstart,
            [
                $"base_model={baseModel}", $"output_dir={outputDir}", "evaluate_before=false", "evaluate_after=false",

                // The plan is for the largest micro-batch of a run, so the run is these steps.
                $"max_steps={Steps}", "warmup_steps=2",
                $"datasets.0.path={Absolute("quickstart/task/train.jsonl")}", $"test_datasets.0.path={Absolute("quickstart/task/held_out.jsonl")}",
            ]).Require();
    }

    private static string LowerHalfOfTheBase(string folder)
    {
        string source = Path.Combine(Fixtures.RepositoryRoot, "quickstart", "base"), target = Path.Combine(folder, "base");
        Directory.CreateDirectory(target);
        foreach (string file in Directory.EnumerateFiles(source).Where(file => !file.EndsWith(".safetensors", StringComparison.Ordinal)))
        {
            File.Copy(file, Path.Combine(target, Path.GetFileName(file)));
        }

        JsonNode config = JsonNode.Parse(File.ReadAllText(Path.Combine(source, "config.json")))!;
        Assert.True(config["num_hidden_layers"]!.GetValue<int>() > Layers);
        config["num_hidden_layers"] = Layers;
        File.WriteAllText(Path.Combine(target, "config.json"), config.ToJsonString(new JsonSerializerOptions { WriteIndented = true }));
        using SafetensorsFile all = SafetensorsFile.Open(Path.Combine(source, ModelFolder.SingleFileName));
        var kept = new SafetensorsWriter();
        foreach (SafetensorsEntry entry in all.Entries.Where(entry => LayerOf(entry.Name) is not { } layer || layer < Layers))
        {
            kept.Add(entry.Name, entry.DType, entry.Shape.ToArray(), (offset, destination) => all.ReadInto(entry, offset, destination));
        }

        kept.Save(Path.Combine(target, ModelFolder.SingleFileName));
        return target;
    }

    private static int? LayerOf(string tensor) => tensor.StartsWith("model.layers.", StringComparison.Ordinal)
        ? int.Parse(tensor.Split('.')[2], System.Globalization.CultureInfo.InvariantCulture)
        : null;
}
