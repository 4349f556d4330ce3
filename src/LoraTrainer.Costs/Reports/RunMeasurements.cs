namespace LoraTrainer.Costs.Reports;

/// <summary>A step as the run's log tells of it.</summary>
/// <param name="Step">From 1 on.</param>
/// <param name="Loss">Mean over its supervised tokens.</param>
/// <param name="Tokens">Of this step.</param>
/// <param name="Seconds">Of this step.</param>
/// <param name="MemoryBytes">Resident memory of the process after it; 0: not known.</param>
public readonly record struct StepMeasurement(int Step, double Loss, long Tokens, double Seconds, long MemoryBytes);

/// <summary>What a run's own folder knows and the ledger does not.</summary>
public sealed record RunMeasurements
{
    /// <summary>Why there are none, as a sentence; null where there are.</summary>
    public string? Missing { get; init; }

    /// <summary>Steps that are in the result, in their order.</summary>
    public IReadOnlyList<StepMeasurement> Steps { get; init; } = [];

    /// <summary>Highest resident memory of the process that finished the run; null where it has not.</summary>
    public long? PeakBytes { get; init; }

    /// <summary>What of it was planned before the first step; null where it has not finished.</summary>
    public long? PlannedBytes { get; init; }
}
