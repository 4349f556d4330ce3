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
