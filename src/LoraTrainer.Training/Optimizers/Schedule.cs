using LoraTrainer.Engine.Numerics;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Optimizers;

/// <summary>
/// The learning rate of every step, as transformers' schedulers give it (optimization.py). k counts completed optimizer steps, so the first
/// update uses k = 0: with warmup its rate is zero. w = warmup steps, n = total steps:
/// warmup (k &lt; w): k / max(1, w);  linear: max(0, (n - k) / max(1, n - w));  cosine: 0.5 * (1 + cos(pi * (k - w) / max(1, n - w)));  constant: 1.
/// </summary>
public sealed class Schedule
{
    private readonly LearningRateSchedule kind;
    private readonly double baseRate;
    private readonly int warmupSteps;
    private readonly int totalSteps;

    /// <param name="kind">Form after the warmup.</param>
    /// <param name="baseRate">The configured learning rate.</param>
    /// <param name="warmupSteps">w</param>
    /// <param name="totalSteps">n</param>
    public Schedule(LearningRateSchedule kind, double baseRate, int warmupSteps, int totalSteps)
    {
        this.kind = kind;
        this.baseRate = baseRate;
        this.warmupSteps = warmupSteps;
        this.totalSteps = totalSteps;
    }

    /// <summary>The schedule that a config describes; a warmup ratio is rounded up to whole steps.</summary>
    public static Schedule From(TrainingConfig config, int totalSteps)
    {
        int warmup = config.Schedule.WarmupSteps > 0 ? config.Schedule.WarmupSteps : (int)Math.Ceiling(totalSteps * config.Schedule.WarmupRatio);
        return new Schedule(config.Schedule.Kind, config.Optimizer.LearningRate, warmup, totalSteps);
    }

    /// <summary>The rate of the update that follows <paramref name="completedSteps"/> updates.</summary>
    public double RateAt(int completedSteps) => baseRate * Multiplier(completedSteps);

    private double Multiplier(int k)
    {
        // "constant" alone has no warmup in transformers; asking for one there means constant_with_warmup.
        if (k < warmupSteps)
        {
            return (double)k / Math.Max(1, warmupSteps);
        }

        return kind switch
        {
            LearningRateSchedule.Linear => Math.Max(0, (double)(totalSteps - k) / Math.Max(1, totalSteps - warmupSteps)),
            LearningRateSchedule.Cosine => Math.Max(0, 0.5 * (1 + DeterministicMath.Cos(Math.PI * ((double)(k - warmupSteps) / Math.Max(1, totalSteps - warmupSteps))))),
            _ => 1,
        };
    }
}
