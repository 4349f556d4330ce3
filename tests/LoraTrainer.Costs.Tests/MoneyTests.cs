using Xunit;

namespace LoraTrainer.Costs.Tests;

public sealed class MoneyTests
{
    /// <summary>However a sum is cut into parts, the parts make the whole: no digit is lost, in any order.</summary>
    [Fact]
    public void Sums_OfAnyParts_EqualTheWhole()
    {
        var random = new Random(1);
        for (int round = 0; round < 500; round++)
        {
            Money[] parts = [.. Enumerable.Range(0, random.Next(1, 200)).Select(_ => new Money(random.Next(-1_000_000, 1_000_000) / 1_000_000m, "USD"))];
            Money whole = parts.Aggregate(Money.Zero("USD"), (sum, part) => sum + part);
            random.Shuffle(parts);

            Assert.Equal(whole, parts.Aggregate(Money.Zero("USD"), (sum, part) => sum + part));
            Assert.Equal(whole, Assert.Single(Money.Totals(parts.Append(Money.Zero("USD")))));
            Assert.Equal(Money.Zero("USD"), parts.Aggregate(whole, (sum, part) => sum - part));
        }
    }

    [Fact]
    public void TwoCurrencies_AreNeverAdded()
    {
        Money dollars = new(1, "USD"), euros = new(2, "EUR");

        Assert.Contains("USD and EUR", Assert.Throws<InvalidOperationException>(() => dollars + euros).Message, StringComparison.Ordinal);
        Assert.Throws<InvalidOperationException>(() => dollars - euros);
        Assert.Throws<InvalidOperationException>(() => dollars < euros);
        Assert.Equal([new Money(2, "EUR"), new Money(3, "USD")], Money.Totals([dollars, euros, dollars * 2]));
    }

    [Theory]
    [InlineData("0", "0.00 USD")]
    [InlineData("15.496", "15.50 USD")]
    [InlineData("0.125", "0.12 USD")]
    [InlineData("0.000149", "0.0001 USD")]
    [InlineData("-3", "-3.00 USD")]
    [InlineData("1234567.5", "1,234,567.50 USD")]
    public void ToString_IsForPeople(string amount, string text) => Assert.Equal(text, new Money(decimal.Parse(amount, System.Globalization.CultureInfo.InvariantCulture), "USD").ToString());

    [Theory]
    [InlineData("0", 1, 60, "60")]
    [InlineData("59.2", 1, 60, "60")]
    [InlineData("60.2", 1, 60, "61")]
    [InlineData("3600", 3600, 0, "3600")]
    [InlineData("3600.001", 3600, 0, "7200")]
    [InlineData("0.4", 1, 0, "1")]
    [InlineData("0", 1, 0, "0")]
    public void BilledSeconds_AreBegunUnitsAndAMinimum(string seconds, int granularity, int minimum, string billed) => Assert.Equal(
        decimal.Parse(billed, System.Globalization.CultureInfo.InvariantCulture),
        new BillingTerms(granularity, minimum).BilledSeconds(decimal.Parse(seconds, System.Globalization.CultureInfo.InvariantCulture)));

    [Fact]
    public void BilledSeconds_OfANegativeTime_AreRefused() => Assert.Throws<ArgumentOutOfRangeException>(() => BillingTerms.PerSecond.BilledSeconds(-1));
}
