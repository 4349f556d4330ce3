using System.Runtime.InteropServices;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.TestSupport;

/// <summary>A tiny run in this process, step by step.</summary>
public sealed class TinyTraining : IDisposable
{
    private readonly Device device;

    /// <summary>On the CPU, with the threads that the config says.</summary>
    /// <param name="folder">Holds base and train.jsonl of <see cref="TinyRun"/>.</param>
    /// <param name="changes">Of the config.</param>
    public TinyTraining(string folder, params (string Key, object? Value)[] changes)
        : this(folder, DevicePlatform.Cpu, (threads, memory) => new CpuDevice(threads, memory.ArenaBytes), changes)
    {
    }

    /// <param name="folder">Holds base and train.jsonl of <see cref="TinyRun"/>.</param>
    /// <param name="platform">What is planned for.</param>
    /// <param name="open">Opens the device; takes the config's threads and the memory of the plan.</param>
    /// <param name="changes">Of the config.</param>
    public TinyTraining(string folder, DevicePlatform platform, Func<int, DeviceMemory, Device> open, params (string Key, object? Value)[] changes)
    {
        Config = ConfigurationLoader.LoadText(TinyRun.Config(folder, changes), "tiny.yaml", []).Require();
        ModelConfig shape = ModelConfig.Parse(Config.BaseModel);
        Data = TrainingData.Load(Config, Tokenizer.Load(Config.BaseModel), shape.VocabSize, 1, Path.GetTempPath(), SilentObserver.Instance, default);
        using ModelFolder weights = ModelFolder.Open(Config.BaseModel);
        Plan = MemoryPlan.Measure(Config, shape, weights, new DeviceSelection(platform, Config.Device.Threads, null), new PlannedPasses(LargestMicroBatch.Of(Config, Data).Tokens, Data.HeldOut, Config.Data.SequenceLen));
        device = open(Config.Device.Threads, Plan.Memory);
        Trained = TrainedModel.Build(Config, shape, weights, device);
        Trainer = new Trainer(Config, Trained, Data);
    }

    public TrainingConfig Config { get; }

    public TrainingData Data { get; }

    /// <summary>What it is opened with.</summary>
    public MemoryPlan Plan { get; }

    public TrainedModel Trained { get; }

    public Trainer Trainer { get; }

    public float[] Values => Trained.Model.Parameters.Values.Download();

    public float[] Gradients => Trained.Model.Parameters.Gradients.Download();

    /// <summary>Replaces all that is trained, so that no gradient is zero as it is with a fresh adapter.</summary>
    public void Scatter(int seed)
    {
        var random = new Random(seed);
        foreach (Parameter parameter in Trained.Model.Parameters.Parameters)
        {
            float[] values = new float[parameter.Shape.ElementCount];
            for (int i = 0; i < values.Length; i++)
            {
                values[i] = (float)(random.NextDouble() - 0.5) * 0.2f;
            }

            device.Upload(parameter.Value, MemoryMarshal.AsBytes(values.AsSpan()));
        }
    }

    public void Dispose()
    {
        Data.Dispose();
        device.Dispose();
    }

    public static TemporaryFolder Folder(ModelConfig? shape = null, int rows = 45, int longest = 40)
    {
        var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.File("base"), shape: shape);
        TinyRun.WriteData(folder.File("train.jsonl"), rows, longest);
        return folder;
    }
}
