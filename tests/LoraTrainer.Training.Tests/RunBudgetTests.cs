using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests;

public sealed class RunBudgetTests
{
    private static AttemptRecord Attempt(int epoch, double seconds, decimal? rate, string currency = "USD") => new()
    {
        RunId = "r", Epoch = epoch, Holder = new LeaseHolder("host", "boot", 1, 2), Started = DateTimeOffset.UnixEpoch, LastSeen = DateTimeOffset.UnixEpoch,
        Seconds = seconds, PhaseSeconds = new Dictionary<TrainingPhase, double> { [TrainingPhase.Training] = seconds }, Phase = TrainingPhase.Training, Rate = rate, Currency = currency,
    };

    /// <summary>Half an hour at 2, a quarter at a rate that nobody wrote down, which counts as today's, and one of now.</summary>
    [Fact]
    public void Spent_AddsAllAttemptsAtTheirOwnRates()
    {
        var budget = new RunBudget(new CostOptions { Rate = 4, Budget = 100 }, [Attempt(1, 1800, 2), Attempt(2, 900, null)]);

        Assert.Equal(1m + 1m + 4m, budget.Spent(3600));
        RunCost cost = budget.Cost(3600);
        Assert.Equal((6m, "USD", 1.75, 4m), (cost.Amount, cost.Currency, cost.GpuHours, cost.Rate));
        Assert.Null(new RunBudget(new CostOptions(), [Attempt(1, 1800, 2)]).Spent(1));
    }

    [Fact]
    public void Currencies_AreNeverAdded()
    {
        AttemptRecord[] earlier = [Attempt(1, 3600, 2, "EUR")];

        Assert.Null(new RunBudget(new CostOptions { Rate = 4 }, earlier).Spent(3600));
        Assert.Contains("EUR", Assert.Throws<TrainingSetupException>(() => new RunBudget(new CostOptions { Rate = 4, Budget = 10 }, earlier)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void ReasonToStop_KeepsBackTheWayOut()
    {
        var budget = new RunBudget(new CostOptions { Rate = 3600, Budget = 100 }, []);

        // A second costs 1: step 2, commit 10 with half as much again, 5 for the end.
        Assert.Null(budget.ReasonToStop(78, 2, TimeSpan.FromSeconds(10)));
        Assert.Contains("The budget of 100 USD is reached", budget.ReasonToStop(78.1, 2, TimeSpan.FromSeconds(10)), StringComparison.Ordinal);
        Assert.Null(budget.Warning(79));
        Assert.NotNull(budget.Warning(80));
        Assert.Null(budget.Warning(81));
    }

    [Theory]
    [InlineData("\"seconds\": 9", "\"seconds\": -9")]
    [InlineData("\"seconds\": 9", "\"seconds\": 1e300")]
    [InlineData("\"tokens\": 0", "\"tokens\": -1")]
    [InlineData("\"step\": 0", "\"step\": -1")]
    [InlineData("\"saved_step\": null", "\"saved_step\": -5")]
    [InlineData("\"training\": 9", "\"training\": -9")]
    [InlineData("\"rate\": \"2\"", "\"rate\": \"-2\"")]
    [InlineData("\"run_id\": \"r\"", "\"run_id\": \"\"")]
    [InlineData("\"epoch\": 1", "\"epoch\": 2000000000")]
    [InlineData("\"host\": \"host\"", "\"host\": null")]
    [InlineData("\"currency\": \"USD\"", "\"currency\": null")]
    public void HostileAttempt_IsNone(string part, string replacement)
    {
        string text = System.Text.Encoding.UTF8.GetString(Attempt(1, 9, 2).ToJson());
        Assert.True(AttemptRecord.TryParse(System.Text.Encoding.UTF8.GetBytes(text), out AttemptRecord? attempt) && attempt.Seconds == 9 && attempt.Rate == 2);
        Assert.Contains(part, text, StringComparison.Ordinal);

        Assert.False(AttemptRecord.TryParse(System.Text.Encoding.UTF8.GetBytes(text.Replace(part, replacement, StringComparison.Ordinal)), out _));
    }
}
