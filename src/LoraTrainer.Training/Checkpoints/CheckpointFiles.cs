using System.Text;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Checkpoints;

/// <summary>
/// The files of one checkpoint in a local folder: the adapter as PEFT writes it (or, where everything is trained, all weights in f32),
/// <c>optimizer.safetensors</c>, <c>trainer_state.json</c>, <c>log.jsonl</c>, <c>config.resolved.yaml</c>, and on a GPU <c>device_choices.txt</c>.
/// </summary>
public static class CheckpointFiles
{
    private const string OptimizerName = "optimizer.safetensors";
    private const string ChoicesName = "device_choices.txt";

    /// <summary>All that is no tensor; see <see cref="TrainerState"/>.</summary>
    public const string StateName = "trainer_state.json";

    /// <summary>The log of the steps so far, so that a machine that has no other part of the run has it whole.</summary>
    public const string LogName = "log.jsonl";

    /// <summary>The resolved config, here and at the top of a run.</summary>
    public const string ConfigName = "config.resolved.yaml";

    /// <summary>Writes all files into an empty folder. The training waits meanwhile, so nothing here waits for the disk: the store that takes the files does.</summary>
    /// <param name="folder">Is there and empty.</param>
    /// <param name="config">Of the run.</param>
    /// <param name="trained">Values and moments.</param>
    /// <param name="state">All the rest.</param>
    /// <param name="log">The log of the steps, which goes along.</param>
    public static void Write(string folder, TrainingConfig config, TrainedModel trained, TrainerState state, string log)
    {
        CausalLanguageModel model = trained.Model;
        if (trained.Adapters is { } adapters)
        {
            adapters.Save(folder, durable: false);
        }
        else
        {
            var weights = new SafetensorsWriter();
            AddAll(weights, model, Values(model));
            weights.Save(Path.Combine(folder, ModelFolder.SingleFileName), durable: false);
        }

        var optimizer = new SafetensorsWriter();
        AddAll(optimizer, model, trained.Optimizer.Tensors());
        optimizer.Save(Path.Combine(folder, OptimizerName), durable: false);
        if (model.Device.ExportChoices() is { } choices)
        {
            AtomicFile.WriteAllBytes(Path.Combine(folder, ChoicesName), choices, durable: false);
        }

        AtomicFile.WriteAllBytes(Path.Combine(folder, StateName), state.ToJson(), durable: false);
        if (File.Exists(log))
        {
            File.Copy(log, Path.Combine(folder, LogName));
        }

        AtomicFile.WriteAllBytes(Path.Combine(folder, ConfigName), Encoding.UTF8.GetBytes(config.ToYaml()), durable: false);
    }

    /// <summary>Reads the trained values and the moments back, bit for bit, and the device's choices.</summary>
    /// <param name="folder">A checkpoint's files.</param>
    /// <param name="trained">Receives them.</param>
    /// <param name="onNotice">Is told, in a sentence, where the device here cannot follow the one before to the last bit.</param>
    /// <exception cref="FormatException">The files do not fit the model.</exception>
    public static void Restore(string folder, TrainedModel trained, Action<string> onNotice)
    {
        CausalLanguageModel model = trained.Model;
        string choices = Path.Combine(folder, ChoicesName);
        if (File.Exists(choices) && model.Device.ImportChoices(File.ReadAllBytes(choices)) is { } reason)
        {
            onNotice($"The result will not be equal to the last bit: {reason}.");
        }
        else if (!File.Exists(choices) && model.Device.ExportChoices() is not null)
        {
            onNotice("The result will not be equal to the last bit: the run was on the CPU, which computes in f32.");
        }

        RestoreTensors(folder, trained);
    }

    /// <summary>The trained values and the moments alone, for a process that goes on in a state that it was in before.</summary>
    /// <param name="folder">A checkpoint's files.</param>
    /// <param name="trained">Receives them.</param>
    /// <exception cref="FormatException">The files do not fit the model.</exception>
    public static void RestoreTensors(string folder, TrainedModel trained)
    {
        if (trained.Adapters is { } adapters)
        {
            using PeftAdapterFolder saved = PeftAdapterFolder.Open(folder);
            adapters.Load(saved);
        }
        else
        {
            using SafetensorsFile weights = SafetensorsFile.Open(Path.Combine(folder, ModelFolder.SingleFileName));
            ReadAll(weights, trained.Model, Values(trained.Model));
        }

        using SafetensorsFile optimizer = SafetensorsFile.Open(Path.Combine(folder, OptimizerName));
        ReadAll(optimizer, trained.Model, trained.Optimizer.Tensors());
    }

    public static TrainerState ReadState(string folder)
    {
        string path = Path.Combine(folder, StateName);
        return TrainerState.Parse(path, File.ReadAllBytes(path));
    }

    private static IEnumerable<(string Name, Tensor Values)> Values(CausalLanguageModel model) => model.Parameters.Parameters.Select(parameter => (parameter.Name, parameter.Value));

    private static void AddAll(SafetensorsWriter writer, CausalLanguageModel model, IEnumerable<(string Name, Tensor Values)> tensors)
    {
        foreach ((string name, Tensor values) in tensors)
        {
            int size = values.DType.SizeBytes();
            writer.Add(name, StoredType(values), Extents(values.Shape), (offset, destination) => model.Device.Download(values, destination, offset / size));
        }
    }

    private static void ReadAll(SafetensorsFile file, CausalLanguageModel model, IEnumerable<(string Name, Tensor Values)> tensors)
    {
        foreach ((string name, Tensor values) in tensors)
        {
            SafetensorsEntry? entry = file.Find(name);
            if (entry is null || entry.DType != StoredType(values) || !entry.Shape.SequenceEqual(Extents(values.Shape)))
            {
                throw new CheckpointFormatException($"{file.Path}: expected the tensor '{name}' as {values.DType} {values.Shape}, found {(entry is null ? "none" : entry.ToString())}. The checkpoint belongs to another model, adapter or optimizer.");
            }

            byte[] bytes = new byte[entry.ByteLength];
            file.ReadInto(entry, 0, bytes);
            model.Device.Upload(values, bytes);
        }
    }

    private static SafetensorsDType StoredType(Tensor tensor) => tensor.DType == DType.U8 ? SafetensorsDType.U8 : SafetensorsDType.F32;

    private static long[] Extents(Shape shape)
    {
        long[] extents = new long[shape.Rank];
        for (int axis = 0; axis < extents.Length; axis++)
        {
            extents[axis] = shape[axis];
        }

        return extents;
    }
}
