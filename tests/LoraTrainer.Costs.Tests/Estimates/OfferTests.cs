using LoraTrainer.Costs.Estimates;
using LoraTrainer.Costs.Prices;
using Xunit;

namespace LoraTrainer.Costs.Tests.Estimates;

public sealed class OfferTests
{
    private static readonly Gpu Card = new() { Name = "X80", MemoryGigabytes = 80, GigabytesPerSecond = 2000, Bf16Teraflops = 300, Source = "a test", AsOf = new DateOnly(2026, 11, 1) };

    [Fact]
    public void Cost_IsTheWholeMachinesBilledTime()
    {
        Offer offer = Make("a", 2.00m, hours: 1.5, gpus: 8, per: PriceUnit.Gpu);

        Assert.Equal(new Money(24, "USD"), offer.Cost);
        Assert.Equal(1.5, offer.Hours!.Value, 9);
        Assert.Equal(new Money(16m, "USD"), Make("a", 2m, hours: 1, gpus: 8).Cost);
        Assert.Equal(new Money(2m, "USD"), Make("a", 2m, hours: 1, gpus: 8, per: PriceUnit.Instance).Cost);

        // Begun hours whole, where a provider bills so.
        Offer hourly = Make("a", 1, hours: 1.01, billing: new BillingTerms(3600, 0));
        Assert.Equal(2, hourly.Cost!.Value.Amount);
    }

    /// <summary>M = 5 h, saves and lost work 2 %, 360 s for each new machine: 2 % + 0.1 h / 5 h = 4 % more time.</summary>
    [Fact]
    public void Spot_CostsItsInterruptions()
    {
        var spot = new SpotTerms(0.02, 5, 360);
        Offer offer = Make("a", 1, hours: 10) with { Spot = spot };

        Assert.Equal(0.04, spot.Overhead, 12);
        Assert.Equal(10.4, offer.Hours!.Value, 9);
        Assert.Equal(10.4m, offer.Cost!.Value.Amount, 6);
        Assert.Equal(2.08, spot.Interruptions(10), 9);
    }

    [Fact]
    public void Apply_PutsTheCheapestFirst_ThenWhatFitsOtherwise_ThenWhatDoesNot()
    {
        Offer dear = Make("dear", 5, hours: 1), cheap = Make("cheap", 1, hours: 2), untimed = Make("untimed", 0.5m, hours: null);
        Offer changed = Make("changed", 0.1m, hours: null) with { Fits = false, FitsWith = ["load_in_4bit: true"] }, never = Make("never", 0.01m, hours: null) with { Fits = false };

        Assert.Equal([cheap, dear, untimed, changed, never], new OfferFilter().Apply([never, changed, untimed, dear, cheap]));
        Assert.Equal([dear, cheap, untimed, changed, never], new OfferFilter { FastestFirst = true }.Apply([never, changed, untimed, dear, cheap]));
    }

    /// <summary>Amounts of two currencies are not compared: a hundred rupees are not more than ten dollars.</summary>
    [Fact]
    public void Apply_KeepsCurrenciesApart()
    {
        Offer[] offers = [Make("usd2", 2, hours: 1), Make("eur9", 9, hours: 1, currency: "EUR"), Make("usd1", 1, hours: 1), Make("eur3", 3, hours: 1, currency: "EUR")];

        Assert.Equal(["eur3", "eur9", "usd1", "usd2"], new OfferFilter().Apply(offers).Select(offer => offer.Price.Provider));
        Assert.Equal(["usd1"], new OfferFilter { Budget = new Money(1.5m, "USD") }.Apply(offers).Select(offer => offer.Price.Provider));
        Assert.Equal(["eur3"], new OfferFilter { Budget = new Money(5, "EUR") }.Apply(offers).Select(offer => offer.Price.Provider));
    }

    [Fact]
    public void Apply_TakesWhatIsWithinTheLimits()
    {
        Offer[] offers = [Make("a", 1, hours: 8), Make("b", 10, hours: 1), Make("c", 1, hours: null)];

        Assert.Equal(["b"], new OfferFilter { MaxHours = 2 }.Apply(offers).Select(offer => offer.Price.Provider));
        Assert.Equal(["a"], new OfferFilter { Budget = new Money(8, "USD") }.Apply(offers).Select(offer => offer.Price.Provider));
        Assert.Equal(["c"], new OfferFilter { Provider = "C" }.Apply(offers).Select(offer => offer.Price.Provider));
        Assert.Equal(3, new OfferFilter { Gpu = "x8" }.Apply(offers).Count);
        Assert.Empty(new OfferFilter { Gpu = "H100" }.Apply(offers));
    }

    [Fact]
    public void Gpus_ShippedAndPriced_HaveSourcesAndNoInventedRate()
    {
        GpuTable table = GpuTable.Load(null);

        Assert.All(table.Gpus, gpu => Assert.True(gpu.Source.Length > 5, gpu.Name));
        string[] missing = [.. PriceTable.Load(null).Prices.Select(price => price.Gpu).Distinct().Where(name => table.Named(name) is null)];
        Assert.Empty(missing);
        Assert.Equal(["A5000", "H100-NVL", "RTX 5090", "RTX 6000 Ada"], table.Gpus.Where(gpu => gpu.Bf16Teraflops is null || gpu.GigabytesPerSecond is null).Select(gpu => gpu.Name).Order());
        Assert.Equal("H200", table.OfDriver("NVIDIA H200")!.Name);
        Assert.Null(table.OfDriver("NVIDIA H2000"));
    }

    /// <summary>24 GB cards show at least 23.5 GiB, those of 80 GB at least 79 GiB before the driver takes its part.</summary>
    [Theory]
    [InlineData("RTX 4090", 22.6, 22.8)]
    [InlineData("H100-SXM", 77.4, 77.6)]
    [InlineData("H200", 137.1, 137.4)]
    public void UsableBytes_AreLessThanWhatIsSold(string name, double least, double most) =>
        Assert.InRange(GpuTable.Load(null).Named(name)!.UsableBytes / (double)(1L << 30), least, most);

    [Fact]
    public void GpusOfTheUser_ReplaceTheShippedOnes()
    {
        using var folder = new TestSupport.TemporaryFolder();
        File.WriteAllText(folder.File("mine.csv"), "gpu,memory_gb,memory_gb_per_s,bf16_tflops,source,as_of\nRTX 5090,32,1792,200,measured here,2026-11-26\nMine,12,,,a box,2026-11-26\n");
        GpuTable table = GpuTable.Load(folder.File("mine.csv"));

        Assert.Equal(200, table.Named("RTX 5090")!.Bf16Teraflops);
        Assert.Null(table.Named("mine")!.Bf16Teraflops);
        Assert.NotNull(table.Named("H100-SXM"));
    }

    [Theory]
    [InlineData("X,0,1,1,s,2026-01-01", "mine.csv, line 2, memory_gb: got '0', expected a number from 1 to 100000.")]
    [InlineData("X,8,fast,1,s,2026-01-01", "mine.csv, line 2, memory_gb_per_s: got 'fast', expected a number from 1 to 10000000.")]
    [InlineData("X,8,1,1,,2026-01-01", "mine.csv, line 2, source: got '', expected a text.")]
    [InlineData("X,8,1,1,s,2026-01-01\nX,9,1,1,s,2026-01-01", "mine.csv, line 3: the same GPU as line 2. Remove one of them.")]
    public void GpusOfTheUser_ThatAreWrong_AreNamedByLine(string row, string expected) =>
        Assert.Equal(expected, Assert.Throws<CsvFormatException>(() => GpuTable.Parse("mine.csv", $"gpu,memory_gb,memory_gb_per_s,bf16_tflops,source,as_of\n{row}\n")).Message);

    /// <summary>GPT-4o-mini: 104 million training tokens (solved back from the published $312) at $3 a million.</summary>
    [Fact]
    public void Services_CostByTokens()
    {
        TuningService mini = Assert.Single(TuningService.Shipped, service => service.Model == "GPT-4o-mini");

        Assert.Equal(new Money(312, "USD"), mini.Cost(104_000_000));
        Assert.All(TuningService.Shipped, service => Assert.True(service.Source.Length > 3 && service.AsOf.Year >= 2026));
    }

    private static Offer Make(string provider, decimal price, double? hours, int gpus = 1, PriceUnit per = PriceUnit.Gpu, string currency = "USD", BillingTerms? billing = null) => new()
    {
        Price = new Price
        {
            Provider = provider,
            Gpu = "X80",
            GpuCount = gpus,
            Pricing = PricingModel.OnDemand,
            Amount = new Money(price, currency),
            Per = per,
            Billing = billing ?? BillingTerms.PerSecond,
            Source = "a test",
            AsOf = new DateOnly(2026, 11, 1),
            Place = "a test",
        },
        Gpu = Card,
        Fits = true,
        MicroBatchSize = 4,
        TokensPerSecond = hours is null ? null : 1000,
        Time = hours is { } value ? new RunTime(0, 0, 0, value * 3600, 0.35) : null,
    };
}
