using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Planning;

/// <summary>The passes that a run will make, as far as memory is concerned.</summary>
/// <param name="MicroBatchTokens">N of the largest micro-batch.</param>
/// <param name="HeldOut">Rows that are evaluated; may be empty.</param>
/// <param name="DocumentTokens">Length of a document within a micro-batch; for the count of operations only.</param>
public sealed record PlannedPasses(int MicroBatchTokens, IReadOnlyList<HeldOutRow> HeldOut, int DocumentTokens);

/// <summary>
/// What a run needs, from running its own code on a <see cref="MeasureDevice"/>: the arena's high-water mark of a real run equals
/// <see cref="ArenaBytes"/> to the byte.
/// </summary>
public sealed record MemoryPlan
{
    /// <summary>Everything that the run places on its device.</summary>
    public required long ArenaBytes { get; init; }

    /// <summary>What a GPU run keeps in page-locked memory of the host; 0 on the CPU.</summary>
    public required long HostBytes { get; init; }

    /// <summary>Paged moments, behind a file on the CPU and in managed memory on a GPU; what of it is in memory at a time is up to the system. Not in <see cref="ArenaBytes"/>.</summary>
    public required long PagedBytes { get; init; }

    /// <summary>What the device is opened with.</summary>
    public DeviceMemory Memory => new(ArenaBytes, HostBytes, PagedBytes);

    /// <summary>The parts of <see cref="ArenaBytes"/>, at the moment of the peak.</summary>
    public required IReadOnlyDictionary<MemoryKind, long> ByKind { get; init; }

    /// <summary>Floating-point operations of forward and backward for one token, all tokens scored; recomputation included if it is on.</summary>
    public required double FlopsPerToken { get; init; }

    /// <summary>Numbers of the base model, tied matrices once.</summary>
    public required long Parameters { get; init; }

    /// <summary>Numbers that are trained.</summary>
    public required long TrainableParameters { get; init; }

    /// <summary>Runs the code of a training step and of an evaluation on a device that only measures.</summary>
    /// <param name="config">The run.</param>
    /// <param name="shape">Of the base.</param>
    /// <param name="folder">Its weights, for the types they are stored in; null: as the config says.</param>
    /// <param name="selection">The device that is planned for.</param>
    /// <param name="passes">The largest passes of the run.</param>
    public static MemoryPlan Measure(TrainingConfig config, ModelConfig shape, ModelFolder? folder, DeviceSelection selection, PlannedPasses passes)
    {
        using MeasureDevice device = selection.Measure();
        TrainedModel trained = TrainedModel.Build(config, shape, folder, device);
        double flops = MeasureStep(config, trained, new StagedBatches(device, passes.MicroBatchTokens), passes);
        bool generates = config.Evaluation.Before || config.Evaluation.After;
        if (generates || config.Evaluation.Strategy != EvaluationStrategy.No)
        {
            Evaluator.Measure(trained.Model, passes.HeldOut, generates ? config.Evaluation.MaxNewTokens : 0, passes.MicroBatchTokens);
        }

        return new MemoryPlan
        {
            ArenaBytes = device.Arena.HighWaterBytes,
            HostBytes = device.HostArena.HighWaterBytes,
            PagedBytes = device.PagedBytes,
            ByKind = Enum.GetValues<MemoryKind>().ToDictionary(kind => kind, device.Arena.HighWaterOf),
            FlopsPerToken = flops / passes.MicroBatchTokens,
            Parameters = shape.ExpectedTensors().Sum(tensor => tensor.Shape.Aggregate(1L, (product, extent) => product * extent)),
            TrainableParameters = trained.Model.Parameters.TrainableCount,
        };
    }

    /// <summary>One optimizer step with one micro-batch, as <see cref="Trainer.Step"/> makes it; the operations of forward and backward.</summary>
    private static double MeasureStep(TrainingConfig config, TrainedModel trained, StagedBatches staged, PlannedPasses passes)
    {
        var device = (MeasureDevice)trained.Model.Device;
        using ArenaFrame frame = device.Arena.Frame();
        StepReport report = StepReport.Allocate(device);
        device.ResetWork();
        MeasuredBatch.Full(passes.MicroBatchTokens, passes.DocumentTokens).Run(config, trained, staged, report);
        double flops = device.Flops;
        Trainer.Update(trained, report, step: 1, learningRate: 0);
        return flops;
    }
}
