using Xunit;

namespace LoraTrainer.Costs.Tests;

/// <summary>Costs that others published, computed where the inputs are published too; where they are not, the test says what was solved back from the result.</summary>
public sealed class PublishedFiguresTests
{
    /// <summary>FinLoRA: four A5000 at $0.26 an hour. One row of its table is three cents above its own arithmetic.</summary>
    [Theory]
    [InlineData("14.9", "15.496", "15.50", true)]
    [InlineData("14.1", "14.664", "14.66", true)]
    [InlineData("15.9", "16.536", "16.54", true)]
    [InlineData("14.5", "15.080", "15.11", false)]
    public void FinLora_HoursTimesRate(string hours, string computed, string published, bool agrees)
    {
        Money cost = new Money(0.26m, "USD") * 4 * Decimal(hours);

        Assert.Equal(Decimal(computed), cost.Amount);
        Assert.Equal(agrees, Math.Round(cost.Amount, 2) == Decimal(published));
    }

    /// <summary>What the same table says of itself: "10x" and "20x" agree, the flat rate of $1.05 an hour does not give its costs, and 59.6 GPU-hours for 104 million tokens are 485 tokens a second.</summary>
    [Fact]
    public void FinLora_RatiosAgree_AndTheFlatRateDoesNot()
    {
        Assert.Equal(10.45m, Math.Round(162.02m / 15.50m, 2));
        Assert.Equal(20.13m, Math.Round(312.00m / 15.50m, 2));
        Assert.Equal(15.65m, Math.Round(1.05m * 14.9m, 2, MidpointRounding.AwayFromZero));
        Assert.NotEqual(15.50m, Math.Round(1.05m * 14.9m, 2));
        Assert.Equal(485m, Math.Round(104_000_000m / (4 * 14.9m * 3600)));

        // The row that is off implies 14.529 hours.
        Assert.Equal(14.529m, Math.Round(15.11m / 4 / 0.26m, 3));
    }

    /// <summary>GPT-4o-mini at $3 a million training tokens. The token count is solved back from the published $312: only the price and the 4 epochs are stated.</summary>
    [Fact]
    public void Gpt4oMini_TokensAreSolvedBackFromThePrice()
    {
        decimal millions = 312.00m / 3.00m;

        Assert.Equal(104m, millions);
        Assert.Equal(26m, millions / 4);
    }

    /// <summary>BloombergGPT: 53 days on 512 GPUs for $2.7 million; the "99.5 %" that FinLoRA claims to save would be 99.9994 %.</summary>
    [Fact]
    public void BloombergGpt_HoursAndSaving()
    {
        const decimal hours = 53m * 24 * 512;

        Assert.Equal(651_264m, hours);
        Assert.Equal(4.146m, Math.Round(2_700_000m / hours, 3));
        Assert.Equal(99.9994m, Math.Round(100 * (1 - 15.50m / 2_700_000m), 4));
    }

    /// <summary>LLaMA-2 7B trained whole in fp32 with Adam: 16 bytes a parameter, ten hours at $32.</summary>
    [Fact]
    public void Llama2SevenB_FullFineTuning()
    {
        Assert.Equal(112m, 7m * 16);
        Assert.Equal(new Money(320, "USD"), new Money(32, "USD") * 10);
    }

    /// <summary>The worked example: 104 million tokens for $15.496.</summary>
    [Fact]
    public void CostPerMillionTokens() => Assert.Equal(0.149m, Math.Round(15.496m / 104, 3));

    private static decimal Decimal(string text) => decimal.Parse(text, System.Globalization.CultureInfo.InvariantCulture);
}
