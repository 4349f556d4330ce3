using System.Runtime.InteropServices;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Training.Tests.Loop;

/// <summary>A tiny run in this process, step by step.</summary>
internal sealed class TinyTraining : IDisposable
{
    private readonly CpuDevice device;

    /// <param name="folder">Holds base and train.jsonl of <see cref="TinyRun"/>.</param>
    /// <param name="changes">Of the config.</param>
    public TinyTraining(string folder, params (string Key, object? Value)[] changes)
    {
        TrainingConfig config = ConfigurationLoader.LoadText(TinyRun.Config(folder, changes), "tiny.yaml", []).Require();
        ModelConfig shape = ModelConfig.Parse(config.BaseModel);
        Data = TrainingData.Load(config, Tokenizer.Load(config.BaseModel), shape.VocabSize, 1, SilentObserver.Instance, default);
        using ModelFolder weights = ModelFolder.Open(config.BaseModel);
        MemoryPlan plan = MemoryPlan.Measure(config, shape, weights, new DeviceSelection(DevicePlatform.Cpu, config.Device.Threads, null), new PlannedPasses(Trainer.LargestMicroBatch(config, Data).Tokens, Data.HeldOut, config.Data.SequenceLen));
        device = new CpuDevice(config.Device.Threads, plan.ArenaBytes);
        Trained = TrainedModel.Build(config, shape, weights, device);
        Trainer = new Trainer(config, Trained, Data);
    }

    public TrainingData Data { get; }

    public TrainedModel Trained { get; }

    public Trainer Trainer { get; }

    public float[] Values => Trained.Model.Parameters.Values.Download();

    public float[] Gradients => Trained.Model.Parameters.Gradients.Download();

    /// <summary>Replaces all that is trained, so that no gradient is zero as it is with a fresh adapter.</summary>
    public void Scatter(int seed)
    {
        var random = new Random(seed);
        foreach (Models.Layers.Parameter parameter in Trained.Model.Parameters.Parameters)
        {
            float[] values = new float[parameter.Shape.ElementCount];
            for (int i = 0; i < values.Length; i++)
            {
                values[i] = (float)(random.NextDouble() - 0.5) * 0.2f;
            }

            device.Upload(parameter.Value, MemoryMarshal.AsBytes(values.AsSpan()));
        }
    }

    public void Dispose() => device.Dispose();

    public static TemporaryFolder Folder(ModelConfig? shape = null, int rows = 45, int longest = 40)
    {
        var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.File("base"), shape: shape);
        TinyRun.WriteData(folder.File("train.jsonl"), rows, longest);
        return folder;
    }
}
