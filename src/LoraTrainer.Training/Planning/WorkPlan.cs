using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Planning;

/// <summary>The operations of a run on a device, from running its own code on a <see cref="MeasureDevice"/>: what its time is estimated from.</summary>
public sealed record WorkPlan
{
    /// <summary>How the steps are cut.</summary>
    public required MicroBatches Batches { get; init; }

    /// <summary>Optimizer steps that <see cref="Batches"/> belong to.</summary>
    public required int Steps { get; init; }

    /// <summary>Forward and backward of one micro-batch of mean size; recomputation included where it is on.</summary>
    public required IReadOnlyList<DeviceWork> MicroBatch { get; init; }

    /// <summary>What each step does once: gradients to zero, norm, optimizer.</summary>
    public required IReadOnlyList<DeviceWork> Update { get; init; }

    /// <summary>Null where nothing is held out or evaluated, or the data are not known.</summary>
    public EvaluationWork? Evaluation { get; init; }

    /// <summary>How often the held-out loss is measured between the first step and the last.</summary>
    public required int EvaluationsDuring { get; init; }

    /// <summary>Runs a micro-step of mean size, an update and the passes of an evaluation.</summary>
    /// <param name="config">The run.</param>
    /// <param name="shape">Of the base.</param>
    /// <param name="folder">Its weights, for the types they are stored in; null: as the config says.</param>
    /// <param name="selection">The device that is planned for.</param>
    /// <param name="bins">Of the run.</param>
    /// <param name="microBatchSize">Bins of one micro-batch.</param>
    /// <param name="data">Of the run; null where they are not known.</param>
    public static WorkPlan Measure(TrainingConfig config, ModelConfig shape, ModelFolder? folder, DeviceSelection selection, StepBins bins, int microBatchSize, TrainingData? data)
    {
        using MeasureDevice device = selection.Measure();
        TrainedModel trained = TrainedModel.Build(config, shape, folder, device);
        MicroBatches batches = bins.Cut(microBatchSize);
        var batch = MeasuredBatch.OfDocuments(Math.Max(1, (int)Math.Round(batches.MeanTokens)), bins.DocumentTokens, bins.ScoredShare);
        var staged = new StagedBatches(device, batch.Tokens);
        using ArenaFrame frame = device.Arena.Frame();
        StepReport report = StepReport.Allocate(device);
        device.ResetWork();
        batch.Run(config, trained, staged, report);
        IReadOnlyList<DeviceWork> microBatch = device.Work;
        device.ResetWork();
        device.Zero(trained.Model.Parameters.Gradients);
        Trainer.Update(trained, report, step: 1, learningRate: 0);
        IReadOnlyList<DeviceWork> update = device.Work;
        int evaluations = data is null ? 0 : EvaluationSchedule.From(config.Evaluation, data).Count;
        bool isEvaluated = data?.HeldOut.Count > 0 && (config.Evaluation.Before || config.Evaluation.After || evaluations > 0);
        return new WorkPlan
        {
            Batches = batches,
            Steps = bins.Steps,
            MicroBatch = microBatch,
            Update = update,
            Evaluation = isEvaluated ? EvaluationWork.Measure(config, trained, data!.HeldOut, batches.LargestTokens) : null,
            EvaluationsDuring = evaluations,
        };
    }
}

/// <summary>A run that is about to begin.</summary>
/// <param name="Device">Where.</param>
/// <param name="Work">All of it.</param>
/// <param name="WeightBytes">Of the base's files.</param>
/// <param name="ReadSeconds">That reading and tokenizing the data took.</param>
public sealed record ExpectedRun(DeviceSelection Device, WorkPlan Work, long WeightBytes, double ReadSeconds);

/// <summary>The operations of one evaluation on held-out rows.</summary>
/// <param name="Loss">Of all forward passes that the loss needs.</param>
/// <param name="Prompt">Reading one prompt of mean length.</param>
/// <param name="Token">Generating one token, at mean length of the text.</param>
/// <param name="Rows">Rows that are answered; 0 where only the loss is evaluated.</param>
/// <param name="LongestAnswer">Tokens at which an answer is cut off.</param>
/// <param name="ExpectedAnswer">Tokens of the expected answer, on average.</param>
public sealed record EvaluationWork(IReadOnlyList<DeviceWork> Loss, IReadOnlyList<DeviceWork> Prompt, IReadOnlyList<DeviceWork> Token, int Rows, int LongestAnswer, double ExpectedAnswer)
{
    internal static EvaluationWork Measure(TrainingConfig config, TrainedModel trained, IReadOnlyList<HeldOutRow> rows, int tokensPerBatch)
    {
        var device = (MeasureDevice)trained.Model.Device;
        device.ResetWork();
        int all = rows.Sum(row => row.Tokens.Length);
        for (int done = 0; done < all; done += tokensPerBatch)
        {
            Evaluator.MeasureLoss(trained.Model, Math.Min(tokensPerBatch, all - done), (int)Math.Ceiling((double)all / rows.Count));
        }

        IReadOnlyList<DeviceWork> loss = device.Work;
        int longest = config.Evaluation.MaxNewTokens;
        double expected = Math.Min(longest, 1 + rows.Average(row => (double)Math.Max(0, row.Tokens.Length - row.PromptTokens.Length)));
        if (longest == 0)
        {
            return new EvaluationWork(loss, [], [], 0, 0, 0);
        }

        int prompt = Math.Max(1, (int)rows.Average(row => row.PromptTokens.Length));
        device.ResetWork();
        TextGenerator.Measure(trained.Model, prompt, 0);
        IReadOnlyList<DeviceWork> reading = device.Work;
        device.ResetWork();
        TextGenerator.MeasureToken(trained.Model, prompt + (longest / 2));
        return new EvaluationWork(loss, reading, device.Work, rows.Count, longest, expected);
    }
}
