using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using Xunit;

namespace LoraTrainer.Training.Tests.Evaluation;

/// <summary>When a run is evaluated, which evaluation is the best, and for how many there was no better one.</summary>
public class EvaluationHistoryTests
{
    [Theory]
    [InlineData(0, "3 2 1", 3, 0)]
    [InlineData(0, "3 2 2", 2, 1)]
    [InlineData(0, "3 2 4 2.5", 2, 2)]
    [InlineData(0, "3 4 5 2", 4, 0)]
    [InlineData(0.5, "3 2.6 2.2", 3, 2)]
    [InlineData(0.5, "3 2.75 2.25 2", 4, 3)]
    [InlineData(0.5, "3 2.75 2 2", 3, 1)]
    [InlineData(0, "NaN 3 NaN", 2, 1)]
    [InlineData(0, "NaN NaN", null, 2)]
    [InlineData(0, "Infinity 5", 2, 0)]
    public void Add_FindsTheBestAndCountsTheOthers(double threshold, string losses, int? best, int without)
    {
        var history = new EvaluationHistory(threshold, losses.Split(' ').Select((loss, index) => new EvaluationPoint(index + 1, double.Parse(loss, System.Globalization.CultureInfo.InvariantCulture))));

        Assert.Equal((best, without), (history.Best?.Step, history.WithoutImprovement));
    }

    /// <summary>42 rows in batches of 8 are 6 steps an epoch, and 2.4 epochs 15 steps.</summary>
    [Theory]
    [InlineData("4 8 12 15", "eval_steps", "4")]
    [InlineData("4 8 12 15", "eval_steps", "0.25")]
    [InlineData("15", "eval_steps", "100")]
    [InlineData("6 12 15", "eval_strategy", "epoch")]
    [InlineData("3 6 9 12 15", "evals_per_epoch", "2")]
    [InlineData("2 3 5 6 8 9 11 12 14 15", "evals_per_epoch", "4")]
    [InlineData("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", "evals_per_epoch", "100")]
    [InlineData("", "eval_strategy", "no")]
    public void Schedule_StepsOfARun(string steps, string key, string value)
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        using var run = new TinyTraining(folder.Path, (key, value));
        Assert.Equal(15, run.Trainer.TotalSteps);

        EvaluationSchedule schedule = EvaluationSchedule.From(run.Config.Evaluation, run.Data);

        Assert.Equal(steps, string.Join(' ', Enumerable.Range(0, 30).Where(schedule.IsDue)));
        Assert.Equal(steps.Split(' ', StringSplitOptions.RemoveEmptyEntries).Length, schedule.Count);
        Assert.Equal(schedule.Count == 0 ? 0 : 1, schedule.After(14));
    }

    [Theory]
    [InlineData("eval_steps: 5\nevals_per_epoch: 2", "evals_per_epoch", "both say when to evaluate. Keep one.")]
    [InlineData("eval_strategy: steps", "eval_strategy", "needs eval_steps or evals_per_epoch. Example: eval_steps: 50.")]
    [InlineData("eval_strategy: epoch\neval_steps: 5", "eval_steps", "is given, but eval_strategy is epoch (tiny.yaml:")]
    [InlineData("eval_strategy: no\nevals_per_epoch: 5", "evals_per_epoch", "is given, but eval_strategy is no (tiny.yaml:")]
    [InlineData("eval_steps: 2.5", "eval_steps", "eval_steps must be below 1 for a share of all steps, or a whole number of steps, got 2.5 (tiny.yaml:")]
    [InlineData("early_stopping_patience: 3", "early_stopping_patience", "needs evaluations during the training. Add, for example, evals_per_epoch: 4.")]
    [InlineData("load_best_model_at_end: true", "load_best_model_at_end", "needs evaluations during the training.")]
    [InlineData("early_stopping_patience: 0\nevals_per_epoch: 2", "early_stopping_patience", "early_stopping_patience must be 1 or more, got 0 (tiny.yaml:")]
    [InlineData("early_stopping_threshold: 0.1", "early_stopping_threshold", "means nothing without early_stopping_patience.")]
    [InlineData("metric_for_best_model: accuracy", "metric_for_best_model", "metric_for_best_model must be eval_loss, got accuracy (tiny.yaml:")]
    [InlineData("greater_is_better: true", "greater_is_better", "greater_is_better must be false, got true (tiny.yaml:")]
    public void Contradiction_IsToldInOneSentence(string lines, string key, string message)
    {
        ConfigurationIssue error = Assert.Single(ConfigurationLoader.LoadText(TinyRun.Config("") + lines + "\n", "tiny.yaml", []).Errors);
        Assert.Equal(key, error.Key);
        Assert.Contains(message, error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void HeldOutSet_IsNeededByWhatDependsOnIt()
    {
        string text = TinyRun.Config("", ("val_set_size", 0), ("evals_per_epoch", 4));
        ConfigurationResult watched = ConfigurationLoader.LoadText(text, "tiny.yaml", []), decided = ConfigurationLoader.LoadText(text + "early_stopping_patience: 2\n", "tiny.yaml", []);

        Assert.Contains("evals_per_epoch has no effect, because nothing is held out (tiny.yaml:", Assert.Single(watched.Warnings).Message, StringComparison.Ordinal);
        Assert.Empty(watched.Errors);
        Assert.EndsWith("needs a held-out set. Add val_set_size: 0.02 or test_datasets.", Assert.Single(decided.Errors).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void OtherTrainersSpellings_AreUnderstood()
    {
        ConfigurationResult result = ConfigurationLoader.LoadText(
            TinyRun.Config("", ("evaluation_strategy", "steps"), ("eval_steps", 0.1), ("early_stopping_steps", 3), ("load_best_model_at_end", "true"), ("metric_for_best_model", "eval_loss"), ("greater_is_better", "false")), "tiny.yaml", []);

        EvaluationOptions options = result.Require().Evaluation;
        Assert.Equal((EvaluationStrategy.Steps, 0.1, 3, true), (options.Strategy, options.Steps, options.EarlyStoppingPatience, options.LoadBest));
    }

    [Theory]
    [InlineData("", "eval_steps=7", ResumeEffect.Allowed)]
    [InlineData("early_stopping_patience: 2\n", "eval_steps=7", ResumeEffect.NeedsForce)]
    [InlineData("load_best_model_at_end: true\n", "eval_max_samples=2", ResumeEffect.NeedsForce)]
    [InlineData("", "early_stopping_patience=7", ResumeEffect.NeedsForce)]
    [InlineData("", "load_best_model_at_end=true", ResumeEffect.NeedsForce)]
    public void Resume_WithOtherEvaluations_NeedsForceWhereTheyDecide(string more, string change, ResumeEffect effect)
    {
        string text = TinyRun.Config("", ("eval_steps", 4)) + more;
        TrainingConfig before = ConfigurationLoader.LoadText(text, "tiny.yaml", []).Require(), after = ConfigurationLoader.LoadText(text, "tiny.yaml", [change]).Require();

        Assert.Equal(effect, TrainingConfig.CompareForResume(before, after)[0].Effect);
        Assert.Equal(effect == ResumeEffect.Allowed, before.Hash == after.Hash);
    }
}
