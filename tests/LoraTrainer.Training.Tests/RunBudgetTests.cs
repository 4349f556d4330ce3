using LoraTrainer.Costs;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Interruptions;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests;

public sealed class RunBudgetTests
{
    private static AttemptRecord Attempt(int epoch, double seconds, decimal? rate, string currency = "USD") => new()
    {
        RunId = "r", Epoch = epoch, Holder = new LeaseHolder("host", "boot", 1, 2), Started = DateTimeOffset.UnixEpoch, LastSeen = DateTimeOffset.UnixEpoch,
        Seconds = seconds, PhaseSeconds = new Dictionary<TrainingPhase, double> { [TrainingPhase.Training] = seconds }, Phase = TrainingPhase.Training, Rate = rate is { } amount ? new AttemptRate(amount, currency) : null,
    };

    /// <summary>Half an hour at 2, a quarter at a rate that nobody wrote down, which counts as today's, and one of now.</summary>
    [Fact]
    public void Spent_AddsAllAttemptsAtTheirOwnRates()
    {
        var budget = new RunBudget(new CostOptions { Budget = 100 }, new AttemptRate(4, "USD"), [Attempt(1, 1800, 2), Attempt(2, 900, null)]);

        Assert.Equal(1m + 1m + 4m, budget.Spent(3600));
        RunCost cost = budget.Cost(3600);
        Assert.Equal((6m, "USD", 1.75, 4m), (cost.Amount, cost.Currency, cost.GpuHours, cost.Rate));
        Assert.Null(new RunBudget(new CostOptions(), null, [Attempt(1, 1800, 2)]).Spent(1));
    }

    [Fact]
    public void Currencies_AreNeverAdded()
    {
        AttemptRecord[] earlier = [Attempt(1, 3600, 2, "EUR")];

        Assert.Null(new RunBudget(new CostOptions(), new AttemptRate(4, "USD"), earlier).Spent(3600));
        Assert.Contains("EUR", Assert.Throws<TrainingSetupException>(() => new RunBudget(new CostOptions { Budget = 10 }, new AttemptRate(4, "USD"), earlier)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void ReasonToStop_KeepsBackTheWayOut()
    {
        var budget = new RunBudget(new CostOptions { Budget = 100 }, new AttemptRate(3600, "USD"), []);

        // A second costs 1: step 2, commit 10 with half as much again, 5 for the end.
        Assert.Null(budget.ReasonToStop(78, 2, TimeSpan.FromSeconds(10)));
        Assert.Contains("The budget of 100 USD is reached", budget.ReasonToStop(78.1, 2, TimeSpan.FromSeconds(10)), StringComparison.Ordinal);
        Assert.Null(budget.Warning(79));
        Assert.NotNull(budget.Warning(80));
        Assert.Null(budget.Warning(81));
    }

    /// <summary>A provider that bills minutes, two of them at least, has been paid two for each start: the limit is one of money.</summary>
    [Fact]
    public void Spent_IsWhatIsBilled()
    {
        var rate = new AttemptRate(60, "USD") { Billing = new BillingTerms(60, 120) };
        var budget = new RunBudget(new CostOptions { Budget = 5.5m }, rate, [Attempt(1, 3, null) with { Rate = rate }]);

        Assert.Equal(2m + 2m, budget.Spent(1));
        Assert.Equal(2m + 3m, budget.Spent(121));
        Assert.Equal(2m + 4m, budget.Forecast(121, TimeSpan.FromSeconds(60)));
        Assert.Null(budget.ReasonToStop(121, 2, null));
        Assert.NotNull(budget.ReasonToStop(176, 2, null));
    }

    /// <summary>What a program wrote that knew nothing of machines and billing.</summary>
    [Fact]
    public void OldAttempt_IsRead()
    {
        string[] old = [.. System.Text.Encoding.UTF8.GetString(Attempt(1, 9, 2).ToJson()).Split('\n').Where(line => !line.Contains("price_", StringComparison.Ordinal) && !line.Contains("rate_per", StringComparison.Ordinal)
            && !line.Contains("billing_", StringComparison.Ordinal) && !line.Contains("\"gpu\"", StringComparison.Ordinal))];
        string text = System.Text.RegularExpressions.Regex.Replace(string.Join('\n', old), "\"machine\": \\{[^}]*\\},", "");
        Assert.DoesNotContain("machine", text, StringComparison.Ordinal);

        Assert.True(AttemptRecord.TryParse(System.Text.Encoding.UTF8.GetBytes(text), out AttemptRecord? attempt));
        Assert.Equal((new AttemptRate(2, "USD"), MachineIdentity.Unknown, ""), (attempt.Rate, attempt.Machine, attempt.Gpu));
    }

    [Theory]
    [InlineData(100, 500, null, 100)]
    [InlineData(100, 500, 50, 100)]
    [InlineData(100, 500, 300, 300)]
    [InlineData(100, 500, 700, 500)]
    public void FirstUnbilled_CountsEachSecondOfAMachineOnce(int boot, int process, int? until, int expected) => Assert.Equal(
        DateTimeOffset.FromUnixTimeSeconds(expected),
        BilledMachine.FirstUnbilled(DateTimeOffset.FromUnixTimeSeconds(boot), DateTimeOffset.FromUnixTimeSeconds(process), until is { } seconds ? DateTimeOffset.FromUnixTimeSeconds(seconds) : null));

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
        Assert.True(AttemptRecord.TryParse(System.Text.Encoding.UTF8.GetBytes(text), out AttemptRecord? attempt) && attempt.Seconds == 9 && attempt.Rate == new AttemptRate(2, "USD"));
        Assert.Contains(part, text, StringComparison.Ordinal);

        Assert.False(AttemptRecord.TryParse(System.Text.Encoding.UTF8.GetBytes(text.Replace(part, replacement, StringComparison.Ordinal)), out _));
    }
}
