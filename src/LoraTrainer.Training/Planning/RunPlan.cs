using System.Globalization;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Planning;

/// <summary>What a run will need, known before it starts. No device is opened and no weight is read.</summary>
/// <param name="Device">What it is planned for, and why.</param>
/// <param name="Memory">Of the device, to the byte.</param>
/// <param name="HostBytes">Buffers beside it, through which weights stream in.</param>
/// <param name="MicroBatchTokens">N of the largest micro-batch that <paramref name="Memory"/> is for.</param>
/// <param name="Tokens">That the run will train on, all epochs; null where data or tokenizer are not here.</param>
/// <param name="Steps">Optimizer steps; null likewise, unless max_steps says it.</param>
/// <param name="Notices">What is not known and why, a sentence each.</param>
public sealed record RunPlan(DeviceSelection Device, MemoryPlan Memory, long HostBytes, int MicroBatchTokens, long? Tokens, int? Steps, IReadOnlyList<string> Notices)
{
    /// <summary>Far more than any device holds; it keeps the plan itself small.</summary>
    private const int MostTokens = 1 << 26;

    /// <summary>Plans from what is there: the base's config.json at least; weights, tokenizer and data make it exact.</summary>
    /// <param name="config">The run.</param>
    /// <param name="observer">Is told what the data look like.</param>
    /// <param name="cancellation">Stops reading the data.</param>
    public static RunPlan Of(TrainingConfig config, ITrainingObserver observer, CancellationToken cancellation)
    {
        ModelFolder.RequireFolder(config.BaseModel);
        ModelConfig shape = ModelConfig.Parse(config.BaseModel);
        DeviceSelection selection = DeviceSelection.ForPlan(config.Device.Choice, config.Device.Threads);
        ModelLoader.RefuseWithoutKernel(shape, selection.Platform);
        var notices = new List<string>();
        TrainingData? data = LoadData(config, shape, selection.Threads, observer, notices, cancellation);
        int tokens = data is null
            ? LargestPossible(config)
            : Trainer.LargestMicroBatch(config, data).Tokens;
        using ModelFolder? weights = HasWeights(config.BaseModel) ? ModelFolder.Open(config.BaseModel) : null;
        MemoryPlan memory = MemoryPlan.Measure(config, shape, weights, selection, new PlannedPasses(tokens, data?.HeldOut ?? [], config.Data.SequenceLen));
        int? steps = data?.Order.TotalSteps ?? (config.Batch.MaxSteps > 0 ? config.Batch.MaxSteps : null);
        return new RunPlan(selection, memory, ModelLoader.HostBufferBytes, tokens, data is null ? null : TokensOf(data), steps, notices);
    }

    /// <summary>Without data every sequence may be full.</summary>
    private static int LargestPossible(TrainingConfig config)
    {
        long tokens = (long)config.Batch.MicroBatchSize * config.Data.SequenceLen;
        return tokens <= MostTokens ? (int)tokens : throw new TrainingSetupException(string.Create(
            CultureInfo.InvariantCulture,
            $"micro_batch_size {config.Batch.MicroBatchSize} times sequence_len {config.Data.SequenceLen} makes micro-batches of up to {tokens:#,0} tokens; at most {MostTokens:#,0} can be planned for. Use smaller ones, and gradient_accumulation_steps for the rest of the batch."));
    }

    private static TrainingData? LoadData(TrainingConfig config, ModelConfig shape, int threads, ITrainingObserver observer, List<string> notices, CancellationToken cancellation)
    {
        if (!File.Exists(Path.Combine(config.BaseModel, "tokenizer.json")))
        {
            notices.Add($"{config.BaseModel} has no tokenizer.json: tokens and steps are not known, and memory is planned for micro-batches of micro_batch_size x sequence_len tokens.");
            return null;
        }

        string[] missing = [.. config.Data.Datasets.Concat(config.Data.TestDatasets).Select(dataset => dataset.Path).Where(path => !Path.Exists(path))];
        if (missing.Length > 0)
        {
            notices.Add($"{string.Join(", ", missing)} {(missing.Length == 1 ? "is" : "are")} not here: tokens and steps are not known, and memory is planned for micro-batches of micro_batch_size x sequence_len tokens.");
            return null;
        }

        return TrainingData.Load(config, Tokenizer.Load(config.BaseModel), shape.VocabSize, threads, observer, cancellation);
    }

    private static bool HasWeights(string folder) => File.Exists(Path.Combine(folder, ModelFolder.SingleFileName)) || File.Exists(Path.Combine(folder, ModelFolder.IndexFileName));

    private static long TokensOf(TrainingData data)
    {
        long tokens = 0;
        for (int step = 0; step < data.Order.TotalSteps; step++)
        {
            foreach (int[] bin in data.Order.BinsOf(step))
            {
                tokens += bin.Sum(data.Train.Length);
            }
        }

        return tokens;
    }
}
