using System.Diagnostics;
using System.Globalization;
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
/// nothing but the lists of a step's rows and bins is allocated.
/// </summary>
public sealed class Trainer
{
    private readonly TrainingConfig config;
    private readonly TrainedModel trained;
    private readonly TrainingData data;
    private readonly Schedule schedule;
    private readonly LargestMicroBatch largest;
    private readonly StagedBatches staged;

    // The one that is on its way to the device, and the one that is computed; they take turns.
    private MicroBatch next;
    private MicroBatch batch;
    private StepRows? nextStep;

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
        next = new MicroBatch(largest.Tokens, largest.Documents);
        staged = new StagedBatches(trained.Model.Device, largest.Tokens);
        Graphs = config.Device.CudaGraphs != CudaGraphs.Off && trained.Model.Device.RecordsWork ? new PassGraphs(trained.Model, config.Device) : null;
    }

    /// <summary>Null where the config asks for none, or the device records no work.</summary>
    public PassGraphs? Graphs { get; }

    /// <summary>What there is to say of graphs: before the steps why there are none, after them what came of them.</summary>
    /// <param name="notice">Is told.</param>
    /// <param name="isBefore">No step has been made in this process.</param>
    public void TellOfGraphs(Action<string> notice, bool isBefore)
    {
        if (isBefore && Graphs is null && config.Device.CudaGraphs != CudaGraphs.Off && trained.Model.Device.Platform == DevicePlatform.Cuda)
        {
            notice("cuda_graphs has no effect with LT_CUDA_SYNC=1, by which each kernel is launched and waited for by itself.");
        }
        else if (Graphs is { Passes: > 0 } graphs)
        {
            string unkept = graphs.WithoutMemory == 0 ? "" : string.Create(CultureInfo.InvariantCulture, $" For {graphs.WithoutMemory} more the driver had no memory.");
            notice(string.Create(
                CultureInfo.InvariantCulture, $"CUDA graphs: {graphs.Launches} of {graphs.Passes} micro-batches were launched as one of {graphs.Recordings} recorded graphs; {graphs.Proofs} were made both ways.{unkept}"));
        }
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

        // What is on its way for the next step gives way. Graphs are for passes that repeat.
        nextStep = null;
        Fill(data.Order.BinsOf(largest.Step), largest.FirstBin);
        float scale = 1f / Math.Max(1, next.TargetCount);
        DropoutState dropout = RandomnessOf(config, largest.Step);
        staged.Start(new PassNumbers(0, dropout.Step, scale), next);
        Accumulate(trained, report, staged.Take(), dropout, scale, config.Device.GradientCheckpointing);
        _ = report.Read();
        return (largest, Stopwatch.GetElapsedTime(start).TotalSeconds);
    }

    /// <summary>Accumulate, normalise, clip, update.</summary>
    /// <exception cref="NonFiniteException">The loss or a gradient is NaN or infinite; nothing was updated.</exception>
    public StepResult Step()
    {
        long start = Stopwatch.GetTimestamp();
        CausalLanguageModel model = trained.Model;
        StepRows rows = nextStep is { } known && known.Step == CompletedSteps ? known : Begin(CompletedSteps);
        (_, IReadOnlyList<int[]> bins, int supervised) = rows;
        using ArenaFrame frame = model.Device.Arena.Frame();
        StepReport report = StepReport.Allocate(model.Device);
        model.Device.Zero(model.Parameters.Gradients);
        int tokens = 0;
        for (int first = 0; first < bins.Count; first += config.Batch.MicroBatchSize)
        {
            PackedBatch packed = staged.Take();
            (batch, next) = (next, batch);
            tokens += batch.TokenCount;

            // While this one is computed the next one goes to the device, be it of the next step.
            int following = first + config.Batch.MicroBatchSize;
            if (following < bins.Count)
            {
                Start(rows, following, tokens);
            }
            else
            {
                nextStep = CompletedSteps + 1 < TotalSteps ? Begin(CompletedSteps + 1) : null;
            }

            MicroStep(report, packed, 1f / supervised);
        }

        double rate = schedule.RateAt(CompletedSteps);
        Update(trained, report, CompletedUpdates + 1, rate);
        (double lossSum, double norm) = report.Read();
        if (!double.IsFinite(lossSum) || !double.IsFinite(norm))
        {
            throw NonFinite(lossSum, norm, rows);
        }

        CompletedSteps++;
        CompletedUpdates++;
        return new StepResult(CompletedSteps, lossSum / supervised, norm, rate, tokens, supervised, SampleCount(bins), Stopwatch.GetElapsedTime(start).TotalSeconds);
    }

    /// <summary>Forward, loss and backward of one micro-batch; its losses are added to the report.</summary>
    /// <param name="trained">Base, adapters, moments.</param>
    /// <param name="report">Of the step.</param>
    /// <param name="packed">The micro-batch.</param>
    /// <param name="dropout">Random numbers of the step.</param>
    /// <param name="gradientScale">One over the scored tokens of the step.</param>
    /// <param name="checkpointing">What is kept between forward and backward; graphs have their own.</param>
    /// <param name="graphs">Launch passes that repeat as a whole; null: none.</param>
    public static void Accumulate(
        TrainedModel trained, StepReport report, in PackedBatch packed, DropoutState dropout, float gradientScale, GradientCheckpointing checkpointing, PassGraphs? graphs = null)
    {
        Device device = trained.Model.Device;
        Tensor losses = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(packed.TokenCount));
        if (graphs is null)
        {
            (bool recompute, bool inputsOnHost) = RecomputationOf(checkpointing, device.Platform);
            trained.Model.ForwardBackward(losses, packed, dropout, gradientScale, recompute, inputsOnHost: inputsOnHost);
        }
        else
        {
            graphs.ForwardBackward(losses, packed, dropout, gradientScale);
        }

        LossSum.Accumulate(report.LossSum, losses);
    }

    /// <summary>What a way of checkpointing is on a platform.</summary>
    internal static (bool Recompute, bool InputsOnHost) RecomputationOf(GradientCheckpointing checkpointing, DevicePlatform platform) =>
        (checkpointing != GradientCheckpointing.Off, checkpointing == GradientCheckpointing.Offload && platform == DevicePlatform.Cuda);

    /// <summary>Norm, clipping and the optimizer's update; where the report is not finite nothing changes.</summary>
    public static void Update(TrainedModel trained, StepReport report, int step, double learningRate)
    {
        GradientNorm.Compute(report.GradientNorm, trained.Model.Parameters.Gradients);
        trained.Optimizer.Step(step, learningRate, report.Values);
    }

    private void MicroStep(StepReport report, in PackedBatch packed, float gradientScale)
    {
        using ArenaFrame frame = trained.Model.Device.Arena.Frame();
        Accumulate(trained, report, packed, Dropout, gradientScale, config.Device.GradientCheckpointing, Graphs);
    }

    /// <summary>The random numbers of one step.</summary>
    /// <param name="config">Seed and kinds.</param>
    /// <param name="completedSteps">Before it.</param>
    public static DropoutState RandomnessOf(TrainingConfig config, int completedSteps) =>
        new(IsActive: true, (ulong)config.Seed, (uint)completedSteps) { NoiseAlpha = (float)(config.NeftuneNoiseAlpha ?? 0) };

    private DropoutState Dropout => RandomnessOf(config, CompletedSteps);

    /// <summary>The rows of a step, with its first micro-batch on the way to the device.</summary>
    private StepRows Begin(int step)
    {
        IReadOnlyList<int[]> bins = data.Order.BinsOf(step);
        var rows = new StepRows(step, bins, SupervisedTokens(bins));
        Start(rows, first: 0, firstToken: 0);
        return rows;
    }

    /// <summary>Sends a micro-batch to the device.</summary>
    /// <param name="rows">Of its step.</param>
    /// <param name="first">Its first bin.</param>
    /// <param name="firstToken">Tokens of the step before it.</param>
    private void Start(StepRows rows, int first, int firstToken)
    {
        Fill(rows.Bins, first);
        staged.Start(new PassNumbers(firstToken, RandomnessOf(config, rows.Step).Step, 1f / rows.Supervised), next);
    }

    private void Fill(IReadOnlyList<int[]> bins, int first)
    {
        next.Clear();
        for (int bin = first; bin < Math.Min(first + config.Batch.MicroBatchSize, bins.Count); bin++)
        {
            next.Add(data.Train, bins[bin]);
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

    private NonFiniteException NonFinite(double lossSum, double norm, StepRows step)
    {
        const int shown = 8;
        bool isLoss = !double.IsFinite(lossSum);
        int[] rows = [.. step.Bins.SelectMany(bin => bin)];
        string more = rows.Length > shown ? $" and {rows.Length - shown} more" : string.Empty;
        return new NonFiniteException(
            $"Step {CompletedSteps + 1}: the {(isLoss ? "loss" : "gradient norm")} is {(isLoss ? lossSum : norm)}, {FirstPlace(isLoss, step)}. Rows of the step: {string.Join(", ", rows.Take(shown).Select(row => data.Train.Source(row).ToString()))}{more}",
            "The step was not applied. A lower learning_rate, a smaller max_grad_norm or a look at these rows usually helps; on_nonfinite: rollback with checkpoint.every_steps leaves them out and goes on.");
    }

    /// <summary>Where the first number is that is not finite, in the order in which they are computed.</summary>
    private string FirstPlace(bool isLoss, StepRows step)
    {
        ParameterStore parameters = trained.Model.Parameters;
        if (parameters.Parameters.FirstOrDefault(parameter => !IsFinite(parameter.Value)) is { } spoilt)
        {
            return $"because {spoilt.Name}, which is trained, is not finite itself";
        }

        // The next step's first micro-batch gives way.
        nextStep = null;
        for (int first = 0, tokens = 0; isLoss && first < step.Bins.Count; first += config.Batch.MicroBatchSize, tokens += next.TokenCount)
        {
            Start(step, first, tokens);
            if (trained.Model.FindNonFinite(staged.Take(), Dropout) is var (where, token))
            {
                int document = next.DocumentOffsets.Span[1..].ToArray().Count(end => end <= token);
                int row = step.Bins.Skip(first).SelectMany(bin => bin).ElementAt(document);
                return $"first in {where}, in {data.Train.Source(row)}";
            }
        }

        // Backward goes from the last layer to the first.
        return parameters.Parameters.LastOrDefault(parameter => !IsFinite(parameter.Gradient)) is { } last ? $"first in the gradient of {last.Name}" : "in the sum of finite numbers";

        static bool IsFinite(Tensor values) => double.IsFinite(GradientNorm.Compute(values.Reshape(new Shape(values.ElementCount))));
    }

    /// <param name="Step">Completed steps before it.</param>
    /// <param name="Bins">Of its global batch.</param>
    /// <param name="Supervised">Its scored tokens.</param>
    private sealed record StepRows(int Step, IReadOnlyList<int[]> Bins, int Supervised);
}
