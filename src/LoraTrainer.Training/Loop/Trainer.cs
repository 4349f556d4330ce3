using System.Diagnostics;
using LoraTrainer.Data.Packing;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Optimizers;

namespace LoraTrainer.Training.Loop;

/// <summary>What one optimizer step did.</summary>
/// <param name="Step">Counted from 1.</param>
/// <param name="Loss">Mean over the supervised tokens of the whole global batch.</param>
/// <param name="GradientNorm">Before clipping.</param>
/// <param name="LearningRate">That was used.</param>
/// <param name="Tokens">All tokens of the step.</param>
/// <param name="SupervisedTokens">Those that were scored.</param>
/// <param name="Samples">Rows of the data in the step.</param>
/// <param name="Seconds">Wall time.</param>
public readonly record struct StepResult(int Step, double Loss, double GradientNorm, double LearningRate, int Tokens, int SupervisedTokens, int Samples, double Seconds);

/// <summary>The micro-batch of the most tokens of a whole run, the first of them, known before it starts.</summary>
/// <param name="Tokens">N</param>
/// <param name="Bins">That it has.</param>
/// <param name="Step">In which it is, from 0.</param>
/// <param name="FirstBin">Of the step's bins.</param>
/// <param name="Documents">Of the micro-batch of the most documents, which may be another.</param>
public readonly record struct LargestMicroBatch(int Tokens, int Bins, int Step, int FirstBin, int Documents)
{
    /// <summary>Looks at all steps.</summary>
    public static LargestMicroBatch Of(TrainingConfig config, TrainingData data)
    {
        var largest = new LargestMicroBatch(1, 1, 0, 0, 1);
        for (int step = 0; step < data.Order.TotalSteps; step++)
        {
            IReadOnlyList<int[]> bins = data.Order.BinsOf(step);
            for (int first = 0; first < bins.Count; first += config.Batch.MicroBatchSize)
            {
                int end = Math.Min(first + config.Batch.MicroBatchSize, bins.Count), documents = 0, tokens = 0;
                for (int bin = first; bin < end; bin++)
                {
                    documents += bins[bin].Length;
                    foreach (int row in bins[bin])
                    {
                        tokens += data.Train.Length(row);
                    }
                }

                documents = Math.Max(documents, largest.Documents);
                largest = tokens > largest.Tokens ? new LargestMicroBatch(tokens, end - first, step, first, documents) : largest with { Documents = documents };
            }
        }

        return largest;
    }
}

/// <summary>
/// The training loop's body: one call is one optimizer step. Losses and gradients are normalised by the supervised tokens of the whole global
/// batch, so the result does not depend on how the batch is cut into micro-batches (up to the order of additions). After the first step
/// nothing but the list of bins is allocated.
/// </summary>
public sealed class Trainer
{
    private readonly TrainingConfig config;
    private readonly TrainedModel trained;
    private readonly TrainingData data;
    private readonly Schedule schedule;
    private readonly MicroBatch batch;
    private readonly LargestMicroBatch largest;

    /// <param name="config">The run.</param>
    /// <param name="trained">Base, adapters, moments.</param>
    /// <param name="data">Rows and their order.</param>
    public Trainer(TrainingConfig config, TrainedModel trained, TrainingData data)
    {
        this.config = config;
        this.trained = trained;
        this.data = data;
        schedule = Schedule.From(config, data.Order.TotalSteps);
        largest = LargestMicroBatch.Of(config, data);
        batch = new MicroBatch(largest.Tokens, largest.Documents);
    }

    /// <summary>Of a micro-batch of the run.</summary>
    public int LargestTokens => largest.Tokens;

    /// <summary>Optimizer steps that are done, those that were left out included: the place in the data and in the schedule.</summary>
    public int CompletedSteps { get; set; }

    /// <summary>Updates that what is trained has had: the optimizer's count.</summary>
    public int CompletedUpdates { get; set; }

    public int TotalSteps => data.Order.TotalSteps;

    /// <summary>
    /// Forward and backward of the largest micro-batch of the whole run, waited for; what came out is thrown away. All that the run's passes need is had after it: kernels are
    /// loaded and have run, matrix products have their algorithms. It leaves no trace in what is trained: gradients are set to zero at the start of each step, and random
    /// numbers have no state.
    /// </summary>
    /// <returns>What it was, and the wall time.</returns>
    public (LargestMicroBatch Batch, double Seconds) TryLargest()
    {
        long start = Stopwatch.GetTimestamp();
        Device device = trained.Model.Device;
        using ArenaFrame frame = device.Arena.Frame();
        StepReport report = StepReport.Allocate(device);
        device.Zero(trained.Model.Parameters.Gradients);
        IReadOnlyList<int[]> bins = data.Order.BinsOf(largest.Step);
        FillBatch(bins, largest.FirstBin);
        MicroStep(report, firstToken: 0, 1f / Math.Max(1, batch.TargetCount), largest.Step);
        _ = report.Read();
        return (largest, Stopwatch.GetElapsedTime(start).TotalSeconds);
    }

    /// <summary>Accumulate, normalise, clip, update.</summary>
    /// <exception cref="NonFiniteException">The loss or a gradient is NaN or infinite; nothing was updated.</exception>
    public StepResult Step()
    {
        long start = Stopwatch.GetTimestamp();
        CausalLanguageModel model = trained.Model;
        IReadOnlyList<int[]> bins = data.Order.BinsOf(CompletedSteps);
        int supervised = SupervisedTokens(bins);
        using ArenaFrame frame = model.Device.Arena.Frame();
        StepReport report = StepReport.Allocate(model.Device);
        model.Device.Zero(model.Parameters.Gradients);
        int tokens = 0;
        for (int first = 0; first < bins.Count; first += config.Batch.MicroBatchSize)
        {
            FillBatch(bins, first);
            MicroStep(report, tokens, 1f / supervised, CompletedSteps);
            tokens += batch.TokenCount;
        }

        double rate = schedule.RateAt(CompletedSteps);
        Update(trained, report, CompletedUpdates + 1, rate);
        (double lossSum, double norm) = report.Read();
        if (!double.IsFinite(lossSum) || !double.IsFinite(norm))
        {
            throw NonFinite(lossSum, norm, bins);
        }

        CompletedSteps++;
        CompletedUpdates++;
        return new StepResult(CompletedSteps, lossSum / supervised, norm, rate, tokens, supervised, SampleCount(bins), Stopwatch.GetElapsedTime(start).TotalSeconds);
    }

    /// <summary>Forward, loss and backward of one micro-batch; its losses are added to the report.</summary>
    public static void Accumulate(TrainedModel trained, StepReport report, in PackedBatch packed, DropoutState dropout, float gradientScale, GradientCheckpointing checkpointing)
    {
        Device device = trained.Model.Device;
        Tensor losses = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(packed.TokenCount));
        trained.Model.ForwardBackward(
            losses, packed, dropout, gradientScale, recompute: checkpointing != GradientCheckpointing.Off, inputsOnHost: checkpointing == GradientCheckpointing.Offload && device.Platform == DevicePlatform.Cuda);
        LossSum.Accumulate(report.LossSum, losses);
    }

    /// <summary>Norm, clipping and the optimizer's update; where the report is not finite nothing changes.</summary>
    public static void Update(TrainedModel trained, StepReport report, int step, double learningRate)
    {
        GradientNorm.Compute(report.GradientNorm, trained.Model.Parameters.Gradients);
        trained.Optimizer.Step(step, learningRate, report.Values);
    }

    private void MicroStep(StepReport report, int firstToken, float gradientScale, int completedSteps)
    {
        Device device = trained.Model.Device;
        using ArenaFrame frame = device.Arena.Frame();
        Accumulate(trained, report, Upload(firstToken), RandomnessOf(config, completedSteps), gradientScale, config.Device.GradientCheckpointing);
    }

    /// <summary>The random numbers of one step.</summary>
    /// <param name="config">Seed and kinds.</param>
    /// <param name="completedSteps">Before it.</param>
    public static DropoutState RandomnessOf(TrainingConfig config, int completedSteps) =>
        new(IsActive: true, (ulong)config.Seed, (uint)completedSteps) { NoiseAlpha = (float)(config.NeftuneNoiseAlpha ?? 0) };

    private PackedBatch Upload(int firstToken) =>
        PackedBatch.Upload(trained.Model.Device, batch.Tokens, batch.Positions, batch.DocumentOffsets, batch.Targets, batch.ScoredRows, firstToken);

    private void FillBatch(IReadOnlyList<int[]> bins, int first)
    {
        batch.Clear();
        for (int bin = first; bin < Math.Min(first + config.Batch.MicroBatchSize, bins.Count); bin++)
        {
            batch.Add(data.Train, bins[bin]);
        }
    }

    private static int SampleCount(IReadOnlyList<int[]> bins)
    {
        int count = 0;
        for (int bin = 0; bin < bins.Count; bin++)
        {
            count += bins[bin].Length;
        }

        return count;
    }

    private int SupervisedTokens(IReadOnlyList<int[]> bins)
    {
        int count = 0;
        for (int bin = 0; bin < bins.Count; bin++)
        {
            foreach (int row in bins[bin])
            {
                // The first token is never a target: nothing predicts it.
                count += data.Train.IsSupervised(row)[1..].Count(true);
            }
        }

        return count;
    }

    private NonFiniteException NonFinite(double lossSum, double norm, IReadOnlyList<int[]> bins)
    {
        const int shown = 8;
        bool isLoss = !double.IsFinite(lossSum);
        int[] rows = [.. bins.SelectMany(bin => bin)];
        string more = rows.Length > shown ? $" and {rows.Length - shown} more" : string.Empty;
        return new NonFiniteException(
            $"Step {CompletedSteps + 1}: the {(isLoss ? "loss" : "gradient norm")} is {(isLoss ? lossSum : norm)}, {FirstPlace(isLoss, bins)}. Rows of the step: {string.Join(", ", rows.Take(shown).Select(row => data.Train.Source(row).ToString()))}{more}",
            "The step was not applied. A lower learning_rate, a smaller max_grad_norm or a look at these rows usually helps; on_nonfinite: rollback with checkpoint.every_steps leaves them out and goes on.");
    }

    /// <summary>Where the first number is that is not finite, in the order in which they are computed.</summary>
    private string FirstPlace(bool isLoss, IReadOnlyList<int[]> bins)
    {
        ParameterStore parameters = trained.Model.Parameters;
        if (parameters.Parameters.FirstOrDefault(parameter => !IsFinite(parameter.Value)) is { } spoilt)
        {
            return $"because {spoilt.Name}, which is trained, is not finite itself";
        }

        for (int first = 0, tokens = 0; isLoss && first < bins.Count; first += config.Batch.MicroBatchSize, tokens += batch.TokenCount)
        {
            using ArenaFrame frame = trained.Model.Device.Arena.Frame();
            FillBatch(bins, first);
            if (trained.Model.FindNonFinite(Upload(tokens), RandomnessOf(config, CompletedSteps)) is var (where, token))
            {
                int document = batch.DocumentOffsets.Span[1..].ToArray().Count(end => end <= token);
                int row = bins.Skip(first).SelectMany(bin => bin).ElementAt(document);
                return $"first in {where}, in {data.Train.Source(row)}";
            }
        }

        // Backward goes from the last layer to the first.
        return parameters.Parameters.LastOrDefault(parameter => !IsFinite(parameter.Gradient)) is { } last ? $"first in the gradient of {last.Name}" : "in the sum of finite numbers";

        static bool IsFinite(Tensor values) => double.IsFinite(GradientNorm.Compute(values.Reshape(new Shape(values.ElementCount))));
    }
}
