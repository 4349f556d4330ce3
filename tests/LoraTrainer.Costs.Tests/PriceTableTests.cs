using LoraTrainer.Costs.Prices;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Costs.Tests;

public sealed class PriceTableTests
{
    private const string Header = "provider,instance_type,gpu,gpu_count,region,pricing,price,currency,per,granularity_seconds,minimum_seconds,source,as_of";
    private const string Row = "aws,p5.48xlarge,H100-SXM,8,us-east-1,on_demand,55.04,USD,instance,1,60,a catalog,2025-07-01";

    [Fact]
    public void Shipped_AllHaveSourceAndDate()
    {
        IReadOnlyList<Price> prices = PriceTable.Load(null).Prices;

        Assert.True(prices.Count > 50);
        Assert.All(prices, price => Assert.True(price.Source.Length > 3 && price.AsOf > new DateOnly(2024, 1, 1) && price.Amount.Amount > 0, price.Place));
        Price machine = Assert.Single(prices, price => price.InstanceType == "p5.48xlarge" && price.Pricing == PricingModel.OnDemand);
        Assert.Equal(new Money(6.88m, "USD"), machine.PerGpuHour);
        Assert.Equal(new Money(55.04m, "USD"), machine.PerInstanceHour);
    }

    [Fact]
    public void UserFile_ReplacesTheSameRowAndAddsOthers()
    {
        using var folder = new TemporaryFolder();
        string file = folder.File("prices.csv");
        File.WriteAllText(file, $"# mine\r\n{Header}\r\n{Row.Replace("55.04", "50", StringComparison.Ordinal)}\r\n\r\nbasement,,RTX 4090,2,,owned,0.11,EUR,gpu,,,\"power, and a third of the card\",2026-11-01\r\n");

        PriceTable table = PriceTable.Load(file);

        Assert.Equal(PriceTable.Load(null).Prices.Count + 1, table.Prices.Count);
        Assert.Equal(50, Assert.Single(table.Prices, price => price.InstanceType == "p5.48xlarge" && price.Pricing == PricingModel.OnDemand).Amount.Amount);
        Price own = table.Prices[1];
        Assert.Equal(("power, and a third of the card", new Money(0.22m, "EUR"), 25), (own.Source, own.PerInstanceHour, own.AgeInDays(new DateOnly(2026, 11, 26))));
    }

    [Theory]
    [InlineData("55.04", "-1", "mine.csv, line 2, price: got '-1', expected a number from 0 to 100000.")]
    [InlineData("55.04", "a lot", "mine.csv, line 2, price: got 'a lot', expected a number from 0 to 100000.")]
    [InlineData("55.04", "1e3", "mine.csv, line 2, price: got '1e3', expected a number from 0 to 100000.")]
    [InlineData("55.04", "1000000", "mine.csv, line 2, price: got '1000000', expected a number from 0 to 100000.")]
    [InlineData("USD", "$", "mine.csv, line 2, currency: got '$', expected three capital letters such as USD.")]
    [InlineData(",instance,", ",machine,", "mine.csv, line 2, per: got 'machine', expected one of gpu, instance.")]
    [InlineData("on_demand", "cheap", "mine.csv, line 2, pricing: got 'cheap', expected one of on_demand, spot, reserved, owned.")]
    [InlineData(",8,", ",0,", "mine.csv, line 2, gpu_count: got '0', expected a whole number from 1 to 1024.")]
    [InlineData(",8,", ",1.5,", "mine.csv, line 2, gpu_count: got '1.5', expected a whole number from 1 to 1024.")]
    [InlineData("2025-07-01", "July", "mine.csv, line 2, as_of: got 'July', expected a day such as 2026-05-07.")]
    [InlineData("a catalog", "", "mine.csv, line 2, source: got '', expected a text.")]
    [InlineData("a catalog", "a, catalog", "mine.csv, line 2: 14 fields, expected 13 as in the header. A comma within a field needs the field in double quotes.")]
    [InlineData("a catalog", "\"a catalog", "mine.csv, line 2: a field starts with a double quote that is never closed.")]
    [InlineData("a catalog", "\"a\" catalog", "mine.csv, line 2: ' ' after the closing quote of a field; expected a comma or the end of the line.")]
    [InlineData("minimum_seconds", "minimum", "mine.csv, line 1: the header names 'minimum', which is no column.")]
    [InlineData(",as_of", "", "mine.csv, line 1: the header lacks as_of.")]
    public void BrokenFile_SaysLineAndField(string part, string replacement, string message)
    {
        string text = $"{Header}\n{Row}\n";
        Assert.Contains(part, text, StringComparison.Ordinal);

        string got = Assert.Throws<CsvFormatException>(() => PriceTable.Parse("mine.csv", text.Replace(part, replacement, StringComparison.Ordinal))).Message;

        Assert.StartsWith(message, got, StringComparison.Ordinal);
    }

    [Fact]
    public void SameRowTwice_IsRefused() => Assert.Contains("as line 2", Assert.Throws<CsvFormatException>(() => PriceTable.Parse("mine.csv", $"{Header}\n{Row}\n{Row}\n")).Message, StringComparison.Ordinal);

    [Fact]
    public void EmptyFile_IsRefused() => Assert.Contains("no header", Assert.Throws<CsvFormatException>(() => PriceTable.Parse("mine.csv", "# nothing\n")).Message, StringComparison.Ordinal);
}
