using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Optimizers;
using Xunit;

namespace LoraTrainer.Training.Tests.Optimizers;

/// <summary>Forms of schedules against formulas written down here, and what is refused.</summary>
public class ScheduleTests
{
    private const double BaseRate = 2e-4;

    /// <summary>Kind, warmup, total, further settings, step, the expected share of the highest rate.</summary>
    public static TheoryData<string, string, int, string?, int, double> Points => new()
    {
        { "cosine", "10", 100, null, 0, 0 },
        { "cosine", "10", 100, null, 9, 0.9 },
        { "cosine", "10", 100, null, 55, 0.5 },
        { "cosine", "10", 100, null, 99, 0.0003045865 },
        { "cosine", "0.095", 100, null, 5, 0.5 },
        { "cosine", "10", 100, "{num_cycles: 1}", 55, 0 },
        { "cosine_with_min_lr", "10", 100, "{min_lr_rate: 0.1}", 99, 0.1002741278 },
        { "cosine_with_min_lr", "10", 100, "{min_lr: 2e-5}", 55, 0.55 },
        { "cosine_warmup_with_min_lr", "10", 100, "{min_lr_rate: 0.1}", 0, 0.1 },
        { "cosine_warmup_with_min_lr", "10", 100, "{min_lr_rate: 0.1}", 9, 1 },
        { "cosine_warmup_with_min_lr", "10", 100, "{min_lr_rate: 0.1}", 54, 0.55 },
        { "cosine_warmup_with_min_lr", "10", 100, "{min_lr: 2e-5, warmup_lr_rate: 0.2}", 0, 0.2 },
        { "cosine_warmup_with_min_lr", "10", 100, "{min_lr: 2e-5, warmup_lr_rate: 0.2}", 9, 1 },
        { "cosine_warmup_with_min_lr", "10", 100, "{min_lr: 2e-5}", 99, 0.1 },
        { "polynomial", "10", 100, null, 55, 0.50025 },
        { "polynomial", "10", 100, "{power: 3, lr_end: 2e-5}", 55, 0.2125 },
        { "inverse_sqrt", "10", 100, "{timescale: 30}", 40, 0.7071067811865476 },
        { "inverse_sqrt", "0", 100, null, 10, 0.9995003746877732 },
        { "warmup_stable_decay", "10", 100, "{num_decay_steps: 20}", 79, 1 },
        { "warmup_stable_decay", "10", 100, "{num_decay_steps: 20}", 90, 0.5 },
        { "warmup_stable_decay", "10", 100, "{num_decay_steps: 20}", 85, 0.8535533905932737 },
        { "warmup_stable_decay", "10", 100, "{num_decay_steps: 20, decay_type: linear}", 85, 0.75 },
        { "warmup_stable_decay", "10", 100, "{num_decay_steps: 20, num_stable_steps: 30, min_lr_ratio: 0.1}", 50, 0.55 },
        { "warmup_stable_decay", "10", 100, "{num_decay_steps: 20, num_stable_steps: 30, min_lr_ratio: 0.1}", 60, 0.1 },
        { "warmup_stable_decay", "10", 100, "{num_decay_steps: 20, warmup_type: cosine, decay_type: cosine}", 5, 0.5 },
        { "warmup_stable_decay", "10", 100, "{num_decay_steps: 20, warmup_type: cosine, decay_type: cosine}", 90, 0.5 },
        { "warmup_stable_decay", "10", 100, "{num_decay_steps: 20, warmup_type: 1-sqrt, decay_type: 1-sqrt}", 5, 0.2928932188134524 },
        { "warmup_stable_decay", "10", 100, "{num_decay_steps: 20, warmup_type: 1-sqrt, decay_type: 1-sqrt}", 90, 0.2928932188134524 },
        { "cosine_with_restarts", "10", 100, null, 100, 0 },
    };

    [Theory]
    [MemberData(nameof(Points))]
    public void RateAt_KnownPoints(string kind, string warmup, int total, string? details, int step, double expected) =>
        Assert.Equal(expected, Of(total, ("lr_scheduler", kind), ("warmup_steps", warmup), ("lr_scheduler_kwargs", details)).RateAt(step) / BaseRate, 1e-9);

    [Fact]
    public void CosineMinLrRatio_IsCosineWithMinLr()
    {
        Schedule ratio = Of(40, ("cosine_min_lr_ratio", 0.1), ("warmup_steps", null), ("warmup_ratio", 0.1)), named = Of(40, ("lr_scheduler", "cosine_with_min_lr"), ("lr_scheduler_kwargs", "{min_lr_rate: 0.1}"), ("warmup_steps", 4));
        Assert.Equal([.. Enumerable.Range(0, 41).Select(named.RateAt)], Enumerable.Range(0, 41).Select(ratio.RateAt).ToArray());
        Assert.Equal(0.1 * BaseRate, ratio.RateAt(40), 1e-12);
    }

    [Theory]
    [InlineData("linear", "{power: 2}", "lr_scheduler_kwargs.power is given, but the lr_scheduler (tiny.yaml:", "It reads none; remove it, or use another lr_scheduler.")]
    [InlineData("polynomial", "{power: 2, num_cycles: 2}", "lr_scheduler_kwargs.num_cycles is given", "It reads power, lr_end; remove it")]
    [InlineData("polynomial", "{lr_end: 0.01}", "lr_scheduler_kwargs.lr_end (tiny.yaml:", "must be lower than learning_rate (tiny.yaml:")]
    [InlineData("polynomial", "{lrend: 0.01}", "lrend", "lr_end")]
    [InlineData("cosine_with_min_lr", null, "This lr_scheduler (tiny.yaml:", "needs min_lr or min_lr_rate in lr_scheduler_kwargs, got neither.")]
    [InlineData("cosine_with_min_lr", "{min_lr: 1e-5, min_lr_rate: 0.1}", "This lr_scheduler", "got both.")]
    [InlineData("cosine_with_min_lr", "{min_lr: 0.9}", "lr_scheduler_kwargs.min_lr (tiny.yaml:", "is higher than learning_rate")]
    [InlineData("warmup_stable_decay", "{num_stable_steps: 3}", "lr_scheduler: warmup_stable_decay (tiny.yaml:", "needs num_decay_steps. Example: lr_scheduler_kwargs: {num_decay_steps: 100}.")]
    [InlineData("warmup_stable_decay", "{num_decay_steps: 3, decay_type: exp}", "lr_scheduler_kwargs.decay_type must be one of linear, cosine, 1-sqrt, got exp (tiny.yaml:", "")]
    [InlineData("reduce_lr_on_plateau", null, "lr_scheduler must be one of linear, cosine,", "got reduce_lr_on_plateau")]
    public void Contradictions_AreToldInOneSentence(string kind, string? details, string start, string inside)
    {
        ConfigurationResult result = ConfigurationLoader.LoadText(Text(("lr_scheduler", kind), ("lr_scheduler_kwargs", details)), "tiny.yaml", []);
        ConfigurationIssue error = Assert.Single(result.Errors, error => error.Message.Contains(start, StringComparison.Ordinal));
        Assert.Contains(inside, error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void CosineMinLrRatio_BesideAnotherSchedule_IsRefused()
    {
        ConfigurationResult result = ConfigurationLoader.LoadText(Text(("lr_scheduler", "linear"), ("cosine_min_lr_ratio", 0.1)), "tiny.yaml", []);
        Assert.StartsWith("cosine_min_lr_ratio belongs to lr_scheduler: cosine (tiny.yaml:", Assert.Single(result.Errors).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void StagesLongerThanTheRun_AreRefused()
    {
        TrainingSetupException exception = Assert.Throws<TrainingSetupException>(() => Of(20, ("lr_scheduler", "warmup_stable_decay"), ("warmup_steps", 5), ("lr_scheduler_kwargs", "{num_decay_steps: 16}")));
        Assert.Equal("lr_scheduler: warmup_stable_decay has 5 steps of warm-up, 0 stable ones and 16 of decay, but the run has only 20. Shorten one in lr_scheduler_kwargs, or the warm-up.", exception.Message);
    }

    private static Schedule Of(int total, params (string, object?)[] changes) => Schedule.From(ConfigurationLoader.LoadText(Text(changes), "tiny.yaml", []).Require(), total);

    private static string Text(params (string, object?)[] changes) => TinyRun.Config("", [("learning_rate", "2e-4"), .. changes]);
}
