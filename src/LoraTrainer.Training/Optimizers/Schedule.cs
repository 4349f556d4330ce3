using LoraTrainer.Engine.Numerics;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Optimizers;

/// <summary>
/// The learning rate of every step, as transformers' schedulers give it (optimization.py). k counts completed optimizer steps, so the first update uses
/// k = 0. w = warmup steps, n = total steps, q = (k - w) / max(1, n - w), c = num_cycles, r = the lowest rate over the highest, wave(x) = 0.5 * (1 + cos(2 pi c x)).
/// The rate is the highest one times, for k &lt; w, k / max(1, w), and then
/// <list type="bullet">
/// <item>linear: max(0, (n - k) / max(1, n - w)); constant, constant_with_warmup: 1;</item>
/// <item>cosine: wave(q), c = 0.5; cosine_with_restarts: 0.5 * (1 + cos(pi * (c q mod 1))) while q &lt; 1, then 0, c = 1;</item>
/// <item>cosine_with_min_lr, and cosine with cosine_min_lr_ratio: wave(q) * (1 - r) + r;</item>
/// <item>cosine_warmup_with_min_lr: the same with k + 1 in q's numerator; its warmup is (k + 1) / max(1, w), or with warmup_lr_rate u: u + (1 - u) k / max(1, w - 1);</item>
/// <item>polynomial: ((1 - e) * (1 - q)^power + e with e = lr_end / rate, and e behind the last step;</item>
/// <item>inverse_sqrt: 1 / sqrt((k + t - w) / t), t = timescale, or w, or 10000.</item>
/// </list>
/// warmup_stable_decay has stages of w, s and d steps: f * (1 - r) + r with f = k/w, 0.5 * (1 - cos(pi k/w)) or 1 - sqrt(1 - k/w); 1; the same form with f = wave(x), 1 - x or
/// 1 - sqrt(x), x the share of the decay that is done; then r. None is below 0.
/// </summary>
public sealed class Schedule
{
    /// <summary>Where polynomial ends unless told otherwise.</summary>
    internal const double UsualEnd = 1e-7;

    private const int UsualTimescale = 10_000;

    private readonly LearningRateSchedule kind;
    private readonly ScheduleDetails details;
    private readonly double baseRate;
    private readonly int warmupSteps;
    private readonly int totalSteps;

    /// <param name="kind">Form after the warmup.</param>
    /// <param name="baseRate">The configured learning rate.</param>
    /// <param name="warmupSteps">w</param>
    /// <param name="totalSteps">n</param>
    /// <param name="details">What the kind is told besides; null: nothing.</param>
    public Schedule(LearningRateSchedule kind, double baseRate, int warmupSteps, int totalSteps, ScheduleDetails? details = null)
    {
        this.kind = kind;
        this.baseRate = baseRate;
        this.warmupSteps = warmupSteps;
        this.totalSteps = totalSteps;
        this.details = details ?? new ScheduleDetails();
    }

    /// <summary>The schedule that a config describes; shares of the steps are rounded up to whole ones.</summary>
    /// <exception cref="TrainingSetupException">The stages are longer than the run.</exception>
    public static Schedule From(TrainingConfig config, int totalSteps)
    {
        ScheduleOptions options = config.Schedule;
        int warmup = options.WarmupSteps >= 1 ? (int)options.WarmupSteps : (int)Math.Ceiling(totalSteps * (options.WarmupSteps > 0 ? options.WarmupSteps : options.WarmupRatio));
        if (options is { Kind: LearningRateSchedule.WarmupStableDecay, Details: { NumDecaySteps: { } decay, NumStableSteps: var stable } } && (long)warmup + decay + (stable ?? 0) > totalSteps)
        {
            throw new TrainingSetupException(
                $"lr_scheduler: warmup_stable_decay has {warmup} steps of warm-up, {stable ?? 0} stable ones and {decay} of decay, but the run has only {totalSteps}. Shorten one in lr_scheduler_kwargs, or the warm-up.");
        }

        (LearningRateSchedule kind, ScheduleDetails details) = options is { Kind: LearningRateSchedule.Cosine, CosineMinLrRatio: { } lowest }
            ? (LearningRateSchedule.CosineWithMinLr, options.Details with { MinLrRate = lowest })
            : (options.Kind, options.Details);
        return new Schedule(kind, config.Optimizer.LearningRate, warmup, totalSteps, details);
    }

    /// <summary>The rate of the update that follows <paramref name="completedSteps"/> updates.</summary>
    public double RateAt(int completedSteps) => baseRate * Multiplier(completedSteps);

    private double Multiplier(int k)
    {
        double lowest = details.MinLr is { } rate ? (baseRate > 0 ? rate / baseRate : 0) : details.MinLrRate ?? details.MinLrRatio ?? 0;
        if (kind == LearningRateSchedule.WarmupStableDecay)
        {
            return Staged(k, lowest);
        }

        if (k < warmupSteps)
        {
            return kind != LearningRateSchedule.CosineWarmupWithMinLr ? (double)k / Math.Max(1, warmupSteps)
                : details.WarmupLrRate is { } start ? start + (1 - start) * k / Math.Max(1, warmupSteps - 1)
                : (double)(k + 1) / Math.Max(1, warmupSteps);
        }

        double length = Math.Max(1, totalSteps - warmupSteps);
        double done = (k - warmupSteps) / length;
        return kind switch
        {
            LearningRateSchedule.Linear => Math.Max(0, (totalSteps - k) / length),
            LearningRateSchedule.Cosine => Math.Max(0, Wave(done)),
            LearningRateSchedule.CosineWithRestarts => done >= 1 ? 0 : Math.Max(0, 0.5 * (1 + DeterministicMath.Cos(Math.PI * ((details.NumCycles ?? 1) * done % 1)))),
            LearningRateSchedule.CosineWithMinLr => Math.Max(0, Raised(Wave(done), lowest)),
            LearningRateSchedule.CosineWarmupWithMinLr => Math.Max(0, Raised(Wave((k - warmupSteps + 1) / length), lowest)),
            LearningRateSchedule.Polynomial => Polynomial(k, done),
            LearningRateSchedule.InverseSqrt => InverseSqrt(k),
            _ => 1,
        };
    }

    private double Polynomial(int k, double done)
    {
        double end = baseRate > 0 ? (details.LrEnd ?? UsualEnd) / baseRate : 0;
        return k > totalSteps ? end : (1 - end) * DeterministicMath.Pow(Math.Max(0, 1 - done), details.Power ?? 1) + end;
    }

    private double InverseSqrt(int k)
    {
        double timescale = details.Timescale ?? (warmupSteps > 0 ? warmupSteps : UsualTimescale);
        return 1 / Math.Sqrt((k + timescale - warmupSteps) / timescale);
    }

    private double Staged(int k, double lowest)
    {
        int decay = details.NumDecaySteps ?? 0;
        int stable = details.NumStableSteps ?? totalSteps - warmupSteps - decay;
        if (k < warmupSteps)
        {
            double risen = (double)k / Math.Max(1, warmupSteps);
            return Math.Max(0, Raised(
                details.WarmupType switch
                {
                    ScheduleCurve.Cosine => 0.5 * (1 - DeterministicMath.Cos(Math.PI * risen)),
                    ScheduleCurve.OneMinusSqrt => 1 - Math.Sqrt(1 - risen),
                    _ => risen,
                }, lowest));
        }

        if (k < warmupSteps + stable)
        {
            return 1;
        }

        if (k >= warmupSteps + stable + decay)
        {
            return lowest;
        }

        double fallen = (double)(k - warmupSteps - stable) / Math.Max(1, decay);
        return Math.Max(0, Raised(
            details.DecayType switch
            {
                ScheduleCurve.Linear => 1 - fallen,
                ScheduleCurve.OneMinusSqrt => 1 - Math.Sqrt(fallen),
                _ => Wave(fallen),
            }, lowest));
    }

    private double Wave(double done) => 0.5 * (1 + DeterministicMath.Cos(Math.PI * (details.NumCycles ?? 0.5) * 2 * done));

    private static double Raised(double factor, double lowest) => factor * (1 - lowest) + lowest;
}
