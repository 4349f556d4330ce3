using System.Diagnostics;
using System.Globalization;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Sources;

namespace LoraTrainer.Training.Planning;

/// <summary>
/// What plans of a run are made from, read once: the base's config.json at least; weights, tokenizer and data make them exact. Plans of the same run
/// on other devices and with other switches are made from the same inputs. No weight is read.
/// </summary>
public sealed class RunInputs : IDisposable
{
    /// <summary>Far more than any device holds; it keeps the plan itself small.</summary>
    private const int MostTokens = 1 << 26;

    private readonly StepBins bins;

    private RunInputs(TrainingConfig config, ModelConfig shape, ModelFolder? weights, TrainingData? data, IReadOnlyList<string> notices)
    {
        Config = config;
        Shape = shape;
        Weights = weights;
        Data = data;
        Notices = notices;
        bins = data is null ? StepBins.Full(config) : StepBins.Of(data);
    }

    public TrainingConfig Config { get; }

    public ModelConfig Shape { get; }

    /// <summary>Null where only the shape is known.</summary>
    public ModelFolder? Weights { get; }

    /// <summary>Null where data or tokenizer are not here.</summary>
    public TrainingData? Data { get; }

    /// <summary>What is not known and why, a sentence each.</summary>
    public IReadOnlyList<string> Notices { get; }

    /// <summary>That reading and tokenizing the data took here; a run does the same.</summary>
    public double ReadSeconds { get; private init; }

    /// <summary>That the run will train on, all epochs; null where data or tokenizer are not here.</summary>
    public long? Tokens => Data is null ? null : bins.Tokens;

    /// <summary>Optimizer steps; null likewise, unless max_steps says it.</summary>
    public int? Steps => Data is not null ? bins.Steps : Config.Batch.MaxSteps > 0 ? Config.Batch.MaxSteps : null;

    /// <summary>Tokens that hours can be told for: <see cref="Tokens"/>, or full sequences in each of max_steps; null where neither is known.</summary>
    public long? TokensOrFull => Tokens ?? (Steps is { } steps ? steps * bins.Tokens : null);

    /// <summary>Bytes of the base's weights, as they are stored.</summary>
    public long WeightBytes => Weights?.TotalBytes ?? 2 * Shape.ExpectedTensors().Sum(tensor => tensor.Shape.Aggregate(1L, (product, extent) => product * extent));

    /// <summary>Reads what is there.</summary>
    /// <param name="config">The run.</param>
    /// <param name="observer">Is told what the data look like.</param>
    /// <param name="cancellation">Stops reading the data.</param>
    public static RunInputs Read(TrainingConfig config, ITrainingObserver observer, CancellationToken cancellation)
    {
        config = FetchedSources.Fetch(config, SourceNeeds.Description, observer.OnNotice, cancellation);
        ModelFolder.RequireFolder(config.BaseFolder);
        var notices = new List<string>();
        long start = Stopwatch.GetTimestamp();
        Tokenizer? tokenizer = Tokenizer.IsIn(config.BaseFolder) ? Vocabulary.TokenizerOf(config) : null;
        ModelConfig shape = Vocabulary.ShapeOf(config, tokenizer);
        config = TrainedModel.WithBase(config, shape);
        TrainingData? data = LoadData(config, shape, tokenizer, observer, notices, cancellation);
        if (data is null)
        {
            RequirePlannable(config);
        }

        return new RunInputs(config, shape, HasWeights(config) ? ModelFolder.Open(config.BaseFolder) : null, data, notices)
        {
            ReadSeconds = data is null ? 0 : Stopwatch.GetElapsedTime(start).TotalSeconds,
        };
    }

    public void Dispose()
    {
        Weights?.Dispose();
        Data?.Dispose();
    }

    /// <summary>How the run's steps fall into micro-batches.</summary>
    /// <param name="microBatchSize">Bins of one.</param>
    /// <returns>Null where a micro-batch would have more tokens than any device holds.</returns>
    public MicroBatches? Cut(int microBatchSize) =>
        Data is null && (long)microBatchSize * Config.Data.SequenceLen > MostTokens ? null : bins.Cut(microBatchSize);

    /// <summary>The memory of a run like this one.</summary>
    /// <param name="config">This run's, perhaps with other switches; data and model are the same.</param>
    /// <param name="selection">The device that is planned for.</param>
    /// <param name="largestTokens">Of a micro-batch.</param>
    public MemoryPlan Memory(TrainingConfig config, DeviceSelection selection, int largestTokens) =>
        MemoryPlan.Measure(config, ShapeFor(config), WeightsFor(config), selection, new PlannedPasses(largestTokens, Data?.HeldOut ?? [], config.Data.SequenceLen));

    /// <summary>The work of a run like this one.</summary>
    /// <param name="config">This run's, perhaps with other switches; data and model are the same.</param>
    /// <param name="selection">The device that is planned for.</param>
    /// <param name="microBatchSize">Bins of one micro-batch.</param>
    public WorkPlan Work(TrainingConfig config, DeviceSelection selection, int microBatchSize) =>
        WorkPlan.Measure(config, ShapeFor(config), WeightsFor(config), selection, bins, microBatchSize, Data);

    /// <summary>To train all parameters of a base that is quantized already takes its original weights, which are not here.</summary>
    private ModelConfig ShapeFor(TrainingConfig config) => config.Adapter.Kind == AdapterKind.None ? Shape with { Quantization = null } : Shape;

    private ModelFolder? WeightsFor(TrainingConfig config) => config.Adapter.Kind == AdapterKind.None && Shape.Quantization is not null ? null : Weights;

    /// <summary>Without data every sequence may be full.</summary>
    private static void RequirePlannable(TrainingConfig config)
    {
        long tokens = (long)config.Batch.MicroBatchSize * config.Data.SequenceLen;
        if (tokens > MostTokens)
        {
            throw new TrainingSetupException(string.Create(
                CultureInfo.InvariantCulture,
                $"micro_batch_size {config.Batch.MicroBatchSize} times sequence_len {config.Data.SequenceLen} makes micro-batches of up to {tokens:#,0} tokens; at most {MostTokens:#,0} can be planned for. Use smaller ones, and gradient_accumulation_steps for the rest of the batch."));
        }
    }

    /// <summary>Of a base that is fetched when the run starts some weights may be here already.</summary>
    private static bool HasWeights(TrainingConfig config) => config.Fetched.BaseFolder is { } fetched ? HubModelFiles.HasAllWeights(fetched) : ModelFolder.HasWeights(config.BaseFolder);

    private static TrainingData? LoadData(TrainingConfig config, ModelConfig shape, Tokenizer? tokenizer, ITrainingObserver observer, List<string> notices, CancellationToken cancellation)
    {
        if (tokenizer is null)
        {
            notices.Add($"{config.BaseModel} has no tokenizer.json or tokenizer.model: tokens and steps are not known, and memory is planned for micro-batches of micro_batch_size x sequence_len tokens.");
            return null;
        }

        string[] missing = [.. config.Data.Datasets.Concat(config.Data.TestDatasets).Where(dataset => FetchedSources.IsElsewhere(dataset) || (!Path.Exists(dataset.Path) && !GlobPattern.HasWildcards(dataset.Path))).Select(dataset => DownloadCache.Shown(dataset.Path))];
        if (missing.Length > 0)
        {
            notices.Add($"{string.Join(", ", missing)} {(missing.Length == 1 ? "is" : "are")} not here: tokens and steps are not known, and memory is planned for micro-batches of micro_batch_size x sequence_len tokens.");
            return null;
        }

        int threads = DeviceSelection.ForPlan(DeviceChoice.Cpu, config.Device.Threads).Threads;
        return TrainingData.Load(config, tokenizer, shape.VocabSize, threads, Path.GetTempPath(), observer, cancellation);
    }
}
