namespace LoraTrainer.Costs.Estimates;

/// <summary>A device's speed as far as it is known: its model, how well that was checked, and how fast it loads.</summary>
public sealed record DeviceSpeed
{
    // Without measurements of the device itself: what one kind of device showed is applied to another.
    internal const double ErrorOfOtherGpus = 0.35;

    // Processors of one vendor whose products were measured (tests/Benchmarks/results) differ by 2.5 in the rate of a thread.
    internal const double ErrorOfOtherProcessors = 1.5;

    // However well the measured rows agree with each other, the next run may meet another neighbour on the machine.
    private const double LeastError = 0.05;

    // Assumed where nothing was measured: what the disk of a rented machine delivers, and the start of the process itself.
    private const double LoadBytesPerSecond = 500e6;
    private const double StartSeconds = 1;

    private DeviceSpeed(TimeModel model, ModelCheck check, double error, IReadOnlyList<CalibrationRow> rows)
    {
        Model = model;
        Check = check;
        Error = error;
        Rows = rows;
    }

    public TimeModel Model { get; }

    /// <summary>How well the model predicts rows of this device that it has not seen.</summary>
    public ModelCheck Check { get; }

    /// <summary>Share by which a time may be off.</summary>
    public double Error { get; }

    private IReadOnlyList<CalibrationRow> Rows { get; }

    /// <summary>The speed of a device.</summary>
    /// <param name="usual">What is known of its kind.</param>
    /// <param name="usualError">By how much a device of this kind may differ from that.</param>
    /// <param name="rows">What was measured on the device itself; may be empty.</param>
    public static DeviceSpeed Of(TimeModel usual, double usualError, IReadOnlyList<CalibrationRow> rows)
    {
        MeasuredTime[] steps = [.. rows.Select(row => new MeasuredTime(row.Step, row.StepSeconds))];
        ModelCheck check = ModelCheck.Of(usual, steps);
        double error = check.Worst is { } worst ? Math.Max(worst, LeastError) : usualError;
        return new DeviceSpeed(usual.FittedTo(steps), check, error, rows);
    }

    /// <summary>Of a GPU that is measured nowhere, or on this very device.</summary>
    /// <param name="rows">What was measured on it; may be empty.</param>
    public static DeviceSpeed OfGpu(IReadOnlyList<CalibrationRow> rows) => Of(UsualSpeeds.Gpu, ErrorOfOtherGpus, rows);

    /// <summary>Of a processor.</summary>
    /// <param name="rows">What was measured on it; may be empty.</param>
    public static DeviceSpeed OfProcessor(IReadOnlyList<CalibrationRow> rows) => Of(UsualSpeeds.Processor, ErrorOfOtherProcessors, rows);

    /// <summary>The time of a run.</summary>
    /// <param name="steps">All steps together.</param>
    /// <param name="work">What comes beside them.</param>
    public RunTime TimeOf(RooflineTime steps, in RunWork work)
    {
        bool isQuantized = work.IsQuantized;
        double[] rates = [.. Rows.Where(row => row is { LoadSeconds: > 0, LoadBytes: > 0 } && row.IsQuantized == isQuantized).Select(row => row.LoadBytes / row.LoadSeconds)];
        double rate = rates.Length > 0 ? TimeModel.Median(rates) : LoadBytesPerSecond;

        // Generating a token is another kind of work than a training step: what evaluations took against what the model says of them is a factor of its own.
        double[] factors = [.. Rows.Where(row => row.EvaluationSeconds > 0 && row.Evaluation.Operations > 0).Select(row => row.EvaluationSeconds / Model.Seconds(row.Evaluation))];
        double factor = factors.Length > 0 ? TimeModel.Median(factors) : 1;
        return new RunTime(StartSeconds + work.ReadSeconds, work.LoadBytes / rate, Model.Seconds(work.Evaluation) * factor, Model.Seconds(steps), Error);
    }
}
