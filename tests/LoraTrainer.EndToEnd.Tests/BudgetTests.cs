using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>Limits of money and hours stop a run in good order, whatever number of attempts it takes, and a higher one lets it go on as if nothing had happened.</summary>
public sealed class BudgetTests : IDisposable
{
    private readonly TinyFolder run = new(changes: ("evaluate_before", "false"));

    public void Dispose() => run.Dispose();

    [Theory]
    [InlineData("cost.budget", "5.9", "1000", "The budget of 5.9 USD is reached: ")]
    [InlineData("cost.max_hours", "0.00164", "1", "cost.max_hours is reached: ")]
    public async Task Limit_StopsAndAHigherOneGoesOn(string key, string limit, string higher, string sentence)
    {
        using var uninterrupted = new TinyFolder(changes: ("evaluate_before", "false"));
        Ending whole = await uninterrupted.RunAsync("train", "tiny.yaml");
        Assert.True(whole.ExitCode == 0, whole.ToString());

        // A dollar a second. Five seconds are kept back for the way out, so less than one is left for work.
        string[] rate = ["--set", "cost.rate=3600"];
        Ending stopped = await run.RunAsync(["train", "tiny.yaml", .. rate, "--set", $"{key}={limit}", "--set", "on_finish={command: echo over >> ended}"]);
        Ending again = await run.RunAsync("resume", "out");

        foreach (Ending ending in new[] { stopped, again })
        {
            Assert.True(ending.ExitCode == 3, ending.ToString());
            Assert.Contains(sentence, ending.Error, StringComparison.Ordinal);
        }

        Assert.Contains("over", File.ReadAllText(run.PathOf("ended")), StringComparison.Ordinal);
        Assert.False(File.Exists(run.PathOf("out/adapter_model.safetensors")));

        Ending end = await run.RunAsync("resume", "out", "--set", $"{key}={higher}");
        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Equal(uninterrupted.Result(), run.Result());
    }

    [Fact]
    public async Task Budget_WithoutARate_IsRefused()
    {
        Ending ending = await run.RunAsync("train", "tiny.yaml", "--set", "cost.budget=1");

        Assert.True(ending.ExitCode == 2, ending.ToString());
        Assert.Contains("cost.budget is given, and neither does cost.rate say what an hour costs", ending.Error, StringComparison.Ordinal);
        Assert.False(Directory.Exists(run.Out));
    }
}
