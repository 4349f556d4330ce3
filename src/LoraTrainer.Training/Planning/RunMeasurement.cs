using LoraTrainer.Engine.Devices;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Planning;

/// <summary>What a run that came to its end measured of the device that it ran on: with it the time of other runs there can be told.</summary>
public sealed record RunMeasurement
{
    /// <summary>Steps below which a median says nothing.</summary>
    public const int LeastSteps = 3;

    public required DevicePlatform Device { get; init; }

    /// <summary>Threads that computed; 1 on a GPU.</summary>
    public required int Threads { get; init; }

    /// <summary>What was to be done.</summary>
    public required WorkPlan Work { get; init; }

    /// <summary>Of the base's files.</summary>
    public required long WeightBytes { get; init; }

    /// <summary>Median over the steps of this process, the first left out.</summary>
    public required double SecondsPerToken { get; init; }

    /// <summary>Steps that were measured.</summary>
    public required int Steps { get; init; }

    /// <summary>True where this process did all steps, so that the phases are those of the whole run.</summary>
    public required bool IsWhole { get; init; }

    /// <summary>Of this process.</summary>
    public required IReadOnlyDictionary<TrainingPhase, double> PhaseSeconds { get; init; }

    /// <summary>Tokens of a mean step.</summary>
    public double StepTokens => Work.Batches.MeanTokens * Work.Batches.Count / Work.Steps;
}
