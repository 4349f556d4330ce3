namespace LoraTrainer.Costs.Estimates;

/// <summary>What a run has to do besides the steps.</summary>
/// <param name="ReadSeconds">Reading and tokenizing the data.</param>
/// <param name="LoadBytes">Of the base's files.</param>
/// <param name="IsQuantized">Whether they are quantized while they are loaded.</param>
/// <param name="Evaluation">All evaluations together.</param>
public readonly record struct RunWork(double ReadSeconds, double LoadBytes, bool IsQuantized, RooflineTime Evaluation);

/// <summary>The time of a run by its parts.</summary>
/// <param name="Start">Seconds from the start of the process until it loads: reading the configuration, tokenizing.</param>
/// <param name="Load">Seconds of loading and quantizing.</param>
/// <param name="Evaluation">Seconds of evaluating.</param>
/// <param name="Steps">Seconds of all steps.</param>
/// <param name="Error">Share by which the whole may be off in either direction, as far as is known.</param>
public readonly record struct RunTime(double Start, double Load, double Evaluation, double Steps, double Error)
{
    public double Seconds => Start + Load + Evaluation + Steps;

    public double Hours => Seconds / 3600;

    /// <summary>The work done in 1 + error of the time, at most.</summary>
    public double HoursHigh => Hours * (1 + Error);

    /// <summary>As much faster as <see cref="HoursHigh"/> is slower.</summary>
    public double HoursLow => Hours / (1 + Error);
}

/// <summary>A device's speed as far as it is known: its model, how well that was checked, and how fast it loads.</summary>
public sealed record DeviceSpeed
{
    // Without measurements of the device itself: what one kind of device showed is applied to another.
    internal const double ErrorOfOtherGpus = 0.35;

    // Processors of one vendor that were measured differed by 2.5 in the rate of a thread.
    internal const double ErrorOfOtherProcessors = 1.5;

    // However well the measured rows agree with each other, the next run may meet another neighbour on the machine.
    private const double LeastError = 0.05;

    // Where nothing was measured: a model of 270 MB took 0.5 s to load as it is and 1.0 s to quantize, from the page cache. A disk is slower at first.
    private const double LoadBytesPerSecond = 500e6;
    private const double QuantizeBytesPerSecond = 250e6;
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
        double rate = rates.Length > 0 ? TimeModel.Median(rates) : isQuantized ? QuantizeBytesPerSecond : LoadBytesPerSecond;

        // Generating a token is another kind of work than a training step: what evaluations took against what the model says of them is a factor of its own.
        double[] factors = [.. Rows.Where(row => row.EvaluationSeconds > 0 && row.Evaluation.Operations > 0).Select(row => row.EvaluationSeconds / Model.Seconds(row.Evaluation))];
        double factor = factors.Length > 0 ? TimeModel.Median(factors) : 1;
        return new RunTime(StartSeconds + work.ReadSeconds, work.LoadBytes / rate, Model.Seconds(work.Evaluation) * factor, Model.Seconds(steps), Error);
    }
}
