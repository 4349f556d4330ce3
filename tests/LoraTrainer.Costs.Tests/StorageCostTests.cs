using Xunit;

namespace LoraTrainer.Costs.Tests;

public sealed class StorageCostTests
{
    [Fact]
    public void Kept_IsGigabytesTimesPriceTimesMonths()
    {
        Assert.Equal(new Money(0.552m, "USD"), StorageCost.Kept(12, 2 * StorageCost.HoursPerMonth, new Money(0.023m, "USD")));
        Assert.Equal(new Money(0.000756164383561644m, "EUR"), StorageCost.Kept(1, 24, new Money(0.023m, "EUR")));
        Assert.Equal(Money.Zero("USD"), StorageCost.Kept(5, 0, new Money(1, "USD")));
    }

    [Fact]
    public void Moved_IsGigabytesTimesPrice() => Assert.Equal(new Money(3.6m, "USD"), StorageCost.Moved(40, new Money(0.09m, "USD")));

    [Fact]
    public void Negative_IsRefused()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => StorageCost.Kept(-1, 1, new Money(1, "USD")));
        Assert.Throws<ArgumentOutOfRangeException>(() => StorageCost.Kept(1, -1, new Money(1, "USD")));
        Assert.Throws<ArgumentOutOfRangeException>(() => StorageCost.Moved(1, new Money(-1, "USD")));
    }
}
