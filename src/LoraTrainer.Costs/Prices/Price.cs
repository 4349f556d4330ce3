namespace LoraTrainer.Costs.Prices;

/// <summary>How a machine is paid for.</summary>
public enum PricingModel
{
    OnDemand,

    /// <summary>Cheaper, and can be taken back at any moment.</summary>
    Spot,

    Reserved,

    /// <summary>One's own: what it costs is amortisation and power.</summary>
    Owned,
}

/// <summary>What a price is for.</summary>
public enum PriceUnit
{
    /// <summary>One GPU for an hour.</summary>
    Gpu,

    /// <summary>The whole machine for an hour.</summary>
    Instance,
}

/// <summary>One price of one provider, as it was read on a day.</summary>
public sealed record Price
{
    public required string Provider { get; init; }

    /// <summary>The provider's name of the machine; empty where it sells single GPUs.</summary>
    public string InstanceType { get; init; } = string.Empty;

    public required string Gpu { get; init; }

    /// <summary>GPUs of the machine.</summary>
    public required int GpuCount { get; init; }

    /// <summary>Empty: anywhere.</summary>
    public string Region { get; init; } = string.Empty;

    public required PricingModel Pricing { get; init; }

    /// <summary>For an hour of <see cref="Per"/>.</summary>
    public required Money Amount { get; init; }

    public required PriceUnit Per { get; init; }

    /// <summary>By the second where the provider's terms are not known.</summary>
    public BillingTerms Billing { get; init; } = BillingTerms.PerSecond;

    public required string Source { get; init; }

    public required DateOnly AsOf { get; init; }

    /// <summary>Where the row stands: "prices.csv, line 7".</summary>
    public required string Place { get; init; }

    /// <summary>For one GPU and hour: what prices of machines with different numbers of GPUs are compared by.</summary>
    public Money PerGpuHour => Per == PriceUnit.Gpu ? Amount : Amount with { Amount = Amount.Amount / GpuCount };

    /// <summary>For the machine with all its GPUs and hour.</summary>
    public Money PerInstanceHour => Per == PriceUnit.Instance ? Amount : Amount * GpuCount;

    /// <summary>Days from when it was read to <paramref name="today"/>.</summary>
    public int AgeInDays(DateOnly today) => today.DayNumber - AsOf.DayNumber;
}
